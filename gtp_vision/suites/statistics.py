"""Means over runs with 95 % intervals: by task, over tasks, and between agents (Agarwal et al., 2021).

Intervals are bootstrapped over runs, stratified by task, with a fixed seed: the same records give the same numbers.
"""

from __future__ import annotations

import importlib
import itertools
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import stats

from gtp_vision.core.extras import importing
from gtp_vision.suites.records import SELECTIONS, Record

_REPS = 2000
PROFILE = 101  # points of a performance profile


@dataclass(frozen=True)
class Estimate:
    """A number and its 95 % interval."""

    value: float  # over `seeds` runs (of each task)
    low: float  # NaN for a single run
    high: float
    seeds: int
    unfinished: bool = False  # whether a run has more evaluations to do


def by_task(records: Sequence[Record], selection: str) -> dict[str, dict[str, Estimate]]:
    """Task to agent to the mean over seeds of the score that `selection` takes of each run."""
    result: dict[str, dict[str, Estimate]] = {}
    for task, agent, runs in _cells(records):
        scores = np.array([SELECTIONS[selection](record.scores) for record in runs])
        unfinished = any(record.unfinished for record in runs)
        result.setdefault(task, {})[agent] = Estimate(*_mean(scores), len(runs), unfinished)
    return result


def compared(records: Sequence[Record]) -> tuple[list[str], int]:
    """The tasks on which every agent has finished runs of known scores, and the number of seeds that all have there."""
    unknown = {record.task for record in records if np.isnan(record.scores).any()}
    finished = [record for record in records if not record.unfinished and record.task not in unknown]
    counts = Counter((record.task, record.agent) for record in finished)
    agents = _names(records, "agent")
    tasks = [task for task in _names(records, "task") if all((task, agent) in counts for agent in agents)]
    return tasks, min((counts[task, agent] for task in tasks for agent in agents), default=0)


def over_tasks(records: Sequence[Record], selection: str) -> dict[str, dict[str, Estimate]]:
    """Agent to `mean` and `IQM`, the mean of the middle half of all runs, over the tasks that all agents have."""
    metrics = _rliable("metrics")
    scores, seeds = _matrices(records, selection)
    if not scores:
        return {}
    return {
        agent: {
            "mean": _estimate(metrics.aggregate_mean, seeds, matrix),
            "IQM": _estimate(metrics.aggregate_iqm, seeds, matrix),
        }
        for agent, matrix in scores.items()
    }


def improvement(records: Sequence[Record], selection: str, agent: str) -> dict[str, Estimate]:
    """Other agent to the probability that a run of `agent` scores more than one of the other, averaged over tasks."""
    scores, seeds = _matrices(records, selection)
    return {
        other: _estimate(_improves, seeds, scores[agent], matrix)
        for other, matrix in scores.items()
        if other != agent and agent in scores
    }


def profiles(records: Sequence[Record], selection: str) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Scores (P,) and, by agent, the share of runs above each, with its interval, (3, P): value, low, high."""
    library = _rliable("library")
    scores, seeds = _matrices(records, selection)
    if not scores:
        return np.empty(0), {}
    every = np.concatenate([matrix.ravel() for matrix in scores.values()])
    at = np.linspace(min(0.0, every.min()), max(every.max(), 1.0), PROFILE)
    with _seeded():
        values, intervals = library.create_performance_profile(scores, at, reps=_REPS if seeds > 1 else 2)
    return at, {agent: np.vstack([values[agent], intervals[agent]]) for agent in scores}


def curves(records: Sequence[Record]) -> dict[str, dict[str, np.ndarray]]:
    """Task to agent to (4, N): steps, mean over the seeds that have been evaluated there, low, high."""
    result: dict[str, dict[str, np.ndarray]] = {}
    for task, agent, runs in _cells(records):
        curves = [dict(zip(record.steps, record.scores, strict=True)) for record in runs]
        steps = sorted(set().union(*curves))
        columns = [(step, *_mean(np.array([curve[step] for curve in curves if step in curve]))) for step in steps]
        if columns:
            result.setdefault(task, {})[agent] = np.array(columns).T
    return result


def seconds_until(records: Sequence[Record], score: float) -> dict[str, dict[str, list[float]]]:
    """Task to agent to the training seconds of each run at its first evaluation of at least `score`.

    Infinite for runs without such an evaluation; runs whose seconds are not recorded are left out.
    """
    result: dict[str, dict[str, list[float]]] = {}
    for task, agent, runs in _cells(records):
        for record in runs:
            if record.seconds:
                pairs = zip(record.seconds, record.scores, strict=True)
                first = next((seconds for seconds, found in pairs if found >= score), np.inf)
                result.setdefault(task, {}).setdefault(agent, []).append(first)
    return result


def _cells(records: Sequence[Record]) -> Iterator[tuple[str, str, list[Record]]]:
    """Each task and agent with their runs, if any."""
    for task, agent in itertools.product(_names(records, "task"), _names(records, "agent")):
        runs = [record for record in records if (record.task, record.agent) == (task, agent)]
        if runs:
            yield task, agent, runs


def _names(records: Sequence[Record], key: str) -> list[str]:
    return list(dict.fromkeys(getattr(record, key) for record in records))


def _mean(scores: np.ndarray) -> tuple[float, float, float]:
    """The mean with its bootstrap interval over runs: NaN for one run, of no width for equal ones."""
    mean = float(scores.mean())
    if len(scores) < 2 or np.isnan(mean):
        return mean, np.nan, np.nan
    if np.ptp(scores) == 0:
        return mean, mean, mean
    generator = np.random.default_rng(0)
    result = stats.bootstrap((scores,), np.mean, n_resamples=_REPS, method="percentile", random_state=generator)
    return mean, float(result.confidence_interval.low), float(result.confidence_interval.high)


def _improves(ours: np.ndarray, theirs: np.ndarray) -> float:
    """Rliable's `probability_of_improvement` of (seeds, tasks) each, without its slow test of every task."""
    first, second = ours[:, None], theirs[None]
    return float(((first > second) + 0.5 * (first == second)).mean())


def _matrices(records: Sequence[Record], selection: str) -> tuple[dict[str, np.ndarray], int]:
    """Agent to scores (seeds, tasks) of the tasks and the number of seeds that all agents have."""
    tasks, seeds = compared(records)
    if not seeds:
        return {}, 0
    columns: dict[str, list[list[float]]] = {}
    for task, agent, runs in _cells([record for record in records if not record.unfinished]):
        if task in tasks:
            first = sorted(runs, key=lambda record: record.seed)[:seeds]
            columns.setdefault(agent, []).append([SELECTIONS[selection](record.scores) for record in first])
    return {agent: np.array(columns[agent]).T for agent in _names(records, "agent")}, seeds


def _estimate(statistic: Callable[..., Any], seeds: int, *scores: np.ndarray) -> Estimate:
    """A statistic of one or two matrices (seeds, tasks) with its interval."""
    value = float(statistic(*scores))
    if seeds < 2:
        return Estimate(value, np.nan, np.nan, seeds)
    with _seeded():
        _, intervals = _rliable("library").get_interval_estimates(
            {"": list(scores) if len(scores) > 1 else scores[0]},
            lambda *sample: np.array([statistic(*sample)]),
            reps=_REPS,
        )
    low, high = intervals[""][:, 0]
    return Estimate(value, float(low), float(high), seeds)


@contextmanager
def _seeded() -> Iterator[None]:
    """Seed NumPy's global generator, from which rliable draws for two agents' scores, and restore it."""
    state = np.random.get_state()
    np.random.seed(0)
    try:
        yield
    finally:
        np.random.set_state(state)


def _rliable(module: str) -> Any:
    with importing("benchmark", "a suite's table"):
        return importlib.import_module(f"rliable.{module}")
