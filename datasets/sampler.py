"""The sampler: which rows make batch number `step`, as index arithmetic without state."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch

from gtp_vision.datasets.arrays import gather
from gtp_vision.datasets.goals import GOAL, HindsightGoals
from gtp_vision.datasets.placement import taken
from gtp_vision.datasets.random import counter_rng
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
        named = {f"now/{name}": x for name, x in self.now.items()} | {f"then/{name}": x for name, x in self.then.items()}
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

    def observation(self) -> dict[str, torch.Tensor]:
        """Name to (B, T, ...): images uint8 (B, T, C, H, W), states float32 (B, T, D).

        With goals every name has a partner `goal/<name>`: the goal's own frame T times, as a simulator shows it.
        """
        return self._stack(self.window, self._seen) | self._goal()

    def next_observation(self) -> dict[str, torch.Tensor]:
        """The observation n steps later, with the same goal, shaped like `observation`."""
        return self._stack(self.next_window, self._seen) | self._goal()

    def stacked(self) -> Transitions:
        """The batch with its observations stacked."""
        own = (self.actions, self.action_mask, self.reward, self.discount)
        return Transitions(self.observation(), self.next_observation(), *own)

    def _goal(self) -> dict[str, torch.Tensor]:
        if self.goal_window is None:
            return {}
        # Stacks that were made ahead differ from those of a moment that is shown T times, and come under its name.
        own = {GOAL + name: self.frames.get(GOAL + name, frames) for name, frames in self._seen.items()}
        return self._stack(self.goal_window, own)

    @property
    def _seen(self) -> dict[str, torch.Tensor]:
        return {name: frames for name, frames in self.frames.items() if not name.startswith(GOAL)}

    @staticmethod
    def _stack(window: torch.Tensor, of: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        index = window.flatten()
        stacked = {name: _rows(frames, index).unflatten(0, window.shape) for name, frames in of.items()}
        stacked = {name: x.float() if x.dtype == torch.float16 else x for name, x in stacked.items()}
        return {name: channels_first(x) if x.ndim == 5 else x for name, x in stacked.items()}

    def to(self, device: torch.device | str) -> Batch:
        """The batch on a device; pinned memory is copied without blocking."""
        return self._each(lambda tensor: tensor.to(device, non_blocking=True))

    def pinned(self) -> Batch:
        """The batch in page-locked memory, from which a GPU copies while it computes."""
        return self._each(lambda tensor: tensor if tensor.is_cuda else tensor.pin_memory())

    def _each(self, change: Callable[[torch.Tensor], torch.Tensor]) -> Batch:
        return Batch(
            frames={name: change(frames) for name, frames in self.frames.items()},
            window=change(self.window),
            next_window=change(self.next_window),
            actions=change(self.actions),
            action_mask=change(self.action_mask),
            reward=change(self.reward),
            discount=change(self.discount),
            rows=change(self.rows),
            goal_window=None if self.goal_window is None else change(self.goal_window),
        )


def _rows(frames: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    """`frames[index]`, which for images on a CPU took five times as long as copying whole rows does."""
    if frames.is_cuda:
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
        if self.goals is None:
            return None
        drawn = self.goals.draw(self.store, self._global_rows(step), counter_rng(self.seed, step, _GOAL_SALT))
        return self._own(drawn, rank, world_size)

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

    def _towards(self, reached: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Reward and discount of rows that are, or are not, their own goals."""
        reward = (np.where(reached, 0.0, -1.0) + self.reward_shift) * self.reward_scale
        return reward.astype(np.float32), np.where(reached, 0.0, self.discount).astype(np.float32)

    def chunks(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The rows of each action chunk and which of them are real.

        Returns:
            int64 (B, H), bool (B, H).
        """
        last = self.store.episode_ends[self.store.episode_of(rows)] - 1
        last = np.where(self.store.has_outcome[last], last, last - 1)  # an action without an outcome may be a filler
        wanted = rows[:, None] + np.arange(self.action_chunk)
        return np.minimum(wanted, last[:, None]), wanted <= last[:, None]

    def batch(self, step: int, rank: int = 0, world_size: int = 1) -> Batch:
        """Batch number `step`, this process's part; its frames are where the store keeps them, the rest on the CPU."""
        return self.gather(self.rows(step, rank, world_size), self.goal_rows(step, rank, world_size))

    def gather(self, rows: np.ndarray, goal_rows: np.ndarray | None = None) -> Batch:
        """The batch that consists of the given rows, and their goals if given."""
        reward, discount, next_rows = self.returns(rows)
        windows = [self.windows(rows), self.windows(next_rows)]
        if goal_rows is not None:
            reward, discount = self._towards(goal_rows == rows)
            windows.append(goal_rows[:, None].repeat(self.frame_stack, 1))
        every = np.concatenate(windows)
        ordered = np.sort(every, axis=None)
        distinct = ordered[np.concatenate([[True], ordered[1:] != ordered[:-1]])]
        position = np.searchsorted(distinct, every).reshape(-1, *windows[0].shape)
        window, next_window, *goal_window = map(torch.from_numpy, position)
        chunk, real = self.chunks(rows)
        return Batch(
            frames={name: taken(array, distinct, every.size) for name, array in self.store.observations.items()},
            window=window,
            next_window=next_window,
            actions=torch.from_numpy(np.asarray(self.store.actions[chunk], dtype=np.float32)),
            action_mask=torch.from_numpy(real),
            reward=torch.from_numpy(reward),
            discount=torch.from_numpy(discount),
            rows=torch.from_numpy(rows),
            goal_window=goal_window[0] if goal_window else None,
        )
