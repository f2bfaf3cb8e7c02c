"""A suite's scores as tables: for the terminal, as Markdown, as CSV, and as a page that needs no network."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from gtp_vision.core.files import atomic_write
from gtp_vision.suites import page, statistics
from gtp_vision.suites.published import MARKS, Published, beside
from gtp_vision.suites.records import SELECTIONS, Record
from gtp_vision.suites.statistics import Estimate

_TOLD = {"last": "the last evaluation", "mean_last_3": "the mean of the last three evaluations", "best": "the best one"}
_MARK = "*"
_UNFINISHED = f"Where a number has a {_MARK}, a run is not finished: it is what the runs score so far."


@dataclass
class Table:
    """Text in rows.

    Attributes:
        title: what it shows.
        head: of its columns.
        rows: as long as the head.
        notes: sentences below.
    """

    title: str
    head: list[str]
    rows: list[list[str]]
    notes: list[str] = field(default_factory=list)

    def markdown(self) -> str:
        """As GitHub reads it."""
        lines = [self.head, ["---", *["---:"] * (len(self.head) - 1)], *self.rows]
        text = "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)
        return f"## {self.title}\n\n{text}\n" + "".join(f"\n{note}\n" for note in self.notes)


def write(
    records: Sequence[Record],
    folder: Path,
    *,
    title: str,
    facts: Mapping[str, str],
    selection: str,
    missing: Sequence[str] = (),
) -> list[Path]:
    """Write results.md, results.csv and results.html; the same records give the same bytes.

    Args:
        records: of a suite, one at least.
        folder: where to.
        title: of the suite.
        facts: lines of its protocol.
        selection: which of a run's evaluations counts, see `records.SELECTIONS`; the others are told as well.
        missing: sentences about what was not run.

    Raises:
        GtpVisionError: rliable is not installed.
    """
    every = tables(records, selection)
    lines = [f"# {title}", "", *(f"* {name}: {value}" for name, value in facts.items())]
    lines += ["", *(f"* {sentence}" for sentence in missing), ""]
    contents = {
        "results.md": "\n".join(lines) + "\n" + "\n".join(table.markdown() for table in every),
        "results.csv": _csv(records),
        "results.html": page.page(records, every, title=title, facts=facts, selection=selection, missing=missing),
    }
    for name, text in contents.items():
        with atomic_write(folder / name) as aside:
            aside.write_text(text, encoding="utf-8")
    return [folder / name for name in contents]


def table(records: Sequence[Record], *, selection: str) -> str:
    """The scores by task and over tasks, for the terminal."""
    found = _scores(records, selection)
    widths = [max(len(line[column]) for line in (found.head, *found.rows)) for column in range(len(found.head))]
    lines = [
        "  ".join(
            [line[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(line[1:], widths[1:], strict=True))]
        )
        for line in (found.head, *found.rows)
    ]
    return "\n".join([found.title, *lines, *found.notes])


def tables(records: Sequence[Record], selection: str) -> list[Table]:
    """Scores by `selection`, agents against each other, published numbers beside, and scores by other selections."""
    others = [other for other in SELECTIONS if other != selection]
    found = [_scores(records, selection), *_against(records, selection), *_beside(records, selection)]
    return found + [_scores(records, other) for other in others]


def _scores(records: Sequence[Record], selection: str) -> Table:
    by_task = statistics.by_task(records, selection)
    agents = list(dict.fromkeys(record.agent for record in records))
    rows = [[task, *(_cell(found.get(agent)) for agent in agents)] for task, found in by_task.items()]
    notes = ["Mean over seeds, with the 95 % interval of a stratified bootstrap over runs."]
    tasks, seeds = statistics.compared(records)
    over = statistics.over_tasks(records, selection)
    if len(tasks) > 1:
        for name in ("mean", "IQM"):
            rows.append([f"{name} of {len(tasks)} tasks", *(_cell(over[agent][name]) for agent in agents)])
        if len(tasks) < len(by_task) or any(e.seeds > seeds for found in by_task.values() for e in found.values()):
            notes.append(
                f"Means over tasks are over the {len(tasks)} that every agent has finished, {seeds} seeds of each."
            )
    if any(found.unfinished for task in by_task.values() for found in task.values()):
        notes.append(_UNFINISHED)
    if any(found.seeds == 1 for task in by_task.values() for found in task.values()):
        notes.append("One seed has no interval.")
    if selection == "best":
        notes.append("The best evaluation is chosen by the score that it is then judged by, and so is too good.")
    return Table(f"Scores, {_TOLD[selection]}", ["task", *agents], rows, notes)


def _against(records: Sequence[Record], selection: str) -> list[Table]:
    agents = list(dict.fromkeys(record.agent for record in records))
    rows = []
    for agent in agents:
        found = statistics.improvement(records, selection, agent)
        if found:
            rows.append([agent, *("" if other == agent else _cell(found[other], 2) for other in agents)])
    note = "How likely a run of the agent in the row scores more than one of that in the column, averaged over tasks."
    return [Table("Probability of improvement", ["", *agents], rows, [note])] if rows else []


def _beside(records: Sequence[Record], selection: str) -> list[Table]:
    """A table for each published one: ours, then theirs, which bear marks of what differs from ours."""
    by_task = statistics.by_task(records, selection)
    agents = list(dict.fromkeys(record.agent for record in records))
    finished, _ = statistics.compared(records)
    found = []
    for source in beside(list(by_task)):
        tasks = [task for task in by_task if any(source.score(method, task) is not None for method in source.methods)]
        common = [task for task in tasks if task in finished]
        columns = [["task", *tasks]]
        columns += [[f"{agent} (ours)", *(_plain(by_task[task].get(agent)) for task in tasks)] for agent in agents]
        if len(common) > 1:
            means = [_plain(_mean([by_task[task][agent] for task in common])) for agent in agents]
            for column, last in zip(columns, [f"mean of {len(common)} tasks", *means], strict=True):
                column.append(last)
        groups = [[task] for task in tasks] + [common] * (len(common) > 1)
        methods = [m for m in source.methods if any(source.score(m, task) is not None for task in tasks)]
        columns += [_theirs(source, method, groups, selection) for method in methods]
        head, *rows = ([*row] for row in zip(*columns, strict=True))
        text = "".join(cell for column in columns[1:] for cell in column)
        notes = [source.note(), f"Ours: {_TOLD[selection]}."]
        notes += [f"{mark} {told}." for mark, told in MARKS.items() if mark in text]
        notes += [_UNFINISHED] if _MARK in text else []
        found.append(Table(f"Beside published numbers: {source.title}", head, rows, notes))
    return found


def _theirs(source: Published, method: str, groups: Sequence[Sequence[str]], selection: str) -> list[str]:
    """A method's column, its means over groups of tasks; marks that all of them bear stand at its head alone."""
    cells: list[tuple[str, set[str]]] = []
    for tasks in groups:
        told = [score for task in tasks if (score := source.score(method, task)) is not None]
        if len(told) == len(tasks):
            cells.append((f"{np.mean(told):.1f}", {mark for t in tasks for mark in source.marks(method, t, selection)}))
        else:
            cells.append(("-", set()))
    everywhere = set(MARKS).intersection(*(marks for number, marks in cells if number != "-"))
    return [
        _marked(f"{method} ", everywhere).strip(),
        *(_marked(number, marks - everywhere) for number, marks in cells),
    ]


def _marked(text: str, marks: set[str]) -> str:
    return text + "".join(mark for mark in MARKS if mark in marks)


def _mean(of: Sequence[Estimate]) -> Estimate:
    """Over tasks, without an interval."""
    unfinished, seeds = any(one.unfinished for one in of), min(one.seeds for one in of)
    return Estimate(float(np.mean([one.value for one in of])), math.nan, math.nan, seeds, unfinished)


def _plain(found: Estimate | None) -> str:
    return _cell(found, interval=False)


def _cell(found: Estimate | None, decimals: int = 1, *, interval: bool = True) -> str:
    if found is None:
        return "not run"
    text = f"{found.value:.{decimals}f}"
    if interval and not math.isnan(found.low):
        text += f" ({found.low:.{decimals}f} to {found.high:.{decimals}f})"
    return text + (_MARK if found.unfinished else "")


def _csv(records: Sequence[Record]) -> str:
    """A line for each run and selection."""
    file = io.StringIO()
    lines = csv.writer(file, lineterminator="\n")
    lines.writerow(["task", "agent", "seed", "selection", "score", "evaluations", "steps", "finished"])
    for record in records:
        for name, select in SELECTIONS.items():
            score = repr(round(select(record.scores), 6))
            own = [record.task, record.agent, record.seed, name, score, len(record.scores), record.steps[-1]]
            lines.writerow([*own, str(not record.unfinished).lower()])
    return file.getvalue()
