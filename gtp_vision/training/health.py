"""Warn once of each thing that looks wrong in a run: on stderr, in results.json, and in the run folder as

    health.json   [{"step": 1200, "kind": "q_explosion", "told": "..."}]

    q_explosion      values above what the rewards allow
    dead_policy      the same action for every observation, or for every noise
    collapse         an evaluation far below the best one
    few_rows         the weights leave almost nothing of a batch
    constant_loss    the loss does not change
    overfit          the error on held-out episodes grows while that on trained ones falls
    skipped          a step was not finite, and not applied
    rollback         a step was not finite, and the run rolled back

Checked when metrics are read and at checkpoints, from metrics that exist anyway; only the policy's actions in a few
observations are sampled for it, at checkpoints, and logged as metrics of their own.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from gtp_vision.agents.base import evaluating
from gtp_vision.config.schema import Config
from gtp_vision.core.random import NoiseRecorder, NoiseTape, RandomStream
from gtp_vision.datasets.store import Store
from gtp_vision.encoders.views import first_view
from gtp_vision.models.plain import DeterministicPolicy
from gtp_vision.training.build import Components
from gtp_vision.training.tracking import read_entries, write_entries

FILE = "health.json"
_MARGIN = 2.0  # times the largest value that the rewards allow, plus 1: untrained networks exceed small bounds
_MIN_SHARE = 0.02  # of a batch, effective after weighting
_SAME_LOSSES = 5  # readings whose losses are equal to a relative 1e-6
_MIN_SPREAD = 0.01  # over observations, relative to the data's actions
_MIN_NOISE_SPREAD = 1e-3  # of actions in [-1, 1]
_OBSERVATIONS, _DRAWS = 32, 8
_SALT = 0x4EA1  # separates this noise from that of training


class Spread(NamedTuple):
    """Standard deviations of actions in [-1, 1], averaged over their dimensions.

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
    """The warnings of one run (`warnings`, as in health.json); its methods return the lines to print.

    Warnings of steps later than `start` are dropped; only a process that `writes` writes the file.
    """

    def __init__(self, folder: Path, config: Config, store: Store, *, start: int, writes: bool) -> None:
        self._path, self._writes = folder / FILE, writes
        self._bound = value_bound(config, store)
        self._losses: deque[float] = deque(maxlen=_SAME_LOSSES)
        self._suspected: set[str] = set()
        self.warnings = [warning for warning in read_warnings(folder) if warning["step"] <= start]

    def add(self, step: int, kind: str, message: str, *, once: bool = False) -> list[str]:
        """Record a warning unless the step, or with `once` the run, already has one of its kind."""
        if any(warning["kind"] == kind and (once or warning["step"] == step) for warning in self.warnings):
            return []
        self.warnings.append({"step": step, "kind": kind, "told": message})
        if self._writes:
            write_entries(self._path, self.warnings)
        return [f"warning: {message}"]

    def check_metrics(self, step: int, metrics: Mapping[str, float]) -> list[str]:
        """Check the metrics that are logged at a step."""
        problems = {}
        if self._bound is not None and {"critic/q_min", "critic/q_max"} <= metrics.keys():
            largest = max(-metrics["critic/q_min"], metrics["critic/q_max"])
            if largest > _MARGIN * self._bound + 1:
                problems["q_explosion"] = (
                    f"values reach {largest:.4g}, and the rewards allow {self._bound:.4g}; Q diverges: lower "
                    f"training.learning_rate or agent.tau, or set agent.critic.layer_norm=true"
                )
        share = metrics.get("weight/effective_share", 1.0)
        if self._is_repeated("few_rows", share < _MIN_SHARE):
            problems["few_rows"] = (
                f"the weights leave {100 * share:.2g} % of a batch to learn from; lower agent.improvement.eta or "
                f"agent.improvement.weight_clip"
            )
        self._losses.append(metrics.get("loss", float("nan")))
        loss = self._losses[0]
        if len(self._losses) == _SAME_LOSSES and max(self._losses) - min(self._losses) <= 1e-6 * abs(loss):
            problems["constant_loss"] = (
                f"the loss has been {loss:.6g} in {_SAME_LOSSES} lines of metrics; nothing is learned: check "
                f"training.learning_rate, encoder.tuning and the data"
            )
        return [
            line
            for kind, problem in problems.items()
            for line in self.add(step, kind, f"step {step}: {problem}", once=True)
        ]

    def check_spread(self, step: int, spread: Spread, *, has_noise: bool) -> list[str]:
        """Check the policy's actions; one small spread may be chance, two in a row are not."""
        is_blind = self._is_repeated("blind", spread.observations < _MIN_SPREAD * spread.data)
        is_certain = self._is_repeated("certain", has_noise and spread.noise < _MIN_NOISE_SPREAD)
        if not is_blind and not is_certain:
            return []
        message = (
            f"step {step}: the policy's actions do not depend on {'the observation' if is_blind else 'the noise'} "
            f"(spread over observations {spread.observations:.2g}, over noise {spread.noise:.2g}, of the data "
            f"{spread.data:.2g}); check its loss, the observations and the learning rates"
        )
        return self.add(step, "dead_policy", message, once=True)

    def check_evaluations(self, evaluations: Sequence[Mapping[str, Any]]) -> list[str]:
        """Check the newest of all evaluations."""
        has_succeeded = any(evaluation["success"] for evaluation in evaluations)
        name = "score" if "score" in evaluations[0] else "success" if has_succeeded else "return"
        known = [evaluation for evaluation in evaluations if evaluation[name] is not None]
        now, best = evaluations[-1], max(known, key=lambda evaluation: evaluation[name])
        if now[name] is None:
            return []
        if not _is_far_below(name, now, best, evaluations[0]):
            return []
        message = (
            f"step {now['step']}: {name} is {now[name]:.3g}, and was {best[name]:.3g} at step {best['step']}, which is "
            f"kept as checkpoints/best; more training made the policy worse"
        )
        return self.add(now["step"], "collapse", message, once=True)

    def check_validation(self, entries: Sequence[Mapping[str, Any]]) -> list[str]:
        """Check the newest of all validations, see `validation.Validation`."""
        now, best = entries[-1], min(entries, key=lambda entry: entry["energy"])
        if not overfits(best, now):
            return []
        message = (
            f"step {now['step']}: the policy's distance from held-out actions is {now['energy']:.3g}, and was "
            f"{best['energy']:.3g} at step {best['step']}, while that from trained ones fell from "
            f"{best['energy_training']:.3g} to {now['energy_training']:.3g}; it has overfitted since: train fewer "
            f"steps, or with more data or encoder.augmentation"
        )
        return self.add(now["step"], "overfit", message, once=True)

    def _is_repeated(self, name: str, is_suspect: bool) -> bool:
        """Whether something is suspect now, and was the last time."""
        was_suspect = name in self._suspected
        (self._suspected.add if is_suspect else self._suspected.discard)(name)
        return is_suspect and was_suspect


def read_warnings(folder: Path) -> list[dict[str, Any]]:
    """The warnings in a run folder; none if the file is missing or damaged."""
    types = {"step": int, "kind": str, "told": str}
    return [{name: entry[name] for name in types} for entry in read_entries(folder / FILE, types)]


def value_bound(config: Config, store: Store) -> float | None:
    """The largest |Q| that the task's rewards allow; None without a critic or rewards.

    max|r| / (1 - gamma), plus what `next_penalty` may subtract in each step; without a discount, the rewards of the
    longest episode.
    """
    critic, task = config.agent.critic, config.task
    rewards = np.asarray([-1.0, 0.0]) if task.goals is not None else store.rewards
    if critic.backup == "none" or not len(rewards):
        return None
    extremes = np.asarray([np.min(rewards), np.max(rewards)], np.float64)
    largest = float(np.abs((extremes + task.reward_shift) * task.reward_scale).max())
    largest += critic.next_penalty * 4 * store.action_dim
    if task.discount < 1:
        return largest / (1 - task.discount)
    return largest * int(np.max(store.episode_ends - store.episode_starts))


@torch.no_grad()
def spread_of(parts: Components, steps: int, step: int) -> Spread:
    """How much the policy's actions in K steps differ; with noise of its own, so that training does not change."""
    agent, device, seed = parts.agent, parts.accelerator.device, parts.noise_seed + _SALT
    batch = parts.batch(step)
    observation = {name: x[:_OBSERVATIONS] for name, x in first_view(batch.observation).items()}
    with evaluating(agent):
        features = agent.actor_encoder(observation)
        recorder = NoiseRecorder(RandomStream(seed, step, device=device))
        agent.improvement.act(agent, features[:1], steps, recorder, _DRAWS)
        drawn = NoiseTape.draw(recorder.draws, RandomStream(seed, step, device=device))
        same = [x.repeat(len(features), *[1] * (x.ndim - 1)) for x in drawn]  # for each observation
        draws = [draw.of_rows(len(x)) for draw, x in zip(recorder.draws, same, strict=True)]
        actions = agent.improvement.act(agent, features, steps, NoiseTape(draws, same), _DRAWS)
    actions = actions.float().view(len(features), _DRAWS, -1)
    data = agent.chunk(batch)[:_OBSERVATIONS]
    spreads = (actions.std(1, correction=0), actions.std(0, correction=0), data.std(0, correction=0))
    return Spread(*(float(x.mean()) for x in spreads))


def overfits(best: Mapping[str, Any], now: Mapping[str, Any]) -> bool:
    """Whether the distance from held-out actions has grown by more than chance while that from trained ones fell.

    By more than a twentieth, and by two standard errors of the differences between episodes.
    """
    grown = np.asarray(now["by_episode"], np.float64) - np.asarray(best["by_episode"], np.float64)
    error = grown.std(ddof=1) / np.sqrt(len(grown)) if len(grown) > 1 else 0.0
    is_worse = now["energy"] > 1.05 * best["energy"] and grown.mean() > 2 * error
    return bool(is_worse and now["energy_training"] < best["energy_training"])


def has_noise(parts: Components) -> bool:
    """Whether the policy's actions depend on noise."""
    return not isinstance(parts.agent.policy, DeterministicPolicy)


def _is_far_below(name: str, now: Mapping[str, Any], best: Mapping[str, Any], first: Mapping[str, Any]) -> bool:
    """Whether an evaluation is worse than chance and noise explain."""
    if name == "success":  # Wilson's intervals are disjoint, and half is lost
        return now["success_interval"][1] < best["success_interval"][0] and now["success"] < 0.5 * best["success"]
    if name == "score":
        return best["score"] >= 10 and now["score"] < 0.5 * best["score"]
    return best is not first and best["return"] - now["return"] > 0.5 * (best["return"] - first["return"])
