"""GTP and GTP-BC, in the order of the paper (Feng et al., ICML 2026, algorithm 1).

    1. Critic: E[(Q_j(o, a) - r - gamma mask min_j Q'_j(o', pi'(o')))^2], pi' the slow policy in K jumps (`Agent`).
    2. Weights: w = exp(eta max(0, A) / std(A)), A = Q(o, a) - V(o) (`AdvantageWeighting`).
    3. Actor: E[w (l_cons + lambda l_flow)] (`gtp_vision.models.gtp`).
    4. The targets of policy and critic follow at one rate (`Agent.update_targets`).

GTP-BC is eta = 0: every action weighs 1, and no critic is trained.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from gtp_vision.agents.base import Agent
from gtp_vision.agents.critics import OwnCritic
from gtp_vision.agents.improvement import Improvement, LossInputs, Metrics, Recipe
from gtp_vision.agents.settings import AgentConfig, ImprovementSettings
from gtp_vision.core.distributed import global_max, global_std
from gtp_vision.core.settings import setting
from gtp_vision.models.critic import Critic

GTP = Recipe("gtp", "Feng et al., ICML 2026", family="gtp", backup="mean", improvement="advantage")
GTP_BC = Recipe("gtp_bc", "Feng et al., ICML 2026", family="gtp", backup="none", improvement="none")


def advantage_weights(
    advantage: torch.Tensor,
    eta: float,
    clip: float,
    *,
    form: str = "positive",
    standardize: bool = True,
    std: torch.Tensor | None = None,
) -> torch.Tensor:
    """The weight of each action, at most `clip`: (B,) to (B,).

    With `positive`, the paper's eq. 13, w = exp(eta max(0, A) / (std(A) + eps)): a bad action weighs 1, as in
    behaviour cloning. With `exponential`, w = exp(eta A / (std(A) + eps)), the optimum of KL-regularised improvement.
    The deviation is taken over the global batch, or is `std` if that is known; without `standardize` it is 1.

    Weights count up to a factor, see `Agent.actor_loss`. Where all advantages of the global batch are negative, which
    no clip changes, the largest is subtracted from them: else all weights could underflow to 0 together.
    """
    scale = ((global_std(advantage) if std is None else std) + 1e-6) if standardize else 1.0
    above = advantage.clamp_min(0) if form == "positive" else advantage - global_max(advantage).clamp_max(0)
    return (eta * (above / scale)).exp().clamp_max(clip)


@dataclass
class AdvantageSettings(ImprovementSettings):
    """Settings of `AdvantageWeighting`."""

    form: str = setting(
        "positive",
        "weights: positive, exp(eta max(0, A)), the paper's, or exponential, exp(eta A)",
        choices=("positive", "exponential"),
    )
    # Not published; on the demo 3 left a fifth of the batch in effect and learned to press too slowly.
    eta: float = setting(1.0, "how strongly advantages weigh", low=0)
    standardize: bool = setting(True, "divide advantages by their deviation over the batch")
    # Not published; 100 (IQL's) lets one sample in a hundred decide.
    weight_clip: float = setting(10.0, "largest weight", low=1, high=1e30)
    # Each costs as much as a critic's step; 1 makes advantages so noisy that they hardly count (docs/baselines.md).
    value_samples: int = setting(2, "policy samples that estimate V(o), unless the critic learns a V", low=1)
    # A mean over samples needs no sharper ones; 5 would cost as much as the rest of the step.
    value_steps: int = setting(1, "steps K in which these samples are drawn", low=1)


class AdvantageWeighting(Improvement):
    """Actions that are better than the policy's own weigh more. Defined for every family with a loss."""

    Settings = AdvantageSettings
    name, label_suffix = "advantage", "a"
    needs_q = False
    config: AdvantageSettings

    @staticmethod
    def unused(config: AgentConfig, critic: type[OwnCritic] | None) -> frozenset[str]:
        """The samples that estimate V, where the critic has a V or an advantage of its own."""
        own = config.critic.backup == "expectile" or (critic and critic.advantage is not OwnCritic.advantage)
        return frozenset({"value_samples", "value_steps"}) if own else frozenset()

    @staticmethod
    def steps_of_policy(config: AgentConfig) -> list[str]:
        """K of the actions that estimate V."""
        return [] if config.critic.backup == "expectile" else ["value_steps"]

    def weights(self, agent: Agent, inputs: LossInputs) -> tuple[torch.Tensor, Metrics]:
        """The weights w = exp(eta max(0, A) / (std(A) + eps)), eq. 13."""
        c = self.config
        advantage = self.advantage(agent, inputs)
        std = global_std(advantage)
        weight = advantage_weights(advantage, c.eta, c.weight_clip, form=c.form, standardize=c.standardize, std=std)
        return weight, {
            "weight/mean": weight.mean(),
            "weight/advantage": advantage.mean(),
            "weight/advantage_std": std,
        }

    @torch.no_grad()
    def advantage(self, agent: Agent, inputs: LossInputs) -> torch.Tensor:
        """A = Q(o, a) - V(o): (B,).

        V is the critic's own if it learns one, and Q the least of its members; else V is the mean over actions of the
        slow policy, each of which one member judges in turn, and Q the members' mean, so that both have the same bias.
        An `OwnCritic` may have another advantage.
        """
        critic = agent.critic
        if isinstance(critic, OwnCritic) and (known := critic.advantage(agent, inputs)) is not None:
            return known
        assert inputs.q is not None
        if isinstance(critic, Critic) and critic.v is not None:
            return critic.aggregate(inputs.q) - critic.value(inputs.critic).float()
        k = self.config.value_samples
        samples = agent.policy_target.sample(inputs.actor, self.config.value_steps, inputs.noise, k)
        value = critic.in_turn(inputs.critic, agent.critic_action(samples).view(len(inputs.critic), k, -1)).float()
        return inputs.q.mean(0) - value.mean(1)
