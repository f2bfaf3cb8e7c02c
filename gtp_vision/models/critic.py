"""What an action is worth: an ensemble of Q, a V where the algorithm learns one, and what Q bootstraps from.

Critics that are trained otherwise than by TD errors of Q stand beside the algorithms that introduced them, see
`gtp_vision.agents.base.OwnCritic`.
Axes in names: B batch, E ensemble member, N next actions, F features, A action dimensions.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch
from torch import nn
from torch.func import functional_call

from gtp_vision.core.settings import setting
from gtp_vision.models.networks import ACTIVATIONS, MLP, EnsembleMLP

BACKUPS = ("none", "mean", "max", "softmax", "expectile")
"""Values of `CriticConfig.backup` that `Critic` knows, and `none`."""


@dataclass
class CriticConfig:
    """Settings of the critic."""

    backup: str = setting(
        "mean",
        "what Q bootstraps from: the policy's next actions (mean, max, softmax), a learned V (expectile), or none; or "
        "a critic that is trained otherwise, one of gtp_vision.agents.CRITICS",
    )
    members: int = setting(2, "members of the ensemble", low=1)
    aggregate: str = setting("min", "how the members' values become one", choices=("min", "mean"))
    # 0.5 of 10 members in TRQAM (arXiv 2605.27079).
    rho: float = setting(0.0, "deviations of the members by which their mean is lowered (aggregate=mean)", low=0)
    next_actions: int = setting(1, "next actions that the policy draws for a target", low=1)
    next_steps: int = setting(5, "steps K in which it draws them", low=1)
    next_noise: float = setting(0.0, "deviation of the clipped normal noise on next actions (TD3)", low=0)
    next_noise_clip: float = setting(0.5, "largest noise on next actions (TD3)", low=0)
    next_penalty: float = setting(
        0.0, "penalty on the squared distance of the next action from the data's (ReBRAC)", low=0
    )
    softmax_alpha: float = setting(1.0, "inverse temperature of the softmax backup (QGPO)", low=0)
    expectile: float = setting(0.7, "expectile of the learned V: 0.5 is the mean, 1 the maximum", low=0, high=1)
    latent: int = setting(512, "width of representations (subgoals, contrastive, quasimetric)", low=1)
    chunk: bool = setting(False, "whether Q values a whole action chunk instead of its first action (Q-chunking)")
    hidden: list[int] = setting([512, 512, 512, 512], "widths of the hidden layers", low=1)
    activation: str = setting("gelu", "activation of the networks", choices=ACTIVATIONS)
    # As FQL: it keeps the values of unseen actions from diverging.
    layer_norm: bool = setting(True, "normalize every hidden layer")
    # FQL's published code (seohongpark/fql, utils/networks.py) normalizes after.
    norm_after: bool = setting(False, "normalize after the activation instead of before it")


_OF_NEXT_ACTIONS = frozenset({"next_actions", "next_steps", "next_noise", "next_noise_clip", "next_penalty"})


class BaseCritic(nn.Module):
    """An ensemble of action values Q_j(o, a), whatever they are made of. Arguments as `Critic`."""

    @staticmethod
    def unused(backup: str) -> frozenset[str]:
        """Settings that change nothing of it with a value of `CriticConfig.backup`."""
        return _OF_NEXT_ACTIONS | {"softmax_alpha"}

    def __init__(self, features: int, actions: int, config: CriticConfig) -> None:
        super().__init__()
        self.config = config

    def frozen(self, features: torch.Tensor, action: torch.Tensor) -> torch.Tensor:
        """Q_j as `forward`, through which gradients reach the action and neither parameters nor features."""
        held = {name: parameter.detach() for name, parameter in self.named_parameters()}
        return functional_call(self, held, (features.detach(), action))

    def in_turn(self, features: torch.Tensor, actions: torch.Tensor) -> torch.Tensor:
        """Q of several actions of each observation, the members' mean: (B, F) and (B, N, A) to (B, N)."""
        count = actions.shape[1]
        return self(features.repeat_interleave(count, 0), actions.flatten(0, 1)).mean(0).view(-1, count)

    def aggregate(self, q: torch.Tensor) -> torch.Tensor:
        """One value of the members', their minimum or mean - rho std: (E, ...) to (...)."""
        if self.config.aggregate == "min":
            return q.amin(0)
        # The gradient of `std` is 0, not NaN, where all members agree.
        return q.mean(0) - self.config.rho * q.std(0, correction=0) if self.config.rho else q.mean(0)

    def worth(self, features: torch.Tensor, action: torch.Tensor) -> torch.Tensor:
        """The aggregated Q(o, a): (B,)."""
        return self.aggregate(self(features, action))


class Critic(BaseCritic):
    """An ensemble of action values Q_j(o, a), with a V(o) if `backup` is `expectile`; `actions` are those judged."""

    @staticmethod
    def unused(backup: str) -> frozenset[str]:
        """As of any critic; all but `backup` without one."""
        if backup == "none":
            return frozenset(declared.name for declared in fields(CriticConfig)) - {"backup"}
        others = {"expectile": _OF_NEXT_ACTIONS | {"softmax_alpha"}, "softmax": frozenset({"expectile"})}
        return others.get(backup, frozenset({"expectile", "softmax_alpha"})) | {"latent"}

    def __init__(self, features: int, actions: int, config: CriticConfig) -> None:
        super().__init__(features, actions, config)
        c = config
        self.q = EnsembleMLP(c.members, features + actions, c.hidden, 1, c.activation, c.layer_norm, c.norm_after)
        self.v = None
        if c.backup == "expectile":
            self.v = MLP(features, c.hidden, 1, c.activation, c.layer_norm, norm_after=c.norm_after)

    def forward(self, features: torch.Tensor, action: torch.Tensor) -> torch.Tensor:
        """Q_j: (B, F) and (B, A) to (E, B)."""
        return self.q(torch.cat([features, action.to(features.dtype)], dim=1)).squeeze(-1)

    def in_turn(self, features: torch.Tensor, actions: torch.Tensor) -> torch.Tensor:
        """Q of several actions of each observation, each by one member in turn: (B, F) and (B, N, A) to (B, N).

        Together the members judge N actions for the price of one of them, if N is a multiple of their number.
        """
        (rows, count, _), members = actions.shape, self.config.members
        turns = -(-count // members)
        actions = nn.functional.pad(actions, (0, 0, 0, turns * members - count))
        inputs = torch.cat([features[:, None].expand(-1, turns * members, -1), actions.to(features.dtype)], dim=2)
        each = inputs.view(rows, turns, members, -1).movedim(2, 0).reshape(members, rows * turns, -1)
        return self.q.layers(each).view(members, rows, turns).movedim(0, 2).reshape(rows, -1)[:, :count]

    def value(self, features: torch.Tensor) -> torch.Tensor:
        """The learned V(o): (B, F) to (B,)."""
        assert self.v is not None, "only backup=expectile learns a V"
        return self.v(features).squeeze(-1)

    def backed_up(self, q: torch.Tensor) -> torch.Tensor:
        """The value of an observation from its next actions' Q: (E, B, N) to (B,).

        `max`, `mean` and `softmax`, sum_n softmax(alpha Q)_n Q_n (QGPO), are of aggregated values, but the maximum of
        minima is min_j max_n Q_j, in Diffusion-QL's order. Means of each member's own maximum would be values of
        different actions, whose deviation is not a disagreement about any of them.
        """
        if self.config.backup == "max" and self.config.aggregate == "min":
            return self.aggregate(q.amax(-1))
        values = self.aggregate(q)
        if self.config.backup == "max":
            return values.amax(-1)
        if self.config.backup == "softmax":
            return (torch.softmax(self.config.softmax_alpha * values, -1) * values).sum(-1)
        return values.mean(-1)


def td_target(reward: torch.Tensor, discount: torch.Tensor, next_value: torch.Tensor) -> torch.Tensor:
    """R + gamma mask Q', all (B,); `discount` already holds gamma^n mask."""
    return reward + discount * next_value


def expectile_loss(difference: torch.Tensor, expectile: float) -> torch.Tensor:
    """|expectile - 1(u < 0)| u^2 for u = Q - V, any shape (Kostrikov et al., 2022, eq. 5)."""
    return torch.where(difference < 0, 1 - expectile, expectile) * difference.square()
