"""GCIVL: IQL without Q, in the order of OGBench's appendix (Park et al., ICLR 2025).

    1. V: sum_j E[|tau - 1(A < 0)| (r + gamma mask V'_j(o', g) - V_j(o, g))^2], with
       A = r + gamma mask min_j V'_j(o', g) - mean_j V'_j(o, g) of the slow members (`StateValue`).
    2. Policy: E[exp(alpha (V(o', g) - V(o, g))) l(o, a, g)], V the members' mean and weights of at most 100
       (`gtp_vision.agents.gtp.AdvantageWeighting`), for goals that are a later frame.
    3. Acting: the mean.

The expectile is taken over next observations, so chance counts as skill: in a world with noise V is too high. Any
improvement by weights takes this value: `agent=gtp agent.critic.backup=value`.
"""

from __future__ import annotations

import torch

from gtp_vision.agents.base import Agent
from gtp_vision.agents.critics import OwnCritic
from gtp_vision.agents.improvement import LossInputs, Metrics, Recipe
from gtp_vision.models.critic import CriticConfig
from gtp_vision.models.networks import EnsembleMLP

GCIVL = Recipe(
    "gcivl", "Park et al., ICLR 2025", family="deterministic", backup="value", improvement="advantage", goals=True
)


class StateValue(OwnCritic):
    """An ensemble of V_j(o), or V_j(o, g) where the observation holds a goal; without Q. Arguments as `Critic`."""

    name = "value"
    judges_actions = False

    @staticmethod
    def unused(backup: str) -> frozenset[str]:
        """What Q and representations need."""
        return OwnCritic.unused(backup) | {"aggregate", "rho", "latent"}

    def __init__(self, features: int, actions: int, config: CriticConfig) -> None:
        super().__init__(features, actions, config)
        c = config
        self.values = EnsembleMLP(c.members, features, c.hidden, 1, c.activation, c.layer_norm, c.norm_after)

    def value(self, features: torch.Tensor) -> torch.Tensor:
        """V_j: (B, F) to (E, B)."""
        return self.values(features).squeeze(-1).float()

    def loss(self, agent: Agent, inputs: LossInputs) -> tuple[torch.Tensor, Metrics]:
        """The expectile regression of V, whose weights compare slow values with slow values."""
        batch, slow = inputs.batch, agent.critic_target
        assert isinstance(slow, StateValue)
        with torch.no_grad():
            now, later = (
                slow.value(agent.slow_critic_features(seen)) for seen in (inputs.observation, inputs.next_observation)
            )
            targets = batch.reward + batch.discount * later
            better = batch.reward + batch.discount * later.amin(0) >= now.mean(0)
        expectile = self.config.expectile
        weight = torch.where(better, expectile, 1 - expectile)
        v = self.value(inputs.critic)
        loss = (weight * (targets - v).square()).mean(1).sum()
        return loss, {"critic/loss": loss.detach(), "critic/v": v.detach().mean()}

    @torch.no_grad()
    def advantage(self, agent: Agent, inputs: LossInputs) -> torch.Tensor:
        """V(o', g) - V(o, g), the members' means."""
        later = self.value(agent.seen_by_critic(inputs.next_observation))
        return (later - self.value(inputs.critic)).mean(0)
