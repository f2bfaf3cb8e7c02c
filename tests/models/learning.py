"""What the models' tests share: a batch of samples, and a short training on sampled actions."""

from __future__ import annotations

from collections.abc import Callable

import torch

from gtp_vision.core.random import NoiseSource, RandomStream
from gtp_vision.models import Policy
from gtp_vision.models.networks import frozen_copy, polyak_

F, A = 3, 2  # features and actions

Samples = Callable[[RandomStream], tuple[torch.Tensor, torch.Tensor]]


def sample_batch(rows: int = 32) -> tuple[torch.Tensor, torch.Tensor]:
    """Features (rows, F) and actions (rows, A)."""
    noise = RandomStream(7, 0)
    return noise.normal(rows, F), 2 * noise.uniform(rows, A) - 1


def loss_of(
    student: Policy, features: torch.Tensor, action: torch.Tensor, noise: NoiseSource, teacher: Policy
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """The loss of each sample, (rows,), and metrics."""
    losses, metrics = student.loss(student.rows(features, action, noise, teacher))
    return student.per_sample(losses), metrics


def learn(student: Policy, samples: Samples, steps: int, rate: float) -> None:
    """Train a policy on (features, action) drawn in each step, with a cosine schedule and a slow teacher."""
    teacher = frozen_copy(student)
    optimizer = torch.optim.Adam(student.parameters(), lr=rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for step in range(steps):
        noise = RandomStream(0, step)
        loss = loss_of(student, *samples(noise), noise, teacher)[0].mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        polyak_(teacher, student, 0.05)
