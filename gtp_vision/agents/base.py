"""What all agents share: encoders, a policy, a critic, and the joint loss of a step.

    agent = policy (how actions are generated) + critic (what they are worth)
          + improvement (how the critic improves the policy) + acting (which of its actions is taken)

A published system is a `Recipe` of these; each stands in a file of its own, in the order of its paper, with the
improvement that the paper introduced. All losses of a step see the same parameters and are minimised together, so that
a step has one backward pass and, on several GPUs, one communication; papers that train the critic first are one step
ahead.
Axes in names: B batch, N candidates, H actions of a chunk, A action dimensions, F features.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace

import torch
from torch import nn

from gtp_vision import models
from gtp_vision.agents.critics import OwnCritic
from gtp_vision.agents.improvement import Improvement, LossInputs, Metrics, weighted_mean
from gtp_vision.agents.joining import Known, draws_of, joined
from gtp_vision.agents.representation import Representation
from gtp_vision.agents.search import scaled_noise, search
from gtp_vision.agents.settings import ActingConfig, AgentConfig
from gtp_vision.core.distributed import global_mean
from gtp_vision.core.random import NoiseSource
from gtp_vision.datasets.batch import Batch
from gtp_vision.encoders import Augmentation, Encoder, EncoderConfig, GoalEncoder
from gtp_vision.encoders.views import one_view
from gtp_vision.models.critic import BaseCritic, Critic, expectile_loss, td_target
from gtp_vision.models.networks import Pairs, frozen_copy, polyak_

_ACTING = ("actor_encoder.", "policy.", "improvement.")
_DOT = "/"
AVERAGE = "average."
"""Begins the names of the tensors of `Agent.average`."""


@contextmanager
def evaluating(agent: nn.Module) -> Iterator[None]:
    """Use the statistics of batch normalisation within the block, and teach it nothing."""
    was_training = agent.training
    agent.eval()
    try:
        yield
    finally:
        agent.train(was_training)


def averaged_name(name: str) -> str:
    """The name of the tensor that one of the average, `average.policy/...`, follows."""
    return name.removeprefix(AVERAGE).replace(_DOT, ".")


def _exchange(pairs: Pairs) -> None:
    for one, other in pairs:
        one.data, other.data = other.data, one.data


class Agent(nn.Module):
    """A policy, a critic, an improvement and a way of acting.

    Arguments as `agents.create`, and the classes that `config.improvement.name` and `config.critic.backup` name.
    `actions` is the policy's number A of action dimensions, which `representation`, if it is not None, makes of the
    data's.
    """

    def __init__(
        self,
        shapes: Mapping[str, tuple[int, ...]],
        actions: int,
        config: AgentConfig,
        encoder: EncoderConfig,
        improvement: type[Improvement],
        critic: type[BaseCritic] = Critic,
        pretrained: bool = True,
    ) -> None:
        super().__init__()
        self.config = config
        self.representation = None
        if config.representation.active:
            self.representation = Representation(config.representation, actions, shapes)
            actions = self.representation.width
        self.actions = actions
        self.shared, self.gradient = encoder.share, encoder.gradient
        kind = GoalEncoder if issubclass(critic, OwnCritic) and critic.is_paired else Encoder
        self.actor_encoder = kind(shapes, encoder, pretrained=pretrained)
        self.augment = Augmentation(encoder, shapes)
        width = self.actor_encoder.width
        seen = improvement.policy_width(width, config)
        self.policy = models.create(seen, config.action_chunk * actions, config.policy)
        self.policy_target = frozen_copy(self.policy)
        self.has_critic = config.critic.backup != "none"
        if self.has_critic:
            self.actor_encoder_target = frozen_copy(self.actor_encoder)
            if not self.shared:
                self.critic_encoder = kind(shapes, encoder, pretrained=pretrained)
                if encoder.tuning == "frozen":  # random ones, too: both see the same features, computed once
                    self.critic_encoder.towers.load_state_dict(self.actor_encoder.towers.state_dict())
                self.critic_encoder_target = frozen_copy(self.critic_encoder)
            width_of_action = (config.action_chunk if config.critic.chunk else 1) * actions
            self.critic: BaseCritic = critic(width, width_of_action, config.critic)
            self.critic_target = frozen_copy(self.critic)
        self.improvement = improvement(self)
        self.cloning = Improvement(self)  # takes its place in the first `clone_steps`
        self.average: nn.ParameterDict | None = None

    # Training ------------------------------------------------------------------------------------------------

    def begin(self, step: int) -> None:
        """Prepare training step `step`, from 0; to be called before its `forward`."""
        self.improvement.begin(self, step)

    def stage(self, step: int) -> Hashable:
        """A key of what a step computes: steps of one stage differ in their batch, noise and learning rates alone."""
        return self.clones(step), self.improvement.stage(step), self.augment.stage(step)

    def clones(self, step: int) -> bool:
        """Whether training step `step` is one of the `clone_steps`, in which the policy's own loss is all there is."""
        return step < self.config.clone_steps

    def forward(self, batch: Batch, noise: NoiseSource, step: int) -> tuple[torch.Tensor, Metrics]:
        """The joint loss of a batch in training step `step`, and metrics on the device."""
        inputs = self.loss_inputs(batch, noise, step)
        if not self.has_critic or self.clones(step):
            loss, metrics = self.actor_loss(inputs)
            return loss, {"loss": loss.detach(), "actor/loss": loss.detach()} | metrics
        critic_loss, q, critic_metrics = self.critic_loss(inputs)
        actor_loss, metrics = self.actor_loss(self.aimed(inputs) if inputs.goal else replace(inputs, q=q))
        loss = critic_loss + actor_loss
        return loss, {"loss": loss.detach(), "actor/loss": actor_loss.detach()} | critic_metrics | metrics

    def loss_inputs(self, batch: Batch, noise: NoiseSource, step: int) -> LossInputs:
        """Augment the observations and encode them."""
        has_critic = self.has_critic and not self.clones(step)
        observations = batch.observation, batch.next_observation if has_critic else {}
        seen = one_view((*observations, batch.policy_goal or {}, batch.way_point or {}), noise)
        draws = self.augment.draw(len(batch), noise, step)
        observation, next_observation, goal, way_point = (self.augment(each, draws) for each in seen)
        actor = critic = self.actor_encoder({**observation, **goal})
        if has_critic and (goal or not self.shared):
            critic = self.seen_by_critic(observation)
        if self.shared and self.gradient != "both":
            actor, critic = (actor, critic.detach()) if self.gradient == "actor" else (actor.detach(), critic)
        action = self.chunk(batch)
        return LossInputs(batch, observation, next_observation, goal, way_point, actor, critic, action, noise, step)

    def aimed(self, inputs: LossInputs) -> LossInputs:
        """The same for the policy's own goals: observations, and the critic's features and values without gradient."""
        observation, next_observation = ({**x, **inputs.goal} for x in (inputs.observation, inputs.next_observation))
        with torch.no_grad():
            critic = inputs.actor.detach() if self.shared else self.critic_encoder(observation)
            q = self.critic(critic, self.critic_action(inputs.action)).float() if self.judges_actions else None
        return replace(inputs, observation=observation, next_observation=next_observation, critic=critic, q=q)

    def seen_by_critic(self, observation: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """The critic's features of an observation, (B, F)."""
        return (self.actor_encoder if self.shared else self.critic_encoder)(observation)

    @property
    def judges_actions(self) -> bool:
        """Whether its critic has a Q."""
        return self.has_critic and not (isinstance(self.critic, OwnCritic) and not self.critic.judges_actions)

    def chunk(self, batch: Batch) -> torch.Tensor:
        """The data's action chunks as the policy sees them, (B, H A)."""
        actions = batch.actions[:, : self.config.action_chunk]
        if self.representation is not None:
            actions = self.representation.encode(actions, batch.observation)
        return actions.flatten(1)

    def actor_loss(self, inputs: LossInputs) -> tuple[torch.Tensor, Metrics]:
        """E[w l] / E[w] of the data's actions, combined with the improvement's own terms: (), and metrics.

        The scale of the weights drifts with the critic, and a shared encoder would follow the actor alone where it is
        large; so weights are divided by their mean over the global batch.
        """
        improvement = self.cloning if self.clones(inputs.step) else self.improvement
        weight, metrics = improvement.weights(self, inputs)
        cloning = None
        if weight is not None:
            features = self.improvement.policy_features(self, inputs)
            rows = self.policy.rows(features, inputs.action, inputs.noise, self.policy_target)
            losses, policy_metrics = self.policy.loss(rows)
            cloning, share = weighted_mean(weight, self.policy.per_sample(losses))
            if self.improvement.is_per_dimension:
                cloning = cloning / inputs.action.shape[1]
            metrics |= {f"actor/{name}": value.detach() for name, value in policy_metrics.items()}
            metrics |= {"weight/effective_share": share}
        loss, more = improvement.loss(self, inputs, cloning)
        return loss, metrics | more

    def critic_loss(self, inputs: LossInputs) -> tuple[torch.Tensor, torch.Tensor | None, Metrics]:
        """Squared TD error with the losses of V and the improvement, (); values (E, B) without gradient; metrics.

        Or the loss of an `OwnCritic`, and its values if it has a Q.
        """
        if isinstance(self.critic, OwnCritic):
            loss, metrics = self.critic.loss(self, inputs)
            if not self.judges_actions or inputs.goal:
                return loss, None, metrics
            with torch.no_grad():
                return loss, self.critic(inputs.critic, self.critic_action(inputs.action)).float(), metrics
        assert isinstance(self.critic, Critic)
        batch, action = inputs.batch, self.critic_action(inputs.action)
        with torch.no_grad():
            target = td_target(batch.reward, batch.discount, self.next_value(inputs).float())
        q = self.critic(inputs.critic, action).float()
        counts = torch.ones_like(batch.reward)
        if self.config.critic.chunk:
            # A chunk that the recording cut short was not carried out; after a terminal nothing matters.
            is_whole = batch.action_mask[:, : self.config.action_chunk].all(1)
            counts = (is_whole | (batch.discount == 0)).float()
            counts = counts / global_mean(counts).clamp_min(1e-6)
        loss = (counts * (q - target).square()).mean()
        metrics = {
            "critic/loss": loss.detach(),
            "critic/q": q.detach().mean(),
            "critic/q_min": q.detach().amin(),
            "critic/q_max": q.detach().amax(),
            "critic/target": target.mean(),
        }
        if self.critic.v is not None:
            with torch.no_grad():
                slow = self.critic_target.worth(self.slow_critic_features(inputs.observation), action).float()
            value = self.critic.value(inputs.critic).float()
            v_loss = (counts * expectile_loss(slow - value, self.config.critic.expectile)).mean()
            metrics |= {"critic/v_loss": v_loss.detach(), "critic/v": value.detach().mean()}
            loss = loss + v_loss
        term, more = self.improvement.critic_loss(self, inputs, q)
        return loss if term is None else loss + term, q.detach(), metrics | more

    def next_value(self, inputs: LossInputs) -> torch.Tensor:
        """The value that Q bootstraps from, (B,): V(o'), or the slow Q of next actions drawn from the policy."""
        c = self.config.critic
        assert isinstance(self.critic, Critic)
        assert isinstance(self.critic_target, Critic)
        if c.backup == "expectile":
            return self.critic.value(self.seen_by_critic(inputs.next_observation))
        features = self.improvement.next_features(self, inputs)
        action = self.improvement.next_action(self, features, c.next_steps, inputs.noise, c.next_actions)
        if c.next_noise:
            smoothing = c.next_noise * inputs.noise.normal(len(action), action.shape[1])
            action = self.policy.bounded(action + smoothing.clamp(-c.next_noise_clip, c.next_noise_clip))
        action = self.critic_action(action)
        features = self.slow_critic_features(inputs.next_observation).repeat_interleave(c.next_actions, 0)
        value = self.critic_target.backed_up(self.critic_target(features, action).view(c.members, -1, c.next_actions))
        if c.next_penalty:  # the data's next action is the last one that the sampler gathered
            far = (action.view(len(value), c.next_actions, -1) - inputs.batch.actions[:, -1:]).square().sum(-1).mean(1)
            value = value - c.next_penalty * far * inputs.batch.action_mask[:, -1]
        return value

    def critic_action(self, action: torch.Tensor) -> torch.Tensor:
        """The part of an action chunk that the critic takes: (B, H A) to itself or to the first action (B, A)."""
        return action if self.config.critic.chunk else action[:, : self.actions]

    def slow_critic_features(self, observation: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """The slow critic's features of an observation, (B, F)."""
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
        yield from self.improvement.targets(self)

    def update_targets(self, average_rate: float = 0.0) -> None:
        """Polyak update of all targets, and of the average at its own rate, after the optimiser's step."""
        for slow, fast, rate in self.targets():
            polyak_(slow, fast, rate)
        if pairs := self.average_pairs():
            with torch.no_grad():
                torch._foreach_lerp_([slow for slow, _ in pairs], [fast for _, fast in pairs], average_rate)

    def keep_average(self) -> None:
        """Keep an average of the trained weights that act, from the present ones on."""
        trained = {name: x for name, x in self.named_parameters() if x.requires_grad and name.startswith(_ACTING)}
        self.average = nn.ParameterDict(  # a parameter's name has no dots
            {name.replace(".", _DOT): nn.Parameter(x.detach().clone(), False) for name, x in trained.items()}
        )

    def average_pairs(self) -> Pairs:
        """Each averaged tensor, and the one that it follows; none without an average."""
        if self.average is None:
            return []
        own = dict(self.named_parameters())
        return [(slow, own[averaged_name(name)]) for name, slow in self.average.items()]

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Let the agent be its average in the block, if one is kept; nothing may train it meanwhile."""
        pairs = self.average_pairs()
        _exchange(pairs)
        try:
            yield
        finally:
            _exchange(pairs)

    def become_average(self) -> None:
        """Be the average for good, if one is kept."""
        _exchange(self.average_pairs())
        self.average = None

    # Acting --------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def plan(
        self,
        observation: Mapping[str, torch.Tensor],
        noise: NoiseSource,
        steps: int | None = None,
        acting: ActingConfig | None = None,
        known: Known | None = None,
    ) -> torch.Tensor:
        """Action chunks (B, H, A) in [-1, 1] of observations (B, T, ...); None takes the agent's own settings.

        `known` is what they must continue, as `acting.join` says; None for plans that do not.
        """
        if self.training:
            with evaluating(self):
                return self.plan(observation, noise, steps, acting, known)
        acting = self.config.acting if acting is None else acting
        steps = acting.steps if steps is None else steps
        features, scaled = self.actor_encoder(observation), scaled_noise(noise, acting.noise)
        draws = acting.candidates if known is None else draws_of(acting)
        actions = self.improvement.act(self, features, steps, scaled, draws)
        if known is not None:
            actions = self._joined(features, actions, known, observation, acting, scaled)
        if acting.needs_critic:
            actions = search(self, features, self.slow_critic_features(observation), actions, acting, noise)
        plan = actions.view(len(actions), -1, self.actions)
        if self.representation is not None:
            plan = self.representation.decode(plan, observation)
        return plan if known is None else torch.where(known.weight[..., None] == 1, known.actions, plan)

    def _joined(
        self,
        features: torch.Tensor,
        actions: torch.Tensor,
        known: Known,
        observation: Mapping[str, torch.Tensor],
        acting: ActingConfig,
        noise: NoiseSource,
    ) -> torch.Tensor:
        before = known.actions
        if self.representation is not None:
            before = self.representation.encode(before, observation)
        weight = known.weight.repeat_interleave(self.actions, 1)
        return joined(self, features, actions, before.flatten(1), weight, acting, noise)

    def act(
        self,
        observation: Mapping[str, torch.Tensor],
        noise: NoiseSource,
        steps: int | None = None,
        acting: ActingConfig | None = None,
    ) -> torch.Tensor:
        """The first action (B, A) of each plan."""
        return self.plan(observation, noise, steps, acting)[:, 0]
