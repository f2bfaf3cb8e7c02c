"""The sampler: which rows make batch number `step`, as index arithmetic without state."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from gtp_vision.core.random import counter_rng
from gtp_vision.datasets import indices
from gtp_vision.datasets.arrays import gather
from gtp_vision.datasets.batch import Batch, Frames
from gtp_vision.datasets.goals import HindsightGoals, RoleGoals
from gtp_vision.datasets.placement import take_rows
from gtp_vision.datasets.store import Store

_SAMPLER_SALT = 0x5A  # keeps the row draws apart from the noise draws of the same (seed, step)
_GOAL_SALT = 0x60


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
        goals: law of the goals that rows are given; None for no goals. Rewards are then those of one step, of the
            critic's goals if the policy has others.
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
    goals: HindsightGoals | RoleGoals | None = None
    discount: float = 0.99
    reward_scale: float = 1.0
    reward_shift: float = 0.0

    def rows(self, step: int, rank: int = 0, world_size: int = 1) -> np.ndarray:
        """int64 (B / world_size,), this process's rows of batch `step`: a function of (seed, step) alone."""
        return self._own(self._global_rows(step), rank, world_size)

    def goal_rows(self, step: int, rank: int = 0, world_size: int = 1) -> np.ndarray | None:
        """int64 (B / world_size,), or a column for each of several goals: the rows to reach; None without goals."""
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
        """The n-step return, what the next value counts (gamma^k mask): float32 (B,); that value's row: int64 (B,)."""
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
        """The rows of each action chunk, int64 (B, H), and which of them are real, bool (B, H)."""
        return indices.chunk(np, rows, self.store.last_outcomes[self.store.episode_of(rows)], self.action_chunk)

    def batch(self, step: int, rank: int = 0, world_size: int = 1) -> Batch:
        """Batch number `step`, this process's part, on the CPU, or on the device where the store keeps its frames."""
        return self.gather(*self.draw(step, rank, world_size))

    def gather(self, rows: np.ndarray, goal_rows: np.ndarray | None = None) -> Batch:
        """The batch of the given rows, int64 (B,), and of their goals, (B,) or as `RoleGoals.draw`, if given."""
        return self.frames(rows, goal_rows).batch(take_frames)

    def most_frames(self, rows: int) -> int:
        """The most distinct frames that a batch of so many rows can have."""
        goals = 0 if self.goals is None else self.goals.count
        return rows * (self.frame_stack + min(self.n_step, self.frame_stack) + goals)

    def frames(self, rows: np.ndarray, goal_rows: np.ndarray | None = None, *, padded: bool = False) -> Frames:
        """The batch of the given rows, each distinct frame once.

        `padded` repeats the last frame up to `most_frames`, so that all batches of B rows have the same shapes.
        """
        reward, discount, next_rows = self.returns(rows)
        windows = [self.windows(rows), self.windows(next_rows)]
        if goal_rows is not None:
            goal_rows = goal_rows.reshape(len(rows), -1)
            reward, discount = indices.goal_returns(
                np,
                goal_rows[:, 0] == rows,
                discount=self.discount,
                reward_scale=self.reward_scale,
                reward_shift=self.reward_shift,
            )
            windows += [goal[:, None].repeat(self.frame_stack, 1) for goal in goal_rows.T]
        all_rows = np.concatenate(windows)
        ordered = np.sort(all_rows, axis=None)
        distinct = ordered[np.concatenate([[True], ordered[1:] != ordered[:-1]])]
        position = np.searchsorted(distinct, all_rows).reshape(-1, *windows[0].shape)
        window, next_window, *goal_window = map(torch.from_numpy, position)
        chunk, is_real = self.chunks(rows)
        capacity = self.most_frames(len(rows))
        if padded:
            distinct = np.pad(distinct, (0, capacity - len(distinct)), mode="edge")
        return Frames(
            frames={name: take_rows(array, distinct, capacity) for name, array in self.store.observations.items()},
            window=window,
            next_window=next_window,
            actions=torch.from_numpy(np.asarray(self.store.actions[chunk], dtype=np.float32)),
            action_mask=torch.from_numpy(is_real),
            reward=torch.from_numpy(np.asarray(reward, np.float32)),
            discount=torch.from_numpy(np.asarray(discount, np.float32)),
            goal_window=torch.stack(goal_window, 1) if goal_window else None,
        )


def take_frames(frames: torch.Tensor, axis: int, index: torch.Tensor) -> torch.Tensor:
    """`torch.index_select`, which for images on a CPU took five times as long as copying whole rows does."""
    if frames.is_cuda:
        return frames.index_select(axis, index.to(frames.device))
    return torch.from_numpy(gather(frames.numpy(), index.numpy()))
