"""GTP and GTP-BC, in the order of the paper (Feng et al., ICML 2026, algorithm 1).

Both losses of a step see the same parameters and are minimised together, so that a step has one backward pass
and, on several GPUs, one communication; the paper trains the critic first, one step ahead of the weights.
Axes in names: B batch, A action dimensions.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import nn

from gtp_vision import policies
from gtp_vision.critics import Critic, CriticConfig, td_target
from gtp_vision.datasets.random import NoiseSource
from gtp_vision.datasets.sampler import Batch
from gtp_vision.encoders import Encoder, EncoderConfig, RandomShift
from gtp_vision.networks import frozen_copy, polyak_
from gtp_vision.policies import PolicyConfig, effective_sample_size
from gtp_vision.reduce import global_mean, global_std


@dataclass
class AgentConfig:
    """Settings of the agent; the reasons stand in configs/agent/.

    Attributes:
        name: gtp or gtp_bc.
        policy: of the generative policy.
        critic: of the critic (unused by gtp_bc).
        eta: how strongly advantages weigh; 0 is behaviour cloning.
        weight_clip: largest weight.
        value_samples: policy samples that estimate V(o).
        target_steps: K of the target policy, in the critic's target and in V.
        act_steps: K when acting, unless the caller says otherwise.
        tau: Polyak rate of all targets.
    """

    name: str = "gtp"
    policy: PolicyConfig = field(default_factory=PolicyConfig)
    critic: CriticConfig = field(default_factory=CriticConfig)
    eta: float = 3.0
    weight_clip: float = 100.0
    value_samples: int = 4
    target_steps: int = 5
    act_steps: int = 5
    tau: float = 0.005


def advantage_weights(advantage: torch.Tensor, eta: float, clip: float) -> torch.Tensor:
    """W = exp(eta max(0, A) / (std(A) + eps)), at most `clip`: (B,) to (B,).

    The deviation is taken over the global batch.
    """
    scaled = advantage.clamp_min(0) / (global_std(advantage) + 1e-6)
    return (eta * scaled).exp().clamp_max(clip)


class GTPBC(nn.Module):
    """Behaviour cloning with a generative trajectory policy: every action weighs 1.

    Args:
        shapes: observation name to the shape of one stacked observation, (T, C, H, W) or (T, D).
        actions: number A of action dimensions.
        config: see `AgentConfig`.
        encoder: see `EncoderConfig`.
    """

    def __init__(
        self, shapes: Mapping[str, tuple[int, ...]], actions: int, config: AgentConfig, encoder: EncoderConfig
    ) -> None:
        super().__init__()
        self.config, self.actions = config, actions
        self.shift = RandomShift(encoder.shift, encoder.shift_probability)
        self.actor_encoder = Encoder(shapes, encoder)
        self.policy = policies.create(self.actor_encoder.width, actions, config.policy)
        self.policy_target = frozen_copy(self.policy)

    def forward(self, batch: Batch, generator: NoiseSource) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """The loss of a batch, and metrics on the device."""
        observation = self.augmented(batch.observation(), self.shift.draw(len(batch), generator))
        features = self.actor_encoder(observation)
        loss, metrics = self.actor_loss(features, batch.action, torch.ones_like(batch.reward), generator)
        return loss, {"loss": loss.detach()} | metrics

    def actor_loss(
        self, features: torch.Tensor, action: torch.Tensor, weight: torch.Tensor, generator: NoiseSource
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """E[w (l_cons + lambda l_flow)]."""
        each, metrics = self.policy.loss(features, action, weight, generator, self.policy_target)
        loss = each.mean()
        told = {"actor/loss": loss.detach()} | {f"actor/{k}": v.detach() for k, v in metrics.items()}
        return loss, told

    def augmented(self, observation: Mapping[str, torch.Tensor], offsets: torch.Tensor) -> dict[str, torch.Tensor]:
        """Cameras shifted, states as they are."""
        return {name: self.shift(x, offsets) if x.ndim == 5 else x for name, x in observation.items()}

    @torch.no_grad()
    def update_targets(self) -> None:
        """Polyak update of the targets, after the optimiser's step."""
        polyak_(self.policy_target, self.policy, self.config.tau)

    @torch.no_grad()
    def act(
        self, observation: Mapping[str, torch.Tensor], generator: NoiseSource, steps: int | None = None
    ) -> torch.Tensor:
        """Actions (B, A) in [-1, 1] for stacked observations, by K = `steps` jumps of the online policy."""
        steps = self.config.act_steps if steps is None else steps
        return self.policy.sample(self.actor_encoder(observation), steps, generator)


class GTP(GTPBC):
    """Offline reinforcement learning: a critic's advantages weigh what the policy imitates. Arguments as `GTPBC`."""

    def __init__(
        self, shapes: Mapping[str, tuple[int, ...]], actions: int, config: AgentConfig, encoder: EncoderConfig
    ) -> None:
        super().__init__(shapes, actions, config, encoder)
        self.shared = encoder.share
        self.actor_encoder_target = frozen_copy(self.actor_encoder)
        if not self.shared:
            self.critic_encoder = Encoder(shapes, encoder)
            self.critic_encoder_target = frozen_copy(self.critic_encoder)
        self.critic = Critic(self.actor_encoder.width, actions, config.critic)
        self.critic_target = frozen_copy(self.critic)

    def forward(self, batch: Batch, generator: NoiseSource) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """The joint loss of a batch, and metrics on the device."""
        offsets = self.shift.draw(len(batch), generator)  # the same for both, or the critic would see a jump
        observation = self.augmented(batch.observation(), offsets)
        next_observation = self.augmented(batch.next_observation(), offsets)

        # Critic: E[(Q_j(o, a) - r - gamma mask min_j Q'_j(o', pi'(o')))^2].
        actor_features = self.actor_encoder(observation)
        critic_features = actor_features if self.shared else self.critic_encoder(observation)
        critic_loss, metrics = self.critic_loss(critic_features, batch, next_observation, generator)

        # Weights: w = exp(eta max(0, A) / std(A)), A = min_j Q_j(o, a) - V(o).
        weight, weight_metrics = self.weights(critic_features, actor_features, batch.action, generator)

        # Actor: E[w (l_cons + lambda l_flow)] / E[w]: the scale of the weights drifts with the critic, and an
        # encoder that is shared would follow the actor alone where it is large.
        weight = weight / global_mean(weight)
        actor_loss, actor_metrics = self.actor_loss(actor_features, batch.action, weight, generator)
        loss = critic_loss + actor_loss
        return loss, {"loss": loss.detach()} | metrics | weight_metrics | actor_metrics

    def critic_loss(
        self,
        features: torch.Tensor,
        batch: Batch,
        next_observation: Mapping[str, torch.Tensor],
        generator: NoiseSource,
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Squared TD error, the mean over members and batch."""
        with torch.no_grad():
            next_actor_features = self.actor_encoder_target(next_observation)
            next_critic_features = next_actor_features if self.shared else self.critic_encoder_target(next_observation)
            next_action = self.policy_target.sample(next_actor_features, self.config.target_steps, generator)
            next_value = self.critic_target.pessimistic(next_critic_features, next_action)
            target = td_target(batch.reward, batch.discount, next_value.float())
        q = self.critic(features, batch.action).float()
        loss = (q - target).square().mean()
        metrics = {
            "critic/loss": loss.detach(),
            "critic/q": q.detach().mean(),
            "critic/q_min": q.detach().amin(),
        }
        return loss, metrics | {"critic/q_max": q.detach().amax(), "critic/target": target.mean()}

    @torch.no_grad()
    def weights(
        self,
        critic_features: torch.Tensor,
        actor_features: torch.Tensor,
        action: torch.Tensor,
        generator: NoiseSource,
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """The weight w of each action, (B,), and metrics."""
        advantage = self.advantage(critic_features, actor_features, action, generator)
        weight = advantage_weights(advantage, self.config.eta, self.config.weight_clip)
        return weight, {
            "weight/mean": weight.mean(),
            "weight/effective_share": effective_sample_size(weight),
            "weight/advantage": advantage.mean(),
            "weight/advantage_std": global_std(advantage),
        }

    @torch.no_grad()
    def advantage(
        self,
        critic_features: torch.Tensor,
        actor_features: torch.Tensor,
        action: torch.Tensor,
        generator: NoiseSource,
    ) -> torch.Tensor:
        """A = min_j Q_j(o, a) - mean_k min_j Q_j(o, a_k), a_k ~ pi'(o): (B,)."""
        k = self.config.value_samples
        samples = self.policy_target.sample(actor_features, self.config.target_steps, generator, draws=k)
        value = self.critic.pessimistic(critic_features.repeat_interleave(k, 0), samples)
        return (self.critic.pessimistic(critic_features, action) - value.view(-1, k).mean(1)).float()

    @torch.no_grad()
    def update_targets(self) -> None:
        """Polyak update of all targets at one rate, after the optimiser's step."""
        super().update_targets()
        polyak_(self.critic_target, self.critic, self.config.tau)
        polyak_(self.actor_encoder_target, self.actor_encoder, self.config.tau)
        if not self.shared:
            polyak_(self.critic_encoder_target, self.critic_encoder, self.config.tau)
