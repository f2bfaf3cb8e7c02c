"""Runs of one configuration and several seeds as one agent: its means with their intervals, and its settings.

An agent here is a configuration without its seed: two runs of one method whose learning rates differ are two agents.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from scipy import stats

from gtp_vision.report.run_folder import RunFolder, row_of
from gtp_vision.report.text import known, scalar

MEASURES = ("score", "success", "return")
SELECTIONS = {"last": "Last", "mean_last_3": "Mean of last three", "best": "Best"}
MAX_SETTINGS = 2000  # of one configuration; ours have some two hundred
MAX_DIFFERENCES = 60  # rows of the table
_OWN = ("seed", "run_dir", "data_dir", "training.seeds")  # differ between the seeds of one agent
_DEEPEST = 12
_LONGEST = 120  # characters of a value
_ABSENT = "–"


@dataclass
class Group:
    """One agent: the runs that differ in nothing but their seed.

    Attributes:
        runs: in the order given.
        settings: name to text, of all settings but those of the single run.
        label: its name on the page.
    """

    runs: list[RunFolder]
    settings: dict[str, str]
    label: str = ""

    @property
    def seeds(self) -> str:
        """The seeds, as text."""
        return ", ".join(str(row_of(run)["seed"]) for run in self.runs)


@dataclass(frozen=True)
class Mean:
    """A mean over seeds, and its 95 % interval by Student's t, which takes at least two seeds."""

    value: float
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Comparison:
    """What the page says of several agents.

    Attributes:
        groups: the agents.
        tables: measure to one row for each group that has it: the group and, for each of `SELECTIONS`, its mean.
        differing: settings that are not the same in all groups: name, and each group's text.
        left_out: how many more settings differ.
        intervals: whether any mean has one.
    """

    groups: list[Group]
    tables: dict[str, list[tuple[Group, list[Mean | None]]]] = field(default_factory=dict)
    differing: list[tuple[str, list[str]]] = field(default_factory=list)
    left_out: int = 0
    intervals: bool = False


def compare(runs: Sequence[RunFolder]) -> Comparison | None:
    """Agents side by side; None where there is one run alone, of which the summary says everything."""
    if len(runs) < 2:
        return None
    groups: dict[tuple[Any, ...], Group] = {}
    for run in runs:
        settings = settings_of(run)
        row = row_of(run)
        key = (str(row["agent"]), str(row["encoder"]), tuple(settings.items()))
        groups.setdefault(key, Group([], settings)).runs.append(run)
    found = Comparison(list(groups.values()))
    names = list(dict.fromkeys(name for group in found.groups for name in group.settings))
    texts = {name: [group.settings.get(name, _ABSENT) for group in found.groups] for name in names}
    differing = [(name, row) for name, row in texts.items() if len(set(row)) > 1]
    _name(found.groups, [name for name, _ in differing])
    tables = {measure: _table(found.groups, measure) for measure in MEASURES}
    tables = {measure: rows for measure, rows in tables.items() if rows}
    means = [mean for rows in tables.values() for _, row in rows for mean in row if mean]
    return Comparison(
        groups=found.groups,
        tables=tables,
        differing=differing[:MAX_DIFFERENCES],
        left_out=max(0, len(differing) - MAX_DIFFERENCES),
        intervals=any(mean.low is not None for mean in means),
    )


def settings_of(run: RunFolder) -> dict[str, str]:
    """Dotted name to text of each setting, but for those of the single run; at most `MAX_SETTINGS`."""
    found: dict[str, str] = {}

    def walk(tree: Any, name: str, depth: int) -> None:
        if len(found) >= MAX_SETTINGS or name in _OWN:
            return
        if isinstance(tree, Mapping) and tree and depth < _DEEPEST:
            for key, value in tree.items():
                walk(value, f"{name}.{key}" if name else str(key), depth + 1)
        elif isinstance(tree, Mapping | list):
            found[name] = _text(tree)
        else:
            found[name] = str(tree)[:_LONGEST]

    walk(run.config, "", 0)
    return found


def mean_of(values: Sequence[float], *, fraction: bool = False) -> Mean:
    """The mean and its 95 % interval over independent runs.

    Args:
        values: one a run, at least one.
        fraction: values lie between 0 and 1, and so does the interval.
    """
    mean = math.fsum(values) / len(values)
    if len(values) < 2:
        return Mean(mean)
    error = math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (len(values) - 1) / len(values))
    half = float(stats.t.ppf(0.975, len(values) - 1)) * error
    low, high = mean - half, mean + half
    return Mean(mean, max(low, 0.0), min(high, 1.0)) if fraction else Mean(mean, low, high)


def _table(groups: Sequence[Group], measure: str) -> list[tuple[Group, list[Mean | None]]]:
    rows = []
    for group in groups:
        found = [_evaluated(run) for run in group.runs]
        values = [[known(scalar(one, selection, measure)) for one in found] for selection in SELECTIONS]
        finite = [[value for value in column if value is not None] for column in values]
        if any(finite):
            # of all seeds or of none: a mean over those that have ended would change as others end
            whole = [column if len(column) == len(group.runs) else [] for column in finite]
            means = [mean_of(column, fraction=measure == "success") if column else None for column in whole]
            rows.append((group, means))
    return rows


def _evaluated(run: RunFolder) -> Mapping[str, Any]:
    """The run's results; of an unfinished one the same from its curves, as far as they go."""
    if run.results:
        return run.results
    curves = {key[5:]: points for key, points in run.series.items() if key.startswith("eval/")}
    steps = sorted({step for points in curves.values() for step in points})
    each = [
        {key: number for key, points in curves.items() if (number := known(points.get(step))) is not None}
        for step in steps
    ]
    if not each:
        return {}
    recent = each[-3:]
    means = {
        key: math.fsum(one[key] for one in recent) / len(recent) for key in curves if all(key in one for one in recent)
    }
    best = max(each, key=lambda one: tuple(one.get(measure, -math.inf) for measure in MEASURES))
    return {"last": each[-1], "mean_last_3": means, "best": best}


def _name(groups: Sequence[Group], differing: Sequence[str]) -> None:
    """Give each group a label of its own: the agent's, and what tells it from others of that name."""
    agents = [str(row_of(group.runs[0])["agent"]) for group in groups]
    for group, agent in zip(groups, agents, strict=True):
        group.label = agent
        namesakes = [other for other, name in zip(groups, agents, strict=True) if name == agent]
        if len(namesakes) > 1:
            apart = [name for name in differing if len({other.settings.get(name) for other in namesakes}) > 1]
            told = [f"{name.rpartition('.')[2]}={group.settings.get(name, _ABSENT)}" for name in apart[:2]]
            group.label += f" ({', '.join(told) or group.runs[0].folder.name})"


def _text(tree: Any) -> str:
    """A list (or what is nested too deep) in one line, cut."""
    if isinstance(tree, list) and all(not isinstance(value, list | Mapping) for value in tree[:_LONGEST]):
        text = f"[{', '.join(str(value)[:_LONGEST] for value in tree[:_LONGEST])}]"
        return text if len(text) <= _LONGEST else text[:_LONGEST] + "…"
    return "…" if tree else str(tree)
