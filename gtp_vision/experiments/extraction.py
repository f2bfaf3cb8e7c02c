"""`gtp-vision experiment extraction`: what families make of the same weights, where the critic is exact.

A hand in 3-D has four targets, and the recorded action goes to one of them at random. Only the first is worth it:
Q(o, a) = -||a - a*(o)||^2, a* the way to it. Every family learns from the same rows with the weights
w = exp(eta A / std A), A = Q - E Q, at most `CLIP`. So what is left between their actions' E Q is the families' own.
Axes in names: B batch, A action dimensions.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import cache
from typing import Any

import numpy as np
import torch

from gtp_vision.agents.search import scaled_noise
from gtp_vision.core.random import RandomStream, counter_rng
from gtp_vision.experiments.fitting import fit
from gtp_vision.models import Integrable, PolicyConfig
from gtp_vision.training.jobs import run_parallel

STEPS = 6000
ETA, CLIP = 3.0, 100.0
NEAR = 0.5  # an action is counted as the best one's within this distance
_TARGETS, _PLACES, _NOISE = 4, 3, 0.1
_ROWS, _HELD_OUT = 50_000, 4000
_SALT = 0xE2711
FAMILIES: dict[str, tuple[int, ...]] = {"gaussian": (1,), "flow_matching": (10,), "gtp": (1, 2, 5)}
"""Families with the numbers of steps K in which they act."""


def extraction(*, seed: int = 0, steps: int = STEPS, progress: bool = True) -> dict[str, Any]:
    """Train every family of `FAMILIES`.

    Returns:
        `data`, the weighted rows themselves, and `families`: by family and K `q`, E Q, and `near`, the percentage of
        actions near the best one, of samples; of families that make an action of given noise also `q_still` and
        `near_still`, acting with none. `share`, E[w]^2 / E[w^2].
    """
    jobs = {family: (train, {"family": family, "steps": steps, "seed": seed}) for family in FAMILIES}
    features, actions = _draw(_ROWS, counter_rng(seed, _SALT))
    weight = _weights(features, actions)
    data = _judge(features, actions, weight)
    share = float(weight.mean() ** 2 / np.square(weight).mean())
    return {"data": data, "share": share, "families": run_parallel(jobs, progress=progress)}


def train(family: str, steps: int, seed: int) -> dict[int, dict[str, float]]:
    """Train one family on `_ROWS` rows, and judge its actions on others: by K as in `extraction`."""
    features, actions = _draw(_ROWS, counter_rng(seed, _SALT))
    held_out, _ = _draw(_HELD_OUT, counter_rng(seed, _SALT + 1))

    def rows(count: int, generator: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        chosen = generator.integers(_ROWS, size=count)
        return features[chosen], actions[chosen]

    gain = 3.0 if family == "gtp" else 1.0  # the presets'
    config = PolicyConfig(family=family, hidden=[256, 256, 256], input_gain=gain)
    policy = fit(config, rows, steps=steps, tau=0.01, seed=seed, weigh=_weights).policy
    results = {}
    with torch.no_grad():
        observed = torch.from_numpy(held_out).float()
        for k in FAMILIES[family]:
            results[k] = _judge(held_out, policy.sample(observed, k, RandomStream(seed, k)).numpy())
            if isinstance(policy, Integrable):
                still = policy.sample(observed, k, scaled_noise(RandomStream(seed, k), 0.0)).numpy()
                results[k] |= {f"{name}_still": value for name, value in _judge(held_out, still).items()}
    return results


def _draw(count: int, generator: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Observations of unit scale (B, 15) and recorded actions (B, 5)."""
    place = generator.uniform(-1, 1, (count, _PLACES))
    targets = generator.uniform(-1, 1, (count, _TARGETS, _PLACES))
    goal = targets[np.arange(count), generator.integers(_TARGETS, size=count)]
    actions = _way(place, goal) + _NOISE * generator.standard_normal((count, 5))
    features = np.concatenate([place, targets.reshape(count, -1)], 1) * math.sqrt(3)
    return features, actions.clip(-1, 1)


def _way(place: np.ndarray, goal: np.ndarray) -> np.ndarray:
    """The action that leads to a goal: at unit speed, slower near it, a turn, and a grip, closed near it: (B, 5)."""
    away = goal - place
    distance = np.linalg.norm(away, axis=1, keepdims=True)
    grip = np.where(distance < 0.3, 1.0, -1.0)
    turn = np.tanh(2 * np.sin(3 * goal[:, :1]))
    return np.concatenate([away / distance.clip(0.3), turn, grip], 1).clip(-1, 1)


def _distance(features: np.ndarray, actions: np.ndarray) -> np.ndarray:
    """||a - a*||, (B,)."""
    place, goal = features[:, :_PLACES] / math.sqrt(3), features[:, _PLACES : 2 * _PLACES] / math.sqrt(3)
    return np.asarray(np.linalg.norm(actions - _way(place, goal), axis=1))


def _weights(features: np.ndarray, actions: np.ndarray) -> np.ndarray:
    """W, (B,), with moments of Q that are the whole problem's, so that all batches share a scale."""
    mean, deviation = _moments()
    return np.exp(ETA * (-np.square(_distance(features, actions)) - mean) / deviation).clip(max=CLIP)


@cache
def _moments() -> tuple[float, float]:
    """Mean and deviation of Q over recorded actions."""
    q = -np.square(_distance(*_draw(_ROWS, counter_rng(0, _SALT + 2))))
    return float(q.mean()), float(q.std())


def _judge(features: np.ndarray, actions: np.ndarray, weight: np.ndarray | None = None) -> dict[str, float]:
    distance = _distance(features, actions)
    weight = np.ones(len(distance)) if weight is None else weight
    return {
        "q": float(-np.average(np.square(distance), weights=weight)),
        "near": 100 * float(np.average(distance < NEAR, weights=weight)),
    }


def table(results: Mapping[str, Any]) -> list[str]:
    """The results as text."""
    lines = [f"weights exp({ETA:g} A / std A), at most {CLIP:g}; effective share {results['share']:.2f}", ""]
    lines += ["                        E Q    near     E Q    near"]
    lines += ["                     with noise      without noise"]
    data = results["data"]
    lines.append(f"{'weighted data':18}{data['q']:9.3f} {data['near']:6.1f}%")
    for family, by_steps in results["families"].items():
        for k, row in by_steps.items():
            line = f"{family + f', K={k}':18}{row['q']:9.3f} {row['near']:6.1f}%"
            if "q_still" in row:
                line += f" {row['q_still']:7.3f} {row['near_still']:6.1f}%"
            lines.append(line)
    return lines
