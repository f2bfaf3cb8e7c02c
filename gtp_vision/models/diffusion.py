"""Diffusion: the denoiser alone, integrated when acting.

`DiffusionPolicy` is GTP without jumps: noise levels, scaling and sampler of Karras et al. (2022).
`VPDiffusionPolicy` is the variance-preserving, noise-predicting form that Diffusion-QL uses (Wang et al., 2023).
Axes in names: B batch, A action dimensions, N diffusion steps.
"""

from __future__ import annotations

import itertools
import math

import torch

from gtp_vision.core.errors import GtpVisionError
from gtp_vision.core.random import NoiseSource
from gtp_vision.models.abilities import Guidable, Integrable, Pull, over_rows
from gtp_vision.models.networks import UnitTimeEmbedding
from gtp_vision.models.policy import OF_MAPS, Losses, PolicyConfig, Rows
from gtp_vision.models.timed import DenoisingPolicy, Time, TimedPolicy


class DiffusionPolicy(DenoisingPolicy, Integrable):
    """Learns D(a_t, t) = E[a | a_t] and follows da/dt = (a - D) / t from sigma_max to 0. Arguments as `Policy`."""

    family = "diffusion"
    unused = OF_MAPS | {"grid"}

    def denoise(self, observed: torch.Tensor, a_t: torch.Tensor, t: Time) -> torch.Tensor:
        """D(o, a_t, t), the network's output: (B, A)."""
        return self.evaluate(observed, a_t, t)

    def loss(self, batch: Rows) -> Losses:
        """||D(a + t z, t) - a||^2, t by a uniform place on the grid: GTP's flow loss."""
        a_t, t = self.noised(batch.action, batch.noise)
        each = (self.denoise(batch.observed, a_t, t).float() - batch.action).square().sum(1)
        return each, {"flow_loss": each.mean()}

    def integrate(self, observed: torch.Tensor, z: torch.Tensor, steps: int) -> torch.Tensor:
        """K Euler steps along the levels (which is DDIM): a_s = (s/t) a_t + (1 - s/t) D(a_t, t)."""
        a_t = self.config.sigma_max * z
        for t, s in itertools.pairwise(self.levels(steps)):
            a_t = torch.lerp(self.denoise(observed, a_t, t).float(), a_t, s / t)
        return a_t


class VPDiffusionPolicy(TimedPolicy, Guidable):
    """Learns the noise in x_i = sqrt(abar_i) a + sqrt(1 - abar_i) z, and acts by ancestral sampling (DDPM).

    Its N = `grid` steps are fixed when training; the network gets i / N. Arguments as `Policy`.
    """

    family = "vp_diffusion"

    beta_min, beta_max = 0.1, 10.0
    abar: torch.Tensor

    def __init__(self, features: int, actions: int, config: PolicyConfig) -> None:
        super().__init__(features, actions, config, embed=UnitTimeEmbedding())
        n = config.grid
        rates = [
            self.beta_min / n + (self.beta_max - self.beta_min) * (2 * i - 1) / (2 * n * n) for i in range(1, n + 1)
        ]
        falling = [1.0, *(math.exp(-total) for total in itertools.accumulate(rates))]
        self.register_buffer("abar", torch.tensor(falling), persistent=False)  # (N + 1,)
        self._steps = [_coefficients(*pair) for pair in itertools.pairwise(falling)]

    def draw_time(self, rows: int, noise: NoiseSource) -> torch.Tensor:
        """Times i / N with i uniform in 1..N: (B,)."""
        return (1 + noise.integers(self.config.grid, rows)) / self.config.grid

    def diffuse(self, action: torch.Tensor, t: torch.Tensor, z: torch.Tensor) -> torch.Tensor:
        """The noised x_i = sqrt(abar_i) a + sqrt(1 - abar_i) z."""
        abar = over_rows(self.abar[(t * self.config.grid).round().long()], action)
        return abar.sqrt() * action + (1 - abar).sqrt() * z

    def loss(self, batch: Rows) -> Losses:
        """||eps(x_i, i) - z||^2, i uniform in 1..N."""
        action, rows, noise = batch.action, len(batch.action), batch.noise
        t, z = self.draw_time(rows, noise), noise.normal(rows, self.actions)
        x = self.diffuse(action, t, z)
        each = (self.evaluate(batch.observed, x, t).float() - z).square().sum(1)
        return each, {"flow_loss": each.mean()}

    def generate(self, observed: torch.Tensor, steps: int, noise: NoiseSource) -> torch.Tensor:
        """The mean of q(x_{i-1} | x_i, a) with the predicted action, clipped to [-1, 1], plus its noise.

        Raises:
            GtpVisionError: K is not the number of steps that was trained.
        """
        return self._ancestral(observed, steps, noise, None)

    def guided(self, observed: torch.Tensor, steps: int, noise: NoiseSource, pull: Pull) -> torch.Tensor:
        """As `generate` with the noise eps - sqrt(1 - abar_i) pull(x_i, i / N): eps is -sqrt(1 - abar_i) score.

        Raises:
            GtpVisionError: as `generate`.
        """
        return self._ancestral(observed, steps, noise, pull)

    def _ancestral(self, observed: torch.Tensor, steps: int, noise: NoiseSource, pull: Pull | None) -> torch.Tensor:
        n, rows = self.config.grid, len(observed)
        if steps != n:
            raise GtpVisionError(f"steps={steps}: this vp_diffusion was trained for {n} steps and acts in {n}")
        x = noise.normal(rows, self.actions)
        for i in range(n, 0, -1):
            scale, share, to_action, to_x, deviation = self._steps[i - 1]
            eps = self.evaluate(observed, x, i / n).float()
            if pull is not None:
                eps = eps - share / scale * pull(x, x.new_full((rows,), i / n))
            action = torch.sub(scale * x, eps, alpha=share).clamp(-1, 1)
            x = torch.add(to_action * action, x, alpha=to_x)
            if i > 1:
                x = torch.add(x, noise.normal(rows, self.actions), alpha=deviation)
        return x


def _coefficients(before: float, abar: float) -> tuple[float, ...]:
    """Of the step from abar_i to abar_{i-1} = `before`.

    The action is `scale` x - `share` eps, clipped; then x is `to_action` action + `to_x` x + `deviation` z.
    """
    alpha = abar / before
    return (
        1 / math.sqrt(abar),
        math.sqrt((1 - abar) / abar),
        math.sqrt(before) * (1 - alpha) / (1 - abar),
        math.sqrt(alpha) * (1 - before) / (1 - abar),
        math.sqrt((1 - alpha) * (1 - before) / (1 - abar)),
    )
