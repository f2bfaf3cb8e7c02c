"""Training a policy on arrays, without encoders, critics or simulators."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from gtp_vision import models
from gtp_vision.core.random import RandomStream, counter_rng
from gtp_vision.models import Policy, PolicyConfig
from gtp_vision.models.networks import frozen_copy, polyak_

Draw = Callable[[int, np.random.Generator], tuple[np.ndarray, np.ndarray]]
"""(batch size B, generator) to features (B, F) and actions (B, A)."""

Weigh = Callable[[np.ndarray, np.ndarray], np.ndarray]
"""Features (B, F) and actions (B, A) to weights (B,)."""


@dataclass(frozen=True)
class Fitted:
    """A trained policy and its training time."""

    policy: Policy  # the slow copy, whose parameters are averaged over the last steps
    seconds: float  # of training


def fit(
    config: PolicyConfig,
    draw: Draw,
    *,
    steps: int,
    batch_size: int = 256,
    learning_rate: float = 1e-3,
    tau: float = 0.05,
    seed: int = 0,
    weigh: Weigh | None = None,
) -> Fitted:
    """Train a policy: Adam, 100 steps of warm-up, then half a cosine to 0; `tau` is the teacher's Polyak rate.

    `weigh` weighs the loss of each action; a batch's weights count up to a factor.
    """
    features, actions = draw(2, counter_rng(seed, 0))
    torch.manual_seed(seed)
    student = models.create(features.shape[1], actions.shape[1], config)
    teacher = frozen_copy(student)
    optimizer = torch.optim.Adam(student.parameters(), learning_rate)
    began = time.perf_counter()
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate * min(1, (step + 1) / 100) * 0.5 * (1 + math.cos(math.pi * step / steps))
        observed, action = (torch.from_numpy(x).float() for x in draw(batch_size, counter_rng(seed, 1 + step)))
        rows = student.rows(observed, action, RandomStream(seed, step), teacher)
        each = student.per_sample(student.loss(rows)[0])
        if weigh is not None:
            weight = torch.from_numpy(weigh(observed.numpy(), action.numpy())).float()
            each = weight / weight.mean() * each
        loss = each.mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        polyak_(teacher, student, tau)
    return Fitted(teacher.eval(), time.perf_counter() - began)


def unconditional(draw: Callable[[int, np.random.Generator], np.ndarray]) -> Draw:
    """A `Draw` of actions without an observation: one feature that is always 0."""
    return lambda count, generator: (np.zeros((count, 1)), draw(count, generator))
