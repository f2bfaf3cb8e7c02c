"""FQL and IFQL, in the order of the paper (Park, Li and Levine, ICML 2025).

    1. Critic: E[(Q_j(o, a) - r - gamma mask mean_j Q'_j(o', a'))^2], a' = mu(o', z) of the current one-step policy
       (`Agent`).
    2. Flow policy: L_flow = E||v(x_r, r) - (z - a)||^2, cloning (`gtp_vision.models.flow_matching`).
    3. One-step policy: E[-Q(o, mu(o, z))] + alpha E||mu(o, z) - mu_flow(o, z)||^2, mu_flow the flow's answer to the
       same noise in 10 Euler steps (`Distillation`).
    4. Acting: mu(o, z), one evaluation.

With cameras the paper has an encoder for each network; here flow and one-step policy share the actor's.
IFQL, the paper's baseline, is IDQL with a flow: expectile critic, cloning, best of N (`gtp_vision.agents.idql`).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch

from gtp_vision import models
from gtp_vision.agents.base import Agent
from gtp_vision.agents.diffusion_ql import QTermSettings, q_term
from gtp_vision.agents.improvement import Improvement, LossInputs, Metrics, Recipe, missing_ability
from gtp_vision.agents.settings import AgentConfig
from gtp_vision.core.random import NoiseSource
from gtp_vision.core.settings import setting
from gtp_vision.models.one_step import OneStepPolicy

FQL = Recipe("fql", "Park et al., ICML 2025", family="flow_matching", backup="mean", improvement="distillation")
IFQL = Recipe(
    "ifql", "Park et al., ICML 2025", family="flow_matching", backup="expectile", improvement="none", chooses=True
)


@dataclass
class DistillationSettings(QTermSettings):
    """Settings of `Distillation`."""

    # The published default; its authors recommend true for new tasks, which improvement=distillation sets.
    normalize_q: bool = setting(False, "divide Q by its mean size over the batch")
    # alpha, the one setting to tune: 10 to 1000 per OGBench task, 0.03 to 10 with normalize_q.
    distill_weight: float = setting(
        10.0, "weight of the distance between the one-step policy and the policy it learns from", low=0
    )
    distill_steps: int = setting(10, "steps K of the policy it learns from", low=1)


class Distillation(Improvement):
    """A one-step policy that answers each noise as the policy does, but for what Q pulls it to.

    Defined for families that make one action of one noise: not for samplers that draw more on the way.
    """

    Settings = DistillationSettings
    name, label_suffix = "distillation", "d"
    is_per_dimension = True
    may_renoise = False
    acts_in_steps = False
    config: DistillationSettings

    def __init__(self, agent: Agent) -> None:
        super().__init__(agent)
        one_step = replace(agent.policy.config, family="one_step")
        self.one_step = OneStepPolicy(agent.actor_encoder.width, agent.policy.actions, one_step)

    @staticmethod
    def conflicts(config: AgentConfig) -> Iterator[str]:
        """Families whose samplers draw noise on the way."""
        yield from missing_ability(config, models.Integrable, "needs the policy's one answer to a given noise")

    def loss(self, agent: Agent, inputs: LossInputs, cloning: torch.Tensor | None) -> tuple[torch.Tensor, Metrics]:
        """L_policy + distill_weight ||mu - mu_flow||^2 + q_weight L_Q, distances as means over dimensions."""
        c, dimensions = self.config, inputs.action.shape[1]
        assert cloning is not None
        assert isinstance(agent.policy, models.Integrable)
        z = inputs.noise.normal(len(inputs.action), dimensions)
        with torch.no_grad():
            wanted = agent.policy.sample_from(inputs.actor, z, c.distill_steps)
        action = self.one_step.integrate(self.one_step.observe(inputs.actor), z, 1).float()
        distance = (action - wanted).square().mean()
        q = agent.critic.frozen(inputs.critic, agent.critic_action(self.one_step.bounded(action))).float()
        term = q_term(q, normalize=c.normalize_q)
        metrics = {"actor/distill_loss": distance.detach(), "actor/q_term": term.detach()}
        return cloning + c.distill_weight * distance + c.q_weight * term, metrics

    def next_features(self, agent: Agent, inputs: LossInputs) -> torch.Tensor:
        """Of the current encoder: the paper keeps no slow policy."""
        return agent.actor_encoder(inputs.next_observation)

    def next_action(
        self, agent: Agent, features: torch.Tensor, steps: int, noise: NoiseSource, draws: int
    ) -> torch.Tensor:
        """mu(o', z) of the current one-step policy."""
        return self.one_step.sample(features, 1, noise, draws)

    def act(self, agent: Agent, features: torch.Tensor, steps: int, noise: NoiseSource, draws: int) -> torch.Tensor:
        """mu(o, z)."""
        return self.one_step.sample(features, 1, noise, draws)
