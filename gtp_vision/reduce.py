"""Statistics of the global batch, whichever number of processes holds it."""

from __future__ import annotations

import torch
import torch.distributed as dist


def global_mean(x: torch.Tensor) -> torch.Tensor:
    """The mean of all processes' `x` (any shape, equal on all), without gradient: ()."""
    return _moments(x)[0].to(x.dtype)


def global_std(x: torch.Tensor) -> torch.Tensor:
    """The population standard deviation of all processes' `x` (any shape, equal on all), without gradient: ()."""
    return _moments(x)[1].to(x.dtype)


@torch.no_grad()
def _moments(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    x = x.double()  # float32 would lose a small deviation beside a large mean
    sums = torch.stack([x.new_tensor(x.numel()), x.sum(), x.square().sum()])
    if dist.is_available() and dist.is_initialized():
        dist.all_reduce(sums)
    mean = sums[1] / sums[0]
    return mean, (sums[2] / sums[0] - mean.square()).clamp_min(0).sqrt()
