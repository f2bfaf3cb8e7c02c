"""Behaviour cloning: every action of the data weighs the same, whatever the policy.

Gaussian BC: the policy is one normal distribution, so of several ways to act it takes the mean.
"""

from __future__ import annotations

import torch

from gtp_vision.agents.base import Agent, Improvement, LossInputs, Metrics, Recipe, weighted_loss

GAUSSIAN_BC = Recipe("gaussian_bc", "Pomerleau, 1988", family="gaussian", backup="none", improvement="none")


class Cloning(Improvement):
    """No improvement: the policy's own loss. Arguments as `Improvement`."""

    name, mark = "none", "bc"
    judged = False

    def loss(self, agent: Agent, seen: LossInputs) -> tuple[torch.Tensor, Metrics]:
        """E[l], the mean of the family's loss over the data."""
        return weighted_loss(agent, seen, torch.ones_like(seen.batch.reward))
