"""The page of a suite: its tables, learning curves and performance profiles in one self-contained HTML file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import matplotlib as mpl
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter

from gtp_vision.core import html
from gtp_vision.report.plots import svg
from gtp_vision.suites import statistics
from gtp_vision.suites.records import Record

if TYPE_CHECKING:
    from gtp_vision.suites.tables import Table

_COLUMNS = 3
_COLORS = ("#3b6fb6", "#d1742b", "#3f9142", "#b0413e", "#7d5ba6", "#8a6d3b", "#c25c98", "#6b7280", "#3aa6a6")


def page(
    records: Sequence[Record],
    tables: Sequence[Table],
    *,
    title: str,
    facts: Mapping[str, str],
    selection: str,
    missing: Sequence[str],
) -> str:
    """The page as HTML; arguments as in `tables.write`."""
    template = html.environment(Path(__file__).parent).get_template("results.html.j2")
    pictures = {"curves": Markup(curves(records)), "profile": Markup(profile(records, selection))}
    return template.render(title=title, facts=facts, missing=missing, tables=tables, **pictures)


def curves(records: Sequence[Record]) -> str:
    """Score against gradient steps, a panel for each task, as SVG."""
    tasks = statistics.curves(records)
    agents = list(dict.fromkeys(record.agent for record in records))
    columns = min(_COLUMNS, len(tasks))
    rows = -(-len(tasks) // columns)
    figure = Figure(figsize=(max(6.4, 4.2 * columns), 2.9 * rows + 0.4), layout="constrained")
    for index, (task, lines) in enumerate(tasks.items(), 1):
        axes = figure.add_subplot(rows, columns, index)
        for agent, (steps, mean, low, high) in lines.items():
            color = _COLORS[agents.index(agent) % len(_COLORS)]
            axes.plot(steps, mean, color=color, label=agent, linewidth=1.6, marker="o", markersize=2.5)
            axes.fill_between(steps, low, high, color=color, alpha=0.15, linewidth=0)
        axes.set_title(task, fontsize=8)
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))
        _style(axes)
    figure.supxlabel("gradient steps", fontsize=8)
    figure.supylabel("score", fontsize=8)
    legends = [axes.get_legend_handles_labels() for axes in figure.axes]
    handles = {label: handle for legend in legends for handle, label in zip(*legend, strict=True)}
    ncols = min(len(handles), max(5, 3 * columns))
    figure.legend(handles.values(), handles.keys(), loc="outside upper left", ncols=ncols, frameon=False, fontsize=8)
    return _svg(figure)


def profile(records: Sequence[Record], selection: str) -> str:
    """The share of runs over all tasks above each score, as SVG; empty if there is nothing to compare."""
    scores, shares = statistics.profiles(records, selection)
    if not shares:
        return ""
    figure = Figure(figsize=(6.2, 3.4), layout="constrained")
    axes = figure.add_subplot()
    for index, (agent, (value, low, high)) in enumerate(shares.items()):
        color = _COLORS[index % len(_COLORS)]
        axes.plot(scores, value, color=color, label=agent, linewidth=1.6)
        axes.fill_between(scores, low, high, color=color, alpha=0.12, linewidth=0)
    axes.set_xlabel("score", fontsize=8)
    axes.set_ylabel("share of runs above", fontsize=8)
    _style(axes)
    axes.legend(frameon=False, fontsize=8)
    return _svg(figure)


def _style(axes: Axes) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=7)
    axes.grid(alpha=0.2)


def _svg(figure: Figure) -> str:
    with mpl.rc_context({"svg.hashsalt": "gtp-vision", "svg.fonttype": "none", "font.family": "sans-serif"}):
        return svg(figure)
