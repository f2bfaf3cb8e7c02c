"""Published numbers of others, each with its source, its version of the data, and the checkpoint that counts."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import cache
from importlib.resources import files
from typing import Any

from gtp_vision.core.errors import GtpVisionError
from gtp_vision.suites.records import SELECTIONS

MARKS = {
    "†": "another version of the data set than ours, or not stated which",
    "‡": "another evaluation of a run counts than ours, or not stated which",
    "§": "another simulator than ours, or another version of it",
}
"""Marks of published numbers whose protocol differs from ours: in the data, the selection, the simulator."""

_UNKNOWN = "not stated"
_VERSION = re.compile(r"-(v\d+)$")


@dataclass(frozen=True)
class Published:
    """A published table."""

    id: str  # a short name
    title: str  # a longer one
    source: str  # paper or repository, and table
    version: str  # of the data sets
    selection: str  # which of a run's evaluations counts: one of `records.SELECTIONS`, or `not stated`
    physics: str  # how its simulator differs from ours; empty if it does not
    runs: str  # steps, seeds and episodes of its runs
    exceptions: Mapping[str, Mapping[str, str]]  # method to another `version` or `selection`
    methods: Mapping[str, Mapping[str, float]]  # method to task to score

    def score(self, method: str, task: str) -> float | None:
        """The score of a task; a table that does not state the data set's version has one number for all versions."""
        scores = self.methods[method]
        return scores.get(task, scores.get(_VERSION.sub("", task)))

    def marks(self, method: str, task: str, selection: str) -> str:
        """The marks of a method's number for a task, compared with ours by `selection`."""
        theirs = {"version": self.version, "selection": self.selection, **self.exceptions.get(method, {})}
        ours = _VERSION.search(task)
        differs = (
            ours is not None and theirs["version"] != ours.group(1),
            theirs["selection"] != selection,
            bool(self.physics),
        )
        return "".join(mark for mark, is_different in zip(MARKS, differs, strict=True) if is_different)

    def note(self) -> str:
        """A sentence about the table's conditions."""
        conditions = [f"{self.source}. Its data: {self._by_method('version')}"]
        conditions += [f"selection: {self._by_method('selection')}"]
        conditions += [f"simulator: {self.physics}"] if self.physics else []
        return "; ".join([*conditions, f"runs: {self.runs}."])

    def _by_method(self, key: str) -> str:
        others = [f"{method} {values[key]}" for method, values in self.exceptions.items() if key in values]
        return getattr(self, key) + (f" ({', '.join(others)})" if others else "")


@cache
def published() -> tuple[Published, ...]:
    """All tables of the package's file."""
    where = "published/numbers.json"
    return tuple(read(table, where) for table in json.loads(files(__package__).joinpath(where).read_text())["tables"])


def read(table: Mapping[str, Any], where: str) -> Published:
    """A table with the attributes of `Published`, from the file `where`.

    Raises:
        GtpVisionError: an attribute is missing, unknown, or wrong.
    """
    known = [field.name for field in fields(Published)]
    if set(table) != set(known):
        wrong = ", ".join(sorted(set(table) ^ set(known)))
        raise GtpVisionError(
            f"{where}: table '{table.get('id')}' has too many or too few fields ({wrong}); give {', '.join(known)}"
        )
    result = Published(**table)
    for error in _errors(result):
        raise GtpVisionError(f"{where}: table '{result.id}' {error}")
    return result


def beside(tasks: list[str]) -> list[Published]:
    """The tables with a number for at least one of the tasks."""
    return [
        table
        for table in published()
        if any(table.score(method, task) is not None for method in table.methods for task in tasks)
    ]


def _errors(table: Published) -> list[str]:
    errors = [
        f"has no {key}; name it, or write '{_UNKNOWN}'"
        for key in ("title", "source", "version", "runs")
        if not getattr(table, key)
    ]
    known = (*SELECTIONS, _UNKNOWN)
    for selection in (table.selection, *(values.get("selection", _UNKNOWN) for values in table.exceptions.values())):
        if selection not in known:
            errors.append(f"has the selection '{selection}'; use one of {', '.join(known)}")
    for method, values in table.exceptions.items():
        if method not in table.methods or not set(values) <= {"version", "selection"}:
            errors.append(f"has exceptions for '{method}'; name one of its methods, with a version or selection")
    for method, scores in table.methods.items():
        if not scores or not all(isinstance(score, int | float) for score in scores.values()):
            errors.append(f"has something other than scores for '{method}'; give a number for each task")
    return errors
