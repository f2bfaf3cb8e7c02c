"""Errors of samples and flow maps where the exact answer is known."""

from __future__ import annotations

from itertools import count
from typing import Any

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment

from gtp_vision.core.random import RandomStream
from gtp_vision.core.timing import Work, median_ms
from gtp_vision.experiments.problems import Mixture
from gtp_vision.models import GTPPolicy, Policy

STEPS = (1, 2, 3, 5, 10)  # K
SAMPLES = 4000
LEVELS = (10.0, 5.0, 2.5, 1.2, 0.6, 0.3, 0.15, 0.05, 0.0)  # the same for every policy
_ON_MODE = 0.2  # a sample this near to a narrow mode is on it: four deviations


def map_error(
    policy: GTPPolicy, problem: Mixture, generator: np.random.Generator, *, rows: int = 500
) -> dict[str, float]:
    """Errors of the learned Phi(x, t, s) over all pairs of `LEVELS` up to its sigma_max, for `rows` x each.

    Returns:
        `rel_error`, the mean over pairs t > s of rms(Phi - exact) / rms(exact - mean of the data); `composition`, the
        same for Phi(Phi(x, t, u), u, s) against Phi(x, t, s), u half way; both on new x.
    """
    errors, compositions = [], []
    centre = problem.means.mean(0)
    levels = [level for level in LEVELS if level <= policy.config.sigma_max]
    for i, t in enumerate(levels[:-1]):
        x = problem.draw(rows, generator) + t * generator.standard_normal((rows, problem.dimensions))
        for j in range(i + 1, len(levels)):
            s = levels[j]
            exact = problem.flow_map(x, t, s)
            scale = np.sqrt(np.square(exact - centre).mean())
            direct = jump(policy, x, t, s)
            errors.append(np.sqrt(np.square(direct - exact).mean()) / scale)
            if j > i + 1:
                u = levels[(i + j) // 2]
                twice = jump(policy, jump(policy, x, t, u), u, s)
                compositions.append(np.sqrt(np.square(twice - direct).mean()) / scale)
    return {"rel_error": float(np.mean(errors)), "composition": float(np.mean(compositions))}


@torch.no_grad()
def jump(policy: GTPPolicy, x: np.ndarray, t: float, s: float) -> np.ndarray:
    """Phi(x, t, s) of an unconditional policy: float64 (B, D) to the same."""
    rows = len(x)
    features = torch.zeros(rows, 1)
    at, to = (torch.full((rows,), level, dtype=torch.float32) for level in (t, s))
    return policy.flow_map(features, torch.from_numpy(x).float(), at, to).double().numpy()


@torch.no_grad()
def draw(policy: Policy, steps: int, count: int = SAMPLES, seed: int = 0) -> np.ndarray:
    """Samples of an unconditional policy: float64 (count, A)."""
    return policy.sample(torch.zeros(count, 1), steps, RandomStream(seed, steps)).double().numpy()


def modes_hit(samples: np.ndarray, problem: Mixture) -> dict[str, Any]:
    """Shares of samples on the modes.

    Returns:
        `on_mode`, the percentage within 0.2 of a mode; of these, `share` of each mode in percent, and `spread`, their
        root mean square deviation from it in units of the data's (0 if there are none).
    """
    mode, distance = problem.nearest_mode(samples)
    on = distance < _ON_MODE
    counts = np.bincount(mode[on], minlength=len(problem.means))
    spread = np.sqrt(np.square(distance[on]).sum() / max(1, on.sum()) / problem.dimensions) / problem.deviation
    return {
        "on_mode": 100 * float(on.mean()),
        "share": (100 * counts / max(1, counts.sum())).tolist(),
        "spread": float(spread),
    }


def wasserstein(samples: np.ndarray, data: np.ndarray) -> float:
    """The 2-Wasserstein distance between equally many points, (N, D) each, by the best assignment."""
    cost = np.square(samples[:, None] - data).sum(-1)
    return float(np.sqrt(cost[linear_sum_assignment(cost)].mean()))


@torch.no_grad()
def act_milliseconds(policy: Policy, features: int, steps: int, rounds: int = 100) -> float:
    """The median time of one action for one observation, in K steps."""
    observation, numbers = torch.zeros(1, features), count()
    work = Work(lambda noise: policy.sample(observation, steps, noise), lambda: RandomStream(0, next(numbers)))
    return median_ms({"act": work}, rounds)["act"]
