"""GTP-QL: a flow map, and one more jump of the same network that follows Q within the map's reach.

FQL (Park et al., ICML 2025) clones a flow, and trains a second network, whose one step follows the flow and Q. FMQ
(arXiv 2605.12416) and GFP (arXiv 2512.03973) do so with a flow map and with weighted cloning. Here all of it is one
network, in which the improved answer has a place of its own beside the map:

    1. Critic: E[(Q_j(o, a) - r - gamma mask E_j Q'_j(o', mu'(o', z)))^2] (`Agent`).
    2. Map: E[w (l_cons + lambda l_flow)] / E[w], cloning (w = 1), or GFP's with eta above 0 (`gtp_vision.models.gtp`).
    3. Answer: mu(o, z) = phi(o, T z, T, beyond), E||mu(o, z) - a*||^2 - q_weight E[Q(o, mu(o, z))] (`SecondAnswer`).
       a* = a0 + step e g / |g|, with a0 = Phi'(o, T z, T, 0) in `anchor_steps` jumps of the slow map, and g the
       gradient of E_j Q_j at a0 (FMQ); e = 1 / (1 + caution d / E[d]), d the deviation of the critics' Q_j(o, a0).
    4. Acting: mu(o, z), one evaluation.

Q asks nothing of the map's jumps, which make a0. They share weights with mu, though: where Q and the distance weigh
much more than cloning, the map follows mu, and the policy collapses (docs/results.md).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from gtp_vision import models
from gtp_vision.agents.base import Agent
from gtp_vision.agents.gtp import AdvantageSettings, AdvantageWeighting
from gtp_vision.agents.improvement import LossInputs, Metrics, Recipe, missing_ability
from gtp_vision.agents.settings import AgentConfig
from gtp_vision.core.distributed import global_mean
from gtp_vision.core.random import NoiseSource
from gtp_vision.core.settings import setting

GTP_QL = Recipe("gtp_ql", "this package", family="gtp", backup="mean", improvement="second_answer")


@dataclass
class SecondAnswerSettings(AdvantageSettings):
    """Settings of `SecondAnswer`."""

    form: str = setting(
        "exponential",
        "weights of cloning, with eta above 0: exponential, exp(eta A), or positive, exp(eta max(0, A))",
        choices=("exponential", "positive"),
    )
    eta: float = setting(0.0, "how strongly advantages weigh what the map clones; 0: every action weighs 1", low=0)
    # 1 / alpha of FQL, whose published alphas are 10 to 1000. Two networks do not mind a large alpha; in one, the
    # weight of the distance would be taken from cloning, so that here the distance weighs 1 and Q little.
    q_weight: float = setting(0.001, "weight of Q beside the squared distance per dimension; 1 / alpha of FQL", low=0)
    anchor_steps: int = setting(2, "steps K in which the slow map makes the answer that is followed", low=1)
    # With 0.05 and q_weight=0 the policy hardly improved on cube-single, with 0.2 its values rose too high.
    step: float = setting(
        0.0, "FMQ: root mean square over dimensions of the step along Q's normalized gradient; 0: none", low=0
    )
    caution: float = setting(1.0, "FMQ: how much the step shortens where critics disagree", low=0)


class SecondAnswer(AdvantageWeighting):
    """The answer to each noise is the map's own, but for what Q pulls it to.

    Defined for families whose network has a place for a second answer.
    """

    Settings = SecondAnswerSettings
    name, label_suffix = "second_answer", "s"
    needs_q = True
    acts_in_steps = False
    is_per_dimension = True
    config: SecondAnswerSettings

    @staticmethod
    def conflicts(config: AgentConfig) -> Iterator[str]:
        """Families without a second answer; settings that leave nothing to follow."""
        yield from missing_ability(config, models.Answering, "trains a second answer of the map's own network")
        c = config.improvement
        assert isinstance(c, SecondAnswerSettings)
        if not c.q_weight and not c.step:
            yield (
                "agent.improvement.q_weight=0 and step=0 leave the policy as it clones; set one of them above 0, or "
                "take agent=gtp_bc"
            )

    @staticmethod
    def steps_of_policy(config: AgentConfig) -> list[str]:
        """K of the map's answers, and of those that estimate V; of families that `conflicts` refuses, none."""
        if not issubclass(models.FAMILIES[config.policy.family], models.Answering):
            return []
        return ["anchor_steps", *AdvantageWeighting.steps_of_policy(config)]

    def weights(self, agent: Agent, inputs: LossInputs) -> tuple[torch.Tensor, Metrics]:
        """GFP's weights, exp(eta A / std(A)), or 1."""
        return super().weights(agent, inputs) if self.config.eta else (torch.ones_like(inputs.batch.reward), {})

    def loss(self, agent: Agent, inputs: LossInputs, cloning: torch.Tensor | None) -> tuple[torch.Tensor, Metrics]:
        """L_policy + ||mu - a*||^2 - q_weight E[Q], distances as means over dimensions."""
        c = self.config
        assert cloning is not None
        assert isinstance(agent.policy, models.Answering)
        assert isinstance(agent.policy_target, models.Answering)
        z = inputs.noise.normal(*inputs.action.shape)
        with torch.no_grad():
            anchor = agent.policy_target.sample_from(inputs.actor, z, c.anchor_steps)
            wanted = self.stepped(agent, inputs.critic, anchor) if c.step else anchor
        answer = agent.policy.answer(agent.policy.observe(inputs.actor), z)
        distance = (answer - wanted).square().mean()
        loss = cloning + distance
        metrics = {
            "actor/guide_loss": distance.detach(),
            "actor/moved": (answer.detach() - anchor).square().mean().sqrt(),
        }
        if c.q_weight:
            q = agent.critic.frozen(inputs.critic, agent.critic_action(agent.policy.bounded(answer))).float().mean()
            loss, metrics["actor/q"] = loss - c.q_weight * q, q.detach()
        return loss, metrics

    def stepped(self, agent: Agent, features: torch.Tensor, anchor: torch.Tensor) -> torch.Tensor:
        """The anchor (B, H A) after FMQ's step, shorter where critics disagree, within the bounds of actions."""
        c = self.config

        def total(action: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            q = agent.critic.frozen(features, agent.critic_action(action)).float()
            return q.mean(0).sum(), q.detach()

        gradient, q = torch.func.grad(total, has_aux=True)(anchor)
        deviation = q.std(0, correction=0)
        shorter = 1 / (1 + c.caution * deviation / global_mean(deviation).clamp_min(1e-8))
        size = gradient.square().mean(1, keepdim=True).sqrt().clamp_min(1e-12)
        return agent.policy.bounded(anchor + c.step * shorter[:, None] * gradient / size)

    def next_action(
        self, agent: Agent, features: torch.Tensor, steps: int, noise: NoiseSource, draws: int
    ) -> torch.Tensor:
        """mu'(o', z) of the slow network."""
        return _answers(agent.policy_target, features, noise, draws)

    def act(self, agent: Agent, features: torch.Tensor, steps: int, noise: NoiseSource, draws: int) -> torch.Tensor:
        """mu(o, z)."""
        return _answers(agent.policy, features, noise, draws)


def _answers(policy: models.Policy, features: torch.Tensor, noise: NoiseSource, draws: int) -> torch.Tensor:
    assert isinstance(policy, models.Answering)
    observed = policy.observe(features).repeat_interleave(draws, 0)
    return policy.bounded(policy.answer(observed, noise.normal(len(observed), policy.actions)))
