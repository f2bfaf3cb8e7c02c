"""Generative trajectory policy: the flow map of the ODE that carries noise to an action.

Forward process a_t = a + t z with z ~ N(0, I). The network phi(o, a_t, t, s) gives the flow map

    Phi(o, a_t, t, s) = (s/t) a_t + (1 - s/t) phi(o, a_t, t, s),        sigma_max >= t >= s >= 0,

so Phi(., t, t) is the identity and phi(., t, t) the denoiser E[a | a_t].
Axes in names: B batch, F features, A action dimensions.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field

import torch
from torch import nn

from gtp_vision.datasets.random import NoiseSource
from gtp_vision.networks import MLP, LogTimeEmbedding, activation


@dataclass
class GTPPolicyConfig:
    """Settings of the policy; the reasons stand in configs/agent/."""

    sigma_min: float = 0.002
    sigma_max: float = 10.0
    rho: float = 7.0
    sigma_data: float = 0.5
    grid: int = 40
    lambda_flow: float = 1.0
    residual: str = "phi"
    noise_draws: int = 1
    hidden: list[int] = field(default_factory=lambda: [256, 256, 256])
    activation: str = "mish"


class GTPPolicy(nn.Module):
    """Acts by K jumps of the flow map, and learns it from data alone.

    Args:
        features: width F of the observation's features.
        actions: number A of action dimensions.
        config: see `GTPPolicyConfig`.

    Raises:
        ValueError: an action dimension below 1, sigma_max not above sigma_min, an unknown residual.
    """

    def __init__(self, features: int, actions: int, config: GTPPolicyConfig) -> None:
        super().__init__()
        if actions < 1:
            raise ValueError(f"the action has {actions} dimensions; it needs at least 1")
        if not 0 < config.sigma_min < config.sigma_max:
            raise ValueError(f"wanted 0 < sigma_min < sigma_max, got {config.sigma_min} and {config.sigma_max}")
        if config.grid < 2 or config.noise_draws < 1 or not config.hidden:
            raise ValueError("wanted grid >= 2 (three levels make a triple), noise_draws >= 1 and a hidden layer")
        if config.residual not in ("plain", "phi"):
            raise ValueError(f"residual is '{config.residual}'; it must be 'plain' or 'phi'")
        self.config, self.actions = config, actions
        self.embed = LogTimeEmbedding(config.sigma_min, config.sigma_max)
        # The first layer in two parts: the observation's is computed once for all jumps and noise draws.
        width, *deeper = config.hidden
        self.observe = nn.Linear(features, width)
        self.locate = nn.Linear(actions + 2 * self.embed.width, width, bias=False)
        self.network = nn.Sequential(activation(config.activation), MLP(width, deeper, actions, config.activation))

    # The map -------------------------------------------------------------------------------------------------

    def phi(self, features: torch.Tensor, a_t: torch.Tensor, t: torch.Tensor, s: torch.Tensor) -> torch.Tensor:
        """The output of the network, phi of (o, a_t, t, s).

        Args:
            features: (B, F).
            a_t: (B, A), the noised action.
            t: (B,), the noise level of `a_t`.
            s: (B,), the level to jump to, s <= t.

        Returns:
            (B, A).
        """
        return self._phi(self.observe(features), a_t, t, s)

    def flow_map(self, features: torch.Tensor, a_t: torch.Tensor, t: torch.Tensor, s: torch.Tensor) -> torch.Tensor:
        """Phi(o, a_t, t, s): the solution at level s of the ODE that stands at a_t at level t > 0. Shapes as `phi`."""
        return self._flow_map(self.observe(features), a_t, t, s)

    def _phi(self, observed: torch.Tensor, a_t: torch.Tensor, t: torch.Tensor, s: torch.Tensor) -> torch.Tensor:
        c_in = (t.square() + self.config.sigma_data**2).rsqrt()[:, None]  # the input keeps unit scale at every t
        place = torch.cat([c_in * a_t, self.embed(t), self.embed(s)], dim=1).to(observed.dtype)
        return self.network(observed + self.locate(place))

    def _flow_map(self, observed: torch.Tensor, a_t: torch.Tensor, t: torch.Tensor, s: torch.Tensor) -> torch.Tensor:
        ratio = (s / t)[:, None]
        return ratio * a_t + (1 - ratio) * self._phi(observed, a_t, t, s)

    def levels(self, count: int) -> list[float]:
        """`count` + 1 noise levels from sigma_max down to 0, spaced as Karras et al. (2022), eq. 5, with rho."""
        c = self.config
        low, high = c.sigma_min ** (1 / c.rho), c.sigma_max ** (1 / c.rho)
        return [(high + k / count * (low - high)) ** c.rho for k in range(count)] + [0.0]

    # The loss ------------------------------------------------------------------------------------------------

    def loss(
        self,
        features: torch.Tensor,
        action: torch.Tensor,
        weight: torch.Tensor,
        generator: NoiseSource,
        teacher: GTPPolicy,
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """L_actor = L_cons + lambda_flow L_flow for each sample.

        The teacher's intermediate point a_u = a + u z shares its noise with a_t (the paper's score
        approximation: a closed form of the data instead of an ODE solve). The noise then cancels in
        Phi(a_t, t, s) - Phi'(a_u, u, s), and with c = (1 - s/u) / (1 - s/t) the residual is

            (1 - s/t) (phi - [c phi' + (1 - c) a]),

        in which no number is larger than an action; the other way loses all precision at sigma_max = 80.

        Args:
            features: (B, F).
            action: (B, A) in [-1, 1].
            weight: (B,), the weights w of eq. 13, 1 for behaviour cloning.
            generator: of z and of (t, u, s).
            teacher: the slow copy of this policy; reads the student's features.

        Returns:
            (B,) losses and metrics on the device.
        """
        draws = self.config.noise_draws
        action = action.repeat_interleave(draws, 0)
        rows = len(action)
        t, u, s = self._ordered_triple(rows, generator)
        a_t, a_u, c = self.noised_pair(action, generator.normal(rows, self.actions), t, u, s)
        t_flow = self._grid(action)[generator.integers(self.config.grid, rows)]
        a_flow = action + t_flow[:, None] * generator.normal(rows, self.actions)

        observed = self.observe(features).repeat_interleave(draws, 0).repeat(2, 1)
        student = self._phi(observed, torch.cat([a_t, a_flow]), torch.cat([t, t_flow]), torch.cat([s, t_flow]))
        phi_cons, phi_flow = student.float().split(rows)
        with torch.no_grad():
            observed = teacher.observe(features).repeat_interleave(draws, 0)
            target = torch.lerp(action, teacher._phi(observed, a_u, u, s).float(), c[:, None])
        l_cons = (phi_cons - target).square().sum(1)
        if self.config.residual == "plain":
            l_cons = (1 - s / t).square() * l_cons
        l_flow = (phi_flow - action).square().sum(1)
        metrics = {"consistency_loss": l_cons.mean(), "flow_loss": l_flow.mean()}
        return weight * (l_cons + self.config.lambda_flow * l_flow).view(-1, draws).mean(1), metrics

    @staticmethod
    def noised_pair(
        action: torch.Tensor, z: torch.Tensor, t: torch.Tensor, u: torch.Tensor, s: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """A + t z, a + u z, and c = (1 - s/u) / (1 - s/t), how much of the target is the teacher's."""
        s_over_u = torch.where(u > s, s / u, 1.0)  # u = s = 0 is the identity too
        return action + t[:, None] * z, action + u[:, None] * z, (1 - s_over_u) / (1 - s / t)

    def _grid(self, like: torch.Tensor) -> torch.Tensor:
        return torch.tensor(self.levels(self.config.grid), dtype=like.dtype, device=like.device)

    def _ordered_triple(self, rows: int, generator: NoiseSource) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Levels t > u > s: the pair (t, s) uniform, s possibly 0, then u uniform between; three (B,) tensors.

        Where no level lies between, u = s: there the teacher's map is the identity and the target the data. The
        jumps to 0 have no other anchor (c = 1 for all u > 0): without it any shift of them costs nothing.
        """
        points = self.config.grid + 1
        first = generator.integers(points, rows)
        second = generator.integers(points - 1, rows)
        second = second + (second >= first)
        i_t, i_s = torch.minimum(first, second), torch.maximum(first, second)  # indices grow as levels fall
        between = (i_s - i_t - 1).clamp_min(1)
        i_u = i_t + 1 + (generator.uniform(rows) * between).long().clamp_max(between - 1)
        grid = torch.tensor(self.levels(self.config.grid), device=i_t.device)
        return grid[i_t], grid[i_u], grid[i_s]

    # Acting --------------------------------------------------------------------------------------------------

    def sample(self, features: torch.Tensor, steps: int, generator: NoiseSource, draws: int = 1) -> torch.Tensor:
        """Actions by K jumps of Phi from N(0, sigma_max^2 I) to level 0.

        Args:
            features: (B, F).
            steps: K, chosen when acting, not when training.
            generator: of the initial noise.
            draws: actions an observation.

        Returns:
            (B * draws, A) in [-1, 1], the draws of one observation side by side.

        Raises:
            ValueError: K below 1.
        """
        if steps < 1:
            raise ValueError(f"steps={steps}: a policy acts in at least 1 jump")
        observed = self.observe(features).repeat_interleave(draws, 0)
        rows = len(observed)
        a_t = self.config.sigma_max * generator.normal(rows, self.actions)
        for t, s in itertools.pairwise(self.levels(steps)):
            a_t = self._flow_map(observed, a_t, a_t.new_full((rows,), t), a_t.new_full((rows,), s)).float()
        return a_t.clamp(-1, 1)


def effective_sample_size(weight: torch.Tensor) -> torch.Tensor:
    """(sum w)^2 / (B sum w^2): 1 for equal weights, 1/B when one sample has them all."""
    return weight.sum().square() / (len(weight) * weight.square().sum())
