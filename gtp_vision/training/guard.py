"""Mark steps whose loss or gradients are not finite on the device, and leave their updates out where set.

Nothing here waits for a GPU. On a CPU reading a number costs nothing, so a finite step there runs as without a guard.
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
"""The metric that marks such a step: 1 or 0."""


def is_nonfinite(loss: torch.Tensor, norm: torch.Tensor) -> torch.Tensor:
    """1 if a step cannot be applied, else 0: float32 (), of the loss () and the norm () of all gradients.

    Gradients whose squares overflow count as not finite: Adam's second moments would stay infinite.
    """
    return (~(loss.detach() + norm).isfinite()).float()


def spread_nonfinite(loss: torch.Tensor) -> torch.Tensor:
    """The loss, or NaN if it is not finite: then all gradients are NaN, also those of other processes."""
    return loss * torch.where(loss.detach().isfinite(), 1.0, torch.nan)


def apply_if_finite(bad: torch.Tensor, moved: Callable[[], Sequence[torch.Tensor]], move: Callable[[], None]) -> None:
    """Run an update, and restore the tensors where the step is not finite.

    Args:
        bad: see `is_nonfinite`; (), or (S,) of several seeds, whose tensors have a first axis of seeds.
        moved: the tensors that `move` writes, without Adam's step counts: like learning rates, they follow the step.
        move: the update.
    """
    if not torch.compiler.is_compiling() and bad.device.type == "cpu" and not bool(bad.any()):
        move()
        return
    tensors = moved()
    before = [tensor.clone() for tensor in tensors]
    move()
    for tensor, saved in zip(tensors, before, strict=True):
        restore_if_nonfinite(tensor, saved, bad)


def restore_if_nonfinite(tensor: torch.Tensor, saved: torch.Tensor, bad: torch.Tensor) -> None:
    """Copy `saved` into a tensor where the step is not finite; see `apply_if_finite`."""
    where = (bad > 0).view(bad.shape + (1,) * (tensor.ndim - bad.ndim))
    tensor.copy_(torch.where(where, saved, tensor))


def optimizer_moments(optimizer: torch.optim.Optimizer) -> list[torch.Tensor]:
    """Adam's moments of all its parameters, created as Adam does if it has taken no step."""
    moments = []
    for parameter in (parameter for group in optimizer.param_groups for parameter in group["params"]):
        state = optimizer.state[parameter]
        if not state:
            state["step"] = torch.zeros(())
            state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(parameter), torch.zeros_like(parameter)
        moments += [state["exp_avg"], state["exp_avg_sq"]]
    return moments


def target_tensors(agent: Agent) -> list[torch.Tensor]:
    """The tensors of the target networks and the average that an update writes; see `Agent.targets`."""
    slow = [x for slow, fast, _ in agent.targets() for pairs in followed(slow, fast) for x, _ in pairs]
    return [x.detach() for x in [*slow, *(x for x, _ in agent.average_pairs())]]


def running_statistics(module: nn.Module) -> list[torch.Tensor]:
    """The buffers that trained batch normalizations write in their forward pass."""
    layers = [layer for layer in module.modules() if isinstance(layer, _BatchNorm) and layer.training]
    return [buffer for layer in layers for buffer in layer.buffers()]


@contextmanager
def unchanged_state(agent: Agent, optimizer: torch.optim.Optimizer, step: int) -> Iterator[None]:
    """Undo whatever training step `step` in the block does to an agent and its moments, in every engine."""
    agent.begin(step)  # what begins with the step stays
    moved = [*agent.state_dict().values(), *optimizer_moments(optimizer)]
    before = [tensor.detach().clone() for tensor in moved]
    try:
        yield
    finally:
        with torch.no_grad():
            for tensor, saved in zip(moved, before, strict=True):
                tensor.copy_(saved)
