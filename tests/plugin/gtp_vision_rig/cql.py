"""Conservative Q-learning (Kumar et al., NeurIPS 2020): the critic is lowered where the data have no actions."""

from dataclasses import dataclass

from torch import Tensor

from gtp_vision.agents.base import Agent
from gtp_vision.agents.diffusion_ql import QGradient, QGradientSettings
from gtp_vision.agents.improvement import LossInputs, Metrics, Recipe
from gtp_vision.core.settings import setting

CQL = Recipe("cql", "Kumar et al., NeurIPS 2020", family="gaussian", backup="mean", improvement="conservative")


@dataclass
class ConservativeSettings(QGradientSettings):
    """Settings of `Conservative`."""

    penalty: float = setting(1.0, "weight alpha of the critic's penalty", low=0)
    penalty_actions: int = setting(10, "uniform actions that estimate logsumexp_a Q(o, a)", low=1)


class Conservative(QGradient):
    """Policy as `QGradient`; penalized critic."""

    Settings = ConservativeSettings
    name, label_suffix = "conservative", "c"
    config: ConservativeSettings

    def critic_loss(self, agent: Agent, inputs: LossInputs, q: Tensor) -> tuple[Tensor, Metrics]:
        """alpha E[logsumexp_a Q(o, a) - Q(o, a_data)], eq. 4: ()."""
        members, rows = q.shape
        actions = agent.critic_action(inputs.action).shape[1]
        uniform = 2 * inputs.noise.uniform(rows * self.config.penalty_actions, actions) - 1
        features = inputs.critic.repeat_interleave(self.config.penalty_actions, 0)
        others = agent.critic(features, uniform).float().view(members, rows, -1)
        penalty = (others.logsumexp(-1) - q).mean()
        return self.config.penalty * penalty, {"critic/penalty": penalty.detach()}
