"""Reductions over all rows of a step, in micro-batches and processes: statistics of the global batch, and flags."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import NamedTuple

import torch
import torch.distributed as dist

WITHOUT_FLOAT64 = {"mps"}
"""Types of devices that have no float64."""
_is_local = False
_split: SplitBatch | None = None


@contextmanager
def local_only() -> Iterator[None]:
    """Compute moments in the block from this process's rows alone, without communication."""
    global _is_local
    before, _is_local = _is_local, True
    try:
        yield
    finally:
        _is_local = before


def widest(device: torch.device) -> torch.dtype:
    """The widest type of numbers of a device: float64, or float32 on Apple's GPUs."""
    return torch.float32 if device.type in WITHOUT_FLOAT64 else torch.float64


class Moments(NamedTuple):
    """The mean of values, and the mean of their squares, both of `widest` and without gradient."""

    mean: torch.Tensor
    square: torch.Tensor

    @property
    def std(self) -> torch.Tensor:
        """The population standard deviation."""
        return (self.square - self.mean.square()).clamp_min(0).sqrt()

    @property
    def effective_share(self) -> torch.Tensor:
        """E[w]^2 / E[w^2] of weights: 1 if all are equal, 1/B if only one of B is not 0, 0 if none is."""
        return self.mean.square() / self.square.clamp_min(torch.finfo(self.square.dtype).tiny)


@torch.no_grad()
def global_moments(x: torch.Tensor, leading: int = 0) -> Moments:
    """The moments of all processes' `x` (of equal shapes) by one all-reduce; `leading` axes are kept."""
    x = x.to(widest(x.device)).flatten(leading)  # float32 would lose a small deviation beside a large mean
    sums = torch.stack([torch.ones_like(x).sum(-1), x.sum(-1), x.square().sum(-1)])
    sums = _reduced(sums)
    return Moments(sums[1] / sums[0], sums[2] / sums[0])


def global_mean(x: torch.Tensor) -> torch.Tensor:
    """The mean of all processes' `x` (any shape, equal on all), without gradient: ()."""
    return global_moments(x).mean.to(x.dtype)


def global_std(x: torch.Tensor) -> torch.Tensor:
    """The population standard deviation of all processes' `x` (any shape, equal on all), without gradient: ()."""
    return global_moments(x).std.to(x.dtype)


@torch.no_grad()
def global_max(x: torch.Tensor) -> torch.Tensor:
    """The largest of all processes' `x` (any shape), without gradient: ()."""
    return _reduced(x.amax(), is_largest=True)


@torch.no_grad()
def gathered(x: torch.Tensor, axis: int = 0) -> torch.Tensor:
    """All processes' and micro-batches' `x` (of equal shapes) along an axis, in their order, without gradient."""
    if all_rows(1) == 1:
        return x.detach()
    parts = x.new_zeros((all_rows(1), *x.shape))
    parts[first_row(1)] = x
    return torch.cat(list(_reduced(parts)), axis)


def first_row(rows: int) -> int:
    """The number, in the global batch, of the first of these rows, of which each process or micro-batch has so many."""
    rank, share = dist.get_rank() if _has_others() else 0, _split
    return (rank if share is None else rank * share.count + share.index) * rows


def all_rows(rows: int) -> int:
    """The number of rows of the global batch, of which each process or micro-batch has so many."""
    processes, parts = dist.get_world_size() if _has_others() else 1, 1 if _split is None else _split.count
    return rows * processes * parts


class SplitBatch:
    """A batch whose losses are computed in `count` micro-batches, one after the other, each as a process of its own.

    A loss may need statistics of all rows. Where it meets one that is not known yet, its micro-batch is left there;
    when all have come so far, the statistic is known, and they begin again.
    """

    def __init__(self, count: int) -> None:
        self.count, self.index = count, 0
        self._known: list[torch.Tensor] = []
        self._place = 0

    def run(self, compute: Callable[[int], None]) -> None:
        """Call `compute` with each micro-batch's number until it has returned for each once.

        It must meet the same statistics in every micro-batch, and have no effect before it has met the last.
        """
        while True:
            met: list[torch.Tensor] = []
            is_largest = False
            for index in range(self.count):
                self.index, self._place = index, 0
                with self._active(), torch.set_grad_enabled(torch.is_grad_enabled() and not met):
                    try:
                        compute(index)
                    except _UnknownStatisticError as unknown:
                        met.append(unknown.part)  # its traceback would keep the activations
                        is_largest = unknown.is_largest
            if not met:
                return
            parts = torch.stack(met)
            self._known.append(_over_processes(parts.amax(0) if is_largest else parts.sum(0), is_largest))

    def reduced(self, part: torch.Tensor, is_largest: bool) -> torch.Tensor:
        """The next statistic of all rows, if it is known."""
        self._place += 1
        if self._place > len(self._known):
            raise _UnknownStatisticError(part, is_largest)
        return self._known[self._place - 1].clone()

    @contextmanager
    def _active(self) -> Iterator[None]:
        global _split
        _split = self
        try:
            yield
        finally:
            _split = None


class _UnknownStatisticError(Exception):
    def __init__(self, part: torch.Tensor, is_largest: bool) -> None:
        super().__init__("a statistic of all micro-batches")
        self.part, self.is_largest = part, is_largest


def mean_over_processes(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The means over all processes, by one all-reduce."""
    flat = torch.cat([tensor.flatten() for tensor in tensors.values()])
    dist.all_reduce(flat)
    parts = (flat / dist.get_world_size()).split([tensor.numel() for tensor in tensors.values()])
    return {name: part.view_as(x).to(x.dtype) for (name, x), part in zip(tensors.items(), parts, strict=True)}


def _reduced(x: torch.Tensor, *, is_largest: bool = False) -> torch.Tensor:
    """The sum of all processes' and micro-batches' `x`, or the largest."""
    return _over_processes(x, is_largest) if _split is None else _split.reduced(x, is_largest)


def _over_processes(x: torch.Tensor, is_largest: bool) -> torch.Tensor:
    if _has_others():
        dist.all_reduce(x, dist.ReduceOp.MAX if is_largest else dist.ReduceOp.SUM)
    return x


def _has_others() -> bool:
    return dist.is_available() and dist.is_initialized() and not _is_local


def any_rank(*flags: bool, device: torch.device) -> list[bool]:
    """Whether each flag is set in any process. All processes must call this together, and get the same result."""
    if not (dist.is_available() and dist.is_initialized()):
        return list(flags)
    reduced = torch.tensor(flags, dtype=torch.int32, device=device)
    dist.all_reduce(reduced, dist.ReduceOp.MAX)
    return [bool(flag) for flag in reduced.tolist()]
