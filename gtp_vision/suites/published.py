"""Numbers that others have published, each with its source, its version of the data, and which checkpoint it is of."""

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
"""What marks published numbers whose protocol differs from ours: in the data, the selection, the simulator."""

_UNKNOWN = "not stated"
_VERSION = re.compile(r"-(v\d+)$")


@dataclass(frozen=True)
class Published:
    """A table of somebody's.

    Attributes:
        id: a short name.
        title: a longer one.
        source: paper or repository, and table.
        version: of the data sets.
        selection: which of a run's evaluations counts: one of `records.SELECTIONS`, or `not stated`.
        physics: how its simulator differs from ours; empty if it does not.
        runs: steps, seeds and episodes of its runs.
        exceptions: method to another `version` or `selection`.
        methods: method to task to score.
    """

    id: str
    title: str
    source: str
    version: str
    selection: str
    physics: str
    runs: str
    exceptions: Mapping[str, Mapping[str, str]]
    methods: Mapping[str, Mapping[str, float]]

    def score(self, method: str, task: str) -> float | None:
        """Of a task; a table that does not tell the version of a data set has its number for all of them."""
        told = self.methods[method]
        return told.get(task, told.get(_VERSION.sub("", task)))

    def marks(self, method: str, task: str, selection: str) -> str:
        """Those of `MARKS` that hold for a method's number for a task beside ours by `selection`."""
        theirs = {"version": self.version, "selection": self.selection, **self.exceptions.get(method, {})}
        ours = _VERSION.search(task)
        differs = (
            ours is not None and theirs["version"] != ours.group(1),
            theirs["selection"] != selection,
            bool(self.physics),
        )
        return "".join(mark for mark, told in zip(MARKS, differs, strict=True) if told)

    def note(self) -> str:
        """What a reader must know to compare: a sentence."""
        told = [f"{self.source}. Its data: {self._by_method('version')}; selection: {self._by_method('selection')}"]
        told += [f"simulator: {self.physics}"] if self.physics else []
        return "; ".join([*told, f"runs: {self.runs}."])

    def _by_method(self, key: str) -> str:
        others = [f"{method} {told[key]}" for method, told in self.exceptions.items() if key in told]
        return getattr(self, key) + (f" ({', '.join(others)})" if others else "")


@cache
def published() -> tuple[Published, ...]:
    """All tables.

    Raises:
        GtpVisionError: a table lacks something, or is none.
    """
    where = "published/numbers.json"
    return tuple(read(table, where) for table in json.loads(files(__package__).joinpath(where).read_text())["tables"])


def read(table: Mapping[str, Any], where: str) -> Published:
    """A table of a file.

    Args:
        table: with the attributes of `Published`.
        where: the file, for messages.

    Raises:
        GtpVisionError: it lacks one, has others, or one is wrong.
    """
    wanted = [field.name for field in fields(Published)]
    if set(table) != set(wanted):
        wrong = ", ".join(sorted(set(table) ^ set(wanted)))
        raise GtpVisionError(
            f"{where}: table '{table.get('id')}' has too many or too few fields ({wrong}); give {', '.join(wanted)}"
        )
    told = Published(**table)
    for fault in _faults(told):
        raise GtpVisionError(f"{where}: table '{told.id}' {fault}")
    return told


def beside(tasks: list[str]) -> list[Published]:
    """The tables that have a number for some of these tasks."""
    return [
        table
        for table in published()
        if any(table.score(method, task) is not None for method in table.methods for task in tasks)
    ]


def _faults(table: Published) -> list[str]:
    faults = [
        f"has no {key}; name it, or write '{_UNKNOWN}'"
        for key in ("title", "source", "version", "runs")
        if not getattr(table, key)
    ]
    known = (*SELECTIONS, _UNKNOWN)
    for selection in (table.selection, *(told.get("selection", _UNKNOWN) for told in table.exceptions.values())):
        if selection not in known:
            faults.append(f"has the selection '{selection}'; use one of {', '.join(known)}")
    for method, told in table.exceptions.items():
        if method not in table.methods or not set(told) <= {"version", "selection"}:
            faults.append(f"has exceptions for '{method}'; name a method of it, and its version or selection")
    for method, scores in table.methods.items():
        if not scores or not all(isinstance(score, int | float) for score in scores.values()):
            faults.append(f"has something other than scores for '{method}'; give a number for each task")
    return faults
