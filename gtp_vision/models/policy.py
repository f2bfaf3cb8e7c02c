"""What all policies share: the configuration, the observation's layer, and two methods, `loss` and `sample`.

A policy is a conditional distribution of actions. `loss` fits it to data, and `sample` draws from it in K steps.
No policy knows a critic.
Axes in names: B batch, F features, A action dimensions.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import nn

from gtp_vision.core.distributed import global_moments
from gtp_vision.core.random import NoiseSource
from gtp_vision.core.settings import setting
from gtp_vision.models.networks import ACTIVATIONS, ARCHITECTURES, after_first_layer

_BOUNDS = {"lower": -1.0, "upper": 1.0}  # buffers of a policy, and their values unless the data are constant


@dataclass
class PolicyConfig:
    """Settings of a policy. The experiments behind the defaults: docs/few-step.md."""

    family: str = setting("gtp", "generative family, one of gtp_vision.models.FAMILIES")
    sigma_min: float = setting(0.002, "lowest noise level above 0 in training", above=0)  # Karras et al. (2022)
    # Actions lie in [-1, 1]: at 80 half of the levels carry no information about them.
    sigma_max: float = setting(10.0, "highest noise level, from which acting starts", above=0)
    # From here the last jump of several repairs what earlier ones left between modes.
    sigma_last: float = setting(0.25, "noise level from which the last of several steps starts", above=0)
    rho: float = setting(7.0, "how densely the levels lie at the low end (Karras et al., 2022)", above=0)
    sigma_data: float = setting(0.5, "scale of the actions, for the scaling of inputs", above=0)
    # What is known about the end of a trajectory travels one step of this grid for each update of the teacher.
    grid: int = setting(
        8,
        "steps from sigma_max to 0 in training (gtp, consistency), all steps (vp_diffusion), 1 / smallest (shortcut)",
        low=2,
    )
    lambda_flow: float = setting(1.0, "weight of the flow loss beside the consistency loss (gtp)", low=0)
    # The paper's score approximation, `data`, is as good on one mode and blurs between several.
    teacher: str = setting(
        "model",
        "target of a trajectory (gtp): data, or a solver step of the model's denoiser",
        choices=("data", "model"),
    )
    zero_share: float = setting(0.3, "share of training jumps that end at level 0 by choice (gtp)", low=0, high=1)
    # At few steps `phi` is sharper than the paper's `plain`.
    residual: str = setting(
        "phi", "consistency loss (gtp): plain as in the paper, or phi, divided by 1 - s/t", choices=("plain", "phi")
    )
    # A cheaper step, with which maps are as sharp in equal time (docs/few-step.md), but actions less exact
    # (docs/results.md, Meta-World).
    alternate: bool = setting(
        False, "of eight rows five train by the consistency loss and three by the flow loss, instead of both (gtp)"
    )
    noise_draws: int = setting(1, "how often a loss uses an observation's features, each time with new noise", low=1)
    # The map from noise is steep between modes; with 1, relu leaves more actions between them.
    input_gain: float = setting(3.0, "factor on the noised action of unit scale", above=0)
    hidden: list[int] = setting([512, 512, 512, 512], "widths of the network's hidden layers", low=1)
    activation: str = setting("relu", "activation of the network", choices=ACTIVATIONS)
    architecture: str = setting(
        "mlp", "network: mlp, or ln_resnet, a residual block with LayerNorm per hidden layer", choices=ARCHITECTURES
    )


OF_MAPS = frozenset({"lambda_flow", "teacher", "zero_share", "residual", "alternate"})
OF_LEVELS = frozenset({"sigma_min", "sigma_max", "sigma_last", "rho", "sigma_data"})
"""Settings that mean something to flow maps, or to families with noise levels, see `Policy.unused`."""

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
        unused: settings that change nothing of it.
        lower, upper: least and largest action of each dimension, (A,): -1 and 1, or twice the data's only value.
    """

    family: ClassVar[str]
    unused: ClassVar[frozenset[str]] = frozenset()
    has_teacher = False  # whether the loss also learns from a slow copy of the policy
    acts = True  # whether it generates actions, whose bounds the data know
    lower: torch.Tensor
    upper: torch.Tensor

    def __init__(self, features: int, actions: int, config: PolicyConfig) -> None:
        super().__init__()
        if actions < 1:
            raise ValueError(f"the action has {actions} dimensions; it needs at least 1")
        if config.grid < 2 or config.noise_draws < 1 or not config.hidden:
            raise ValueError("wanted grid >= 2, noise_draws >= 1 and a hidden layer")
        self.config, self.actions = config, actions
        self.observe = nn.Linear(features, config.hidden[0])
        for name, bound in _BOUNDS.items():
            self.register_buffer(name, torch.full((actions,), bound))

    def deeper_layers(self, outputs: int, bias: bool = True) -> nn.Sequential:
        """The network behind its first layer; `bias` is the output's."""
        c = self.config
        return after_first_layer(c.architecture, c.hidden, outputs, c.activation, bias)

    def rows(self, features: torch.Tensor, action: torch.Tensor, noise: NoiseSource, teacher: Policy) -> Rows:
        """The inputs of `loss` for samples: `config.noise_draws` rows of each, side by side.

        The teacher, for families that learn from one, is the slow copy of this policy and reads the student's features.
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
        """Actions (B * draws, A) in [-1, 1] in K steps, the draws of one observation side by side; ValueError if K < 1.

        K is chosen when acting, not when training; a family of one step ignores it.
        """
        check_steps(steps)
        return self.bounded(self.generate(repeated(self.observe(features), draws), steps, noise))

    def bounded(self, actions: torch.Tensor) -> torch.Tensor:
        """Actions (B, A) within [-1, 1]; dimensions of which the data have one value get it."""
        return actions.clamp(self.lower, self.upper)

    @torch.no_grad()
    def hold(self, bounds: torch.Tensor) -> None:
        """Set the least and largest action, (2, A) or of one action of the chunk; saved with the parameters.

        A policy of something else than actions keeps its own bounds.
        """
        if not self.acts:
            return
        for bound, values in zip((self.lower, self.upper), bounds, strict=True):
            bound.copy_(values.repeat(self.actions // len(values)))

    def _load_from_state_dict(self, state_dict: dict[str, torch.Tensor], prefix: str, *arguments: Any) -> None:
        for name, bound in _BOUNDS.items():  # which earlier versions did not store
            state_dict.setdefault(prefix + name, torch.full((self.actions,), bound))
        super()._load_from_state_dict(state_dict, prefix, *arguments)

    @abstractmethod
    def generate(self, observed: torch.Tensor, steps: int, noise: NoiseSource) -> torch.Tensor:
        """Actions (B, A) from noise in K steps, not clamped; `observed` is (B, width)."""


def without_bounds(expected: Collection[str], stored: Collection[str]) -> set[str]:
    """Tensors that are expected, and that earlier versions did not store: they acted within [-1, 1]."""
    return {name for name in expected if name not in stored and name.rpartition(".")[2] in _BOUNDS}


def repeated(rows: torch.Tensor, draws: int) -> torch.Tensor:
    """Each row `draws` times, side by side: (B, ...) to (B * draws, ...)."""
    return rows if draws == 1 else rows.repeat_interleave(draws, 0)


def check_steps(steps: int) -> None:
    """Refuse to act in fewer than one step, by a ValueError."""
    if steps < 1:
        raise ValueError(f"steps={steps}: a policy acts in at least 1 step")


def effective_sample_size(weight: torch.Tensor) -> torch.Tensor:
    """E[w]^2 / E[w^2] over the global batch: 1 for equal weights, 1/B when one sample has them all."""
    return global_moments(weight).effective_share.to(weight.dtype)
