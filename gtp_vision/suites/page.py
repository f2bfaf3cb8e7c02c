"""The page of a suite: its tables, learning curves and performance profiles in one file that needs no network."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import matplotlib as mpl
from markupsafe import Markup
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter

from gtp_vision.core import html
from gtp_vision.suites import statistics
from gtp_vision.suites.records import Record

if TYPE_CHECKING:
    from gtp_vision.suites.tables import Table

_COLUMNS = 3
_COLOURS = ("#3b6fb6", "#d1742b", "#3f9142", "#b0413e", "#7d5ba6", "#8a6d3b", "#c25c98", "#6b7280", "#3aa6a6")


def page(
    records: Sequence[Record],
    tables: Sequence[Table],
    *,
    title: str,
    facts: Mapping[str, str],
    selection: str,
    missing: Sequence[str],
) -> str:
    """The page as HTML; arguments as `tables.write`."""
    return (
        html.environment(Path(__file__).parent)
        .get_template("results.html.j2")
        .render(
            title=title,
            facts=facts,
            missing=missing,
            tables=tables,
            curves=Markup(curves(records)),
            profile=Markup(profile(records, selection)),
        )
    )


def curves(records: Sequence[Record]) -> str:
    """Score against gradient steps, a panel for each task, as SVG."""
    found = statistics.curves(records)
    agents = list(dict.fromkeys(record.agent for record in records))
    columns = min(_COLUMNS, len(found))
    rows = -(-len(found) // columns)
    figure = Figure(figsize=(max(6.4, 4.2 * columns), 2.9 * rows + 0.4), layout="constrained")
    for index, (task, lines) in enumerate(found.items(), 1):
        axes = figure.add_subplot(rows, columns, index)
        for agent, (steps, mean, low, high) in lines.items():
            colour = _COLOURS[agents.index(agent) % len(_COLOURS)]
            axes.plot(steps, mean, color=colour, label=agent, linewidth=1.6, marker="o", markersize=2.5)
            axes.fill_between(steps, low, high, color=colour, alpha=0.15, linewidth=0)
        axes.set_title(task, fontsize=8)
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))
        _plain(axes)
    figure.supxlabel("gradient steps", fontsize=8)
    figure.supylabel("score", fontsize=8)
    told = [axes.get_legend_handles_labels() for axes in figure.axes]
    handles = {label: handle for of in told for handle, label in zip(*of, strict=True)}
    ncols = min(len(handles), max(5, 3 * columns))  # as many as fit
    figure.legend(handles.values(), handles.keys(), loc="outside upper left", ncols=ncols, frameon=False, fontsize=8)
    return _svg(figure)


def profile(records: Sequence[Record], selection: str) -> str:
    """The share of runs, over all tasks, that score more than so much, as SVG; empty if there is nothing to compare."""
    at, found = statistics.profiles(records, selection)
    if not found:
        return ""
    figure = Figure(figsize=(6.2, 3.4), layout="constrained")
    axes = figure.add_subplot()
    for index, (agent, (value, low, high)) in enumerate(found.items()):
        colour = _COLOURS[index % len(_COLOURS)]
        axes.plot(at, value, color=colour, label=agent, linewidth=1.6)
        axes.fill_between(at, low, high, color=colour, alpha=0.12, linewidth=0)
    axes.set_xlabel("score", fontsize=8)
    axes.set_ylabel("share of runs above", fontsize=8)
    _plain(axes)
    axes.legend(frameon=False, fontsize=8)
    return _svg(figure)


def _plain(axes: object) -> None:
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)  # type: ignore[attr-defined]
    axes.tick_params(labelsize=7)  # type: ignore[attr-defined]
    axes.grid(alpha=0.2)  # type: ignore[attr-defined]


def _svg(figure: Figure) -> str:
    """Without anything that differs from one time to the next."""
    file = io.StringIO()
    with mpl.rc_context({"svg.hashsalt": "gtp-vision", "svg.fonttype": "none", "font.family": "sans-serif"}):
        figure.savefig(
            file, format="svg", transparent=True, metadata=dict.fromkeys(("Creator", "Date", "Format", "Type"))
        )
    text = file.getvalue()
    return text[text.index("<svg") :]
