"""What all policies share: the configuration, the observation's layer, and two methods, `loss` and `sample`.

A policy is a conditional distribution of actions. `loss` fits it to data, and `sample` draws from it in K steps.
No policy knows a critic.
Axes in names: B batch, F features, A action dimensions.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import nn

from gtp_vision.core.distributed import global_moments
from gtp_vision.core.random import NoiseSource
from gtp_vision.models.networks import after_first_layer


@dataclass
class PolicyConfig:
    """Settings of a policy; the reasons stand in configs/agent/gtp.yaml and docs/few-step.md.

    Attributes:
        family: which generative family, see `gtp_vision.models.FAMILIES`.
        sigma_min: lowest noise level above 0 that training knows (gtp, diffusion, bottleneck, consistency).
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
        architecture: `mlp`, or `ln_resnet`, a residual block for each hidden layer (see `LNResNet`).
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
    architecture: str = "mlp"


Losses = tuple[torch.Tensor, dict[str, torch.Tensor]]
"""The loss of each row, (B,), and metrics on the device."""


@dataclass(frozen=True)
class Rows:
    """The inputs of a family's loss: a row for each noise draw of each sample.

    Attributes:
        observed: (B, width), the student's `observe` of the features.
        action: (B, A).
        noise: source of noise and times.
        teacher: the slow copy of the policy.
        teacher_observed: (B, width), the teacher's `observe` of the same features; `observed` in families without
            `has_teacher`.
    """

    observed: torch.Tensor
    action: torch.Tensor
    noise: NoiseSource
    teacher: Policy
    teacher_observed: torch.Tensor


class Policy(nn.Module, ABC):
    """A policy; what follows the observation's layer is the family's own. Optional abilities: `abilities.py`.

    The network's first layer is in two parts, `observe` for the features and, in families that have one, `locate`
    for the noise and the times: the observation's part is computed once for all steps and noise draws.

    Args:
        features: width F of the observation's features.
        actions: number A of action dimensions.
        config: see `PolicyConfig`.

    Raises:
        ValueError: an action dimension below 1, or a setting out of range.

    Attributes:
        family: of `agent.policy.family`; every class that can be built has its own.
    """

    family: ClassVar[str]
    has_teacher = False  # whether the loss also learns from a slow copy of the policy

    def __init__(self, features: int, actions: int, config: PolicyConfig) -> None:
        super().__init__()
        if actions < 1:
            raise ValueError(f"the action has {actions} dimensions; it needs at least 1")
        if config.grid < 2 or config.noise_draws < 1 or not config.hidden:
            raise ValueError("wanted grid >= 2, noise_draws >= 1 and a hidden layer")
        self.config, self.actions = config, actions
        self.observe = nn.Linear(features, config.hidden[0])

    def deeper_layers(self, outputs: int, bias: bool = True) -> nn.Sequential:
        """The network behind its first layer; `bias` is the output's."""
        c = self.config
        return after_first_layer(c.architecture, c.hidden, outputs, c.activation, bias)

    def rows(self, features: torch.Tensor, action: torch.Tensor, noise: NoiseSource, teacher: Policy) -> Rows:
        """The inputs of `loss` for samples: `config.noise_draws` rows of each, side by side.

        Args:
            features: (B, F).
            action: (B, A) in [-1, 1].
            noise: source of noise and times.
            teacher: the slow copy of this policy, for families that learn from one; it reads the student's features.
        """
        draws = self.config.noise_draws
        observed = teacher_observed = repeated(self.observe(features), draws)
        if self.has_teacher:
            with torch.no_grad():
                teacher_observed = repeated(teacher.observe(features), draws)
        return Rows(observed, repeated(action, draws), noise, teacher, teacher_observed)

    @abstractmethod
    def loss(self, batch: Rows) -> Losses:
        """The family's loss of each row, (B,), and metrics on the device.

        Raises:
            GtpVisionError: a family that does not learn from data.
        """

    def per_sample(self, losses: torch.Tensor) -> torch.Tensor:
        """The mean over the noise draws of each sample: (B * draws,) to (B,)."""
        return losses.view(-1, self.config.noise_draws).mean(1)

    def sample(self, features: torch.Tensor, steps: int, noise: NoiseSource, draws: int = 1) -> torch.Tensor:
        """Actions in K steps.

        Args:
            features: (B, F).
            steps: K, chosen when acting, not when training; a family of one step ignores it.
            noise: source of the noise.
            draws: actions per observation.

        Returns:
            (B * draws, A) in [-1, 1], the draws of one observation side by side.

        Raises:
            ValueError: K below 1.
        """
        check_steps(steps)
        return self.generate(repeated(self.observe(features), draws), steps, noise).clamp(-1, 1)

    @abstractmethod
    def generate(self, observed: torch.Tensor, steps: int, noise: NoiseSource) -> torch.Tensor:
        """Actions (B, A) from noise in K steps, not clamped; `observed` is (B, width)."""


def repeated(rows: torch.Tensor, draws: int) -> torch.Tensor:
    """Each row `draws` times, side by side: (B, ...) to (B * draws, ...)."""
    return rows if draws == 1 else rows.repeat_interleave(draws, 0)


def check_steps(steps: int) -> None:
    """Refuse to act in no steps.

    Raises:
        ValueError: K below 1.
    """
    if steps < 1:
        raise ValueError(f"steps={steps}: a policy acts in at least 1 step")


def effective_sample_size(weight: torch.Tensor) -> torch.Tensor:
    """E[w]^2 / E[w^2] over the global batch: 1 for equal weights, 1/B when one sample has them all."""
    return global_moments(weight).effective_share.to(weight.dtype)
