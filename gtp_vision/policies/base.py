"""What all generative policies share: the configuration, the network, the noise levels, and two methods.

A policy is a conditional distribution of actions. `loss` fits it to data, each sample with its own weight, and
`sample` draws from it in K steps. No policy knows a critic.
Axes in names: B batch, F features, A action dimensions.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field

import torch
from torch import nn

from gtp_vision.datasets.random import NoiseSource
from gtp_vision.networks import MLP, LogTimeEmbedding, UnitTimeEmbedding, activation


@dataclass
class PolicyConfig:
    """Settings of a policy; the reasons stand in configs/agent/gtp.yaml and docs/few-step.md.

    Attributes:
        family: which generative family, see `gtp_vision.policies.FAMILIES`.
        sigma_min: lowest noise level above 0 that training knows (gtp, diffusion, consistency).
        sigma_max: highest noise level, from which acting starts (the same).
        sigma_last: noise level from which the last of several steps starts (the same).
        rho: how the levels crowd at the low end, as Karras et al. (2022).
        sigma_data: scale of the actions, for the scaling of inputs.
        grid: steps from sigma_max to 0 that training takes apart (gtp, consistency); of vp_diffusion, all of them; of
            shortcut, 1 over its smallest.
        lambda_flow: weight of the flow loss beside the consistency loss (gtp).
        teacher: where a trajectory goes (gtp): `data`, the paper's score approximation, or `model`, a second-order
            solver step of the model's own denoiser.
        zero_share: of the jumps that training takes, how many end at level 0, besides those that fall there anyway
            (gtp).
        residual: of the consistency loss (gtp): `plain` as the paper, or `phi`, divided by 1 - s/t.
        noise_draws: how many times the loss uses an observation's features, each with noise of its own.
        input_gain: factor on the noised action, once it has unit scale.
        hidden: widths of the network's hidden layers.
        activation: of the network.
    """

    family: str = "gtp"
    sigma_min: float = 0.002
    sigma_max: float = 10.0
    sigma_last: float = 0.25
    rho: float = 7.0
    sigma_data: float = 0.5
    grid: int = 8
    lambda_flow: float = 1.0
    teacher: str = "model"
    zero_share: float = 0.3
    residual: str = "phi"
    noise_draws: int = 1
    input_gain: float = 3.0
    hidden: list[int] = field(default_factory=lambda: [256, 256, 256])
    activation: str = "relu"


Losses = tuple[torch.Tensor, dict[str, torch.Tensor]]
"""The loss of each row, (B,), and metrics."""


@dataclass(frozen=True)
class Rows:
    """What a family's loss sees: a row for each noise draw of each sample.

    Attributes:
        observed: (B, width), what the student's `observe` makes of the features.
        action: (B, A).
        generator: of noise and times.
        teacher: the slow copy of the policy.
        teacher_observed: (B, width), what the teacher's `observe` makes of the same features.
    """

    observed: torch.Tensor
    action: torch.Tensor
    generator: NoiseSource
    teacher: Policy
    teacher_observed: torch.Tensor


class WeightsError(ValueError):
    """Weights from which nothing can be learnt."""


class Policy(nn.Module, ABC):
    """A generative policy.

    Args:
        features: width F of the observation's features.
        actions: number A of action dimensions.
        config: see `PolicyConfig`.
        times: how many times, levels of noise or other, the network is told.
        noise_levels: whether these are noise levels in [0, sigma_max] or lie in [0, 1].

    Raises:
        ValueError: an action dimension below 1, sigma_max not above sigma_min, or another setting out of range.
    """

    def __init__(self, features: int, actions: int, config: PolicyConfig, *, times: int, noise_levels: bool) -> None:
        super().__init__()
        c = config
        if actions < 1:
            raise ValueError(f"the action has {actions} dimensions; it needs at least 1")
        if not 0 < c.sigma_min < c.sigma_last < c.sigma_max:
            raise ValueError(
                "wanted 0 < sigma_min < sigma_last < sigma_max, "
                f"got {c.sigma_min:g}, {c.sigma_last:g} and {c.sigma_max:g}"
            )
        if c.grid < 2 or c.noise_draws < 1 or not c.hidden:
            raise ValueError("wanted grid >= 2, noise_draws >= 1 and a hidden layer")
        self.config, self.actions = config, actions
        self.embed = LogTimeEmbedding(c.sigma_min, c.sigma_max) if noise_levels else UnitTimeEmbedding()
        # The first layer in two parts: the observation's is computed once for all steps and noise draws.
        width, *deeper = c.hidden
        self.observe = nn.Linear(features, width)
        self.locate = nn.Linear(actions + times * self.embed.width, width, bias=False)
        self.network = nn.Sequential(activation(c.activation), MLP(width, deeper, actions, c.activation))

    def evaluate(self, observed: torch.Tensor, x: torch.Tensor, *times: torch.Tensor) -> torch.Tensor:
        """The network's output (B, A) for what `observe` made of the features, actions (B, A) and times (B,)."""
        place = torch.cat([self.config.input_gain * x, *(self.embed(time) for time in times)], dim=1)
        return self.network(observed + self.locate(place.to(observed.dtype)))

    def loss(
        self,
        features: torch.Tensor,
        action: torch.Tensor,
        weight: torch.Tensor,
        generator: NoiseSource,
        teacher: Policy,
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """The loss of each sample.

        Args:
            features: (B, F).
            action: (B, A) in [-1, 1].
            weight: (B,), the weights w of eq. 13, 1 for behaviour cloning.
            generator: of noise and times.
            teacher: the slow copy of this policy, for families that learn from one; reads the student's features.

        Returns:
            (B,) losses, and metrics on the device.

        Raises:
            WeightsError: weights that are not finite, negative, or all zero; looked at on the CPU only, because
                on a GPU looking waits for the device (there, the trainer finds the loss that is not finite).
        """
        if weight.device.type == "cpu":
            check_weights(weight)
        draws = self.config.noise_draws
        action = action.repeat_interleave(draws, 0)
        observed = self.observe(features).repeat_interleave(draws, 0)
        with torch.no_grad():
            teacher_observed = teacher.observe(features).repeat_interleave(draws, 0)
        each, metrics = self.row_losses(Rows(observed, action, generator, teacher, teacher_observed))
        return weight * each.view(-1, draws).mean(1), metrics

    @abstractmethod
    def row_losses(self, batch: Rows) -> Losses:
        """The family's unweighted loss of each row, (B,), and metrics."""

    def sample(self, features: torch.Tensor, steps: int, generator: NoiseSource, draws: int = 1) -> torch.Tensor:
        """Actions in K steps.

        Args:
            features: (B, F).
            steps: K, chosen when acting, not when training.
            generator: of the noise.
            draws: actions an observation.

        Returns:
            (B * draws, A) in [-1, 1], the draws of one observation side by side.

        Raises:
            ValueError: K below 1.
        """
        if steps < 1:
            raise ValueError(f"steps={steps}: a policy acts in at least 1 step")
        observed = self.observe(features).repeat_interleave(draws, 0)
        return self.generate(observed, steps, generator).clamp(-1, 1)

    @abstractmethod
    def generate(self, observed: torch.Tensor, steps: int, generator: NoiseSource) -> torch.Tensor:
        """The family's way from noise to actions (B, A) in K steps."""

    def level(self, place: torch.Tensor) -> torch.Tensor:
        """Noise levels by their place on the training grid, (B,) to (B,): 0 is sigma_max, from `grid` on it is 0.

        Between them as Karras et al. (2022), eq. 5: sigma_max^(1/rho) to sigma_min^(1/rho) in equal steps. Places
        need not be whole, so that training meets every level and acting may use any.
        """
        c = self.config
        low, high = c.sigma_min ** (1 / c.rho), c.sigma_max ** (1 / c.rho)
        level = (high + place.clamp_max(c.grid) / c.grid * (low - high)) ** c.rho
        return torch.where(place < c.grid, level, 0.0)

    def levels(self, count: int) -> list[float]:
        """`count` + 1 noise levels to act by: sigma_max, ..., sigma_last, 0, spaced as `level`.

        The last jump starts where it can mend what earlier ones left between two modes: low enough to tell modes
        apart, high enough to move the action.
        """
        c = self.config
        if count == 1:
            return [c.sigma_max, 0.0]
        low, high = c.sigma_last ** (1 / c.rho), c.sigma_max ** (1 / c.rho)
        return [(high + k / (count - 1) * (low - high)) ** c.rho for k in range(count)] + [0.0]

    def scaled(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        """c_in x = x / sqrt(t^2 + sigma_data^2): the input keeps unit scale at every noise level."""
        return x * (t.square() + self.config.sigma_data**2).rsqrt()[:, None]


def check_weights(weight: torch.Tensor) -> None:
    """Refuse weights from which nothing can be learnt.

    Raises:
        WeightsError: not finite, negative, or all zero.
    """
    low, high = (float(x) for x in torch.aminmax(weight.detach()))
    if not (low >= 0 and 0 < high < float("inf")):
        raise WeightsError(f"weights lie in [{low:g}, {high:g}]; wanted finite ones of at least 0, and one above 0")


def effective_sample_size(weight: torch.Tensor) -> torch.Tensor:
    """(sum w)^2 / (B sum w^2): 1 for equal weights, 1/B when one sample has them all."""
    return weight.sum().square() / (len(weight) * weight.square().sum())
