"""Reductions over all processes of a training: statistics of the global batch, and flags."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import NamedTuple

import torch
import torch.distributed as dist

_is_local = False


@contextmanager
def local_only() -> Iterator[None]:
    """Compute moments in the block from this process's rows alone, without communication."""
    global _is_local
    before, _is_local = _is_local, True
    try:
        yield
    finally:
        _is_local = before


class Moments(NamedTuple):
    """The mean of values, and the mean of their squares, both float64 and without gradient."""

    mean: torch.Tensor
    square: torch.Tensor

    @property
    def std(self) -> torch.Tensor:
        """The population standard deviation."""
        return (self.square - self.mean.square()).clamp_min(0).sqrt()

    @property
    def effective_share(self) -> torch.Tensor:
        """E[w]^2 / E[w^2] of weights: 1 if all are equal, 1/B if only one of B is not 0, 0 if none is."""
        return self.mean.square() / self.square.clamp_min(torch.finfo(torch.float64).tiny)


@torch.no_grad()
def global_moments(x: torch.Tensor, leading: int = 0) -> Moments:
    """The moments of all processes' `x` (of equal shapes) by one all-reduce; `leading` axes are kept."""
    x = x.double().flatten(leading)  # float32 would lose a small deviation beside a large mean
    sums = torch.stack([torch.ones_like(x).sum(-1), x.sum(-1), x.square().sum(-1)])
    if _has_others():
        dist.all_reduce(sums)
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
    largest = x.amax()
    if _has_others():
        dist.all_reduce(largest, dist.ReduceOp.MAX)
    return largest


def first_row(rows: int) -> int:
    """The number, in the global batch, of the first of this process's rows, of which each process has so many."""
    return dist.get_rank() * rows if _has_others() else 0


def mean_over_processes(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The means over all processes, by one all-reduce."""
    flat = torch.cat([tensor.flatten() for tensor in tensors.values()])
    dist.all_reduce(flat)
    parts = (flat / dist.get_world_size()).split([tensor.numel() for tensor in tensors.values()])
    return {name: part.view_as(x).to(x.dtype) for (name, x), part in zip(tensors.items(), parts, strict=True)}


def _has_others() -> bool:
    return dist.is_available() and dist.is_initialized() and not _is_local


def any_rank(*flags: bool, device: torch.device) -> list[bool]:
    """Whether each flag is set in any process. All processes must call this together, and get the same result."""
    if not (dist.is_available() and dist.is_initialized()):
        return list(flags)
    reduced = torch.tensor(flags, dtype=torch.int32, device=device)
    dist.all_reduce(reduced, dist.ReduceOp.MAX)
    return [bool(flag) for flag in reduced.tolist()]
