"""Critics with a loss of their own; each stands in the file of the algorithm that introduced it.

`Agent` trains `models.critic.Critic` by TD errors of Q. An `OwnCritic` brings its loss, the goals that it learns from,
and what an action's advantage is: it works with every improvement that asks no more of it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, ClassVar

import torch

from gtp_vision.datasets.goals import HindsightGoals
from gtp_vision.models.critic import BaseCritic

if TYPE_CHECKING:
    from gtp_vision.agents.base import Agent
    from gtp_vision.agents.improvement import LossInputs, Metrics


class OwnCritic(BaseCritic, ABC):
    """A critic that is not trained by TD errors of Q. Arguments as `Critic`.

    Attributes:
        name: the value of `agent.critic.backup` that selects it.
        judges_actions: whether it has a Q; one without compares observations, and `forward` is not defined.
        is_paired: whether it needs the features of observation and goal apart: F is then that of both, in this order.
        goals: law of the goals that it learns from; the discount is the task's.
    """

    name: ClassVar[str]
    judges_actions = True
    is_paired = False
    goals: ClassVar[HindsightGoals] = HindsightGoals()

    @abstractmethod
    def loss(self, agent: Agent, inputs: LossInputs) -> tuple[torch.Tensor, Metrics]:
        """The loss, (), whose gradients reach the critic and its encoder, and metrics, among them `critic/loss`."""

    def advantage(self, agent: Agent, inputs: LossInputs) -> torch.Tensor | None:
        """A of the data's actions for the policy's goals, (B,), or None: Q less its mean over the policy's actions."""
        return None
