"""Comparison of agents: means over seeds with their intervals, and differing settings.

An agent here is a configuration without its seed: two runs of one method with different learning rates are two agents.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any

from gtp_vision.report.run_folder import RunFolder, row_of
from gtp_vision.report.text import known, scalar

MEASURES = ("score", "success", "return")
SELECTIONS = {"last": "Last", "mean_last_3": "Mean of last three", "best": "Best"}
MAX_SETTINGS = 2000  # of one configuration; ours have about two hundred
MAX_DIFFERENCES = 60  # rows of the table
_PER_RUN = ("seed", "run_dir", "data_dir", "training.seeds")  # differ between the seeds of one agent
_MAX_DEPTH = 12
_MAX_LENGTH = 120  # characters of a value
_ABSENT = "–"


@dataclass
class Group:
    """One agent: runs that differ only in their seed."""

    runs: list[RunFolder]  # in the order given
    settings: dict[str, str]  # name to text, of all settings but those of the single run
    label: str = ""  # its name on the page

    @property
    def seeds(self) -> str:
        """The seeds, as text."""
        return ", ".join(str(row_of(run)["seed"]) for run in self.runs)


@dataclass(frozen=True)
class Mean:
    """A mean over seeds (NaN: unknown), and its 95 % interval by Student's t, which takes at least two seeds."""

    value: float
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Comparison:
    """The page's section about several agents."""

    groups: list[Group]  # the agents
    # measure to one row for each group that has it: the group and, for each of `SELECTIONS`, its mean
    tables: dict[str, list[tuple[Group, list[Mean | None]]]] = field(default_factory=dict)
    # settings that are not the same in all groups: name, and each group's text
    differing: list[tuple[str, list[str]]] = field(default_factory=list)
    left_out: int = 0  # how many more settings differ
    intervals: bool = False  # whether any mean has one


def compare(runs: Sequence[RunFolder]) -> Comparison | None:
    """Compare the agents of several runs; None for a single run."""
    if len(runs) < 2:
        return None
    groups: dict[tuple[Any, ...], Group] = {}
    for run in runs:
        settings, row = settings_of(run), row_of(run)
        key = (str(row["agent"]), str(row["encoder"]), tuple(settings.items()))
        groups.setdefault(key, Group([], settings)).runs.append(run)
    agents = list(groups.values())
    names = list(dict.fromkeys(name for group in agents for name in group.settings))
    texts = {name: [group.settings.get(name, _ABSENT) for group in agents] for name in names}
    data = [_data_of(group) for group in agents]
    if len(set(data) - {_ABSENT}) > 1:
        texts["data set (fingerprint)"] = data
    differing = [(name, row) for name, row in texts.items() if len(set(row)) > 1]
    _label(agents, [name for name, _ in differing])
    tables = {measure: rows for measure in MEASURES if (rows := _table(agents, measure))}
    means = [mean for rows in tables.values() for _, row in rows for mean in row if mean]
    return Comparison(
        groups=agents,
        tables=tables,
        differing=differing[:MAX_DIFFERENCES],
        left_out=max(0, len(differing) - MAX_DIFFERENCES),
        intervals=any(mean.low is not None for mean in means),
    )


def _data_of(group: Group) -> str:
    """The fingerprint of a group's data set; that of its seeds differs only if the data were changed: then noted."""
    found = {run.folder: str(data) for run in group.runs if (data := scalar(run.results, "data"))}
    for run in group.runs:
        if len(set(found.values())) > 1 and run.folder in found:
            run.problems.append(f"the seeds were trained on different data: here {found[run.folder][:8]}")
    return ", ".join(dict.fromkeys(text[:32] for text in found.values())) or _ABSENT


def settings_of(run: RunFolder) -> dict[str, str]:
    """Dotted name to text of each setting but for the seed and the folders; at most `MAX_SETTINGS`."""
    settings: dict[str, str] = {}

    def walk(tree: Any, name: str, depth: int) -> None:
        if len(settings) >= MAX_SETTINGS or name in _PER_RUN:
            return
        if isinstance(tree, Mapping) and tree and depth < _MAX_DEPTH:
            for key, value in tree.items():
                walk(value, f"{name}.{key}" if name else str(key), depth + 1)
        else:
            settings[name] = _text(tree) if isinstance(tree, Mapping | list) else str(tree)[:_MAX_LENGTH]

    walk(run.config, "", 0)
    return settings


def mean_of(values: Sequence[float], *, fraction: bool = False) -> Mean:
    """The mean of at least one run's values and its 95 % interval; `fraction` clips it to [0, 1]."""
    mean = math.fsum(values) / len(values)
    if len(values) < 2:
        return Mean(mean)
    from scipy import stats  # slow, and needed only after a training, as is matplotlib

    error = math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (len(values) - 1) / len(values))
    half = float(stats.t.ppf(0.975, len(values) - 1)) * error
    low, high = mean - half, mean + half
    return Mean(mean, max(low, 0.0), min(high, 1.0)) if fraction else Mean(mean, low, high)


def _table(groups: Sequence[Group], measure: str) -> list[tuple[Group, list[Mean | None]]]:
    rows: list[tuple[Group, list[Mean | None]]] = []
    for group in groups:
        results = [_evaluated(run) for run in group.runs]
        values = [[known(scalar(result, selection, measure)) for result in results] for selection in SELECTIONS]
        finite = [[value for value in column if value is not None] for column in values]
        evaluated = [result for result in results if scalar(result, "last", "return") is not None]
        if measure == "success" and not any(finite) and evaluated:
            rows.append((group, [Mean(math.nan) for _ in SELECTIONS]))
        if any(finite):
            # of all seeds or of none: a mean over the finished ones would change as others finish
            complete = [column if len(column) == len(group.runs) else [] for column in finite]
            means = [mean_of(column, fraction=measure == "success") if column else None for column in complete]
            rows.append((group, means))
    return rows


def _evaluated(run: RunFolder) -> Mapping[str, Any]:
    """The run's results; for an unfinished run, computed from its curves."""
    if run.results:
        return run.results
    curves = {key[5:]: points for key, points in run.series.items() if key.startswith("eval/")}
    steps = sorted({step for points in curves.values() for step in points})
    evaluations = [
        {key: number for key, points in curves.items() if (number := known(points.get(step))) is not None}
        for step in steps
    ]
    if not evaluations:
        return {}
    recent = evaluations[-3:]
    means = {key: fmean(e[key] for e in recent) for key in curves if all(key in e for e in recent)}
    best = max(evaluations, key=lambda evaluation: [evaluation.get(measure, -math.inf) for measure in MEASURES])
    return {"last": evaluations[-1], "mean_last_3": means, "best": best}


def _label(groups: Sequence[Group], differing: Sequence[str]) -> None:
    """Give each group a unique label: its agent, and settings that distinguish it from others of that agent."""
    agents = [str(row_of(group.runs[0])["agent"]) for group in groups]
    for group, agent in zip(groups, agents, strict=True):
        group.label = agent
        namesakes = [other for other, name in zip(groups, agents, strict=True) if name == agent]
        if len(namesakes) > 1:
            names = [name for name in differing if len({other.settings.get(name) for other in namesakes}) > 1]
            texts = [f"{name.rpartition('.')[2]}={group.settings.get(name, _ABSENT)}" for name in names[:2]]
            group.label += f" ({', '.join(texts) or group.runs[0].folder.name})"


def _text(tree: Any) -> str:
    """A list, or a tree that is nested too deep, as one line of limited length."""
    if isinstance(tree, list) and all(not isinstance(value, list | Mapping) for value in tree[:_MAX_LENGTH]):
        text = f"[{', '.join(str(value)[:_MAX_LENGTH] for value in tree[:_MAX_LENGTH])}]"
        return text if len(text) <= _MAX_LENGTH else text[:_MAX_LENGTH] + "…"
    return "…" if tree else str(tree)
