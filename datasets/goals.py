"""Hindsight goals: the later (or other) frame that a row is to reach.

A policy is to reach other goals than those that its critic learns values of (`RoleGoals`), as in OGBench (Park et al.,
ICLR 2025, appendix): a critic must know what is far away, and a policy must not clone steps to a goal behind it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from gtp_vision.core.errors import GtpVisionError
from gtp_vision.datasets.store import Store

GOALS = ("hindsight",)


@dataclass(frozen=True)
class HindsightGoals:
    """A mixture of goals in OGBench's ratios (the defaults are those of its value functions).

    Attributes:
        current: share of goals that are the row itself.
        trajectory: share that lie later in the same episode.
        random: share that are any row of the data set, or of a mixture as its weights say.
        geometric: draw the distance along the episode geometrically, P(k) ~ discount^(k - 1) from k = 1, cut at the
            episode's end; else uniformly from 1 to the episode's end.
        discount: of the geometric law.

    Raises:
        GtpVisionError: shares that do not add up to 1, or a discount outside [0, 1).
    """

    current: float = 0.2
    trajectory: float = 0.5
    random: float = 0.3
    geometric: bool = True
    discount: float = 0.99
    count: ClassVar[int] = 1

    def __post_init__(self) -> None:
        shares = (self.current, self.trajectory, self.random)
        if min(shares) < 0 or not np.isclose(sum(shares), 1):
            raise GtpVisionError(f"the shares of goals current, trajectory and random are {shares}; they must add to 1")
        if not 0 <= self.discount < 1:
            raise GtpVisionError(f"goals have the discount {self.discount}; it must lie within [0, 1)")

    def draw(self, store: Store, rows: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """int64 (B,), the row that each of `rows` is to reach."""
        last = store.episode_ends[store.episode_of(rows)] - 1
        if self.geometric:
            distance = rng.geometric(1 - self.discount, len(rows))
        else:
            distance = 1 + np.floor(rng.random(len(rows)) * np.maximum(1, last - rows)).astype(np.int64)
        later = np.minimum(rows + distance, last)
        uniform = store.weights is None
        anywhere = rng.integers(0, len(store), len(rows)) if uniform else store.draw(len(rows), rng)
        kind = rng.random(len(rows))
        return np.where(kind < self.current, rows, np.where(kind < self.current + self.trajectory, later, anywhere))


ACTOR_GOALS = HindsightGoals(current=0.0, trajectory=1.0, random=0.0, geometric=False)
"""OGBench's ratios for policies."""


@dataclass(frozen=True)
class RoleGoals:
    """Goals of the critic and of the policy, drawn apart, and where the policy should be on its way.

    Attributes:
        critic: law of the goals that rewards and values are of.
        policy: law of the goals that the policy learns to reach.
        ahead: steps to the way point, which lies on the way to the policy's goal; 0 for none.
    """

    critic: HindsightGoals
    policy: HindsightGoals
    ahead: int = 0

    @property
    def count(self) -> int:
        """Goals of a row."""
        return 3 if self.ahead else 2

    def draw(self, store: Store, rows: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """int64 (B, 2 or 3): the critic's goal, the policy's, and the way point.

        A way point is `ahead` steps later, or the goal if that comes first, and never beyond the episode's end.
        """
        goals = [self.critic.draw(store, rows, rng), self.policy.draw(store, rows, rng)]
        if self.ahead:
            last, goal = store.episode_ends[store.episode_of(rows)] - 1, goals[1]
            ahead = np.minimum(rows + self.ahead, last)
            goals.append(np.where((goal >= rows) & (goal < ahead), goal, ahead))
        return np.stack(goals, 1)
