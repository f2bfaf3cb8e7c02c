"""One gradient step of one run as PyTorch runs it, and the learning rates."""

from __future__ import annotations

import math
from typing import Any

import torch

from gtp_vision.agents.base import Metrics
from gtp_vision.config.schema import Config
from gtp_vision.training.build import Components
from gtp_vision.training.guard import (
    NONFINITE,
    apply_if_finite,
    is_nonfinite,
    optimizer_moments,
    restore_if_nonfinite,
    running_statistics,
    spread_nonfinite,
    target_tensors,
)


def learning_rate(config: Config, step: int) -> float:
    """Of step `step` (from 0): linear warm-up, then constant or a half cosine to 0."""
    training = config.training
    rate = training.learning_rate * min(1.0, (step + 1) / max(1, training.warmup_steps))
    if training.schedule == "cosine":
        rate *= 0.5 * (1 + math.cos(math.pi * step / training.steps))
    return rate


def update(parts: Components, config: Config, step: int, batch: Any) -> Metrics:
    """One gradient step and the targets' Polyak step; metrics stay on the device, `nonfinite` among them."""
    skips = config.training.on_nonfinite == "skip"
    ours = running_statistics(parts.agent) if skips and config.encoder.batch_norm == "train" else []
    before = [statistic.clone() for statistic in ours]
    rate = learning_rate(config, step)
    for group in parts.optimizer.param_groups:
        group["lr"] = rate * group["scale"] * (step >= group["after"])
    parts.agent.begin(step)
    loss, metrics = parts.module(batch, parts.stream(step))
    parts.optimizer.zero_grad(set_to_none=True)
    parts.accelerator.backward(spread_nonfinite(loss) if skips and parts.accelerator.num_processes > 1 else loss)
    trained = [parameter for group in parts.optimizer.param_groups for parameter in group["params"]]
    gradients = [parameter.grad for parameter in trained if parameter.grad is not None]
    bad = metrics[NONFINITE] = is_nonfinite(loss, torch.stack(torch._foreach_norm(gradients)).sum())
    if config.training.clip_gradient is not None:
        awake = [group for group in parts.optimizer.param_groups if step >= group["after"]]
        moved = [parameter for group in awake for parameter in group["params"]]
        metrics["gradient_norm"] = parts.accelerator.clip_grad_norm_(moved, config.training.clip_gradient)

    def move() -> None:
        parts.optimizer.step()
        parts.agent.update_targets()

    if not skips:
        move()
        return metrics
    with torch.no_grad():
        for statistic, kept in zip(ours, before, strict=True):
            restore_if_nonfinite(statistic, kept, bad)
        apply_if_finite(bad, lambda: _moved(parts, trained), move)
    return metrics


def _moved(parts: Components, trained: list[torch.nn.Parameter]) -> list[torch.Tensor]:
    """The tensors that an update moves."""
    return [*map(torch.detach, trained), *optimizer_moments(parts.optimizer), *target_tensors(parts.agent.targets())]
