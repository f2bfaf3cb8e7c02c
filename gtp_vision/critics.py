"""What an action is worth."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import nn

from gtp_vision.networks import EnsembleMLP


@dataclass
class CriticConfig:
    """Settings of the critic; the reasons stand in configs/agent/."""

    members: int = 2
    hidden: list[int] = field(default_factory=lambda: [256, 256, 256])
    activation: str = "mish"
    layer_norm: bool = True


class Critic(nn.Module):
    """An ensemble of action values Q_j(o, a).

    Args:
        features: width F of the observation's features.
        actions: number A of action dimensions.
        config: see `CriticConfig`.
    """

    def __init__(self, features: int, actions: int, config: CriticConfig) -> None:
        super().__init__()
        c = config
        self.q = EnsembleMLP(c.members, features + actions, c.hidden, 1, c.activation, c.layer_norm)

    def forward(self, features: torch.Tensor, action: torch.Tensor) -> torch.Tensor:
        """(B, F) and (B, A) to (E, B)."""
        return self.q(torch.cat([features, action.to(features.dtype)], dim=1)).squeeze(-1)

    def pessimistic(self, features: torch.Tensor, action: torch.Tensor) -> torch.Tensor:
        """min_j Q_j(o, a): (B,)."""
        return self(features, action).amin(0)


def td_target(reward: torch.Tensor, discount: torch.Tensor, next_value: torch.Tensor) -> torch.Tensor:
    """R + gamma mask Q', all (B,); `discount` already holds gamma^n mask."""
    return reward + discount * next_value
