"""What looks wrong in a run that goes on, each told once: on stderr, in results.json, and in the run folder as

    health.json   [{"step": 1200, "kind": "q_explosion", "told": "..."}]

    q_explosion      values beyond what the rewards can give
    dead_policy      the same action for every observation, or for every noise
    collapse         an evaluation far below the best one
    few_rows         the weights leave next to nothing of a batch
    constant_loss    the loss stands still
    skipped          a step was not finite, and not applied
    rollback         a step was not finite, and the run went back

Computed when metrics are read and at checkpoints, from numbers that are there; but for the policy's actions in a few
observations, which are drawn at checkpoints and are metrics of their own.
"""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from gtp_vision.config.schema import Config
from gtp_vision.core.files import atomic_write
from gtp_vision.core.random import RandomStream
from gtp_vision.datasets.store import Store
from gtp_vision.models.plain import DeterministicPolicy
from gtp_vision.training.build import Components

FILE = "health.json"
_MARGIN = 2.0  # times what rewards can give, and 1 more: values of networks that know nothing yet
_SHARE = 0.02  # of a batch that weights leave
_STILL = 5  # readings whose losses are equal to 1e-6 of themselves
_SAME = 0.01  # of the spread of the data's actions
_CERTAIN = 1e-3  # spread of actions in [-1, 1]
_OBSERVATIONS, _DRAWS = 32, 8
_SALT = 0x4EA1  # keeps these draws apart from those of training


class Spread(NamedTuple):
    """Standard deviations of actions in [-1, 1], means over their dimensions.

    Attributes:
        noise: of one observation's actions, over draws of noise.
        observations: over observations, with the same noise.
        data: of the data's actions over the same observations.
    """

    noise: float
    observations: float
    data: float

    def metrics(self) -> dict[str, float]:
        """As they are logged."""
        return {"policy/spread_noise": self.noise, "policy/spread_observations": self.observations}


class Health:
    """The warnings of one run.

    Args:
        folder: the run folder.
        config: of the run.
        store: its data set.
        start: the step it goes on from; warnings of later steps are forgotten.
        writes: whether this process writes health.json.

    Attributes:
        warnings: the contents of health.json.
    """

    def __init__(self, folder: Path, config: Config, store: Store, *, start: int, writes: bool) -> None:
        self._path, self._writes = folder / FILE, writes
        self._bound = value_bound(config, store)
        self._losses: deque[float] = deque(maxlen=_STILL)
        self._suspected: set[str] = set()
        self.warnings = [one for one in read(folder) if one["step"] <= start]

    def note(self, step: int, kind: str, told: str, *, once: bool = False) -> list[str]:
        """Record a warning, unless it is known; what is to be told: a line, or none."""
        if any(one["kind"] == kind and (once or one["step"] == step) for one in self.warnings):
            return []
        self.warnings.append({"step": step, "kind": kind, "told": told})
        if self._writes:
            with atomic_write(self._path) as aside:
                aside.write_text(json.dumps(self.warnings, indent=1))
        return [f"warning: {told}"]

    def read_metrics(self, step: int, metrics: Mapping[str, float]) -> list[str]:
        """Look at the metrics that are logged at a step; lines to tell."""
        lines = []
        low, high = metrics.get("critic/q_min"), metrics.get("critic/q_max")
        if self._bound is not None and low is not None and high is not None:
            largest = max(-low, high)
            if largest > _MARGIN * self._bound + 1:
                lines += self._once(
                    step,
                    "q_explosion",
                    f"step {step}: values reach {largest:.4g}, and the rewards can give {self._bound:.4g}; Q runs "
                    f"away: lower training.learning_rate or agent.tau, or set agent.critic.layer_norm=true",
                )
        share = metrics.get("weight/effective_share")
        if share is not None and self._again("few_rows", share < _SHARE):
            lines += self._once(
                step,
                "few_rows",
                f"step {step}: the weights leave {100 * share:.2g} % of a batch to learn from; lower "
                f"agent.improvement.eta or agent.improvement.weight_clip",
            )
        self._losses.append(metrics.get("loss", float("nan")))
        spread = max(self._losses) - min(self._losses)
        if len(self._losses) == _STILL and spread <= 1e-6 * abs(self._losses[0]):
            lines += self._once(
                step,
                "constant_loss",
                f"step {step}: the loss has been {self._losses[0]:.6g} for {_STILL} lines of metrics; nothing is "
                f"learned: look at training.learning_rate, encoder.tuning and the data",
            )
        return lines

    def read_spread(self, step: int, spread: Spread, *, noisy: bool) -> list[str]:
        """Look at the policy's actions; twice the same is no accident.

        Args:
            step: at which they were drawn.
            spread: of the actions.
            noisy: whether the policy makes actions of noise.
        """
        blind = self._again("blind", spread.observations < _SAME * spread.data)
        certain = self._again("certain", noisy and spread.noise < _CERTAIN)
        if not blind and not certain:
            return []
        whatever = "whatever it sees" if blind else "whatever the noise"
        return self._once(
            step,
            "dead_policy",
            f"step {step}: the policy acts alike {whatever} (spread over observations {spread.observations:.2g}, over "
            f"noise {spread.noise:.2g}, of the data {spread.data:.2g}); look at its loss, the observations and rates",
        )

    def read_evaluations(self, evaluations: Sequence[Mapping[str, Any]]) -> list[str]:
        """Look at the newest of all evaluations."""
        succeeded = any(one["success"] for one in evaluations)
        name = "score" if "score" in evaluations[0] else "success" if succeeded else "return"
        now, best = evaluations[-1], max(evaluations, key=lambda one: one[name])
        if not _far_below(name, now, best, evaluations[0]):
            return []
        return self._once(
            now["step"],
            "collapse",
            f"step {now['step']}: {name} is {now[name]:.3g}, and was {best[name]:.3g} at step {best['step']}, which "
            f"checkpoints/best keeps; more training made it worse",
        )

    def _once(self, step: int, kind: str, told: str) -> list[str]:
        return self.note(step, kind, told, once=True)

    def _again(self, name: str, now: bool) -> bool:
        """Whether something is so, and was so the last time."""
        before = name in self._suspected
        (self._suspected.add if now else self._suspected.discard)(name)
        return now and before


def read(folder: Path) -> list[dict[str, Any]]:
    """The warnings in a run folder; none if there is no file, or it is no longer what was written."""
    try:
        stored = json.loads((folder / FILE).read_text())
    except (OSError, ValueError, RecursionError):
        return []
    kinds = {"step": int, "kind": str, "told": str}
    return [
        {name: one[name] for name in kinds}
        for one in (stored if isinstance(stored, list) else [])
        if isinstance(one, dict) and all(isinstance(one.get(name), kind) for name, kind in kinds.items())
    ]


def value_bound(config: Config, store: Store) -> float | None:
    """The largest |Q| that the task's rewards can give; None without a critic or where there is no bound.

    max|r| / (1 - gamma), with what `next_penalty` may take off each step; without a discount, the rewards of the
    longest episode.
    """
    critic, task = config.agent.critic, config.task
    if critic.backup == "none":
        return None
    rewards = np.asarray([-1.0, 0.0]) if task.goals is not None else store.rewards
    if not len(rewards):
        return None
    ends = np.asarray([np.min(rewards), np.max(rewards)], np.float64)
    largest = float(np.abs((ends + task.reward_shift) * task.reward_scale).max())
    largest += critic.next_penalty * 4 * store.action_dim
    if task.discount < 1:
        return largest / (1 - task.discount)
    return largest * int(np.max(store.episode_ends - store.episode_starts))


@torch.no_grad()
def spread_of(parts: Components, steps: int, step: int) -> Spread:
    """How much the policy's actions differ; by noise of its own, so that training does not change.

    Args:
        parts: of the run.
        steps: K in which actions are made.
        step: whose batch's first observations are looked at.
    """
    agent, device = parts.agent, parts.accelerator.device
    batch = parts.batch(step)
    observation = {
        name: x[:_OBSERVATIONS, :, 0] if x.ndim == 4 else x[:_OBSERVATIONS]  # of cached views the first, not augmented
        for name, x in batch.observation.items()
    }
    rows = len(next(iter(observation.values())))
    noise = _SameForAll(RandomStream(parts.noise_seed + _SALT, step, device=device), rows)
    training = agent.training
    agent.eval()
    try:
        actions = agent.improvement.act(agent, agent.actor_encoder(observation), steps, noise, _DRAWS)
    finally:
        agent.train(training)
    actions = actions.float().view(rows, _DRAWS, -1)
    data = batch.actions[:_OBSERVATIONS, : agent.config.action_chunk].flatten(1)
    every = (actions.std(1, correction=0), actions.std(0, correction=0), data.std(0, correction=0))
    return Spread(*(float(x.mean()) for x in every))


def noisy(parts: Components) -> bool:
    """Whether the policy makes actions of noise."""
    return not isinstance(parts.agent.policy, DeterministicPolicy)


def _far_below(name: str, now: Mapping[str, Any], best: Mapping[str, Any], first: Mapping[str, Any]) -> bool:
    """Whether an evaluation is worse than chance and noise explain."""
    if name == "success":  # Wilson's intervals are apart, and half is lost
        return now["success_interval"][1] < best["success_interval"][0] and now["success"] < 0.5 * best["success"]
    if name == "score":
        return best["score"] >= 10 and now["score"] < 0.5 * best["score"]
    return best is not first and best["return"] - now["return"] > 0.5 * (best["return"] - first["return"])


class _SameForAll:
    """Noise that is the same for each of several observations, whose draws stand side by side."""

    def __init__(self, source: RandomStream, observations: int) -> None:
        self._source, self._observations = source, observations

    def normal(self, rows: int, *shape: int) -> torch.Tensor:
        """Standard normal (rows, *shape)."""
        return self._repeated(self._source.normal(rows // self._observations, *shape))

    def uniform(self, rows: int, *shape: int) -> torch.Tensor:
        """Uniform in [0, 1), (rows, *shape)."""
        return self._repeated(self._source.uniform(rows // self._observations, *shape))

    def integers(self, high: int, rows: int, *shape: int) -> torch.Tensor:
        """Uniform integers in [0, high), (rows, *shape)."""
        return self._repeated(self._source.integers(high, rows // self._observations, *shape))

    def _repeated(self, drawn: torch.Tensor) -> torch.Tensor:
        return drawn.repeat(self._observations, *[1] * (drawn.ndim - 1))
