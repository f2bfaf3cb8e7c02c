"""QGPO, in the order of the paper (Lu et al., ICML 2023, "Contrastive Energy Prediction").

    1. Behaviour: a diffusion that clones mu(a | o) (`gtp_vision.models.diffusion`).
    2. Q: target r + gamma mask sum_n softmax(alpha Q')_n Q'(o', a_n) over actions a_n of the behaviour at o':
       in-support softmax Q-learning (`gtp_vision.models.critic.Critic.backed_up`).
    3. Energy: f(o, a_t, t), trained to tell by how much each of M actions of the behaviour, noised alike, is better
       than the others, -E[sum_m softmax(alpha Q)_m log softmax(f)_m]; its optimum is
       log E[exp(alpha Q(o, a)) | a_t] (`contrastive_loss`).
    4. Acting: the behaviour's score plus the gradient of f, which draws from mu exp(alpha Q)
       (`EnergyGuidance.act`).

The published code trains these one after the other and draws the behaviour's actions once; here they are trained
together, and drawn anew from the slow policy.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from gtp_vision import models
from gtp_vision.agents.base import Agent
from gtp_vision.agents.improvement import Improvement, LossInputs, Metrics, Recipe, missing_ability
from gtp_vision.agents.settings import AgentConfig, ImprovementSettings
from gtp_vision.core.random import NoiseSource
from gtp_vision.core.settings import setting
from gtp_vision.models import Policy, effective_sample_size
from gtp_vision.models.networks import MLP
from gtp_vision.models.timed import TimedPolicy

QGPO = Recipe("qgpo", "Lu et al., ICML 2023", family="diffusion", backup="softmax", improvement="guidance")


@dataclass
class SupportSettings(ImprovementSettings):
    """Settings of improvements that compare actions of the behaviour."""

    alpha: float = setting(1.0, "inverse temperature of the energy alpha Q", low=0)
    support_actions: int = setting(16, "actions per observation that are drawn from the behaviour", low=2)
    support_steps: int = setting(5, "steps K in which they are drawn", low=1)


@dataclass
class GuidanceSettings(SupportSettings):
    """Settings of `EnergyGuidance`."""

    guidance_scale: float = setting(1.0, "factor on the energy's gradient when acting", low=0)


def contrastive_loss(energy: torch.Tensor, q: torch.Tensor, alpha: float) -> torch.Tensor:
    """-sum_m softmax(alpha Q)_m log softmax(f)_m of energies and values, both (B, M): (B,)."""
    return -(torch.softmax(alpha * q, -1) * torch.log_softmax(energy, -1)).sum(-1)


def support(
    agent: Agent, inputs: LossInputs, policy: Policy, features: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """M actions of a policy for each observation, (B, M, H A), and their values by the critic, (B, M); no gradients."""
    c = agent.config.improvement
    assert isinstance(c, SupportSettings)
    with torch.no_grad():
        actions = policy.sample(features, c.support_steps, inputs.noise, c.support_actions)
        q = agent.critic.worth(
            inputs.critic.repeat_interleave(c.support_actions, 0), agent.critic_action(actions)
        ).float()
    return actions.view(len(features), c.support_actions, -1), q.view(len(features), c.support_actions)


class EnergyGuidance(Improvement):
    """The policy clones; a learned energy steers it when acting.

    Defined for families that denoise step by step.
    """

    Settings = GuidanceSettings
    name, label_suffix = "guidance", "e"
    may_renoise = False
    config: GuidanceSettings

    def __init__(self, agent: Agent) -> None:
        super().__init__(agent)
        policy = agent.policy
        assert isinstance(policy, TimedPolicy)
        width = agent.actor_encoder.width + policy.actions + policy.embed.width
        self.energy = MLP(width, policy.config.hidden, 1, policy.config.activation)

    @staticmethod
    def conflicts(config: AgentConfig) -> Iterator[str]:
        """Families that jump over the levels where the energy would steer."""
        yield from missing_ability(config, models.Guidable, "steers a sampler that denoises step by step")

    @staticmethod
    def steps_of_policy(config: AgentConfig) -> list[str]:
        """K of the behaviour's actions."""
        return ["support_steps"]

    def loss(self, agent: Agent, inputs: LossInputs, cloning: torch.Tensor | None) -> tuple[torch.Tensor, Metrics]:
        """Cloning, and the contrastive loss of the energy, whose features are the policy's without gradient."""
        assert cloning is not None
        features = inputs.actor.detach()
        actions, q = support(agent, inputs, agent.policy_target, features)
        policy = agent.policy
        assert isinstance(policy, models.Guidable)
        draws = policy.config.noise_draws
        actions, q, features = (x.repeat_interleave(draws, 0) for x in (actions, q, features))
        noised, t = policy.noised(actions, inputs.noise)
        rows, m, _ = noised.shape
        energy = self.of(policy, features.repeat_interleave(m, 0), noised.flatten(0, 1), t.repeat_interleave(m))
        contrast = contrastive_loss(energy.view(rows, m).float(), q, self.config.alpha).mean()
        share = effective_sample_size(torch.softmax(self.config.alpha * q, -1).flatten())
        metrics = {"actor/energy_loss": contrast.detach(), "actor/support_q": q.mean(), "weight/support_share": share}
        return cloning + contrast, metrics

    def of(self, policy: Policy, features: torch.Tensor, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        """The energy f(o, a_t, t): (B, F), (B, H A) and (B,) to (B,)."""
        assert isinstance(policy, TimedPolicy)
        scale = policy.scale(t)  # of noise levels, falls as 1 / t, as differences of the energy do: noise hides them
        place = torch.cat([scale * x, policy.embed(t)], dim=1)
        energy = self.energy(torch.cat([features, place.to(features.dtype)], dim=1)).squeeze(-1)
        return scale[:, 0] / policy.config.input_gain * energy

    def act(self, agent: Agent, features: torch.Tensor, steps: int, noise: NoiseSource, draws: int) -> torch.Tensor:
        """Samples of the behaviour, steered by guidance_scale times the gradient of the energy."""
        policy = agent.policy
        assert isinstance(policy, models.Guidable)
        repeated = features.repeat_interleave(draws, 0)

        def pull(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
            with torch.inference_mode(False), torch.enable_grad():
                x = x.detach().clone().requires_grad_()
                (gradient,) = torch.autograd.grad(self.of(policy, repeated, x, t).sum(), x)
            return self.config.guidance_scale * gradient

        observed = policy.observe(features).repeat_interleave(draws, 0)
        return policy.bounded(policy.guided(observed, steps, noise, pull))
