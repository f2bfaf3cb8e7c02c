"""Consistency model in its training form: only jumps to level 0 (Song et al., 2023), as Consistency-AC uses it.

f(a_t, t) = c_skip(t) a_t + c_out(t) F(a_t, t) with f(., sigma_min) the identity.
Axes in names: B batch, A action dimensions.
"""

from __future__ import annotations

import torch

from gtp_vision.core.random import NoiseSource
from gtp_vision.models.abilities import Renoisable
from gtp_vision.models.policy import Losses, Rows
from gtp_vision.models.timed import LevelPolicy, Time, column


class ConsistencyPolicy(LevelPolicy, Renoisable):
    """Learns f(a + t z, t) = f'(a + u z, u) for neighbouring levels t > u. Arguments as `Policy`."""

    family = "consistency"

    has_teacher = True

    def jump(self, observed: torch.Tensor, a_t: torch.Tensor, t: Time) -> torch.Tensor:
        """f(a_t, t): (B, A)."""
        above, data = t - self.config.sigma_min, self.config.sigma_data
        c_skip = column(data**2 / (above**2 + data**2))
        c_out = column(data * above * (t**2 + data**2) ** -0.5)
        return c_skip * a_t + c_out * self.evaluate(observed, a_t, t).float()

    def loss(self, batch: Rows) -> Losses:
        """||f(a + t z, t) - f'(a + u z, u)||^2, t by a uniform place on the grid and u a step below."""
        teacher = batch.teacher
        assert isinstance(teacher, ConsistencyPolicy)
        action, rows, noise = batch.action, len(batch.action), batch.noise
        place = (self.config.grid - 1) * noise.uniform(rows)
        t, u, z = self.level(place), self.level(place + 1), noise.normal(rows, self.actions)
        with torch.no_grad():
            target = teacher.jump(batch.teacher_observed, action + u[:, None] * z, u)
        each = (self.jump(batch.observed, action + t[:, None] * z, t) - target).square().sum(1)
        return each, {"consistency_loss": each.mean()}

    def generate(self, observed: torch.Tensor, steps: int, noise: NoiseSource) -> torch.Tensor:
        """A jump to level 0, then K - 1 times new noise up to a lower level and a jump from there."""
        rows, low = len(observed), self.config.sigma_min
        highest, *lower = self.levels(steps)[:-1]
        action = self.jump(observed, highest * noise.normal(rows, self.actions), highest)
        for t in lower:
            a_t = torch.add(action, noise.normal(rows, self.actions), alpha=(t**2 - low**2) ** 0.5)
            action = self.jump(observed, a_t, t)
        return action

    def renoised(self, observed: torch.Tensor, action: torch.Tensor, level: float, z: torch.Tensor) -> torch.Tensor:
        """f(a + t z, t) of t = `level`."""
        return self.jump(observed, torch.add(action, z, alpha=level), level)
