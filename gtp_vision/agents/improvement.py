"""How a critic improves a policy: the base of what papers introduce, and the recipes of published systems.

Axes in names: B batch, N candidates, H actions of a chunk, A action dimensions, F features.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import nn

from gtp_vision import models
from gtp_vision.agents.settings import AgentConfig, ImprovementSettings
from gtp_vision.core.distributed import global_moments
from gtp_vision.core.random import NoiseSource
from gtp_vision.datasets.batch import Batch

if TYPE_CHECKING:
    from gtp_vision.agents.base import Agent
    from gtp_vision.agents.critics import OwnCritic

Metrics = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Recipe:
    """The composition of a published system.

    Attributes:
        name: of the agent, and of its preset in configs/agent/, if it has one.
        paper: where it was published.
        family: of its policy.
        backup: what its critic bootstraps from, or the name of an `OwnCritic`, see `CriticConfig`.
        improvement: name of its `Improvement`.
        chooses: whether it draws several candidates and takes one by Q.
        goals: whether it is defined for tasks with goals only.
    """

    name: str
    paper: str
    family: str
    backup: str
    improvement: str
    chooses: bool = False
    goals: bool = False


@dataclass(frozen=True)
class LossInputs:
    """The inputs of a step's losses.

    Attributes:
        batch: as the sampler made it.
        observation: the batch's, augmented; in the critic's loss with the critic's goal, in the actor's with its own.
        next_observation: the same n steps later, augmented alike; empty for agents without a critic.
        goal: the policy's goal, if it is another than the critic's, else empty; augmented alike.
        way_point: a frame on the way to the policy's goal as `goal/<name>`, augmented alike; empty without one.
        actor: (B, F), the actor's features with its own goal, with their gradient.
        critic: (B, F), the critic's; the same tensor if encoder and goal are shared.
        action: (B, H A), the data's chunk.
        noise: source of all noise.
        step: training step, from 0.
        q: (E, B), the critic's values of the data's actions, without gradient; None for agents without Q.
    """

    batch: Batch
    observation: Mapping[str, torch.Tensor]
    next_observation: Mapping[str, torch.Tensor]
    goal: Mapping[str, torch.Tensor]
    way_point: Mapping[str, torch.Tensor]
    actor: torch.Tensor
    critic: torch.Tensor
    action: torch.Tensor
    noise: NoiseSource
    step: int
    q: torch.Tensor | None = None


class Improvement(nn.Module):
    """How a policy is trained, given a critic.

    The actor minimises `loss`, in which E[w l] / E[w], the policy's own loss l with the weights w of `weights`,
    usually stands first; the critic minimises its TD error plus `critic_loss`. Gradients of the first reach the
    policy, its encoder and this module alone, those of the second the critic and its encoder.

    Args:
        agent: the agent whose policy is trained, built except for this; not kept.

    Attributes:
        Settings: dataclass of its settings, the keys under `agent.improvement`.
        name: the value of `agent.improvement.name` that selects it.
        label_suffix: marks a label where it is not the agent's own (`gtp+q`); one letter, or two.
        needs_critic: whether it cannot do without a critic.
        needs_q: whether that critic must judge any action, not only the data's.
        is_per_dimension: whether the policy's own loss counts as a mean over action dimensions instead of a sum.
        may_renoise: whether jumps of the policy lead from the actions that it takes to others worth taking.
        acts_in_steps: whether K changes the actions to take.
    """

    Settings: ClassVar[type[ImprovementSettings]] = ImprovementSettings
    name: ClassVar[str]
    label_suffix: ClassVar[str]
    needs_critic = True
    needs_q = True
    is_per_dimension = False
    may_renoise = True
    acts_in_steps = True

    def __init__(self, agent: Agent) -> None:
        super().__init__()
        self.config = agent.config.improvement

    @staticmethod
    def policy_width(width: int, config: AgentConfig) -> int:
        """Width of `policy_features`, from that of the encoder's features."""
        return width

    @staticmethod
    def conflicts(config: AgentConfig) -> Iterator[str]:
        """Sentences that name the agent's other parts with which it is not defined, and what to set instead."""
        yield from ()

    @staticmethod
    def unused(config: AgentConfig, critic: type[OwnCritic] | None) -> frozenset[str]:
        """Its settings that change nothing beside the other parts; `critic` is None for `models.critic.Critic`."""
        return frozenset()

    @staticmethod
    def steps_of_policy(config: AgentConfig) -> list[str]:
        """Its settings that hold a number of sampling steps K of the policy."""
        return []

    def policy_features(self, agent: Agent, inputs: LossInputs) -> torch.Tensor:
        """What the policy sees of the data's observations, (B, F): the encoder's features, or others made of them."""
        return inputs.actor

    def weights(self, agent: Agent, inputs: LossInputs) -> tuple[torch.Tensor | None, Metrics]:
        """The weight w >= 0 of each action of the data, (B,), or None: the step does without the policy's own loss."""
        return torch.ones_like(inputs.batch.reward), {}

    def loss(self, agent: Agent, inputs: LossInputs, cloning: torch.Tensor | None) -> tuple[torch.Tensor, Metrics]:
        """The actor's loss, (), and metrics; `cloning` is E[w l] / E[w], (), or None where `weights` gave None."""
        assert cloning is not None, "an improvement without weights has a loss of its own"
        return cloning, {}

    def critic_loss(self, agent: Agent, inputs: LossInputs, q: torch.Tensor) -> tuple[torch.Tensor | None, Metrics]:
        """A term beside the TD error, (), or None, and metrics; `q` (E, B) has the gradient of the critic."""
        return None, {}

    def next_features(self, agent: Agent, inputs: LossInputs) -> torch.Tensor:
        """(B, F), of the next observation, for `next_action`."""
        return agent.actor_encoder_target(inputs.next_observation)

    def next_action(
        self, agent: Agent, features: torch.Tensor, steps: int, noise: NoiseSource, draws: int
    ) -> torch.Tensor:
        """Actions of the policy that the critic evaluates: (B, F) to (B * draws, H A); by default the slow copy's."""
        return agent.policy_target.sample(features, steps, noise, draws)

    def act(self, agent: Agent, features: torch.Tensor, steps: int, noise: NoiseSource, draws: int) -> torch.Tensor:
        """Actions to take: (B, F) to (B * draws, H A) in [-1, 1]."""
        return agent.policy.sample(features, steps, noise, draws)

    def targets(self, agent: Agent) -> Iterator[tuple[nn.Module, nn.Module, float]]:
        """Slow copies among its own networks, as `Agent.targets`."""
        yield from ()

    def begin(self, agent: Agent, step: int) -> None:
        """Prepare training step `step`: changes between stages happen here."""

    def stage(self, step: int) -> Hashable:
        """A key that is equal for steps whose losses are the same function."""
        return None


def weighted_mean(weight: torch.Tensor, losses: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """E[w l] / E[w], (), of weights w and losses l, (B,), and the share of the rows that is in effect, ()."""
    weight = weight.where(weight >= 0, torch.nan)  # found as a loss that is not finite
    moments = global_moments(weight)
    mean = moments.mean.to(weight.dtype).clamp_min(torch.finfo(weight.dtype).tiny)  # 0 if no action counts
    return (weight / mean * losses).mean(), moments.effective_share.to(weight.dtype)


def missing_ability(config: AgentConfig, ability: type, why: str, part: str = "") -> Iterator[str]:
    """A sentence if the agent's family of policies lacks an ability that `part`, by default its improvement, needs.

    `why` it does follows the part.
    """
    family = config.policy.family
    if not issubclass(models.FAMILIES[family], ability):
        able = [name for name, known in models.FAMILIES.items() if issubclass(known, ability) and name != "one_step"]
        yield (
            f"{part or f'improvement={config.improvement.name}'} {why}; {family} cannot: set agent.policy.family to "
            f"one of {', '.join(able)}"
        )
