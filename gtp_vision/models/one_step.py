"""The one-step actor of flow Q-learning (Park et al., 2025): noise to action in a single evaluation.

Axes in names: B batch, A action dimensions.
"""

from __future__ import annotations

import torch
from torch import nn

from gtp_vision.core.errors import GtpVisionError
from gtp_vision.models.abilities import Integrable
from gtp_vision.models.policy import OF_LEVELS, OF_MAPS, Losses, PolicyConfig, Rows


class OneStepPolicy(Integrable):
    """A map mu(o, z), z ~ N(0, I), with no times; K is ignored. Arguments as `Policy`.

    It learns by regression on what a policy that can `integrate` makes of the same noise.
    """

    family = "one_step"
    unused = OF_MAPS | OF_LEVELS | {"grid"}

    def __init__(self, features: int, actions: int, config: PolicyConfig) -> None:
        super().__init__(features, actions, config)
        self.locate = nn.Linear(actions, config.hidden[0], bias=False)
        self.network = self.deeper_layers(actions)

    def loss(self, batch: Rows) -> Losses:
        """Raise a GtpVisionError: this family has no loss of its own."""
        raise GtpVisionError(
            "one_step learns from another policy only (agent=fql, improvement=distillation): "
            "choose another agent.policy.family to learn from data"
        )

    def integrate(self, observed: torch.Tensor, z: torch.Tensor, steps: int) -> torch.Tensor:
        """mu(o, z)."""
        place = (self.config.input_gain * z).to(observed.dtype)
        return self.network(observed + self.locate(place)).float()
