"""Diffusion: the denoiser alone, integrated when acting.

`DiffusionPolicy` is GTP without jumps: noise levels, scaling and sampler of Karras et al. (2022).
`VPDiffusionPolicy` is the variance-preserving, noise-predicting form that Diffusion-QL uses (Wang et al., 2023).
Axes in names: B batch, A action dimensions, N diffusion steps.
"""

from __future__ import annotations

import itertools
import math

import torch

from gtp_vision.datasets.random import NoiseSource
from gtp_vision.errors import GtpVisionError
from gtp_vision.policies.base import Losses, Policy, PolicyConfig, Rows


class DiffusionPolicy(Policy):
    """Learns D(a_t, t) = E[a | a_t] and follows da/dt = (a - D) / t from sigma_max to 0. Arguments as `Policy`."""

    def __init__(self, features: int, actions: int, config: PolicyConfig) -> None:
        super().__init__(features, actions, config, times=1, noise_levels=True)

    def denoise(self, observed: torch.Tensor, a_t: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        """D(a_t, t): (B, A)."""
        return self.evaluate(observed, self.scaled(a_t, t), t)

    def row_losses(self, batch: Rows) -> Losses:
        """||D(a + t z, t) - a||^2, t by a uniform place on the grid: GTP's flow loss."""
        action, rows, generator = batch.action, len(batch.action), batch.generator
        t = self.level(self.config.grid * generator.uniform(rows))
        a_t = action + t[:, None] * generator.normal(rows, self.actions)
        each = (self.denoise(batch.observed, a_t, t).float() - action).square().sum(1)
        return each, {"flow_loss": each.mean()}

    def generate(self, observed: torch.Tensor, steps: int, generator: NoiseSource) -> torch.Tensor:
        """K Euler steps along the levels (which is DDIM): a_s = (s/t) a_t + (1 - s/t) D(a_t, t)."""
        rows = len(observed)
        a_t = self.config.sigma_max * generator.normal(rows, self.actions)
        for t, s in itertools.pairwise(self.levels(steps)):
            denoised = self.denoise(observed, a_t, a_t.new_full((rows,), t)).float()
            a_t = torch.lerp(denoised, a_t, s / t)
        return a_t


class VPDiffusionPolicy(Policy):
    """Learns the noise in sqrt(abar_i) a + sqrt(1 - abar_i) z, and acts by ancestral sampling (DDPM).

    Its N = `grid` steps are fixed when training. Arguments as `Policy`.
    """

    beta_min, beta_max = 0.1, 10.0
    abar: torch.Tensor

    def __init__(self, features: int, actions: int, config: PolicyConfig) -> None:
        super().__init__(features, actions, config, times=1, noise_levels=False)
        n = config.grid
        rates = [
            self.beta_min / n + (self.beta_max - self.beta_min) * (2 * i - 1) / (2 * n * n) for i in range(1, n + 1)
        ]
        abar = torch.tensor([1.0, *(math.exp(-rate) for rate in rates)], dtype=torch.float64).cumprod(0)
        self.register_buffer("abar", abar.float(), persistent=False)  # (N + 1,), falling from 1

    def row_losses(self, batch: Rows) -> Losses:
        """||eps(x_i, i) - z||^2, i uniform in 1..N."""
        action, rows, generator = batch.action, len(batch.action), batch.generator
        i = 1 + generator.integers(self.config.grid, rows)
        z = generator.normal(rows, self.actions)
        abar = self.abar[i][:, None]
        x = abar.sqrt() * action + (1 - abar).sqrt() * z
        each = (self.evaluate(batch.observed, x, i / self.config.grid).float() - z).square().sum(1)
        return each, {"flow_loss": each.mean()}

    def generate(self, observed: torch.Tensor, steps: int, generator: NoiseSource) -> torch.Tensor:
        """The mean of q(x_{i-1} | x_i, a) with the predicted action, clipped to [-1, 1], plus its noise.

        Raises:
            GtpVisionError: K is not the number of steps that was trained.
        """
        n, rows = self.config.grid, len(observed)
        if steps != n:
            raise GtpVisionError(f"steps={steps}: this vp_diffusion was trained for {n} steps and acts in {n}")
        x = generator.normal(rows, self.actions)
        for i in range(n, 0, -1):
            abar, before = self.abar[i], self.abar[i - 1]
            alpha = abar / before
            noise = self.evaluate(observed, x, x.new_full((rows,), i / n)).float()
            action = ((x - (1 - abar).sqrt() * noise) / abar.sqrt()).clamp(-1, 1)
            x = (before.sqrt() * (1 - alpha) * action + alpha.sqrt() * (1 - before) * x) / (1 - abar)
            if i > 1:
                x = x + ((1 - alpha) * (1 - before) / (1 - abar)).sqrt() * generator.normal(rows, self.actions)
        return x
