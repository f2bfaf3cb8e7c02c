"""Diffusion-BC and Diffusion-QL, in the order of the paper (Wang, Hunt and Zhou, ICLR 2023).

    1. Policy: a noise-predicting diffusion of N = 5 steps with a variance-preserving schedule
       (`gtp_vision.models.diffusion.VPDiffusionPolicy`); L_d is its loss.
    2. Q-learning: twin Q, target min_j Q'_j(o', a'), a' from the slow policy; max-Q backup on AntMaze (`Agent`).
    3. Policy improvement: L = L_d - eta E[Q(o, a0)] / E|Q|, a0 by all N steps of the sampler (`QGradient`).
    4. Acting: 50 candidates, one drawn by softmax(Q).

The published code divides either member's Q by the mean size of the other's, by the toss of a coin; here both are, half
each, which is the mean of the coin. Its slow policy starts to follow at step 1000 and every fifth step, at 0.005; here
it follows from the start, at a fifth of that rate.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from gtp_vision import models
from gtp_vision.agents.base import Agent
from gtp_vision.agents.improvement import Improvement, LossInputs, Metrics, Recipe
from gtp_vision.agents.settings import AgentConfig, ImprovementSettings
from gtp_vision.core.distributed import global_moments
from gtp_vision.core.settings import setting
from gtp_vision.models.timed import TimedPolicy

DIFFUSION_BC = Recipe(
    "diffusion_bc", "Wang et al., ICLR 2023", family="vp_diffusion", backup="none", improvement="none"
)
DIFFUSION_QL = Recipe(
    "diffusion_ql",
    "Wang et al., ICLR 2023",
    family="vp_diffusion",
    backup="mean",
    improvement="q_gradient",
    chooses=True,
)


def q_term(q: torch.Tensor, *, normalize: bool) -> torch.Tensor:
    """-E[Q], (), of values (E, B) of the policy's actions.

    `normalize` divides each member's by the mean size of the others' over the global batch, so that its weight means
    the same on every scale of rewards; a single member's by its own.
    """
    if not normalize:
        return -q.mean()
    members = len(q)
    size = global_moments(q.detach().abs(), leading=1).mean.to(q.dtype)
    others = (size.sum() - size) / (members - 1) if members > 1 else size
    return -(q.mean(1) / others.clamp_min(1e-6)).mean()


@dataclass
class QTermSettings(ImprovementSettings):
    """Settings of improvements that maximize Q."""

    q_weight: float = setting(1.0, "weight of the Q term", low=0)
    normalize_q: bool = setting(True, "divide Q by its mean size over the batch")


@dataclass
class QGradientSettings(QTermSettings):
    """Settings of `QGradient`."""

    bc_weight: float = setting(1.0, "weight of the cloning loss", low=0)
    q_steps: int = setting(5, "steps K through which Q's gradient goes; 1 is the single jump of a flow map", low=1)
    per_dimension: bool = setting(True, "the cloning loss is a mean over action dimensions instead of a sum")


class QGradient(Improvement):
    """The gradient of Q with respect to the policy's action, through the K steps that made it.

    Defined for every family: all can be differentiated through their sampling. With a flow map, K = 1 is the single
    jump Phi(., sigma_max, 0).
    """

    Settings = QGradientSettings
    name, label_suffix = "q_gradient", "q"
    config: QGradientSettings

    def __init__(self, agent: Agent) -> None:
        super().__init__(agent)
        self.is_per_dimension = self.config.per_dimension

    @staticmethod
    def conflicts(config: AgentConfig) -> Iterator[str]:
        """A policy that acts in other steps than those that are improved: it would not improve."""
        assert isinstance(config.improvement, QGradientSettings)
        trained, acts = config.improvement.q_steps, config.acting.steps
        if trained != acts and issubclass(models.FAMILIES[config.policy.family], TimedPolicy):
            yield (
                f"improvement=q_gradient improves the policy in agent.improvement.q_steps={trained} steps, and it acts "
                f"in agent.acting.steps={acts}; make them equal"
            )

    @staticmethod
    def steps_of_policy(config: AgentConfig) -> list[str]:
        """K of the actions that Q's gradient goes through."""
        return ["q_steps"]

    def loss(self, agent: Agent, inputs: LossInputs, cloning: torch.Tensor | None) -> tuple[torch.Tensor, Metrics]:
        """bc_weight L_policy + q_weight L_Q."""
        c = self.config
        assert cloning is not None
        action = agent.policy.sample(inputs.actor, c.q_steps, inputs.noise)
        q = agent.critic.frozen(inputs.critic, agent.critic_action(action)).float()
        term = q_term(q, normalize=c.normalize_q)
        metrics = {"actor/q_term": term.detach(), "actor/q": q.detach().mean(), "actor/cloning": cloning.detach()}
        return c.bc_weight * cloning + c.q_weight * term, metrics
