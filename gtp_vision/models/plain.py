"""Policies without noise or times in the network: what every table needs beside the generative ones.

`GaussianPolicy` is behaviour cloning's and IQL's (Kostrikov et al., 2022), `DeterministicPolicy` TD3+BC's and
ReBRAC's (Fujimoto and Gu, 2021; Tarasov et al., 2023). Both are one evaluation, so K is ignored.
Axes in names: B batch, A action dimensions.
"""

from __future__ import annotations

import math

import torch
from torch import nn

from gtp_vision.core.random import NoiseSource
from gtp_vision.models.abilities import Density, Integrable
from gtp_vision.models.policy import OF_LEVELS, OF_MAPS, Losses, Policy, PolicyConfig, Rows


class PlainPolicy(Policy):
    """One network from the observation to an action in [-1, 1]. Arguments as `Policy`."""

    unused = OF_MAPS | OF_LEVELS | {"grid", "input_gain"}

    def __init__(self, features: int, actions: int, config: PolicyConfig) -> None:
        super().__init__(features, actions, config)
        self.network = self.deeper_layers(actions)

    def mean(self, observed: torch.Tensor) -> torch.Tensor:
        """The network's action for what `observe` made of the features: (B, width) to (B, A) in [-1, 1]."""
        return self.network(observed).float().tanh()


class GaussianPolicy(PlainPolicy, Integrable, Density):
    """N(mean(o), deviation^2), the deviation of each action dimension the same for all observations.

    Arguments as `Policy`.
    """

    family = "gaussian"

    lowest, highest = -5.0, 2.0  # of log deviations; IQL's upper bound, and a lower one that keeps the loss bounded

    def __init__(self, features: int, actions: int, config: PolicyConfig) -> None:
        super().__init__(features, actions, config)
        self.log_deviation = nn.Parameter(torch.zeros(actions))

    def loss(self, batch: Rows) -> Losses:
        """-log N(a; mean(o), deviation^2)."""
        each = -self._log_likelihood(batch.observed, batch.action)
        return each, {"negative_log_likelihood": each.mean(), "deviation": self._log_deviation().exp().mean()}

    def integrate(self, observed: torch.Tensor, z: torch.Tensor, steps: int) -> torch.Tensor:
        """Mean + deviation z."""
        return torch.addcmul(self.mean(observed), self._log_deviation().exp(), z)

    def log_density(self, observed: torch.Tensor, a_t: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        """The exact log-likelihood of actions without noise, whatever `t`."""
        return self._log_likelihood(observed, a_t)

    def noised(self, action: torch.Tensor, noise: NoiseSource) -> tuple[torch.Tensor, torch.Tensor]:
        """The actions themselves, and zeros."""
        return action, action.new_zeros(len(action))

    def _log_deviation(self) -> torch.Tensor:
        return self.log_deviation.clamp(self.lowest, self.highest)

    def _log_likelihood(self, observed: torch.Tensor, action: torch.Tensor) -> torch.Tensor:
        log_deviation = self._log_deviation()
        z = (action - self.mean(observed)) * (-log_deviation).exp()
        return -(0.5 * z.square() + log_deviation + 0.5 * math.log(2 * math.pi)).sum(1)


class DeterministicPolicy(PlainPolicy, Integrable):
    """One action an observation. Arguments as `Policy`."""

    family = "deterministic"

    def loss(self, batch: Rows) -> Losses:
        """||a - mean(o)||^2."""
        each = (self.mean(batch.observed) - batch.action).square().sum(1)
        return each, {"squared_error": each.mean()}

    def integrate(self, observed: torch.Tensor, z: torch.Tensor, steps: int) -> torch.Tensor:
        """The action, whatever the noise."""
        return self.mean(observed)

    def generate(self, observed: torch.Tensor, steps: int, noise: NoiseSource) -> torch.Tensor:
        """The action; draws nothing."""
        return self.mean(observed)
