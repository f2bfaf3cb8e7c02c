"""Means over runs with 95 % intervals: by task, over tasks, and of one agent against another (Agarwal et al., 2021).

Intervals are bootstrapped over runs, stratified by task, with a fixed seed: the same records give the same numbers.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import stats

from gtp_vision.core.errors import GtpVisionError
from gtp_vision.suites.records import SELECTIONS, Record

_REPS = 2000
PROFILE = 101  # places on the axis of a performance profile


@dataclass(frozen=True)
class Estimate:
    """A number and how sure it is.

    Attributes:
        value: over `seeds` runs (of each task).
        low: of the 95 % interval; NaN if one run was all.
        high: likewise.
        seeds: how many.
        unfinished: whether a run has evaluations to come.
    """

    value: float
    low: float
    high: float
    seeds: int
    unfinished: bool = False


def by_task(records: Sequence[Record], selection: str) -> dict[str, dict[str, Estimate]]:
    """Task to agent to the mean over seeds of the score that `selection` takes of each run."""
    found: dict[str, dict[str, Estimate]] = {}
    for task in _names(records, "task"):
        for agent in _names(records, "agent"):
            runs = [record for record in records if (record.task, record.agent) == (task, agent)]
            if runs:
                scores = np.array([SELECTIONS[selection](record.scores) for record in runs])
                unfinished = any(record.unfinished for record in runs)
                found.setdefault(task, {})[agent] = Estimate(*_mean(scores), len(runs), unfinished)
    return found


def compared(records: Sequence[Record]) -> tuple[list[str], int]:
    """The tasks on which every agent has finished runs, and the number of seeds that all of them have there."""
    counts: dict[tuple[str, str], int] = {}
    for record in records:
        if not record.unfinished:
            counts[record.task, record.agent] = counts.get((record.task, record.agent), 0) + 1
    agents = _names(records, "agent")
    tasks = [task for task in _names(records, "task") if all((task, agent) in counts for agent in agents)]
    return tasks, min((counts[task, agent] for task in tasks for agent in agents), default=0)


def over_tasks(records: Sequence[Record], selection: str) -> dict[str, dict[str, Estimate]]:
    """Agent to `mean` and `IQM`, the mean of the middle half of all runs, over the tasks that all agents have.

    Raises:
        GtpVisionError: rliable is not installed.
    """
    metrics = _rliable("metrics")
    scores, seeds = _matrices(records, selection)
    if not scores:
        return {}
    return {
        agent: {
            "mean": _interval({agent: matrix}, metrics.aggregate_mean, seeds),
            "IQM": _interval({agent: matrix}, metrics.aggregate_iqm, seeds),
        }
        for agent, matrix in scores.items()
    }


def improvement(records: Sequence[Record], selection: str, agent: str) -> dict[str, Estimate]:
    """Other agent to the probability that a run of `agent` scores more than one of its, averaged over tasks.

    Raises:
        GtpVisionError: rliable is not installed.
    """
    scores, seeds = _matrices(records, selection)
    return {
        other: _interval({other: (scores[agent], matrix)}, _improves, seeds)
        for other, matrix in scores.items()
        if other != agent and agent in scores
    }


def profiles(records: Sequence[Record], selection: str) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Scores (P,) and, by agent, the share of runs above each, with its interval, (3, P): value, low, high.

    Raises:
        GtpVisionError: rliable is not installed.
    """
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
    found: dict[str, dict[str, np.ndarray]] = {}
    for task in _names(records, "task"):
        for agent in _names(records, "agent"):
            runs = [record for record in records if (record.task, record.agent) == (task, agent)]
            columns = []
            for step in sorted({step for record in runs for step in record.steps}):
                at = [dict(zip(record.steps, record.scores, strict=True)).get(step) for record in runs]
                columns.append((step, *_mean(np.array([score for score in at if score is not None]))))
            if columns:
                found.setdefault(task, {})[agent] = np.array(columns).T
    return found


def _names(records: Sequence[Record], key: str) -> list[str]:
    return list(dict.fromkeys(getattr(record, key) for record in records))


def _mean(scores: np.ndarray) -> tuple[float, float, float]:
    """With the interval of a bootstrap over runs; of one run there is none, of equal ones it has no width."""
    mean = float(scores.mean())
    if len(scores) < 2:
        return mean, np.nan, np.nan
    if np.ptp(scores) == 0:
        return mean, mean, mean
    generator = np.random.default_rng(0)
    found = stats.bootstrap((scores,), np.mean, n_resamples=_REPS, method="percentile", random_state=generator)
    return mean, float(found.confidence_interval.low), float(found.confidence_interval.high)


def _improves(ours: np.ndarray, theirs: np.ndarray) -> float:
    """Of (seeds, tasks) each; rliable's `probability_of_improvement`, whose tests of every task would take hours."""
    first, second = ours[:, None], theirs[None]
    return float(((first > second) + 0.5 * (first == second)).mean())


def _matrices(records: Sequence[Record], selection: str) -> tuple[dict[str, np.ndarray], int]:
    """Agent to scores (seeds, tasks) of what all agents have, the first seeds of each."""
    tasks, seeds = compared(records)
    found = {}
    for agent in _names(records, "agent") if seeds else ():
        columns = []
        for task in tasks:
            runs = [r for r in records if (r.task, r.agent) == (task, agent) and not r.unfinished]
            runs = sorted(runs, key=lambda record: record.seed)[:seeds]
            columns.append([SELECTIONS[selection](record.scores) for record in runs])
        found[agent] = np.array(columns).T
    return found, seeds


def _interval(scores: Mapping[str, Any], of: Callable[..., Any], seeds: int) -> Estimate:
    (name,) = scores
    given = scores[name]
    value = float(of(*given) if isinstance(given, tuple) else of(given))
    if seeds < 2:
        return Estimate(value, np.nan, np.nan, seeds)
    with _seeded():
        _, intervals = _rliable("library").get_interval_estimates(
            {name: list(given) if isinstance(given, tuple) else given},
            lambda *one: np.array([of(*one)]),
            reps=_REPS,
        )
    low, high = intervals[name][:, 0]
    return Estimate(value, float(low), float(high), seeds)


@contextmanager
def _seeded() -> Iterator[None]:
    """Rliable draws from NumPy's global generator here, whatever generator it is given for two agents' scores."""
    state = np.random.get_state()
    np.random.seed(0)
    try:
        yield
    finally:
        np.random.set_state(state)


def _rliable(module: str) -> Any:
    try:
        return importlib.import_module(f"rliable.{module}")
    except ImportError as error:
        raise GtpVisionError(f"tables need rliable ({error}); pip install 'gtp-vision[benchmark]'") from error
