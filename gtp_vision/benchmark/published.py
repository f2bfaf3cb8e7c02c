"""Numbers that others have published, each with its source, its version of the data, and which checkpoint it is of."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from functools import cache
from importlib.resources import files


@dataclass(frozen=True)
class Published:
    """A table of somebody's.

    Attributes:
        name: by which notes refer to it.
        source: paper or repository, and table.
        version: of the data sets or the benchmark.
        selection: which of a run's evaluations its numbers are.
        physics: of the simulator.
        methods: method to task to score.
    """

    name: str
    source: str
    version: str
    selection: str
    physics: str
    methods: dict[str, dict[str, float]]

    def score(self, method: str, task: str) -> float | None:
        """Of a task; a table that does not tell the version of a data set has its number for all of them."""
        told = self.methods[method]
        return told.get(task, told.get(re.sub(r"-v\d+$", "", task)))

    def note(self) -> str:
        """What a reader must know to compare: a sentence."""
        return f"{self.source}; data: {self.version}; selection: {self.selection}; simulator: {self.physics}"


@cache
def published() -> tuple[Published, ...]:
    """All tables."""
    stored = json.loads(files("gtp_vision.benchmark").joinpath("published/numbers.json").read_text())
    return tuple(Published(table.pop("id"), **table) for table in stored["tables"])


def beside(tasks: list[str]) -> list[Published]:
    """The tables that have a number for some of these tasks."""
    return [
        table
        for table in published()
        if any(table.score(method, task) is not None for method in table.methods for task in tasks)
    ]
