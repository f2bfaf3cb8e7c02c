"""What all processes know together: statistics of the global batch, and whether any of them says something."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
import torch.distributed as dist

_alone = False


@contextmanager
def alone() -> Iterator[None]:
    """What is computed in the block is this process's own: nobody asks the others, and they need not answer."""
    global _alone
    before, _alone = _alone, True
    try:
        yield
    finally:
        _alone = before


class Moments(NamedTuple):
    """The mean of values, and the mean of their squares, both without gradient and float64."""

    mean: torch.Tensor
    square: torch.Tensor

    @property
    def std(self) -> torch.Tensor:
        """The population standard deviation."""
        return (self.square - self.mean.square()).clamp_min(0).sqrt()

    @property
    def effective_share(self) -> torch.Tensor:
        """Of weights, E[w]^2 / E[w^2]: 1 for equal ones, 1/B when one of B has them all."""
        return self.mean.square() / self.square


@torch.no_grad()
def global_moments(x: torch.Tensor, kept: int = 0) -> Moments:
    """The moments of all processes' `x`, by one communication.

    Args:
        x: any shape, equal on all processes.
        kept: leading axes, for each index of which the moments are taken; the moments have their shape.
    """
    x = x.double().flatten(kept)  # float32 would lose a small deviation beside a large mean
    sums = torch.stack([torch.ones_like(x).sum(-1), x.sum(-1), x.square().sum(-1)])
    if dist.is_available() and dist.is_initialized() and not _alone:
        dist.all_reduce(sums)
    return Moments(sums[1] / sums[0], sums[2] / sums[0])


def global_mean(x: torch.Tensor) -> torch.Tensor:
    """The mean of all processes' `x` (any shape, equal on all), without gradient: ()."""
    return global_moments(x).mean.to(x.dtype)


def global_std(x: torch.Tensor) -> torch.Tensor:
    """The population standard deviation of all processes' `x` (any shape, equal on all), without gradient: ()."""
    return global_moments(x).std.to(x.dtype)


def any_rank(*says: bool, device: torch.device) -> list[bool]:
    """Of each statement, whether any process makes it; all processes must ask together, and all get this answer."""
    if not (dist.is_available() and dist.is_initialized()):
        return list(says)
    told = torch.tensor(says, dtype=torch.int32, device=device)
    dist.all_reduce(told, dist.ReduceOp.MAX)
    return [bool(each) for each in told.tolist()]
