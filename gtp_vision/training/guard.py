"""Steps whose loss or gradients are not finite: known on the device, and not applied where that is asked for.

Nothing here waits for a GPU. On a CPU looking at a number costs nothing, so a step that is finite there is taken as if
nobody watched.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from gtp_vision.agents import Agent
from gtp_vision.models.networks import followed

NONFINITE = "nonfinite"
"""The metric of a step that says so: 1 or 0."""


def is_nonfinite(loss: torch.Tensor, norm: torch.Tensor) -> torch.Tensor:
    """1 if a step cannot be applied, else 0: float32 ().

    Gradients whose squares overflow are among those that cannot: Adam's second moments would be infinite for good.

    Args:
        loss: ().
        norm: (), of all gradients: any that is not finite if the sum of their squares is not.
    """
    return (~(loss.detach() + norm).isfinite()).float()


def spread_nonfinite(loss: torch.Tensor) -> torch.Tensor:
    """The loss itself, or NaN if it is not finite: then all gradients are, also those of other processes."""
    return loss * torch.where(loss.detach().isfinite(), 1.0, torch.nan)


def apply_if_finite(bad: torch.Tensor, moved: Callable[[], Sequence[torch.Tensor]], move: Callable[[], None]) -> None:
    """Let `move` write into tensors, and put back what they held where the step is not finite.

    Args:
        bad: see `is_nonfinite`; (), or (S,) of several seeds, whose tensors have a first axis of seeds.
        moved: the tensors. Adam's counts of steps are not among them: like learning rates, they follow the step.
        move: moves them.
    """
    if not torch.compiler.is_compiling() and bad.device.type == "cpu" and not bool(bad.any()):
        move()
        return
    tensors = moved()
    before = [tensor.clone() for tensor in tensors]
    move()
    for tensor, kept in zip(tensors, before, strict=True):
        restore_if_nonfinite(tensor, kept, bad)


def restore_if_nonfinite(tensor: torch.Tensor, kept: torch.Tensor, bad: torch.Tensor) -> None:
    """Write `kept` into a tensor where the step is not finite; see `apply_if_finite`."""
    where = (bad > 0).view(bad.shape + (1,) * (tensor.ndim - bad.ndim))
    tensor.copy_(torch.where(where, kept, tensor))


def optimizer_moments(optimizer: torch.optim.Optimizer) -> list[torch.Tensor]:
    """Adam's moments of all that it trains, made as it makes them if it has taken no step."""
    found = []
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            own = optimizer.state[parameter]
            if not own:
                own["step"] = torch.zeros(())
                own["exp_avg"], own["exp_avg_sq"] = torch.zeros_like(parameter), torch.zeros_like(parameter)
            found += [own["exp_avg"], own["exp_avg_sq"]]
    return found


def target_tensors(targets: Iterator[tuple[nn.Module, nn.Module, float]]) -> list[torch.Tensor]:
    """The tensors of slow copies that an update moves; see `Agent.targets`."""
    found: list[torch.Tensor] = []
    for slow, fast, _ in targets:
        for pairs in followed(slow, fast):
            found += [tensor.detach() for tensor, _ in pairs]
    return found


def running_statistics(module: nn.Module) -> list[torch.Tensor]:
    """What batch normalisations that are trained write while they compute."""
    trained = [each for each in module.modules() if isinstance(each, _BatchNorm) and each.training]
    return [buffer for each in trained for buffer in each.buffers()]


@contextmanager
def unchanged_state(agent: Agent, optimizer: torch.optim.Optimizer, step: int) -> Iterator[None]:
    """Whatever training step `step` does to an agent and its moments in the block is undone, in every engine."""
    agent.begin(step)  # what begins with the step stays
    moved = [*agent.state_dict().values(), *optimizer_moments(optimizer)]
    before = [tensor.detach().clone() for tensor in moved]
    try:
        yield
    finally:
        with torch.no_grad():
            for tensor, kept in zip(moved, before, strict=True):
                tensor.copy_(kept)
