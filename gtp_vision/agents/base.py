"""What all agents share: encoders, a policy, a critic, and a step that trains both.

    agent = policy (how actions are generated) + critic (what they are worth)
          + improvement (how the one makes the other better) + acting (which of its actions is taken)

A paper's system is a `Recipe` of these; each stands in a file of its own, in the order of its paper, with the
improvement that it brought. All losses of a step see the same parameters and are minimised together, so that a step has
one backward pass and, on several GPUs, one communication; papers that train the critic first are one step ahead.
Axes in names: B batch, N candidates, H actions of a chunk, A action dimensions, F features.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Hashable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import nn

from gtp_vision import models
from gtp_vision.agents.settings import ActingConfig, AgentConfig
from gtp_vision.core.distributed import global_mean, global_moments
from gtp_vision.core.random import NoiseSource
from gtp_vision.datasets.sampler import Batch, Transitions
from gtp_vision.encoders import Augmentation, Encoder, EncoderConfig
from gtp_vision.encoders.views import one_view
from gtp_vision.models.critic import Critic, expectile_loss, td_target
from gtp_vision.models.networks import frozen_copy, polyak_

Metrics = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Recipe:
    """The composition by which a published system is known.

    Attributes:
        name: of the agent, and of its preset in configs/agent/, if it has one.
        paper: where it was published.
        family: of its policy.
        backup: what its critic bootstraps from, see `CriticConfig`.
        improvement: see `ImprovementConfig`.
        chooses: whether it draws several candidates and takes one by Q.
    """

    name: str
    paper: str
    family: str
    backup: str
    improvement: str
    chooses: bool = False


@dataclass(frozen=True)
class LossInputs:
    """What the losses of a step see.

    Attributes:
        batch: the batch.
        observation: the batch's, augmented.
        next_observation: the same n steps later, shifted alike; empty for agents without a critic.
        actor: (B, F), the actor's features, with their gradient.
        critic: (B, F), the critic's; the same tensor if the encoder is shared.
        action: (B, H A), the data's chunk.
        generator: of noise.
        step: training step, from 0.
        q: (E, B), the critic's values of the data's actions, without gradient; None for agents without one.
    """

    batch: Batch | Transitions
    observation: Mapping[str, torch.Tensor]
    next_observation: Mapping[str, torch.Tensor]
    actor: torch.Tensor
    critic: torch.Tensor
    action: torch.Tensor
    generator: NoiseSource
    step: int
    q: torch.Tensor | None = None


class Improvement(nn.Module, ABC):
    """How a policy is trained, given a critic.

    Args:
        agent: the agent whose policy is trained, built but for this; not kept.

    Attributes:
        name: of `agent.improvement.name`.
        mark: what a label says of it where it is not the agent's own (`gtp+q`); one letter, or two.
        judged: whether it needs a critic.
    """

    name: ClassVar[str]
    mark: ClassVar[str]
    judged = True

    def __init__(self, agent: Agent) -> None:
        super().__init__()
        self.config = agent.config.improvement

    @staticmethod
    def misfits(config: AgentConfig) -> Iterator[str]:
        """Sentences that say with which of the agent's other parts it is not defined, and the mend."""
        yield from ()

    @staticmethod
    def steps_of_policy(config: AgentConfig) -> list[str]:
        """Its settings that say in how many steps the policy is to be sampled."""
        return []

    @abstractmethod
    def loss(self, agent: Agent, seen: LossInputs) -> tuple[torch.Tensor, Metrics]:
        """The actor's loss, (), and metrics; gradients reach the policy, its encoder and this module alone."""

    def next_features(self, agent: Agent, seen: LossInputs) -> torch.Tensor:
        """(B, F), of the next observation, for `next_action`."""
        return agent.actor_encoder_target(seen.next_observation)

    def next_action(
        self, agent: Agent, features: torch.Tensor, steps: int, generator: NoiseSource, draws: int
    ) -> torch.Tensor:
        """Actions of the policy that the critic evaluates: (B, F) to (B * draws, H A); by default the slow copy's."""
        return agent.policy_target.sample(features, steps, generator, draws)

    def act(self, agent: Agent, features: torch.Tensor, steps: int, generator: NoiseSource, draws: int) -> torch.Tensor:
        """Actions to take: (B, F) to (B * draws, H A) in [-1, 1]."""
        return agent.policy.sample(features, steps, generator, draws)

    def begin(self, agent: Agent, step: int) -> None:
        """Called before training step `step`; what changes between stages changes here."""

    def stage(self, step: int) -> Hashable:
        """A key that is equal for steps whose loss is the same function."""
        return None


def weighted_loss(agent: Agent, seen: LossInputs, weight: torch.Tensor) -> tuple[torch.Tensor, Metrics]:
    """The policy's own loss E[w l] / E[w] of the data's actions: (), and metrics.

    The scale of weights drifts with the critic, and an encoder that is shared would follow the actor alone where
    it is large; so they are divided by their mean over the global batch.
    """
    moments = global_moments(weight)
    weight = weight / moments.mean.to(weight.dtype)
    each, metrics = agent.policy.loss(seen.actor, seen.action, weight, seen.generator, agent.policy_target)
    told = {f"actor/{name}": value.detach() for name, value in metrics.items()}
    return each.mean(), told | {"weight/effective_share": moments.effective_share.to(weight.dtype)}


def missing_ability(config: AgentConfig, ability: type, why: str) -> Iterator[str]:
    """A sentence if the agent's family of policies lacks an ability that its improvement needs; `why` it does."""
    family = config.policy.family
    if not issubclass(models.FAMILIES[family], ability):
        able = [name for name, known in models.FAMILIES.items() if issubclass(known, ability) and name != "one_step"]
        yield (
            f"improvement={config.improvement.name} {why}; {family} cannot: set agent.policy.family to one of "
            f"{', '.join(able)}"
        )


class Agent(nn.Module):
    """A policy, a critic, an improvement and a way of acting.

    Args:
        shapes: observation name to the shape of one stacked observation, (T, C, H, W) or (T, D).
        actions: number A of action dimensions.
        config: see `AgentConfig`.
        encoder: see `EncoderConfig`.
        improvement: the class that `config.improvement.name` names.
        pretrained: read the encoders' trained weights; False for an agent that a checkpoint will fill.
    """

    def __init__(
        self,
        shapes: Mapping[str, tuple[int, ...]],
        actions: int,
        config: AgentConfig,
        encoder: EncoderConfig,
        improvement: type[Improvement],
        pretrained: bool = True,
    ) -> None:
        super().__init__()
        self.config, self.actions = config, actions
        self.shared, self.gradient = encoder.share, encoder.gradient
        self.actor_encoder = Encoder(shapes, encoder, pretrained=pretrained)
        self.augment = Augmentation(encoder, shapes)
        width = self.actor_encoder.width
        self.policy = models.create(width, config.action_chunk * actions, config.policy)
        self.policy_target = frozen_copy(self.policy)
        self.has_critic = config.critic.backup != "none"
        if self.has_critic:
            self.actor_encoder_target = frozen_copy(self.actor_encoder)
            if not self.shared:
                self.critic_encoder = Encoder(shapes, encoder, pretrained=pretrained)
                if encoder.tuning == "frozen":  # random ones, too: both see the same features, computed once
                    self.critic_encoder.towers.load_state_dict(self.actor_encoder.towers.state_dict())
                self.critic_encoder_target = frozen_copy(self.critic_encoder)
            judged = (config.action_chunk if config.critic.chunk else 1) * actions
            self.critic = Critic(width, judged, config.critic)
            self.critic_target = frozen_copy(self.critic)
        self.improvement = improvement(self)
        self.step = 0

    # Training ------------------------------------------------------------------------------------------------

    def begin(self, step: int) -> None:
        """To be called before training step `step`, from 0."""
        self.step = step
        self.improvement.begin(self, step)

    def stage(self, step: int) -> Hashable:
        """A key of what a step does: steps of one stage differ in their batch, noise and learning rates alone."""
        return self.improvement.stage(step), self.augment.stage(step)

    def forward(self, batch: Batch | Transitions, generator: NoiseSource) -> tuple[torch.Tensor, Metrics]:
        """The joint loss of a batch, and metrics on the device."""
        seen = self.see(batch, generator)
        if not self.has_critic:
            loss, metrics = self.improvement.loss(self, seen)
            return loss, {"loss": loss.detach(), "actor/loss": loss.detach()} | metrics
        critic_loss, q, critic_metrics = self.critic_loss(seen)
        actor_loss, metrics = self.improvement.loss(self, replace(seen, q=q))
        loss = critic_loss + actor_loss
        return loss, {"loss": loss.detach(), "actor/loss": actor_loss.detach()} | critic_metrics | metrics

    def see(self, batch: Batch | Transitions, generator: NoiseSource) -> LossInputs:
        """The batch as features."""
        given = (batch.observation(), batch.next_observation() if self.has_critic else {})
        now, then = one_view(given, generator)
        draws = self.augment.draw(len(batch), generator, self.step)
        observation, following = self.augment(now, draws), self.augment(then, draws)
        actor = self.actor_encoder(observation)
        critic = self.critic_encoder(observation) if self.has_critic and not self.shared else actor
        if self.shared and self.gradient != "both":
            actor, critic = (actor, actor.detach()) if self.gradient == "actor" else (actor.detach(), actor)
        action = batch.actions[:, : self.config.action_chunk].flatten(1)
        return LossInputs(batch, observation, following, actor, critic, action, generator, self.step)

    def critic_loss(self, seen: LossInputs) -> tuple[torch.Tensor, torch.Tensor, Metrics]:
        """Squared TD error, the mean over members and batch, and the loss of V if there is one.

        Returns:
            The loss (), the values of the data's actions (E, B) without gradient, and metrics.
        """
        batch, action = seen.batch, self.judged(seen.action)
        with torch.no_grad():
            target = td_target(batch.reward, batch.discount, self.next_value(seen).float())
        q = self.critic(seen.critic, action).float()
        counts = torch.ones_like(batch.reward)
        if self.config.critic.chunk:
            # A chunk that the recording cut short was not carried out; after a terminal nothing matters.
            whole = batch.action_mask[:, : self.config.action_chunk].all(1)
            counts = (whole | (batch.discount == 0)).float()
            counts = counts / global_mean(counts).clamp_min(1e-6)
        loss = (counts * (q - target).square()).mean()
        metrics = {
            "critic/loss": loss.detach(),
            "critic/q": q.detach().mean(),
            "critic/q_min": q.detach().amin(),
            "critic/q_max": q.detach().amax(),
            "critic/target": target.mean(),
        }
        if self.critic.v is None:
            return loss, q.detach(), metrics
        with torch.no_grad():
            slow = self.critic_target.worth(self._critic_encoder_target(seen.observation), action).float()
        value = self.critic.value(seen.critic).float()
        v_loss = (counts * expectile_loss(slow - value, self.config.critic.expectile)).mean()
        metrics |= {"critic/v_loss": v_loss.detach(), "critic/v": value.detach().mean()}
        return loss + v_loss, q.detach(), metrics

    def next_value(self, seen: LossInputs) -> torch.Tensor:
        """What Q bootstraps from, (B,): V(o'), or the slow Q of the next actions that the policy draws."""
        c = self.config.critic
        if c.backup == "expectile":
            return self.critic.value(
                (self.actor_encoder if self.shared else self.critic_encoder)(seen.next_observation)
            )
        features = self.improvement.next_features(self, seen)
        action = self.improvement.next_action(self, features, c.next_steps, seen.generator, c.next_actions)
        if c.next_noise:
            noise = c.next_noise * seen.generator.normal(len(action), action.shape[1])
            action = (action + noise.clamp(-c.next_noise_clip, c.next_noise_clip)).clamp(-1, 1)
        action = self.judged(action)
        judged = self._critic_encoder_target(seen.next_observation).repeat_interleave(c.next_actions, 0)
        value = self.critic_target.backed_up(self.critic_target(judged, action).view(c.members, -1, c.next_actions))
        if c.next_penalty:  # the data's next action is the last that the sampler was asked for
            far = (action.view(len(value), c.next_actions, -1) - seen.batch.actions[:, -1:]).square().sum(-1).mean(1)
            value = value - c.next_penalty * far * seen.batch.action_mask[:, -1]
        return value

    def judged(self, action: torch.Tensor) -> torch.Tensor:
        """The part of an action chunk that the critic judges: (B, H A) to itself or to the first action (B, A)."""
        return action if self.config.critic.chunk else action[:, : self.actions]

    def _critic_encoder_target(self, observation: Mapping[str, torch.Tensor]) -> torch.Tensor:
        return (self.actor_encoder_target if self.shared else self.critic_encoder_target)(observation)

    def targets(self) -> Iterator[tuple[nn.Module, nn.Module, float]]:
        """Each slow copy, what it follows, and at which rate."""
        tau = self.config.tau
        policy_tau = tau if self.config.policy_tau is None else self.config.policy_tau
        yield self.policy_target, self.policy, policy_tau
        if self.has_critic:
            yield self.critic_target, self.critic, tau
            yield self.actor_encoder_target, self.actor_encoder, tau if self.shared else policy_tau
            if not self.shared:
                yield self.critic_encoder_target, self.critic_encoder, tau

    def update_targets(self) -> None:
        """Polyak update of all targets, after the optimiser's step."""
        for slow, fast, rate in self.targets():
            polyak_(slow, fast, rate)

    # Acting --------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def plan(
        self, observation: Mapping[str, torch.Tensor], generator: NoiseSource, steps: int | None = None
    ) -> torch.Tensor:
        """Action chunks (B, H, A) in [-1, 1] for stacked observations, in K = `steps`; of several candidates, one."""
        if self.training:  # acting uses the statistics of batch normalisation, and teaches it nothing
            self.eval()
            try:
                return self.plan(observation, generator, steps)
            finally:
                self.train()
        acting = self.config.acting
        n, steps = acting.candidates, acting.steps if steps is None else steps
        noise = generator if acting.noise == 1 else ScaledNoise(generator, acting.noise)
        actions = self.improvement.act(self, self.actor_encoder(observation), steps, noise, n)
        if n > 1:
            judged = self._critic_encoder_target(observation).repeat_interleave(n, 0)
            q = self.critic_target.worth(judged, self.judged(actions)).view(-1, n)
            chosen = choose(q, acting, generator)
            actions = actions.view(len(q), n, -1)[torch.arange(len(q), device=q.device), chosen]
        return actions.view(len(actions), -1, self.actions)

    def act(
        self, observation: Mapping[str, torch.Tensor], generator: NoiseSource, steps: int | None = None
    ) -> torch.Tensor:
        """The first action (B, A) of each plan."""
        return self.plan(observation, generator, steps)[:, 0]


def choose(q: torch.Tensor, acting: ActingConfig, generator: NoiseSource) -> torch.Tensor:
    """Which candidate is taken, int64 (B,), by its value (B, N): the best, or one drawn by softmax(Q / temperature)."""
    if acting.choose == "argmax":
        return q.argmax(1)
    gumbel = -(-generator.uniform(*q.shape).clamp_min(1e-20).log()).log()
    return (q / acting.temperature + gumbel).argmax(1)


class ScaledNoise:
    """A `NoiseSource` whose normal draws are scaled, so that a policy acts closer to its most likely action."""

    def __init__(self, generator: NoiseSource, scale: float) -> None:
        self._generator, self._scale = generator, scale

    def normal(self, rows: int, *shape: int) -> torch.Tensor:
        """Normal (rows, *shape) of deviation `scale`."""
        return self._scale * self._generator.normal(rows, *shape)

    def uniform(self, rows: int, *shape: int) -> torch.Tensor:
        """Uniform in [0, 1), (rows, *shape)."""
        return self._generator.uniform(rows, *shape)

    def integers(self, high: int, rows: int, *shape: int) -> torch.Tensor:
        """Uniform integers in [0, high), (rows, *shape)."""
        return self._generator.integers(high, rows, *shape)
