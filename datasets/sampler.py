"""The sampler: which rows make batch number `step`, as index arithmetic without state."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import torch

from gtp_vision.core.names import GOAL
from gtp_vision.core.random import counter_rng
from gtp_vision.datasets import indices
from gtp_vision.datasets.arrays import gather
from gtp_vision.datasets.goals import HindsightGoals
from gtp_vision.datasets.placement import take_rows
from gtp_vision.datasets.store import Store

_SAMPLER_SALT = 0x5A  # keeps the row draws apart from the noise draws of the same (seed, step)
_GOAL_SALT = 0x60


@dataclass(frozen=True)
class Transitions:
    """A batch as a training step sees it: stacked observations, all of fixed shapes.

    Attributes:
        now: observation name to (B, T, ...): images uint8 (B, T, C, H, W), states float32 (B, T, D).
        then: the same n steps later.
        actions: float32 (B, H, A), see `Batch`.
        action_mask: bool (B, H), see `Batch`.
        reward: float32 (B,), see `Batch`.
        discount: float32 (B,), see `Batch`.
    """

    now: dict[str, torch.Tensor]
    then: dict[str, torch.Tensor]
    actions: torch.Tensor
    action_mask: torch.Tensor
    reward: torch.Tensor
    discount: torch.Tensor

    def __len__(self) -> int:
        return int(self.actions.shape[0])

    def observation(self) -> dict[str, torch.Tensor]:
        """`now`."""
        return self.now

    def next_observation(self) -> dict[str, torch.Tensor]:
        """`then`."""
        return self.then

    def tensors(self) -> dict[str, torch.Tensor]:
        """All tensors by name, from which `of` makes the same transitions."""
        named = {f"now/{name}": x for name, x in self.now.items()} | {
            f"then/{name}": x for name, x in self.then.items()
        }
        return named | {name: getattr(self, name) for name in _TRANSITION}

    @classmethod
    def of(cls, tensors: Mapping[str, torch.Tensor]) -> Transitions:
        """The transitions of which `tensors` are the tensors."""
        seen = {
            when: {name.removeprefix(when): x for name, x in tensors.items() if name.startswith(when)}
            for when in ("now/", "then/")
        }
        return cls(seen["now/"], seen["then/"], *(tensors[name] for name in _TRANSITION))


_TRANSITION = ("actions", "action_mask", "reward", "discount")


@dataclass
class Batch:
    """One batch, in which each distinct frame stands once.

    Attributes:
        frames: observation name to (U, ...): the distinct frames; images uint8 (U, H, W, C), states (U, D).
        window: int64 (B, T), which frames make each observation, oldest first.
        next_window: int64 (B, T), the same for the observation n steps later.
        actions: float32 (B, H, A), the action of each row and of the H - 1 rows that follow it.
        action_mask: bool (B, H), False where the episode had no further action and the last one is repeated.
        reward: float32 (B,), the n-step return sum_k gamma^k r_k up to the terminal or the episode's end.
        discount: float32 (B,), gamma^n times mask: what the next value counts; 0 after a terminal.
        rows: int64 (B,), the store's rows, for messages and tests.
        goal_window: int64 (B, T), the frame that each row is to reach, T times; None without goals.
    """

    frames: dict[str, torch.Tensor]
    window: torch.Tensor
    next_window: torch.Tensor
    actions: torch.Tensor
    action_mask: torch.Tensor
    reward: torch.Tensor
    discount: torch.Tensor
    rows: torch.Tensor
    goal_window: torch.Tensor | None = None

    def __len__(self) -> int:
        return int(self.actions.shape[0])

    @property
    def action(self) -> torch.Tensor:
        """float32 (B, A), the action of each row."""
        return self.actions[:, 0]

    def observation(self, *, traced: bool = False) -> dict[str, torch.Tensor]:
        """Name to (B, T, ...): images uint8 (B, T, C, H, W), states float32 (B, T, D).

        With goals every name has a partner `goal/<name>`: the goal's own frame T times, as a simulator shows it.

        Args:
            traced: whether by torch's operations alone, for steps that are compiled or transformed.
        """
        return self._stack(self.window, self._seen, traced) | self._goal(traced)

    def next_observation(self, *, traced: bool = False) -> dict[str, torch.Tensor]:
        """The observation n steps later, with the same goal, shaped like `observation`."""
        return self._stack(self.next_window, self._seen, traced) | self._goal(traced)

    def stacked(self, *, traced: bool = False) -> Transitions:
        """The batch with its observations stacked; `traced` as in `observation`."""
        own = (self.actions, self.action_mask, self.reward, self.discount)
        return Transitions(self.observation(traced=traced), self.next_observation(traced=traced), *own)

    def _goal(self, traced: bool) -> dict[str, torch.Tensor]:
        if self.goal_window is None:
            return {}
        # Stacks that were made ahead differ from those of a moment that is shown T times, and come under its name.
        own = {GOAL + name: self.frames.get(GOAL + name, frames) for name, frames in self._seen.items()}
        return self._stack(self.goal_window, own, traced)

    @property
    def _seen(self) -> dict[str, torch.Tensor]:
        return {name: frames for name, frames in self.frames.items() if not name.startswith(GOAL)}

    @staticmethod
    def _stack(window: torch.Tensor, of: Mapping[str, torch.Tensor], traced: bool) -> dict[str, torch.Tensor]:
        index = window.flatten()
        stacked = {name: _rows(frames, index, traced).unflatten(0, window.shape) for name, frames in of.items()}
        stacked = {name: x.float() if x.dtype == torch.float16 else x for name, x in stacked.items()}
        return {name: channels_first(x) if x.ndim == 5 else x for name, x in stacked.items()}

    def to(self, device: torch.device | str) -> Batch:
        """The batch on a device."""
        own = {field.name: getattr(self, field.name) for field in fields(self) if field.name != "frames"}
        moved: dict[str, Any] = {name: None if x is None else x.to(device) for name, x in own.items()}
        return replace(self, frames={name: frames.to(device) for name, frames in self.frames.items()}, **moved)


def _rows(frames: torch.Tensor, index: torch.Tensor, traced: bool) -> torch.Tensor:
    """`frames[index]`, which for images on a CPU took five times as long as copying whole rows does."""
    if traced or frames.is_cuda:
        return frames.index_select(0, index)
    return torch.from_numpy(gather(frames.numpy(), index.numpy()))


def channels_first(images: torch.Tensor) -> torch.Tensor:
    """(B, T, H, W, C) to (B, T, C, H, W), as a view."""
    return images.permute(0, 1, 4, 2, 3)


@dataclass(frozen=True)
class Sampler:
    """Draws batches of transitions, uniformly or by the store's weights.

    A window repeats its episode's first frame instead of reaching into the episode before; an n-step return is
    cut at a terminal and at the episode's end; an action chunk repeats the last action that had an outcome.

    With goals, rewards and terminals are the goals' instead of the file's, as in OGBench: 0 and no next value for a
    row that is its own goal, else -1 and the value of the next row. An episode that ends elsewhere stays there.

    Args:
        store: where the rows are.
        batch_size: rows of the global batch, over all processes.
        seed: seed of the run.
        frame_stack: T, frames per observation.
        n_step: steps of the return before it bootstraps.
        action_chunk: H, actions per row.
        goals: law of the goals that rows are given; None for no goals. Rewards are then those of one step.
        discount: gamma per step.
        reward_scale: factor on rewards (critics of sparse tasks learn faster with values of order 1).
        reward_shift: added to rewards before scaling, e.g. -0.5 with scale 4 for AntMaze's (r - 0.5) * 4.
    """

    store: Store
    batch_size: int
    seed: int
    frame_stack: int = 1
    n_step: int = 1
    action_chunk: int = 1
    goals: HindsightGoals | None = None
    discount: float = 0.99
    reward_scale: float = 1.0
    reward_shift: float = 0.0

    def rows(self, step: int, rank: int = 0, world_size: int = 1) -> np.ndarray:
        """int64 (B / world_size,), this process's rows of batch `step`: a function of (seed, step) alone."""
        return self._own(self._global_rows(step), rank, world_size)

    def goal_rows(self, step: int, rank: int = 0, world_size: int = 1) -> np.ndarray | None:
        """int64 (B / world_size,), the rows that `rows` are told to reach; None without goals."""
        return self.draw(step, rank, world_size)[1]

    def draw(self, step: int, rank: int = 0, world_size: int = 1) -> tuple[np.ndarray, np.ndarray | None]:
        """`rows` and `goal_rows`."""
        rows = self._global_rows(step)
        if self.goals is None:
            return self._own(rows, rank, world_size), None
        goals = self.goals.draw(self.store, rows, counter_rng(self.seed, step, _GOAL_SALT))
        return self._own(rows, rank, world_size), self._own(goals, rank, world_size)

    def _global_rows(self, step: int) -> np.ndarray:
        return self.store.draw(self.batch_size, counter_rng(self.seed, step, _SAMPLER_SALT))

    def _own(self, of_all: np.ndarray, rank: int, world_size: int) -> np.ndarray:
        if self.batch_size % world_size:
            raise ValueError(
                f"a batch of {self.batch_size} cannot be divided over {world_size} processes; "
                f"set training.batch_size to a multiple of {world_size}"
            )
        local = self.batch_size // world_size
        return of_all[rank * local : (rank + 1) * local]

    def windows(self, rows: np.ndarray) -> np.ndarray:
        """int64 (B, T), the frames that make the observation of each row, never before the episode's start."""
        return indices.window(np, rows, self.store.episode_starts[self.store.episode_of(rows)], self.frame_stack)

    def returns(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The n-step return, what the next value counts (gamma^k mask), and the row of that next value.

        Returns:
            float32 (B,), float32 (B,), int64 (B,).
        """
        store = self.store

        def reward(at: np.ndarray) -> np.ndarray:
            return (np.asarray(store.rewards[at], np.float64) + self.reward_shift) * self.reward_scale

        def terminal(at: np.ndarray) -> np.ndarray:
            return np.asarray(store.terminals[at], bool)

        last = store.last_outcomes[store.episode_of(rows)]
        total, count, following = indices.returns(
            np, rows, last, reward, terminal, n_step=self.n_step, discount=self.discount
        )
        return total.astype(np.float32), count.astype(np.float32), following

    def chunks(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The rows of each action chunk and which of them are real.

        Returns:
            int64 (B, H), bool (B, H).
        """
        return indices.chunk(np, rows, self.store.last_outcomes[self.store.episode_of(rows)], self.action_chunk)

    def batch(self, step: int, rank: int = 0, world_size: int = 1) -> Batch:
        """Batch number `step`, this process's part; its frames are where the store keeps them, the rest on the CPU."""
        return self.gather(*self.draw(step, rank, world_size))

    def most_frames(self, rows: int) -> int:
        """The most distinct frames that a batch of so many rows can have."""
        return rows * (self.frame_stack + min(self.n_step, self.frame_stack) + (self.goals is not None))

    def gather(self, rows: np.ndarray, goal_rows: np.ndarray | None = None, *, padded: bool = False) -> Batch:
        """The batch that consists of the given rows, and their goals if given.

        Args:
            rows: int64 (B,).
            goal_rows: int64 (B,).
            padded: repeat the last frame up to `most_frames`, so that all batches of B rows have the same shapes.
        """
        reward, discount, next_rows = self.returns(rows)
        windows = [self.windows(rows), self.windows(next_rows)]
        if goal_rows is not None:
            told = indices.towards(
                np,
                goal_rows == rows,
                discount=self.discount,
                reward_scale=self.reward_scale,
                reward_shift=self.reward_shift,
            )
            reward, discount = (each.astype(np.float32) for each in told)
            windows.append(goal_rows[:, None].repeat(self.frame_stack, 1))
        every = np.concatenate(windows)
        ordered = np.sort(every, axis=None)
        distinct = ordered[np.concatenate([[True], ordered[1:] != ordered[:-1]])]
        position = np.searchsorted(distinct, every).reshape(-1, *windows[0].shape)
        window, next_window, *goal_window = map(torch.from_numpy, position)
        chunk, real = self.chunks(rows)
        most = self.most_frames(len(rows))
        if padded:
            distinct = np.pad(distinct, (0, most - len(distinct)), mode="edge")
        return Batch(
            frames={name: take_rows(array, distinct, most) for name, array in self.store.observations.items()},
            window=window,
            next_window=next_window,
            actions=torch.from_numpy(np.asarray(self.store.actions[chunk], dtype=np.float32)),
            action_mask=torch.from_numpy(real),
            reward=torch.from_numpy(reward),
            discount=torch.from_numpy(discount),
            rows=torch.from_numpy(rows),
            goal_window=goal_window[0] if goal_window else None,
        )
