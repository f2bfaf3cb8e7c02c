"""A suite's scores as tables: for the terminal, as Markdown, as CSV, and as a self-contained page."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean, median

import numpy as np

from gtp_vision.core.files import atomic_write
from gtp_vision.suites import page, statistics
from gtp_vision.suites.published import MARKS, Published, beside
from gtp_vision.suites.records import SELECTIONS, Record
from gtp_vision.suites.statistics import Estimate

_SELECTION_NAMES = {
    "last": "the last evaluation",
    "mean_last_3": "the mean of the last three evaluations",
    "best": "the best evaluation",
}
_MARK = "*"
_UNFINISHED = f"A number with a {_MARK} comes from runs that are not finished."


@dataclass
class Table:
    """Rows of text."""

    title: str
    head: list[str]
    rows: list[list[str]]  # as long as the head
    notes: list[str] = field(default_factory=list)  # sentences below the table

    def markdown(self) -> str:
        """The table in GitHub's Markdown."""
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
    reach: float = 50.0,
    missing: Sequence[str] = (),
) -> list[Path]:
    """Write results.md, results.csv and results.html; the same records give the same bytes.

    `selection` is one of `records.SELECTIONS`; the others have tables, too. `reach` is the score until which training
    is timed. `missing` are sentences about tasks that were not run, and about other protocols.

    Raises:
        GtpVisionError: rliable is not installed.
    """
    all_tables = tables(records, selection, reach)
    lines = [f"# {title}", "", *(f"* {name}: {value}" for name, value in facts.items())]
    lines += ["", *(f"* {sentence}" for sentence in missing), ""]
    contents = {
        "results.md": "\n".join(lines) + "\n" + "\n".join(table.markdown() for table in all_tables),
        "results.csv": _csv(records),
        "results.html": page.page(records, all_tables, title=title, facts=facts, selection=selection, missing=missing),
    }
    for name, text in contents.items():
        with atomic_write(folder / name) as temporary:
            temporary.write_text(text, encoding="utf-8")
    return [folder / name for name in contents]


def table(records: Sequence[Record], *, selection: str) -> str:
    """The scores by task and over tasks, for the terminal."""
    scores = _scores(records, selection)
    rows = [scores.head, *scores.rows]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]) for row in rows]
    return "\n".join([scores.title, *lines, *scores.notes])


def tables(records: Sequence[Record], selection: str, reach: float = 50.0) -> list[Table]:
    """Scores by `selection`, comparisons of agents and with published numbers, and scores by the other selections."""
    others = [other for other in SELECTIONS if other != selection]
    return [
        _scores(records, selection),
        *_improvements(records, selection),
        *_times(records, reach),
        *_comparisons(records, selection),
        *(_scores(records, other) for other in others),
    ]


def _scores(records: Sequence[Record], selection: str) -> Table:
    by_task = statistics.by_task(records, selection)
    agents = list(dict.fromkeys(record.agent for record in records))
    rows = [[task, *(_cell(scores.get(agent)) for agent in agents)] for task, scores in by_task.items()]
    estimates = [estimate for scores in by_task.values() for estimate in scores.values()]
    notes = ["Mean over seeds, with the 95 % interval of a stratified bootstrap over runs."]
    tasks, seeds = statistics.compared(records)
    over = statistics.over_tasks(records, selection)
    if len(tasks) > 1:
        for name in ("mean", "IQM"):
            rows.append([f"{name} of {len(tasks)} tasks", *(_cell(over[agent][name]) for agent in agents)])
        if len(tasks) < len(by_task) or any(estimate.seeds > seeds for estimate in estimates):
            notes.append(
                f"Means over tasks are over the {len(tasks)} that every agent has finished, {seeds} seeds of each."
            )
    if any(estimate.unfinished for estimate in estimates):
        notes.append(_UNFINISHED)
    if any(estimate.seeds == 1 for estimate in estimates):
        notes.append("One seed has no interval.")
    if selection == "best":
        notes.append("The best evaluation is selected by the judged score itself, which makes it too good.")
    return Table(f"Scores, {_SELECTION_NAMES[selection]}", ["task", *agents], rows, notes)


def _improvements(records: Sequence[Record], selection: str) -> list[Table]:
    agents = list(dict.fromkeys(record.agent for record in records))
    rows = []
    for agent in agents:
        improvement = statistics.improvement(records, selection, agent)
        if improvement:
            rows.append([agent, *("" if other == agent else _cell(improvement[other], 2) for other in agents)])
    note = "Probability that a run of the row's agent scores more than a run of the column's, averaged over tasks."
    return [Table("Probability of improvement", ["", *agents], rows, [note])] if rows else []


def _times(records: Sequence[Record], score: float) -> list[Table]:
    seconds = statistics.seconds_until(records, score)
    timed = {agent for own in seconds.values() for agent in own}
    agents = [agent for agent in dict.fromkeys(record.agent for record in records) if agent in timed]
    rows = [[task, *(_time(own.get(agent, [])) for agent in agents)] for task, own in seconds.items()]
    note = (
        "Median over seeds of the seconds, without evaluations, at a run's first evaluation of that score or more; "
        "seeds trained side by side share their seconds equally."
    )
    return [Table(f"Seconds of training until a score of {score:g}", ["task", *agents], rows, [note])] if rows else []


def _time(seconds: Sequence[float]) -> str:
    if not seconds:
        return "unknown"
    reached, middle = sum(map(math.isfinite, seconds)), median(seconds)
    text = f"{middle:.0f}" if math.isfinite(middle) else "not reached"
    return text if reached in (0, len(seconds)) else f"{text} ({reached} of {len(seconds)} runs)"


def _comparisons(records: Sequence[Record], selection: str) -> list[Table]:
    """A table for each published one: our numbers, then theirs, with marks of differences from our protocol."""
    by_task = statistics.by_task(records, selection)
    agents = list(dict.fromkeys(record.agent for record in records))
    finished, _ = statistics.compared(records)
    result = []
    for source in beside(list(by_task)):
        tasks = [task for task in by_task if any(source.score(method, task) is not None for method in source.methods)]
        common = [task for task in tasks if task in finished]
        columns = [["task", *tasks]]
        for agent in agents:
            where = "run here" if agent.startswith("official-") else "ours"
            columns.append([f"{agent} ({where})", *(_cell(by_task[task].get(agent), interval=False) for task in tasks)])
        if len(common) > 1:
            means = [_cell(_mean([by_task[task][agent] for task in common]), interval=False) for agent in agents]
            for column, last in zip(columns, [f"mean of {len(common)} tasks", *means], strict=True):
                column.append(last)
        groups = [[task] for task in tasks] + [common] * (len(common) > 1)
        methods = [m for m in source.methods if any(source.score(m, task) is not None for task in tasks)]
        columns += [_theirs(source, method, groups, selection) for method in methods]
        head, *rows = ([*row] for row in zip(*columns, strict=True))
        text = "".join(cell for column in columns[1:] for cell in column)
        notes = [source.note(), f"Ours: {_SELECTION_NAMES[selection]}."]
        notes += [f"{mark} {meaning}." for mark, meaning in MARKS.items() if mark in text]
        notes += [_UNFINISHED] if _MARK in text else []
        result.append(Table(f"Beside published numbers: {source.title}", head, rows, notes))
    return result


def _theirs(source: Published, method: str, groups: Sequence[Sequence[str]], selection: str) -> list[str]:
    """A method's column of means over groups of tasks; marks that all of them have stand only in its head."""
    cells: list[tuple[str, set[str]]] = []
    for tasks in groups:
        scores = [score for task in tasks if (score := source.score(method, task)) is not None]
        if len(scores) == len(tasks):
            cells.append(
                (f"{np.mean(scores):.1f}", {mark for t in tasks for mark in source.marks(method, t, selection)})
            )
        else:
            cells.append(("-", set()))
    everywhere = set(MARKS).intersection(*(marks for number, marks in cells if number != "-"))
    head = _marked(f"{method} ", everywhere).strip()
    return [head, *(_marked(number, marks - everywhere) for number, marks in cells)]


def _marked(text: str, marks: set[str]) -> str:
    return text + "".join(mark for mark in MARKS if mark in marks)


def _mean(estimates: Sequence[Estimate]) -> Estimate:
    """The mean over tasks, without an interval."""
    value, unfinished = fmean(each.value for each in estimates), any(each.unfinished for each in estimates)
    return Estimate(value, math.nan, math.nan, min(each.seeds for each in estimates), unfinished)


def _cell(estimate: Estimate | None, decimals: int = 1, *, interval: bool = True) -> str:
    if estimate is None:
        return "not run"
    if math.isnan(estimate.value):
        return "unknown"
    text = f"{estimate.value:.{decimals}f}"
    if interval and not math.isnan(estimate.low):
        text += f" ({estimate.low:.{decimals}f} to {estimate.high:.{decimals}f})"
    return text + (_MARK if estimate.unfinished else "")


def _csv(records: Sequence[Record]) -> str:
    """A line for each run and selection."""
    file = io.StringIO()
    lines = csv.writer(file, lineterminator="\n")
    lines.writerow(["task", "agent", "seed", "selection", "score", "evaluations", "steps", "finished"])
    for record in records:
        for name, select in SELECTIONS.items():
            number = select(record.scores)
            score = "unknown" if math.isnan(number) else repr(round(number, 6))
            values = [record.task, record.agent, record.seed, name, score, len(record.scores), record.steps[-1]]
            lines.writerow([*values, str(not record.unfinished).lower()])
    return file.getvalue()
