"""Health of a run: warnings, values that were not finite, speed, and time waiting for data."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from gtp_vision.report.run_folder import RunFolder, text_of
from gtp_vision.report.text import known, median_of, scalar

SPEED = "health/steps_per_second"  # the key of the curve that is computed here
MAX_WARNINGS = 20  # of one run
MAX_LENGTH = 600  # characters of one


@dataclass(frozen=True)
class Health:
    """The page's section about one run's health."""

    run: RunFolder
    warnings: list[tuple[Any, str]]  # step and sentence of each, in the order of steps, at most `MAX_WARNINGS`
    more: int  # how many warnings are not among them
    holes: int  # logged values that were not finite
    skipped: int | None  # training steps that were skipped; None where the run does not count them
    speed: float | None  # median of training steps a second, without evaluations; None where it is not known
    waiting: float | None  # median share of the time in which training waited for data, as a fraction; or None


def health_of(run: RunFolder) -> Health:
    """Read the run's warnings, and add its speed to its curves."""
    if speeds := _speeds(run):
        run.series[SPEED] = speeds
    warnings = _warnings(run)
    skipped = run.series.get("skipped")
    return Health(
        run=run,
        warnings=warnings[:MAX_WARNINGS],
        more=max(0, len(warnings) - MAX_WARNINGS),
        holes=sum(not math.isfinite(value) for points in run.series.values() for value in points.values()),
        skipped=None if skipped is None else int(sum(value for value in skipped.values() if math.isfinite(value))),
        speed=median_of(speeds.values()),
        waiting=median_of(run.series.get("time/data_share", {}).values()),
    )


def _warnings(run: RunFolder) -> list[tuple[Any, str]]:
    """Step and sentence of each warning in health.json, or else in the results, and of each step in nonfinite.json."""
    warnings = []
    for entry in _entries(run, "health.json", run.results.get("health")):
        step, sentence = scalar(entry, "step"), str(scalar(entry, "told") or scalar(entry, "kind") or "")
        warnings.append((step, sentence.removeprefix(f"step {step}: ")))
    for entry in _entries(run, "nonfinite.json"):
        keys = entry.get("found")
        names = ", ".join(str(key) for key in keys[:4]) if isinstance(keys, list) else ""
        clause = scalar(entry, "told") or ""
        warnings.append((scalar(entry, "step"), f"{names or 'the loss'} not finite; {clause}"))
    short = [(step, text) for step, sentence in warnings if (text := sentence[:MAX_LENGTH].strip("; "))]
    return sorted(short, key=lambda warning: known(warning[0]) or 0.0)


def _entries(run: RunFolder, name: str, default: Any = None) -> list[Mapping[str, Any]]:
    """The JSON objects in a file's list, or in `default` if the file is missing; a damaged file is noted."""
    entries = default
    if (text := text_of(run, name)) is not None:
        try:
            entries = json.loads(text)
        except (ValueError, RecursionError):
            run.problems.append(f"{name} is damaged")
            return []
    return [entry for entry in entries if isinstance(entry, Mapping)] if isinstance(entries, list) else []


def _speeds(run: RunFolder) -> dict[float, float]:
    """Training steps a second between logged times, without the time of evaluations."""
    clock = sorted((step, at) for step, at in run.series.get("seconds", {}).items() if math.isfinite(at))
    evaluated = run.series.get("eval/seconds", {})
    speeds = {}
    for (before, since), (step, until) in pairwise(clock):
        spent = evaluated.get(step, 0.0)
        seconds = until - since - (spent if math.isfinite(spent) else 0.0)
        if seconds > 0 and math.isfinite(speed := (step - before) / seconds):
            speeds[step] = speed
    return speeds
