"""Where a batch is put together: on the host, or on the device out of what has been shipped to it.

    Sampler -> fetch (host, in the loader's thread) -> device -> batch (in the step)

What is fetched has the same shapes at every step, and `batch` is tensor operations alone, so that it may be part of a
step that is compiled, captured in a CUDA graph or mapped over seeds. Axes in names: B batch.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import torch
from torch.utils import _pytree as pytree

from gtp_vision.datasets import indices
from gtp_vision.datasets.batch import Batch, Frames, Rows
from gtp_vision.datasets.placement import Resident
from gtp_vision.datasets.sampler import Sampler


class BatchSource(Protocol):
    """Makes the batches of training steps."""

    def fetch(self, step: int, rank: int = 0, world_size: int = 1) -> Any:
        """This process's part of step `step` on the host, as it travels: a `Batch`, `Frames` or `Rows`."""

    def batch(self, fetched: Any) -> Batch:
        """The batch, on the device where `fetched` is by now; the host does not wait for it."""


def batch_source(sampler: Sampler, device: torch.device) -> BatchSource:
    """The source that stacks as near to the frames as `device`, which trains, allows."""
    if all(isinstance(array, Resident) for array in sampler.store.observations.values()):
        return ResidentSource(sampler, device)
    return HostSource(sampler) if device.type == "cpu" else FramesSource(sampler)


def batch_source_of_seeds(samplers: Sequence[Sampler], device: torch.device) -> BatchSource:
    """The source of one sampler, or of several of the same data side by side, which share the tables on the device."""
    first = batch_source(samplers[0], device)
    if len(samplers) == 1:
        return first
    others = [copy.copy(first) for _ in samplers]
    for other, sampler in zip(others, samplers, strict=True):
        other.sampler = sampler  # type: ignore[attr-defined]
    return SeedsSource(others)


class HostSource:
    """Stacks on the host; for training on a CPU."""

    def __init__(self, sampler: Sampler) -> None:
        self.sampler = sampler

    def fetch(self, step: int, rank: int = 0, world_size: int = 1) -> Batch:
        """As `BatchSource`."""
        return self.sampler.batch(step, rank, world_size)

    def batch(self, fetched: Batch) -> Batch:
        """The batch itself."""
        return fetched


class FramesSource:
    """Ships each distinct frame once, and stacks on the device."""

    def __init__(self, sampler: Sampler) -> None:
        self.sampler = sampler

    def fetch(self, step: int, rank: int = 0, world_size: int = 1) -> Frames:
        """As `BatchSource`; padded to the largest number of distinct frames by repeating one."""
        return self.sampler.frames(*self.sampler.draw(step, rank, world_size), padded=True)

    def batch(self, fetched: Frames) -> Batch:
        """As `BatchSource`."""
        return fetched.batch()


class ResidentSource:
    """Ships row numbers, where all frames are on the device: windows, returns and chunks follow there.

    Beside the frames it keeps 13 bytes a row and the actions on the device.
    """

    def __init__(self, sampler: Sampler, device: torch.device) -> None:
        self.sampler, store = sampler, sampler.store
        residents: dict[str, Any] = dict(store.observations)
        self._frames = {name: x.tensor if x.index is None else x for name, x in residents.items()}
        lengths = store.episode_ends - store.episode_starts

        def on_device(values: np.ndarray, dtype: type) -> torch.Tensor:
            return torch.tensor(np.asarray(values, dtype), device=device)

        self._first = on_device(np.repeat(store.episode_starts, lengths), np.int32)
        self._last = on_device(np.repeat(store.last_outcomes, lengths), np.int32)
        self._rewards = on_device(store.rewards, np.float32)
        self._terminals = on_device(store.terminals, np.bool_)
        self._actions = on_device(store.actions, np.float32)

    def fetch(self, step: int, rank: int = 0, world_size: int = 1) -> Rows:
        """As `BatchSource`."""
        rows, goals = self.sampler.draw(step, rank, world_size)
        return Rows(torch.from_numpy(rows), None if goals is None else torch.from_numpy(goals))

    def batch(self, fetched: Rows) -> Batch:
        """As `BatchSource`."""
        sampler, rows, goals = self.sampler, fetched.rows, fetched.goal_rows
        last = self._last[rows]
        reward, discount, following = indices.returns(
            torch, rows, last, self._reward, self._terminal, n_step=sampler.n_step, discount=sampler.discount
        )
        window, next_window = (
            indices.window(torch, of, self._first[rows], sampler.frame_stack) for of in (rows, following)
        )
        goal_window = None
        if goals is not None:
            goals = goals.reshape(len(rows), -1)
            goal_window = goals[:, :, None].expand(-1, -1, sampler.frame_stack)
            reward, discount = indices.goal_returns(
                torch,
                goals[:, 0] == rows,
                discount=sampler.discount,
                reward_scale=sampler.reward_scale,
                reward_shift=sampler.reward_shift,
            )
        chunk, is_real = indices.chunk(torch, rows, last, sampler.action_chunk)
        actions = self._actions[chunk]
        frames = self._frames  # all of them, numbered by their rows
        return Frames(
            frames, window, next_window, actions, is_real, reward.float(), discount.float(), goal_window
        ).batch(_taken)

    def _reward(self, rows: torch.Tensor) -> torch.Tensor:
        return (self._rewards[rows].double() + self.sampler.reward_shift) * self.sampler.reward_scale

    def _terminal(self, rows: torch.Tensor) -> torch.Tensor:
        return self._terminals[rows]


class SeedsSource:
    """Several sources of the same data and shapes side by side: what is fetched has a first axis of them."""

    def __init__(self, sources: Sequence[BatchSource]) -> None:
        self._sources = sources

    def fetch(self, step: int, rank: int = 0, world_size: int = 1) -> Any:
        """As `BatchSource`, of all."""
        each = [source.fetch(step, rank, world_size) for source in self._sources]
        return pytree.tree_map(lambda *x: torch.stack(x), *each)

    def batch(self, fetched: Any) -> Batch:
        """As `BatchSource`, of one's part: for use inside `torch.func.vmap`."""
        return self._sources[0].batch(fetched)


def _taken(frames: Any, axis: int, rows: torch.Tensor) -> torch.Tensor:
    """Rows of a tensor, or of a `Resident` that looks them up in a table."""
    return frames.take(rows) if isinstance(frames, Resident) else torch.index_select(frames, axis, rows)
