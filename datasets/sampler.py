"""The sampler: which rows make batch number `step`, as index arithmetic without state."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from gtp_vision.datasets.random import counter_rng
from gtp_vision.datasets.store import Store

_SAMPLER_SALT = 0x5A  # keeps the row draws apart from the noise draws of the same (seed, step)


@dataclass
class Batch:
    """One batch, in which each distinct frame stands once.

    Attributes:
        frames: observation name to (U, ...): the distinct frames; images uint8 (U, H, W, C), states (U, D).
        window: int64 (B, T), which frames make each observation, oldest first.
        next_window: int64 (B, T), the same for the observation n steps later.
        action: float32 (B, A).
        reward: float32 (B,), the n-step return sum_k gamma^k r_k up to the terminal or the episode's end.
        discount: float32 (B,), gamma^n times mask: what the next value counts; 0 after a terminal.
        rows: int64 (B,), the store's rows, for messages and tests.
    """

    frames: dict[str, torch.Tensor]
    window: torch.Tensor
    next_window: torch.Tensor
    action: torch.Tensor
    reward: torch.Tensor
    discount: torch.Tensor
    rows: torch.Tensor

    def __len__(self) -> int:
        return int(self.action.shape[0])

    def observation(self) -> dict[str, torch.Tensor]:
        """Name to (B, T, ...): images uint8 (B, T, C, H, W), states float32 (B, T, D)."""
        return self._stack(self.window)

    def next_observation(self) -> dict[str, torch.Tensor]:
        """The observation n steps later, shaped like `observation`."""
        return self._stack(self.next_window)

    def _stack(self, window: torch.Tensor) -> dict[str, torch.Tensor]:
        return {
            name: channels_first(frames[window]) if frames.ndim == 4 else frames[window]
            for name, frames in self.frames.items()
        }

    def to(self, device: torch.device | str) -> Batch:
        """The batch on a device; pinned memory is copied without blocking."""
        move = lambda x: x.to(device, non_blocking=True)  # noqa: E731
        return Batch(
            frames={name: move(frames) for name, frames in self.frames.items()},
            window=move(self.window),
            next_window=move(self.next_window),
            action=move(self.action),
            reward=move(self.reward),
            discount=move(self.discount),
            rows=move(self.rows),
        )


def channels_first(images: torch.Tensor) -> torch.Tensor:
    """(B, T, H, W, C) to (B, T, C, H, W), as a view."""
    return images.permute(0, 1, 4, 2, 3)


@dataclass(frozen=True)
class Sampler:
    """Draws batches of transitions uniformly, with frame stacks and n-step returns.

    A window repeats its episode's first frame instead of reaching into the episode before; an n-step return is
    cut at a terminal and at the episode's end.

    Args:
        store: where the rows are.
        batch_size: rows of the global batch, over all processes.
        seed: seed of the run.
        frame_stack: T, frames per observation.
        n_step: steps of the return before it bootstraps.
        discount: gamma per step.
        reward_scale: factor on rewards (critics of sparse tasks learn faster with values of order 1).
        reward_shift: added to rewards before scaling, e.g. -0.5 with scale 4 for AntMaze's (r - 0.5) * 4.
    """

    store: Store
    batch_size: int
    seed: int
    frame_stack: int = 1
    n_step: int = 1
    discount: float = 0.99
    reward_scale: float = 1.0
    reward_shift: float = 0.0

    def rows(self, step: int, rank: int = 0, world_size: int = 1) -> np.ndarray:
        """int64 (B / world_size,), this process's rows of batch `step`: a function of (seed, step) alone."""
        if self.batch_size % world_size:
            raise ValueError(
                f"a batch of {self.batch_size} cannot be divided over {world_size} processes; "
                f"set training.batch_size to a multiple of {world_size}"
            )
        transitions = self.store.transitions
        draw = counter_rng(self.seed, step, _SAMPLER_SALT).integers(0, len(transitions), self.batch_size)
        local = self.batch_size // world_size
        return transitions[draw[rank * local : (rank + 1) * local]]

    def windows(self, rows: np.ndarray) -> np.ndarray:
        """int64 (B, T), the frames that make the observation of each row, never before the episode's start."""
        starts = self.store.episode_starts[self.store.episode_of(rows)]
        past = np.arange(self.frame_stack - 1, -1, -1)
        return np.maximum(rows[:, None] - past, starts[:, None])

    def returns(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The n-step return, what the next value counts (gamma^k mask), and the row of that next value.

        Returns:
            float32 (B,), float32 (B,), int64 (B,).
        """
        store = self.store
        total = np.zeros(len(rows), dtype=np.float64)
        count = np.ones(len(rows), dtype=np.float64)
        here = rows.copy()
        alive = np.ones(len(rows), dtype=bool)
        for _ in range(self.n_step):
            reward = (np.asarray(store.rewards[here], dtype=np.float64) + self.reward_shift) * self.reward_scale
            total += np.where(alive, count * reward, 0.0)
            ended = alive & np.asarray(store.terminals[here], dtype=bool)
            count = np.where(alive, count * self.discount, count)
            count[ended] = 0.0
            alive &= ~ended
            here = np.where(alive, here + 1, here)
            # The last row of a recording that timed out has no outcome: bootstrap from it instead of using it.
            alive &= store.has_outcome[here]
        return total.astype(np.float32), count.astype(np.float32), here

    def batch(self, step: int, rank: int = 0, world_size: int = 1) -> Batch:
        """Batch number `step`, this process's part, on the CPU."""
        return self.gather(self.rows(step, rank, world_size))

    def gather(self, rows: np.ndarray) -> Batch:
        """The batch that consists of the given rows."""
        reward, discount, next_rows = self.returns(rows)
        both = np.concatenate([self.windows(rows), self.windows(next_rows)])
        distinct, position = np.unique(both, return_inverse=True)
        window = torch.from_numpy(position.reshape(both.shape))
        return Batch(
            frames={
                name: torch.from_numpy(_as_tensor_type(array[distinct]))
                for name, array in self.store.observations.items()
            },
            window=window[: len(rows)],
            next_window=window[len(rows) :],
            action=torch.from_numpy(np.asarray(self.store.actions[rows], dtype=np.float32)),
            reward=torch.from_numpy(reward),
            discount=torch.from_numpy(discount),
            rows=torch.from_numpy(rows),
        )


def _as_tensor_type(frames: np.ndarray) -> np.ndarray:
    """Images as they are, states as float32, whatever float the file holds."""
    return np.ascontiguousarray(frames, frames.dtype if frames.dtype == np.uint8 else np.float32)
