"""The bottleneck diffusion model of EDA (Chen et al., NeurIPS 2024, arXiv 2407.09024): a density that is diffusion too.

The network gives a scalar G, and with c_in = 1 / sqrt(t^2 + sigma_data^2) the log-density of noised actions is

    f(o, a_t, t) = sigma_data c_in G(o, c_in a_t, t) - ||c_in a_t||^2 / 2 = log mu_t(a_t | o) + constant of (o, t).

Its gradient is the score: the predicted noise is eps = -t grad f, the denoiser D = a_t + t^2 grad f. The paper's
forward process preserves variance; ours is a_t = a + t z, so that levels, sampler and guidance are those of
`DiffusionPolicy`, in any number of steps. The second term is exact for actions from N(0, sigma_data^2) and leaves G
what is particular to the data; the factor of the first is about 1 where levels tell actions apart and falls as 1/t,
as differences of log mu_t do, so that neither G nor its slope need be large or small at any level.
No score tells how two modes weigh at levels so low that no noised action lies between them: there, f is to be
compared with a frozen copy of itself, as alignment does.
Axes in names: B batch, A action dimensions.
"""

from __future__ import annotations

import torch

from gtp_vision.models.abilities import Density
from gtp_vision.models.diffusion import DiffusionPolicy
from gtp_vision.models.policy import Losses, PolicyConfig, Rows
from gtp_vision.models.timed import Time, column


class BottleneckPolicy(DiffusionPolicy, Density):
    """Learns log mu_t(a_t | o) through its gradient. Arguments as `Policy`.

    Raises:
        ValueError: activation=relu, or as `Policy`.
    """

    family = "bottleneck"

    def __init__(self, features: int, actions: int, config: PolicyConfig) -> None:
        if config.activation == "relu":
            raise ValueError("bottleneck learns through its network's slope, which relu makes steps; take another")
        super().__init__(features, actions, config, outputs=1)

    def log_density(self, observed: torch.Tensor, a_t: torch.Tensor, t: Time) -> torch.Tensor:
        """f(o, a_t, t): (B,), in the parameters' precision even under autocast, because what counts are differences."""
        data = self.config.sigma_data
        c_in = (t**2 + data**2) ** -0.5
        with torch.autocast(observed.device.type, enabled=False):
            g = self.evaluate(observed.to(self.locate.weight.dtype), a_t, t).squeeze(1)
            return data * c_in * g - 0.5 * c_in**2 * a_t.square().sum(1)

    def score(self, observed: torch.Tensor, a_t: torch.Tensor, t: Time) -> torch.Tensor:
        """The gradient of f by a_t: (B, A), itself differentiable where gradients are recorded."""
        t = t if isinstance(t, torch.Tensor) else a_t.new_full((len(a_t),), t)  # embeddings kept for numbers have none
        slope = torch.func.grad(lambda x: self.log_density(observed, x, t).sum())
        if torch.compiler.is_compiling() or not torch.is_inference_mode_enabled():
            return slope(a_t)
        with torch.inference_mode(False):  # in inference mode no gradient can be recorded
            return slope(a_t.clone())

    def denoise(self, observed: torch.Tensor, a_t: torch.Tensor, t: Time) -> torch.Tensor:
        """D(o, a_t, t) = a_t + t^2 grad f: (B, A)."""
        return a_t + column(t) ** 2 * self.score(observed, a_t, t)

    def loss(self, batch: Rows) -> Losses:
        """||eps(a + t z, t) - z||^2, t by a uniform place on the grid."""
        rows, noise = len(batch.action), batch.noise
        t, z = self.draw_time(rows, noise), noise.normal(rows, self.actions)
        eps = -t[:, None] * self.score(batch.observed, self.diffuse(batch.action, t, z), t)
        each = (eps - z).square().sum(1)
        return each, {"flow_loss": each.mean()}
