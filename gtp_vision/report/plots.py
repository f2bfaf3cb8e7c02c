"""The curves of the page, and the labels, colors and dashes of its runs."""

from __future__ import annotations

import io
import math
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from markupsafe import Markup

from gtp_vision.report.run_folder import RunFolder, row_of

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MAX_POINTS = 400  # of one curve: about one a pixel
COLORS = ("#3b7dd8", "#d9730d", "#1f9d6b", "#b74fa3", "#7a6ae0", "#c4504a", "#1296a8", "#8d7b3f")
DASHES: tuple[tuple[float, ...], ...] = ((), (4, 1.6), (1.2, 1.4), (6, 1.6, 1.2, 1.6))
METERS = {  # in another section than their names say
    "time/data_share": "health/waiting_for_data",
    "seconds": "time/seconds",
    "eval/seconds": "time/eval_seconds",
}
_BESIDE = "_training"  # of the name of the same measure of what was trained on
_WIDTH, _HEIGHT = 3.5, 1.85  # inches
_DIGIT = 4.8  # points, of the font's size below
INK = "#0a0b0c"  # a placeholder for the page's text color, which the browser chooses
STYLE: dict[Any, Any] = {
    **dict.fromkeys(("axes.edgecolor", "grid.color", "xtick.color", "ytick.color"), INK),
    **dict.fromkeys(("axes.spines.left", "axes.spines.right", "axes.spines.top"), False),
    **dict.fromkeys(("xtick.major.size", "ytick.major.size"), 0),
    **{"axes.axisbelow": True, "axes.grid": True, "axes.grid.axis": "y", "grid.alpha": 0.12, "grid.linewidth": 0.6},
    **{"axes.linewidth": 0.4, "axes.formatter.limits": (-3, 4), "axes.formatter.useoffset": False},
    **{"font.size": 7.5, "svg.fonttype": "none"},  # text remains text in the page's font
    **{"svg.hashsalt": "report"},  # the same numbers give the same file
}


def set_styles(runs: Sequence[RunFolder]) -> None:
    """Give each run its label, the color of its agent and the dashes of its seed."""
    names = [(str(row["agent"]), str(row["seed"])) for row in map(row_of, runs)]
    agents, seeds = (list(dict.fromkeys(column)) for column in zip(*names, strict=True))
    for run, (agent, seed) in zip(runs, names, strict=True):
        run.label = f"{agent}, seed {seed}" + f" ({run.folder.name})" * (names.count((agent, seed)) > 1)
        run.color = COLORS[agents.index(agent) % len(COLORS)]
        run.dash = DASHES[(seeds.index(seed) + agents.index(agent) // len(COLORS)) % len(DASHES)]


def keys_of(runs: Sequence[RunFolder]) -> list[str]:
    """All logged metrics, in the order of logging."""
    return list(dict.fromkeys(key for run in runs for key in run.series))


def panels_of(runs: Sequence[RunFolder]) -> dict[str, list[dict[str, Any]]]:
    """A panel for each metric with a curve, by its key's part before the slash: evaluation, validation, the others."""
    import matplotlib.style
    from matplotlib.figure import Figure
    from matplotlib.ticker import EngFormatter, MaxNLocator

    groups: dict[str, list[dict[str, Any]]] = {"eval": [], "valid": []}
    end = max((step for run in runs for points in run.series.values() for step in points), default=0)
    keys = keys_of(runs)
    with matplotlib.style.context(["default", STYLE]):  # whatever the user's matplotlibrc says
        figure = Figure(figsize=(_WIDTH, _HEIGHT))  # of all panels: to make one takes longer than to draw it
        axes = figure.add_subplot()
        axes.set_xlim(0, max(end, 1) * 1.02)
        axes.xaxis.set_major_locator(MaxNLocator(4, steps=[1, 2, 5, 10], integer=True))
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))
        for key in keys:
            if key.endswith(_BESIDE) and key.removesuffix(_BESIDE) in keys:
                continue  # in the panel of the other
            values = [list(run.series.get(key, {}).values()) for run in runs]
            if max(map(len, values)) > 1:
                group, _, name = METERS.get(key, key).rpartition("/")
                holes = sum(not math.isfinite(value) for row in values for value in row)
                title = name + ", thin: on trained episodes" * (key + _BESIDE in keys)
                panel = {"name": title, "holes": holes, "svg": _draw(figure, key, runs)}
                groups.setdefault(group or "other", []).append(panel)
    return {group: panels for group, panels in groups.items() if panels}


def _draw(figure: Figure, key: str, runs: Sequence[RunFolder]) -> Markup:
    """One metric over training steps, a curve for each run, as an SVG in the page's text color.

    It contains no text but numbers, which is why it may skip the escaping.
    """
    from matplotlib.ticker import FixedLocator, MaxNLocator

    (axes,) = figure.axes
    for line in [*axes.lines]:
        line.remove()
    for run, name, width in ((run, *line) for run in runs for line in ((key, 1.2), (key + _BESIDE, 0.6))):
        points = np.array(sorted(run.series.get(name, {}).items())).reshape(-1, 2)
        if len(points) > MAX_POINTS:
            points = np.array([part.mean(axis=0) for part in np.array_split(points, MAX_POINTS)])
        axes.plot(
            *points.T,
            color=run.color,
            linestyle=(0, run.dash) if run.dash else "-",
            linewidth=width,
            marker="o" if len(points) <= 20 else "",
            markersize=2.4,
        )
    if key.endswith("success"):  # a fixed scale for rates
        axes.yaxis.set_major_locator(FixedLocator([0, 0.25, 0.5, 0.75, 1]))
        axes.set_ylim(-0.04, 1.04)
    else:
        axes.yaxis.set_major_locator(MaxNLocator(4, steps=[1, 2, 2.5, 5, 10]))
        axes.relim()
        axes.autoscale(axis="y")
    # Matplotlib's layouts draw everything once more, to measure a text that the browser sets in another font
    numbers = axes.yaxis.get_major_formatter().format_ticks(axes.yaxis.get_majorticklocs().tolist())
    left = (5 + _DIGIT * max(map(len, numbers))) / 72 / _WIDTH
    axes.set_position((left, 0.13, 0.97 - left, 0.77))
    text = re.sub(r'<g id="[^"]*"', "<g", svg(figure))  # the same in every picture, and unused
    return Markup(text.replace(INK, "currentColor"))


def svg(figure: Figure) -> str:
    """The figure as an SVG element without a date: the same figure gives the same text."""
    file = io.StringIO()
    metadata = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    figure.savefig(file, format="svg", transparent=True, metadata=metadata)
    text = file.getvalue()
    return text[text.index("<svg") :]
