"""Consistency model in its training form: only jumps to level 0 (Song et al., 2023), as Consistency-AC uses it.

f(a_t, t) = c_skip(t) a_t + c_out(t) F(a_t, t) with f(., sigma_min) the identity.
Axes in names: B batch, A action dimensions.
"""

from __future__ import annotations

import torch

from gtp_vision.datasets.random import NoiseSource
from gtp_vision.policies.base import Losses, Policy, PolicyConfig, Rows


class ConsistencyPolicy(Policy):
    """Learns f(a + t z, t) = f'(a + u z, u) for neighbouring levels t > u. Arguments as `Policy`."""

    def __init__(self, features: int, actions: int, config: PolicyConfig) -> None:
        super().__init__(features, actions, config, times=1, noise_levels=True)

    def jump(self, observed: torch.Tensor, a_t: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        """f(a_t, t): (B, A)."""
        above, data = (t - self.config.sigma_min)[:, None], self.config.sigma_data
        c_skip = data**2 / (above.square() + data**2)
        c_out = data * above * (t.square() + data**2).rsqrt()[:, None]
        return c_skip * a_t + c_out * self.evaluate(observed, self.scaled(a_t, t), t).float()

    def row_losses(self, batch: Rows) -> Losses:
        """||f(a + t z, t) - f'(a + u z, u)||^2, t by a uniform place on the grid and u a step below."""
        teacher = batch.teacher
        assert isinstance(teacher, ConsistencyPolicy)
        action, rows, generator = batch.action, len(batch.action), batch.generator
        place = (self.config.grid - 1) * generator.uniform(rows)
        t, u, z = self.level(place), self.level(place + 1), generator.normal(rows, self.actions)
        with torch.no_grad():
            target = teacher.jump(batch.teacher_observed, action + u[:, None] * z, u)
        each = (self.jump(batch.observed, action + t[:, None] * z, t) - target).square().sum(1)
        return each, {"consistency_loss": each.mean()}

    def generate(self, observed: torch.Tensor, steps: int, generator: NoiseSource) -> torch.Tensor:
        """A jump to level 0, then K - 1 times new noise up to a lower level and a jump from there."""
        rows, low = len(observed), self.config.sigma_min
        a_t = self.config.sigma_max * generator.normal(rows, self.actions)
        action = self.jump(observed, a_t, a_t.new_full((rows,), self.config.sigma_max))
        for t in self.levels(steps)[1:-1]:
            a_t = action + (t**2 - low**2) ** 0.5 * generator.normal(rows, self.actions)
            action = self.jump(observed, a_t, a_t.new_full((rows,), t))
        return action
