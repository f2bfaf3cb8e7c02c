"""Rounds: the runs that a run's first weights go back to, with their data and their held-out errors.

    init.json   {"source": checkpoint or artifact, "step", "parts": what was loaded, "moments", "data": [{"path",
                "share", "episodes", "succeeded", "failed"}], "rounds": [the runs before, the first one first]}

Each round copies what it shows of the one before, whose folder may be removed.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from statistics import fmean
from typing import Any

from gtp_vision.report.run_folder import RunFolder, json_object, read_run, text_of
from gtp_vision.report.text import known, scalar

FILE = "init.json"
_MOST = 100  # rounds, and data sets of one


def rounds_of(folder: Path, step: int | None = None) -> list[dict[str, Any]]:
    """The rounds until the run in `folder`, the first one first; its own entry is last, after training step `step`.

    Each has `run`, `step` and `data`; `before` and `after`, the energy score and the mean action error on its held-out
    episodes, where these are known; and `success`, of an evaluation at this step.
    """
    run = read_run(folder)
    init = json_object(text_of(run, FILE) or "{}")
    before = init.get("rounds")
    own: dict[str, Any] = {"run": str(folder), "step": step or scalar(run.results, "step"), "data": _data_of(run, init)}
    validations = _steps(run, "validation.json")
    if (start := validations.get(0)) is not None and init:
        own["before"] = _errors(run, start)
    if reached := validations.get(own["step"]) or next(reversed(list(validations.values())), None):
        own["after"] = _errors(run, reached)
    if (evaluated := _steps(run, "evaluations.json").get(own["step"])) is not None:
        own["success"] = known(evaluated.get("success"))
    earlier = [entry for entry in before if isinstance(entry, dict)] if isinstance(before, list) else []
    return [*earlier[-_MOST:], own]


def _data_of(run: RunFolder, init: Mapping[str, Any]) -> list[dict[str, Any]]:
    if isinstance(init.get("data"), list):
        return [entry for entry in init["data"][:_MOST] if isinstance(entry, dict)]
    task = run.config.get("task") if isinstance(run.config, Mapping) else None
    task = task if isinstance(task, Mapping) else {}
    names = task.get("datasets") or [task.get("dataset") or task.get("env")]
    return [{"path": str(name)} for name in names[:_MOST]] if isinstance(names, list) else []


def _steps(run: RunFolder, name: str) -> dict[Any, dict[str, Any]]:
    """The entries of a file by their step: a list, or an object with the list `steps`."""
    text = text_of(run, name) or "[]"
    found = json_object(text).get("steps") or json_object(f'{{"steps": {text}}}').get("steps")
    entries = [entry for entry in found if isinstance(entry, dict)] if isinstance(found, list) else []
    return {entry["step"]: entry for entry in entries if isinstance(entry.get("step"), int)}


def _errors(run: RunFolder, entry: Mapping[str, Any]) -> dict[str, float | None]:
    errors = scalar(run.config, "agent", "acting", "steps") if isinstance(run.config, Mapping) else None
    table = entry["error"].get(str(errors)) if isinstance(entry.get("error"), Mapping) else None
    rows = [row for row in table if isinstance(row, list)] if isinstance(table, list) else []
    numbers = [number for row in rows for value in row if (number := known(value)) is not None]
    return {"energy": known(entry.get("energy")), "error": fmean(numbers) if numbers else None}


def rounds_on_page(run: RunFolder) -> list[dict[str, Any]]:
    """The rounds of a run for its page; none of a run that began with new weights."""
    return rounds_of(run.folder) if text_of(run, FILE) is not None else []
