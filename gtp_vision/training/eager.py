"""The eager engine: one gradient step of one run as PyTorch and Accelerate run it, and the learning rate."""

from __future__ import annotations

import math
from contextlib import nullcontext
from typing import Any

import torch
from torch.utils import _pytree as pytree

from gtp_vision.agents.improvement import Metrics
from gtp_vision.config.schema import Config
from gtp_vision.core.distributed import SplitBatch
from gtp_vision.datasets.batch import Batch
from gtp_vision.datasets.sources import BatchSource
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
    """Of step `step` (from 0): linear warm-up, then constant or a half cosine to 0, from `schedule_start` on."""
    training = config.training
    done = max(0, step - training.schedule_start)
    rate = training.learning_rate * min(1.0, (done + 1) / max(1, training.warmup_steps))
    if training.schedule == "cosine":
        rate *= 0.5 * (1 + math.cos(math.pi * done / max(1, training.steps - training.schedule_start)))
    return rate


def average_rate(config: Config, step: int) -> float:
    """1 - decay of step `step` (from 0), at which the average of the acting weights follows them.

    The decay grows as (1 + k) / (10 + k) to `training.ema`, so that the first weights are soon forgotten.
    """
    return 1 - min(config.training.ema, (1 + step) / (10 + step))


class Eager:
    """One run, step by step: autograd, PyTorch's Adam, and DistributedDataParallel for several processes."""

    name = "eager"

    def __init__(self, source: BatchSource, config: Config, parts: Components) -> None:
        self.source, self._config, self._parts = source, config, parts
        optimizer_moments(parts.optimizer)  # a checkpoint holds those of parameters that are not trained yet, too

    def step(self, step: int, fetched: Any) -> list[Metrics]:
        """One gradient step and the targets' Polyak step; the one run's metrics, `nonfinite` among them."""
        config, parts = self._config, self._parts
        agent, optimizer = parts.agent, parts.optimizer
        skips = config.training.on_nonfinite == "skip"
        statistics = running_statistics(agent) if skips and config.encoder.batch_norm == "train" else []
        statistics_before = [statistic.clone() for statistic in statistics]

        rate = learning_rate(config, step)
        for group in optimizer.param_groups:
            group["lr"] = rate * group["scale"] * (step >= group["after"])

        # Loss and gradients
        agent.begin(step)
        batch = self.source.batch(fetched)
        in_parts = config.training.accumulate > 1
        loss, metrics = self._accumulated(step, batch) if in_parts else self._gradients(step, batch)
        trained = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        gradients = [parameter.grad for parameter in trained if parameter.grad is not None]
        bad = metrics[NONFINITE] = is_nonfinite(loss, torch.stack(torch._foreach_norm(gradients)).sum())
        if config.training.clip_gradient is not None:
            awake = [group for group in optimizer.param_groups if step >= group["after"]]
            clipped = [parameter for group in awake for parameter in group["params"]]
            metrics["gradient_norm"] = parts.accelerator.clip_grad_norm_(clipped, config.training.clip_gradient)

        # Adam and the targets
        def move() -> None:
            optimizer.step()
            agent.update_targets(average_rate(config, step))

        if not skips:
            move()
            return [metrics]
        with torch.no_grad():
            for statistic, before in zip(statistics, statistics_before, strict=True):
                restore_if_nonfinite(statistic, before, bad)
            detached = [parameter.detach() for parameter in trained]
            apply_if_finite(bad, lambda: [*detached, *optimizer_moments(optimizer), *target_tensors(agent)], move)
        return [metrics]

    def _gradients(
        self, step: int, batch: Batch, part: int = 0, *, begins: bool = True, ends: bool = True
    ) -> tuple[torch.Tensor, Metrics]:
        """Add the gradients of a batch, or of a micro-batch, of which the first `begins` and the last `ends` a step."""
        parts = self._parts
        spreads = self._config.training.on_nonfinite == "skip" and parts.accelerator.num_processes > 1
        with nullcontext() if ends else parts.accelerator.no_sync(parts.module):
            loss, metrics = parts.module(batch, parts.stream(step, part), step)
            if begins:
                parts.optimizer.zero_grad(set_to_none=True)
            parts.accelerator.backward(spread_nonfinite(loss) if spreads else loss)  # of the mean over micro-batches
        return loss.detach(), metrics

    def _accumulated(self, step: int, batch: Batch) -> tuple[torch.Tensor, Metrics]:
        """The gradients of a batch by its micro-batches; loss and metrics are their means."""
        count = self._config.training.accumulate
        rows, found = len(batch) // count, list[tuple[torch.Tensor, Metrics]]()

        def compute(part: int) -> None:
            share = pytree.tree_map(lambda x: x[part * rows : (part + 1) * rows], batch)
            found.append(self._gradients(step, share, part, begins=not found, ends=part == count - 1))

        SplitBatch(count).run(compute)
        names = dict.fromkeys(name for _, metrics in found for name in metrics)
        mean = {name: torch.stack([metrics[name] for _, metrics in found]).mean(0) for name in names}
        return torch.stack([loss for loss, _ in found]).mean(), mean
