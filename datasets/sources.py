"""What a step is given, and where it becomes transitions: arithmetic on the device, or on the host beforehand.

    Sampler -> inputs (host, in the loader's thread) -> device -> transitions (in the step)

The shapes of inputs and transitions are the same at every step, and transitions are made by tensor operations alone,
so that they may be part of a step that is compiled, captured in a CUDA graph or mapped over seeds.
Axes in names: B batch, T frames of a stack, H actions of a chunk.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Protocol

import numpy as np
import torch

from gtp_vision.datasets import indices
from gtp_vision.datasets.placement import Resident
from gtp_vision.datasets.sampler import Batch, Sampler, Transitions

Inputs = dict[str, torch.Tensor]


class BatchSource(Protocol):
    """Of the transitions that steps see."""

    def inputs(self, step: int, rank: int = 0, world_size: int = 1) -> Inputs:
        """What this process's part of step `step` is made of: tensors on the host, of the same shapes at every step."""

    def transitions(self, inputs: Mapping[str, torch.Tensor]) -> Transitions:
        """The transitions, on the device where the inputs are by now; nothing waits for it."""


def batch_source(sampler: Sampler, device: torch.device) -> BatchSource:
    """Where the transitions of a sampler are made when `device` trains: as near to the frames as can be."""
    if all(isinstance(array, Resident) for array in sampler.store.observations.values()):
        return ResidentSource(sampler, device)
    return HostSource(sampler) if device.type == "cpu" else CompactSource(sampler)


def batch_source_of_seeds(samplers: Sequence[Sampler], device: torch.device) -> BatchSource:
    """Of one sampler, or side by side of several samplers of the same data, whose tables on the device are shared."""
    first = batch_source(samplers[0], device)
    if len(samplers) == 1:
        return first
    others = [copy.copy(first) for _ in samplers]
    for other, sampler in zip(others, samplers, strict=True):
        other._sampler = sampler  # type: ignore[attr-defined]
    return StackedSource(others)


class HostSource:
    """Stacked on the host; for a CPU that trains.

    Args:
        sampler: draws and gathers.
    """

    def __init__(self, sampler: Sampler) -> None:
        self._sampler = sampler

    def inputs(self, step: int, rank: int = 0, world_size: int = 1) -> Inputs:
        """As `BatchSource`."""
        return self._sampler.batch(step, rank, world_size).stacked().tensors()

    def transitions(self, inputs: Mapping[str, torch.Tensor]) -> Transitions:
        """As `BatchSource`."""
        return Transitions.of(inputs)


class CompactSource:
    """Each distinct frame is shipped once, and stacked on the device.

    Args:
        sampler: draws and gathers.
    """

    def __init__(self, sampler: Sampler) -> None:
        self._sampler = sampler

    def inputs(self, step: int, rank: int = 0, world_size: int = 1) -> Inputs:
        """As `BatchSource`; as many frames as there can ever be, of which the last ones may be one frame repeated."""
        rows, goals = self._sampler.draw(step, rank, world_size)
        batch = self._sampler.gather(rows, goals, padded=True)
        shipped = {name: getattr(batch, name) for name in _COMPACT if getattr(batch, name) is not None}
        return shipped | {_FRAMES + name: frames for name, frames in batch.frames.items()}

    def transitions(self, inputs: Mapping[str, torch.Tensor]) -> Transitions:
        """As `BatchSource`."""
        frames = {name.removeprefix(_FRAMES): x for name, x in inputs.items() if name.startswith(_FRAMES)}
        own = {name: inputs.get(name) for name in _COMPACT}
        return Batch(frames=frames, **own).stacked(traced=True)  # type: ignore[arg-type]


_COMPACT = ("window", "next_window", "actions", "action_mask", "reward", "discount", "rows", "goal_window")
_FRAMES = "frames/"


class ResidentSource:
    """All frames lie on a device: the host draws the rows, and the device does all that follows from them.

    It keeps there, beside the frames, 13 bytes a row and the actions.

    Args:
        sampler: draws the rows; its arithmetic is done here in tensors.
        device: where the frames are.
    """

    def __init__(self, sampler: Sampler, device: torch.device) -> None:
        self._sampler, store = sampler, sampler.store
        self._frames = {name: array.tensor for name, array in store.observations.items() if isinstance(array, Resident)}
        lengths = store.episode_ends - store.episode_starts

        def kept(values: np.ndarray, dtype: type) -> torch.Tensor:
            return torch.tensor(np.asarray(values, dtype), device=device)

        self._first = kept(np.repeat(store.episode_starts, lengths), np.int32)
        self._last = kept(np.repeat(store.last_outcomes, lengths), np.int32)
        self._rewards = kept(store.rewards, np.float32)
        self._terminals = kept(store.terminals, np.bool_)
        self._actions = kept(store.actions, np.float32)

    def inputs(self, step: int, rank: int = 0, world_size: int = 1) -> Inputs:
        """As `BatchSource`: the numbers of rows."""
        rows, goals = self._sampler.draw(step, rank, world_size)
        drawn = {"rows": torch.from_numpy(rows)}
        return drawn if goals is None else drawn | {"goal_rows": torch.from_numpy(goals)}

    def transitions(self, inputs: Mapping[str, torch.Tensor]) -> Transitions:
        """As `BatchSource`."""
        sampler, rows, goals = self._sampler, inputs["rows"], inputs.get("goal_rows")
        last = self._last[rows]
        reward, discount, following = indices.returns(
            torch, rows, last, self._reward, self._terminal, n_step=sampler.n_step, discount=sampler.discount
        )
        now, then = (indices.window(torch, of, self._first[rows], sampler.frame_stack) for of in (rows, following))
        goal = None
        if goals is not None:
            goal = goals[:, None].expand_as(now)
            reward, discount = indices.towards(
                torch,
                goals == rows,
                discount=sampler.discount,
                reward_scale=sampler.reward_scale,
                reward_shift=sampler.reward_shift,
            )
        chunk, real = indices.chunk(torch, rows, last, sampler.action_chunk)
        own = (self._actions[chunk], real, reward.float(), discount.float())
        batch = Batch(self._frames, now, then, *own, rows, goal)  # every frame is at hand, numbered by its row
        return batch.stacked(traced=True)

    def _reward(self, rows: torch.Tensor) -> torch.Tensor:
        return (self._rewards[rows].double() + self._sampler.reward_shift) * self._sampler.reward_scale

    def _terminal(self, rows: torch.Tensor) -> torch.Tensor:
        return self._terminals[rows]


class StackedSource:
    """Several sources side by side, with a first axis of them in the inputs.

    Args:
        sources: of the same data and shapes.
    """

    def __init__(self, sources: Sequence[BatchSource]) -> None:
        self._sources = sources

    def inputs(self, step: int, rank: int = 0, world_size: int = 1) -> Inputs:
        """As `BatchSource`, of all."""
        each = [source.inputs(step, rank, world_size) for source in self._sources]
        return {name: torch.stack([one[name] for one in each]) for name in each[0]}

    def transitions(self, inputs: Mapping[str, torch.Tensor]) -> Transitions:
        """As `BatchSource`, of one's inputs: for use inside `torch.func.vmap`."""
        return self._sources[0].transitions(inputs)
