"""HIQL, in the order of the paper (Park et al., NeurIPS 2023), as OGBench has it (Park et al., ICLR 2025).

    1. Value: V_j(o, z), z = z(o, g) = sqrt(d) u / |u| a representation of the goal as seen from o, both trained as
       GCIVL's V (`SubgoalValue`).
    2. High policy: E[exp(beta A) l_h(o, g, z(o, w))], A = V(o_w, g) - V(o, g): which way point w, k steps ahead, to
       take to the goal g (`Hierarchy`).
    3. Low policy: E[exp(beta A) l(o, z(o, w), a)], A = V(o', w) - V(o, w): what to do to reach it. It sees o and
       z(o, w), through which no gradient flows.
    4. Acting: z by the high policy, an action by the low one, at every step.

Both policies are of the family `agent.policy.family`; `agent=gtp_hiql` has GTP on both levels. The high policy
generates z / sqrt(d), whose numbers lie in [-1, 1] as a policy's do. OGBench trains the low policy with the frame k
steps ahead even where the goal comes before it; here with the way point that the high policy learns to give.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn.functional import normalize

from gtp_vision import models
from gtp_vision.agents.base import Agent
from gtp_vision.agents.gcivl import StateValue
from gtp_vision.agents.gtp import AdvantageSettings, AdvantageWeighting, advantage_weights
from gtp_vision.agents.improvement import LossInputs, Metrics, Recipe, weighted_mean
from gtp_vision.agents.settings import AgentConfig
from gtp_vision.core.names import GOAL
from gtp_vision.core.random import NoiseSource
from gtp_vision.core.settings import setting
from gtp_vision.models.critic import CriticConfig
from gtp_vision.models.networks import MLP, frozen_copy

HIQL = Recipe(
    "hiql", "Park et al., NeurIPS 2023", family="deterministic", backup="subgoals", improvement="hierarchy", goals=True
)
GTP_HIQL = Recipe("gtp_hiql", "this package", family="gtp", backup="subgoals", improvement="hierarchy", goals=True)


class SubgoalValue(StateValue):
    """V_j(o, z(o, g)), d = `agent.critic.latent`. Arguments as `Critic`."""

    name = "subgoals"
    is_paired = True

    @staticmethod
    def unused(backup: str) -> frozenset[str]:
        """As of V alone, but for the width of its representation."""
        return StateValue.unused(backup) - {"latent"}

    def __init__(self, features: int, actions: int, config: CriticConfig) -> None:
        c = config
        super().__init__(features // 2 + c.latent, actions, config)
        self.representation = MLP(features, c.hidden, c.latent, c.activation, c.layer_norm, norm_after=c.norm_after)

    def represent(self, features: torch.Tensor) -> torch.Tensor:
        """The direction z / sqrt(d), of length 1: (B, F) to (B, d)."""
        return normalize(self.representation(features).float(), dim=1)

    def value(self, features: torch.Tensor) -> torch.Tensor:
        """V_j: (B, F) to (E, B)."""
        return super().value(joined(features, self.represent(features)))


def joined(features: torch.Tensor, direction: torch.Tensor) -> torch.Tensor:
    """The observation's half of (B, F), and z of length sqrt(d), from z / sqrt(d) in (B, d): (B, F / 2 + d)."""
    return torch.cat([features.chunk(2, 1)[0], math.sqrt(direction.shape[1]) * direction], 1)


@dataclass
class HierarchySettings(AdvantageSettings):
    """Settings of `Hierarchy`."""

    form: str = setting(
        "exponential",
        "weights of both levels: exponential, exp(eta A), or positive, exp(eta max(0, A))",
        choices=("exponential", "positive"),
    )
    eta: float = setting(3.0, "how strongly advantages weigh on both levels", low=0)
    standardize: bool = setting(False, "divide advantages by their deviation over the batch")
    weight_clip: float = setting(100.0, "largest weight", low=1, high=1e30)
    subgoal_steps: int = setting(25, "steps k from an observation to its way point", low=1)


class Hierarchy(AdvantageWeighting):
    """A high policy that chooses way points, and the agent's policy, which reaches them."""

    Settings = HierarchySettings
    name, label_suffix = "hierarchy", "h"
    may_renoise = False
    config: HierarchySettings

    def __init__(self, agent: Agent) -> None:
        super().__init__(agent)
        self.high = models.create(agent.actor_encoder.width, agent.config.critic.latent, agent.config.policy)
        self.high.acts = False
        self.high_target = frozen_copy(self.high)

    @staticmethod
    def policy_width(width: int, config: AgentConfig) -> int:
        """Of the observation and a representation."""
        return width // 2 + config.critic.latent

    @staticmethod
    def steps_of_policy(config: AgentConfig) -> list[str]:
        """None: no action of the policy estimates a value."""
        return []

    @staticmethod
    def conflicts(config: AgentConfig) -> Iterator[str]:
        """Another critic, and steps in which none is trained."""
        if config.critic.backup != SubgoalValue.name:
            yield (
                f"improvement=hierarchy takes its way points from the representation of HIQL's critic, and "
                f"agent.critic.backup={config.critic.backup} has none; set agent.critic.backup={SubgoalValue.name}"
            )
        if config.clone_steps:
            yield (
                f"agent.clone_steps={config.clone_steps} train a policy of way points before there are any, with "
                f"improvement=hierarchy; set agent.clone_steps=0"
            )

    def policy_features(self, agent: Agent, inputs: LossInputs) -> torch.Tensor:
        """The observation and z(o, w), (B, F / 2 + d)."""
        return joined(inputs.actor, self._directions(agent, inputs))

    @torch.no_grad()
    def advantage(self, agent: Agent, inputs: LossInputs) -> torch.Tensor:
        """V(o', w) - V(o, w): what the action is worth on the way to w."""
        return _value(agent, inputs.next_observation, inputs.way_point) - _value(
            agent, inputs.observation, inputs.way_point
        )

    def loss(self, agent: Agent, inputs: LossInputs, cloning: torch.Tensor | None) -> tuple[torch.Tensor, Metrics]:
        """The low policy's loss, and the high policy's E[w l] / E[w]."""
        c = self.config
        assert cloning is not None
        with torch.no_grad():
            reached = {**inputs.observation, **{name.removeprefix(GOAL): x for name, x in inputs.way_point.items()}}
            gain = _value(agent, reached, inputs.observation) - _value(agent, inputs.observation, inputs.observation)
            weight = advantage_weights(gain, c.eta, c.weight_clip, form=c.form, standardize=c.standardize)
        wanted = self._directions(agent, inputs)
        losses, _ = self.high.loss(self.high.rows(inputs.actor, wanted, inputs.noise, self.high_target))
        high, share = weighted_mean(weight, self.high.per_sample(losses))
        metrics = {"high_loss": high.detach(), "high_advantage": gain.mean(), "high_effective_share": share}
        return cloning + high, {f"actor/{name}": value for name, value in metrics.items()}

    def targets(self, agent: Agent) -> Iterator[tuple[nn.Module, nn.Module, float]]:
        """The high policy's slow copy, from which some families learn."""
        tau, own = agent.config.tau, agent.config.policy_tau
        yield self.high_target, self.high, tau if own is None else own

    def act(self, agent: Agent, features: torch.Tensor, steps: int, noise: NoiseSource, draws: int) -> torch.Tensor:
        """An action to each of `draws` way points, (B * draws, H A)."""
        direction = normalize(self.high.sample(features, steps, noise, draws), dim=1)
        return agent.policy.sample(joined(features.repeat_interleave(draws, 0), direction), steps, noise)

    @torch.no_grad()
    def _directions(self, agent: Agent, inputs: LossInputs) -> torch.Tensor:
        """z(o, w) / sqrt(d), (B, d), of the data's way points."""
        critic = agent.critic
        assert isinstance(critic, SubgoalValue)
        return critic.represent(agent.seen_by_critic({**inputs.observation, **inputs.way_point}))


def _value(agent: Agent, observation: Mapping[str, torch.Tensor], goal: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """V of an observation for the goal that `goal` holds, the members' mean: (B,)."""
    assert isinstance(agent.critic, StateValue)
    shown = {name: x for name, x in goal.items() if name.startswith(GOAL)}
    return agent.critic.value(agent.seen_by_critic({**observation, **shown})).mean(0)
