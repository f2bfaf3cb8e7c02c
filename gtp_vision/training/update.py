"""One gradient step of one run as PyTorch runs it, and the learning rates."""

from __future__ import annotations

import math
from typing import Any

from gtp_vision.agents.base import Metrics
from gtp_vision.config import Config
from gtp_vision.training.parts import Parts


def learning_rate(config: Config, step: int) -> float:
    """Of step `step` (from 0): linear warm-up, then constant or a half cosine to 0."""
    training = config.training
    rate = training.learning_rate * min(1.0, (step + 1) / max(1, training.warmup_steps))
    if training.schedule == "cosine":
        rate *= 0.5 * (1 + math.cos(math.pi * step / training.steps))
    return rate


def update(parts: Parts, config: Config, step: int, batch: Any) -> Metrics:
    """One gradient step and the targets' Polyak step; metrics stay on the device."""
    rate = learning_rate(config, step)
    for group in parts.optimizer.param_groups:
        group["lr"] = rate * group["scale"] * (step >= group["after"])
    parts.agent.begin(step)
    loss, metrics = parts.module(batch, parts.stream(step))
    parts.optimizer.zero_grad(set_to_none=True)
    parts.accelerator.backward(loss)
    if config.training.clip_gradient is not None:
        awake = [group for group in parts.optimizer.param_groups if step >= group["after"]]
        moved = [parameter for group in awake for parameter in group["params"]]
        metrics["gradient_norm"] = parts.accelerator.clip_grad_norm_(moved, config.training.clip_gradient)
    parts.optimizer.step()
    parts.agent.update_targets()
    return metrics
