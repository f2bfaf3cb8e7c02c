"""BDM, as GTP's tables call it, which is EDA: efficient diffusion alignment (Chen et al., NeurIPS 2024).

1. Behaviour: a bottleneck diffusion model f(o, a_t, t), whose gradient in a_t is the score, so that f is the logarithm
   of the behaviour's density up to a constant in a_t (`gtp_vision.models.bottleneck`); cloning for `pretrain_steps`.
2. Critic: IQL's expectile V and Q (`gtp_vision.agents.iql`).
3. Alignment: a copy of the behaviour is frozen. Of M of its actions, noised alike, the policy's density should rise
   most where Q is high: -E[sum_m softmax(alpha Q)_m log softmax(beta (f - f_behaviour))_m] (`alignment_loss`). The
   optimum for beta = 1 is mu exp(alpha Q); for others, mu exp(alpha Q / beta) at t = 0.
4. Acting: the best of 4 by Q.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from gtp_vision import models
from gtp_vision.agents.base import Agent
from gtp_vision.agents.improvement import Improvement, LossInputs, Metrics, Recipe, missing_ability
from gtp_vision.agents.qgpo import SupportSettings, contrastive_loss, support
from gtp_vision.agents.settings import AgentConfig
from gtp_vision.core.settings import setting
from gtp_vision.models import effective_sample_size
from gtp_vision.models.networks import frozen_copy

BDM = Recipe(
    "bdm", "Chen et al., NeurIPS 2024", family="bottleneck", backup="expectile", improvement="alignment", chooses=True
)


def alignment_loss(
    log_density: torch.Tensor, log_behaviour: torch.Tensor, q: torch.Tensor, alpha: float, beta: float
) -> torch.Tensor:
    """-sum_m softmax(alpha Q)_m log softmax(beta (log pi - log mu))_m, all (B, M): (B,)."""
    return contrastive_loss(beta * (log_density - log_behaviour), q, alpha)


@dataclass
class AlignmentSettings(SupportSettings):
    """Settings of `Alignment`."""

    beta: float = setting(
        1.0, "how strongly the policy is held to the behaviour; the target is behaviour exp(alpha Q / beta)", above=0
    )
    pretrain_steps: int = setting(100_000, "steps of cloning before the policy is aligned; below training.steps", low=0)


class Alignment(Improvement):
    """Cloning for `pretrain_steps`, then densities are aligned with Q.

    Defined for families that have a density.
    """

    Settings = AlignmentSettings
    name, label_suffix = "alignment", "l"
    config: AlignmentSettings

    def __init__(self, agent: Agent) -> None:
        super().__init__(agent)
        self.behaviour = frozen_copy(agent.policy)
        self.behaviour_encoder = frozen_copy(agent.actor_encoder)  # the policy's moves on with it

    @staticmethod
    def conflicts(config: AgentConfig) -> Iterator[str]:
        """Families that cannot say how likely an action is, and a behaviour that is frozen while it is cloned."""
        yield from missing_ability(config, models.Density, "compares densities")
        assert isinstance(config.improvement, AlignmentSettings)
        if config.clone_steps > config.improvement.pretrain_steps:
            yield (
                f"agent.clone_steps={config.clone_steps} are more than the steps after which the behavior is frozen, "
                f"agent.improvement.pretrain_steps={config.improvement.pretrain_steps}; lower the first"
            )

    @torch.no_grad()
    def begin(self, agent: Agent, step: int) -> None:
        """Freeze the behaviour as it has been learned."""
        if step == self.config.pretrain_steps:
            self.behaviour.load_state_dict(agent.policy.state_dict())
            self.behaviour_encoder.load_state_dict(agent.actor_encoder.state_dict())

    def stage(self, step: int) -> bool:
        """Whether the alignment has begun."""
        return step >= self.config.pretrain_steps

    def weights(self, agent: Agent, inputs: LossInputs) -> tuple[torch.Tensor | None, Metrics]:
        """Every action alike while cloning; None once the alignment has begun."""
        return super().weights(agent, inputs) if inputs.step < self.config.pretrain_steps else (None, {})

    def loss(self, agent: Agent, inputs: LossInputs, cloning: torch.Tensor | None) -> tuple[torch.Tensor, Metrics]:
        """Cloning at first, then alignment."""
        if cloning is not None:
            return cloning, {}
        policy, behaviour = agent.policy, self.behaviour
        assert isinstance(policy, models.Density)
        assert isinstance(behaviour, models.Density)
        c = self.config
        with torch.no_grad():
            features = self.behaviour_encoder(inputs.observation)
        actions, q = support(agent, inputs, behaviour, features)
        draws = policy.config.noise_draws
        actions, q = (x.repeat_interleave(draws, 0) for x in (actions, q))
        noised, t = policy.noised(actions, inputs.noise)
        rows, m, _ = noised.shape
        place = (noised.flatten(0, 1), t.repeat_interleave(m))
        log_density = policy.log_density(policy.observe(inputs.actor).repeat_interleave(draws * m, 0), *place)
        with torch.no_grad():
            log_behaviour = behaviour.log_density(behaviour.observe(features).repeat_interleave(draws * m, 0), *place)
        each = alignment_loss(log_density.view(rows, m), log_behaviour.view(rows, m), q, c.alpha, c.beta)
        share = effective_sample_size(torch.softmax(c.alpha * q, -1).flatten())
        return each.mean(), {"actor/alignment_loss": each.detach().mean(), "weight/effective_share": share}
