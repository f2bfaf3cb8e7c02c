"""Judging the policies of runs without a simulator: their value, support coverage and action error on recordings.

    run -> restore -> on_recordings -> fit -> draws -> ranking
                                    -> coverage, action error, worst moments

All policies are judged on the same recordings, starts and discount, those of the first run unless others are given, and
by the same bootstrap, so that their differences are known better than their values.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from gtp_vision.config.schema import Config, TaskConfig
from gtp_vision.core.errors import GtpVisionError
from gtp_vision.core.progress import Progress
from gtp_vision.core.random import counter_rng
from gtp_vision.datasets.record import DataRecord
from gtp_vision.datasets.sampler import Sampler
from gtp_vision.datasets.split import FEWEST
from gtp_vision.datasets.store import Store, mix
from gtp_vision.evaluation.fqe import (
    FQESettings,
    best_shares,
    better,
    doubted,
    draws,
    fit,
    interval,
    recorded_returns,
)
from gtp_vision.evaluation.moments import on_held_out
from gtp_vision.evaluation.rebuilt import rebuilt
from gtp_vision.evaluation.recordings import (
    OnRecordings,
    Question,
    act,
    observation_of,
    on_recordings,
    question_of,
)
from gtp_vision.training.data import in_order, open_for, open_split
from gtp_vision.training.evaluate import Trained, restore

ROWS = 200_000
"""Most rows of the recordings that are used, in whole episodes."""
_FEW = 20  # held-out episodes, with fewer than which values are of the starts of all
_HELD_SHARE = 0.1  # of a data set of which training held out nothing
_SHARED = ("dataset", "datasets", "shares", "filter", "validation", "validation_seed", "features", "labels")
LIMITS = (
    "Values are estimates from recordings. Where a policy acts as the recordings do not, they are guesses, and the "
    "worst recorded value is counted instead: a policy that is better by acting otherwise is not recognized.",
    "They are of the states in which the judged episodes start; other starts have other values.",
    "They hold where the robot, the cameras and the scene behave as they did when the recordings were made.",
)


@dataclass(frozen=True)
class Judgement:
    """The judgement on several policies.

    Attributes:
        results: as JSON-able values, see `judge`.
        pictures: of each policy and each of its worst moments, the frames of its cameras as `data:` URIs.
    """

    results: dict[str, Any]
    pictures: list[list[list[str]]]


def judge(
    runs: Sequence[Path],
    *,
    checkpoints: str = "last",
    data: Path | None = None,
    starts: Path | Mapping[str, torch.Tensor] | None = None,
    discount: float | None = None,
    acting: Sequence[str] = (),
    rows: int = ROWS,
    settings: FQESettings | None = None,
    seed: int = 0,
    progress: bool = True,
) -> Judgement:
    """Judge a checkpoint of each run, or all of them.

    Args:
        runs: run folders of one task.
        checkpoints: `last`, `best`, `step_N`, or `all`, every step that is kept.
        data: recordings to judge on; None is the first run's.
        starts: recordings in whose first observations the judged episodes start, or these observations, stacked as
            in a `Batch`; None is the held-out episodes, or all of them if fewer than 20 are held out.
        discount: gamma of the values; None is the first run's.
        acting: overrides of how the policies act.
        rows: most rows that are used, in whole episodes that are drawn at random.
        settings: of the fit.
        seed: of everything random.
        progress: show bars.

    Returns:
        `measure` (success, return or None), `meaning`, `discount`, `data`, `starts`, `episodes`, `held_out`, `rows`,
        `recorded` (what the recordings reached from the starts, None for other starts), `limits`, and in `policies`
        for each one `name`, `run`, `checkpoint`, `value` and `interval` (90 %, see `fqe.doubted`), `members` (what
        each of the ensemble fitted), `rebuilt` (the mean return of rebuilt episodes), `td_error`, `best` (how probable
        it is that it is the best one), `better` (than each other one), `coverage`, `trust`, `action_error`, `energy`,
        `moments` and `seconds`.

    Raises:
        GtpVisionError: a run, checkpoint or file is missing; runs of different tasks; too few episodes.
    """
    if rows < 1:
        raise GtpVisionError(f"rows={rows} must be at least 1")
    chosen = [(run, which) for run in runs for which in _checkpoints(run, checkpoints)]
    first, trained = restore(*chosen[0], acting=acting)
    task = first.task
    if data is not None:
        task = replace(task, dataset=str(data), datasets=None, shares=None, filter=None, labels=None)
    task = replace(task, validation=task.validation or _HELD_SHARE)
    gamma = task.discount if discount is None else discount
    found: list[dict[str, Any]] = []
    drawn, pictures = [], []
    was_trained_on = False
    for run, which in Progress(chosen, "judging", disable=not progress):
        began = time.perf_counter()
        config, trained = restore(run, which, acting=acting)
        judged = _recordings(_on(task, config, first, run), trained.record, gamma, rows, seed)
        was_trained_on |= data is None and any(getattr(config.task, name) != getattr(task, name) for name in _SHARED)
        device = trained.accelerator.device
        seen = on_recordings(trained.agent, judged.store, config.task.frame_stack, device=device, seed=seed)
        policy: dict[str, Any] = {"name": _name(run, which, chosen), "run": str(run), "checkpoint": which}
        fitted = None
        if judged.question is not None:
            transitions = seen.recorded(judged.question)
            fitted = fit(transitions, settings or FQESettings(), seed=seed, progress=progress)
            features, plans = _at_starts(seen, judged) if starts is None else _at(starts, config, trained, seed)
            values = fitted.values(features, plans.flatten(2)).cpu().double().numpy()
            rebuilds = rebuilt(transitions, features, plans.flatten(2), seed=seed)
        measures, shown = on_held_out(seen, judged.held_out, fitted, seed)
        if fitted is not None and judged.question is not None:
            worst = 0.0 if judged.question.measure == "success" else float(transitions.returns.min())
            believed, again = draws(values, seed), draws(rebuilds[None], seed)
            drawn.append(np.minimum(doubted(believed, measures["trust"], worst), again))
            ends = interval(drawn[-1], np.maximum(believed, again), worst)
            policy |= {"value": float(drawn[-1].mean()), "interval": list(ends), "rebuilt": float(rebuilds.mean())}
            policy |= {"members": values.mean(1).tolist(), "td_error": fitted.error}
        found.append(policy | measures | {"seconds": time.perf_counter() - began})
        pictures.append(shown)
    if drawn:
        paired = np.stack(drawn)
        for policy, share, wins in zip(found, best_shares(paired), better(paired), strict=True):
            policy |= {"best": float(share), "better": wins.tolist()}
    asked = {"starts": _described(starts), "seed": seed, "trained_on_held_out": was_trained_on}
    return Judgement(judged.facts() | asked | {"policies": found}, pictures)


@dataclass(frozen=True)
class _Recordings:
    """What policies are judged on.

    Attributes:
        store: episodes that are trained on, then those that are held out.
        held_out: bool (episodes,).
        question: what values are of; None where the recordings hold neither rewards nor successes.
    """

    store: Store
    held_out: np.ndarray
    question: Question | None

    @property
    def starts(self) -> np.ndarray:
        """int64 (S,), the rows in which judged episodes start."""
        enough = self.held_out.sum() >= _FEW
        return self.store.episode_starts[self.held_out if enough else slice(None)]

    def facts(self) -> dict[str, Any]:
        """As JSON-able values."""
        question = self.question
        recorded = None
        if question is not None:
            last = self.store.last_outcomes
            returns = recorded_returns(question.reward, question.terminal, last, question.discount)
            recorded = float(returns[self.starts].mean())
        return {
            "measure": question.measure if question else None,
            "meaning": question.meaning if question else None,
            "discount": question.discount if question else None,
            "recorded": recorded,
            "data": str(self.store.path),
            "rows": len(self.store),
            "episodes": self.store.episodes,
            "held_out": int(self.held_out.sum()),
            "limits": list(LIMITS),
        }


def _recordings(config: Config, record: DataRecord, discount: float, rows: int, seed: int) -> _Recordings:
    """Open what `config` names, in the units of a policy whose data had this record, and take whole episodes of it.

    A tenth of the rows is for held-out episodes.
    """
    found = open_split(config, record.attributes)
    training = in_order(found.training, record, config.task)
    if found.held_out is None:
        raise GtpVisionError(
            f"{training.path} has {training.episodes} episode(s), and judging holds one out of at least {FEWEST}; "
            f"give more by --data"
        )
    held_out = found.held_out.select(list(training.observations))
    parts = [_within(training, rows, seed), _within(held_out, max(1, rows // 10), seed)]
    if any(not len(part.transitions) for part in parts):
        raise GtpVisionError(f"{training.path} has no transition to judge on; give other recordings by --data")
    question = question_of(parts, discount)
    held_out_episodes = np.arange(sum(part.episodes for part in parts)) >= parts[0].episodes
    numbers = np.concatenate([np.arange(part.episodes) if part.numbers is None else part.numbers for part in parts])
    store = replace(mix(parts, [1.0, 1.0]), weights=None, numbers=numbers)
    return _Recordings(store, held_out_episodes, question)


def _within(store: Store, rows: int, seed: int) -> Store:
    """Episodes drawn at random, in their order, at least one, whose rows are at most `rows` together."""
    lengths = store.episode_ends - store.episode_starts
    order = counter_rng(seed, 3).permutation(store.episodes)
    count = max(1, int(np.searchsorted(np.cumsum(lengths[order]), rows, side="right")))
    return store if count >= store.episodes else store.subset(np.sort(order[:count]))


def _on(task: TaskConfig, config: Config, first: Config, run: Path) -> Config:
    """The settings of a run with the recordings of `task`.

    Raises GtpVisionError: it was trained for another task than the first run, or with goals.
    """
    if config.task.goals is not None:
        raise GtpVisionError(
            f"{run} was trained with goals (task.goals={config.task.goals}), and a value is of one task; judge runs "
            f"without goals"
        )
    for name in ("env", "success_reward"):
        own, others = getattr(config.task, name), getattr(first.task, name)
        if own != others:
            raise GtpVisionError(f"{run} has task.{name}={own}, the first run {others}; judge runs of one task")
    shared = {name: getattr(task, name) for name in _SHARED}
    return replace(config, data_dir=first.data_dir, task=replace(config.task, rewards="file", **shared))


def _checkpoints(run: Path, which: str) -> list[str]:
    if (run / "policy.json").is_file() and not (run / "config.yaml").is_file():
        raise GtpVisionError(f"{run} is an artifact, which does not name its recordings; judge the run it came from")
    if which != "all":
        return [which]
    found = sorted(int(path.name[5:]) for path in (run / "checkpoints").glob("step_*") if path.name[5:].isdigit())
    if not found:
        raise GtpVisionError(f"{run} has no checkpoint of a step; give a run folder with checkpoints/step_N")
    return [f"step_{step}" for step in found]


def _name(run: Path, which: str, chosen: Sequence[tuple[Path, str]]) -> str:
    """A name that no other of the chosen policies has."""
    namesakes = {other for other, _ in chosen if other.name == run.name}
    name = run.name if len(namesakes) == 1 else str(run)
    return name if {other for _, other in chosen} == {"last"} else f"{name} {which}"


def _at_starts(seen: OnRecordings, judged: _Recordings) -> tuple[torch.Tensor, torch.Tensor]:
    """Features (S, F) and plans (S, M, H, A) of the rows in which judged episodes start."""
    return seen.features[judged.starts], seen.plans[judged.starts]


def _at(
    starts: Path | Mapping[str, torch.Tensor], config: Config, trained: Trained, seed: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """The same of given observations, or of the first rows of other recordings."""
    if isinstance(starts, Path):
        store = open_for(replace(config, task=replace(config.task, filter=None)), starts, trained.record)
        sampler = Sampler(store, 1, seed=seed, frame_stack=config.task.frame_stack)
        starts = observation_of(sampler, store.episode_starts)
    return act(trained.agent, starts, trained.accelerator.device, seed)


def _described(starts: Path | Mapping[str, torch.Tensor] | None) -> str | None:
    return "given observations" if isinstance(starts, Mapping) else None if starts is None else str(starts)
