"""Behaviour cloning: every action of the data weighs the same, whatever the policy.

Gaussian BC: the policy is one normal distribution, so of several ways to act it takes the mean.
"""

from __future__ import annotations

from gtp_vision.agents.improvement import Improvement, Recipe

GAUSSIAN_BC = Recipe("gaussian_bc", "Pomerleau, 1988", family="gaussian", backup="none", improvement="none")


class Cloning(Improvement):
    """No improvement: E[l], the mean of the policy's own loss over the data. Arguments as `Improvement`."""

    name, label_suffix = "none", "bc"
    needs_critic = False
