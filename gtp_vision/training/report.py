"""The report: what some runs learned, as one HTML file that needs no network, no script and no server.

Run folders may come from strangers and may be unfinished. So every text reaches the page through
Jinja's escaping, the curves hold no text but numbers, a link that leaves its run folder is not
followed, and what is missing or damaged is said on the page instead of stopping it.
"""

from __future__ import annotations

import base64
import io
import json
import math
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Any

import jinja2
import matplotlib.style
import numpy as np
import yaml
from markupsafe import Markup
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, MaxNLocator

from gtp_vision.config import agent_label
from gtp_vision.errors import GtpVisionError
from gtp_vision.training.insight import SALIENCY

MAX_MEGABYTES = 8  # of one video or picture: the page should still go through a mail
MAX_VIDEOS = 4  # of one run
MAX_POINTS = 400  # of one curve: about one a pixel
COLOURS = ("#3b7dd8", "#d9730d", "#1f9d6b", "#b74fa3", "#7a6ae0", "#c4504a", "#1296a8", "#8d7b3f")
DASHES: tuple[tuple[float, ...], ...] = ((), (4, 1.6), (1.2, 1.4), (6, 1.6, 1.2, 1.6))
METERS = {"seconds": "time/seconds", "eval/seconds": "time/eval_seconds"}  # shown with the other times
INK = "#0a0b0c"  # stands in the curves for the page's text colour, which the reader's browser chooses
STYLE: dict[Any, Any] = {
    **dict.fromkeys(("axes.edgecolor", "grid.color", "xtick.color", "ytick.color"), INK),
    **dict.fromkeys(("axes.spines.left", "axes.spines.right", "axes.spines.top"), False),
    **dict.fromkeys(("xtick.major.size", "ytick.major.size"), 0),
    **{"axes.grid": True, "axes.grid.axis": "y", "grid.alpha": 0.12, "grid.linewidth": 0.6},
    **{"axes.linewidth": 0.4, "axes.formatter.limits": (-3, 4), "axes.formatter.useoffset": False},
    **{"font.size": 7.5, "svg.fonttype": "none"},  # text stays text and takes the page's font
    **{"svg.hashsalt": "report"},  # the same numbers give the same file
}

Series = dict[str, dict[float, float]]  # key -> step -> value, NaN where it was not finite


@dataclass
class Run:
    """One run folder as it was read: what was asked, what came out, what is wanting, and how it is drawn."""

    folder: Path
    config_text: str
    config: Any
    results: Mapping[str, Any] = field(default_factory=dict)
    series: Series = field(default_factory=dict)
    wanting: list[str] = field(default_factory=list)
    label: str = ""
    colour: str = ""
    dash: tuple[float, ...] = ()

    @property
    def made_with(self) -> list[tuple[str, str]]:
        """The device and the packages with their versions, as names and texts."""
        versions = self.results.get("versions")
        named = {"device": self.results.get("device"), **(versions if isinstance(versions, Mapping) else {})}
        return [(str(name), str(value)) for name, value in named.items() if value is not None]


def build_report(
    runs: Sequence[Path],
    out: Path,
    *,
    title: str,
    baselines: Sequence[Mapping[str, Any]] = (),
    notes: Sequence[str] = (),
) -> Path:
    """Write one self-contained HTML file about finished or unfinished run folders; return its path.

    `baselines` are rows for the table that come from no run folder, shaped like a `results.json`;
    `notes` are sentences shown under the table. The file is written aside and renamed into place.
    A folder of several seeds stands for their runs.
    Raises `GtpVisionError` when no run is given, a folder is missing or is no run, or `out` is a folder.
    """
    if not runs:
        raise GtpVisionError("The report was given no run folder; name at least one.")
    if out.is_dir():
        raise GtpVisionError(f"The report cannot be written to {out}, which is a folder; give a file name.")
    read = [_read_run(member) for folder in runs for member in _members(folder)]
    _tell_apart(read)
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"get": _scalar, "number": _number, "percent": _percent}
    environment.filters |= {"decimals": _decimals, "interval": _interval, "median": _median}
    videos = [(run, *_videos(run)) for run in read]  # before rendering: it may add to what is wanting
    pictures = _pictures(read, "first_batch", wanted="picture of the first batch")
    augmented = _pictures(read, "augmentation")
    rows = [_row(run) for run in read]
    rows += [{"eval_seconds": _scalar(row, "last", "seconds"), **row, "run": None} for row in baselines]
    page = environment.get_template("report.html.j2").render(
        title=title,
        runs=read,
        rows=rows,
        dates=sorted({_date(run) for run in read}),
        notes=notes,
        videos=videos,
        pictures=pictures,
        augmented=augmented,
        probes=[probe for run in read for probe in _probes(run)],
        unprobed=[(run, note) for run in read if (note := _scalar(run.results, "probe", "note"))],
        panels=_panels(read),
        meters=[key for key in _keys(read) if key.startswith("time/") or key == "eval/seconds"],
        max_points=MAX_POINTS,
    )
    out.parent.mkdir(parents=True, exist_ok=True)
    aside = out.with_name(f".{out.name}.{os.getpid()}")
    try:
        aside.write_text(page, encoding="utf-8", errors="replace")  # JSON may hold half a surrogate pair
        aside.replace(out)
    finally:
        aside.unlink(missing_ok=True)
    return out


# Reading


def _members(folder: Path) -> list[Path]:
    """The run folders in a folder of seeds that were trained side by side; of any other, itself."""
    inside = [config.parent for config in folder.glob("seed_*/config.yaml")]
    if not inside or (folder / "metrics.jsonl").exists():
        return [folder]
    return sorted(inside, key=lambda run: (len(run.name), run.name))


def _read_run(folder: Path) -> Run:
    """Read a run folder's texts, and note what an unfinished or damaged run lacks."""
    if not folder.is_dir():
        raise GtpVisionError(f"There is no run folder {folder}; give one that `gtp-vision train` wrote.")
    if not (config := _file(folder, "config.yaml")):
        raise GtpVisionError(f"{folder} is no run folder, it has no config.yaml; give one that has.")
    text = config.read_text(encoding="utf-8", errors="replace")
    try:
        run = Run(folder, text, yaml.safe_load(text))
    except (yaml.YAMLError, ValueError, RecursionError):
        raise GtpVisionError(f"{config} is damaged YAML; restore it, or leave this run out.") from None
    if metrics := _file(folder, "metrics.jsonl"):
        run.series, damaged = _read_metrics(metrics)
        if damaged:
            run.wanting.append(f"{damaged} damaged line(s) of metrics.jsonl skipped")
    else:
        run.wanting.append("no metrics.jsonl")
    if results := _file(folder, "results.json"):
        run.results = _json_object(results.read_text(encoding="utf-8", errors="replace"))
    if not run.results:
        run.wanting.append("results.json is damaged" if results else "not finished (no results.json)")
    return run


def _file(folder: Path, name: str | Path) -> Path | None:
    """A file of the run, or None. A link out of the run is none: the page would publish what it points to."""
    path = folder / name
    return path if path.is_file() and path.resolve().is_relative_to(folder.resolve()) else None


def _json_object(text: str) -> dict[str, Any]:
    """The JSON object in `text`; an empty one when it is damaged or something else."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def _read_metrics(path: Path) -> tuple[Series, int]:
    """Every scalar of metrics.jsonl, and the number of damaged lines.

    A resumed run logs some steps twice; the later line counts.
    """
    series: Series = {}
    damaged = 0
    with path.open(encoding="utf-8", errors="replace") as lines:
        for line in filter(str.strip, lines):
            record = _json_object(line)
            step = _finite(record.pop("step", None))
            if step is None:
                damaged += 1
                continue
            for key, value in record.items():
                number = _finite(value)
                if number is not None or value is None or isinstance(value, float):
                    series.setdefault(key, {})[step] = math.nan if number is None else number
    return series, damaged


def _embed(run: Run, path: Path, kind: str, ending: bytes) -> str:
    """The file as a data address; an empty one, with the reason noted, when it is too large or damaged."""
    megabytes = path.stat().st_size / 2**20
    if megabytes > MAX_MEGABYTES:
        run.wanting.append(f"{path.name} left out: {megabytes:.1f} MB, the limit is {MAX_MEGABYTES} MB")
    elif ending not in (data := path.read_bytes()):
        run.wanting.append(f"{path.name} left out: the file is damaged")
    else:
        return f"data:{kind};base64,{base64.b64encode(data).decode()}"
    return ""


def _videos(run: Run) -> tuple[str, list[dict[str, str]], list[dict[str, str]]]:
    """The last step with videos; a few of them, successes and failures both where there are both; those of saliency."""
    names = [path.relative_to(run.folder) for path in run.folder.glob("videos/step_*/*.mp4")]
    names = [name for name in names if name.parts[1][5:].isdecimal() and _file(run.folder, name)]
    step = max((name.parts[1][5:] for name in names), key=int, default="")
    kept: dict[str, list[dict[str, str]]] = {"success": [], "failure": [], "": [], SALIENCY: []}
    for name in sorted(name for name in names if name.parts[1][5:] == step):
        match = re.fullmatch(rf"episode_0*(\d+)_(success|failure)({SALIENCY})?", name.stem)
        outcome = match[2] if match else ""
        title = f"episode {match[1]}" if match else name.stem
        kind = SALIENCY if match and match[3] else outcome
        if len(kept[kind]) == MAX_VIDEOS:
            continue
        if address := _embed(run, run.folder / name, "video/mp4", b"moov"):
            kept[kind].append({"title": title, "outcome": outcome, "address": address})
    if not step:
        run.wanting.append("no videos")
    wins, losses = kept["success"], kept["failure"]
    chosen = wins[: max(MAX_VIDEOS // 2, MAX_VIDEOS - len(losses))] + losses + kept[""]
    return step, chosen[:MAX_VIDEOS], kept[SALIENCY]


def _pictures(runs: Sequence[Run], name: str, wanted: str = "") -> dict[str, list[Run]]:
    """The runs' pictures of that name as data addresses, each once, with the runs that have it.

    A run without one lacks what `wanted` says, or nothing.
    """
    pictures: dict[str, list[Run]] = {}
    for run in runs:
        if not (path := _file(run.folder, f"images/{name}.png")):
            run.wanting += [f"no {wanted}"] * bool(wanted)
        elif address := _embed(run, path, "image/png", b"IEND"):
            pictures.setdefault(address, []).append(run)
    return pictures


def _probes(run: Run) -> list[dict[str, Any]]:
    """R^2 of each state that was probed, before and after training."""
    probe = run.results.get("probe")
    before, after = (probe.get(key) if isinstance(probe, Mapping) else None for key in ("before", "after"))
    states = [state for found in (after, before) if isinstance(found, Mapping) for state in found]
    return [
        {"run": run, "state": state, "before": _scalar(before, state), "after": _scalar(after, state)}
        for state in dict.fromkeys(states)
    ]


def _row(run: Run) -> dict[str, Any]:
    """The run's row of the table; of an unfinished run, what it has logged so far."""
    return {
        "agent": agent_label(run.config) or run.folder.name,
        "encoder": _scalar(run.config, "encoder", "name"),
        "seed": _scalar(run.config, "seed"),
        "steps": max((step for points in run.series.values() for step in points), default=None),
        "last": {key[5:]: run.series[key][max(run.series[key])] for key in run.series if key[:5] == "eval/"},
        "eval_seconds": sum(run.series.get("eval/seconds", {}).values()) or None,
        **run.results,
        "run": run,
    }


def _date(run: Run) -> str:
    """The day of the results, or else of the newest of the run's files."""
    if date := _scalar(run.results, "date"):
        return str(date)[:10]
    files = (_file(run.folder, name) for name in ("config.yaml", "metrics.jsonl", "results.json"))
    newest = max(file.stat().st_mtime for file in files if file)
    return datetime.fromtimestamp(newest, UTC).date().isoformat()


# Drawing


def _tell_apart(runs: Sequence[Run]) -> None:
    """Give each run its label, the colour of its agent and the dashes of its seed."""
    names = [tuple(str(_row(run)[key]) for key in ("agent", "seed")) for run in runs]
    agents, seeds = (list(dict.fromkeys(column)) for column in zip(*names, strict=True))
    for run, (agent, seed) in zip(runs, names, strict=True):
        run.label = f"{agent}, seed {seed}" + f" ({run.folder.name})" * (names.count((agent, seed)) > 1)
        run.colour = COLOURS[agents.index(agent) % len(COLOURS)]
        run.dash = DASHES[(seeds.index(seed) + agents.index(agent) // len(COLOURS)) % len(DASHES)]


def _keys(runs: Sequence[Run]) -> list[str]:
    """Every metric that some run logged, in the order of logging."""
    return list(dict.fromkeys(key for run in runs for key in run.series))


def _panels(runs: Sequence[Run]) -> dict[str, list[dict[str, Any]]]:
    """One panel per metric with a curve, by the part of its key before the slash, evaluation first."""
    groups: dict[str, list[dict[str, Any]]] = {"eval": []}
    end = max((step for run in runs for points in run.series.values() for step in points), default=0)
    for key in _keys(runs):
        values = [list(run.series.get(key, {}).values()) for run in runs]
        if max(map(len, values)) > 1:
            group, _, name = METERS.get(key, key).rpartition("/")
            holes = sum(not math.isfinite(value) for row in values for value in row)
            panel = {"name": name, "holes": holes, "svg": _draw(key, runs, end)}
            groups.setdefault(group or "other", []).append(panel)
    return {group: panels for group, panels in groups.items() if panels}


def _draw(key: str, runs: Sequence[Run], end: float) -> Markup:
    """One metric over training steps, a curve a run, as an SVG in the page's own text colour.

    The picture's only text is numbers made here, which is why it may skip the escaping.
    """
    file = io.StringIO()
    with matplotlib.style.context(["default", STYLE]):  # the reader's own matplotlibrc does not count
        figure = Figure(figsize=(3.5, 1.85), layout="constrained")
        axes = figure.add_subplot(axisbelow=True)
        for run in runs:
            points = np.array(sorted(run.series.get(key, {}).items())).reshape(-1, 2)
            if len(points) > MAX_POINTS:
                points = np.array([part.mean(axis=0) for part in np.array_split(points, MAX_POINTS)])
            axes.plot(
                *points.T,
                color=run.colour,
                linestyle=(0, run.dash) if run.dash else "-",
                linewidth=1.2,
                marker="o" if len(points) <= 20 else "",
                markersize=2.4,
            )
        axes.yaxis.set_major_locator(MaxNLocator(4, steps=[1, 2, 2.5, 5, 10]))
        if key.endswith("success"):  # on a scale of its own a rate would look like more than it is
            axes.set(ylim=(-0.04, 1.04), yticks=(0, 0.25, 0.5, 0.75, 1))
        axes.set_xlim(0, max(end, 1) * 1.02)
        axes.xaxis.set_major_locator(MaxNLocator(4, steps=[1, 2, 5, 10], integer=True))
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))
        nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        figure.savefig(file, format="svg", transparent=True, metadata=nothing)
    svg = file.getvalue()
    svg = re.sub(r'<g id="[^"]*"', "<g", svg[svg.index("<svg") :])  # the same in every picture, and unused
    return Markup(svg.replace(INK, "currentColor"))


# Telling


def _finite(value: Any) -> float | None:
    """The number, or None for everything that cannot be drawn: not finite, beyond 1e100, or no number."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < 1e100:
        return None
    return float(value)


def _scalar(tree: Any, *keys: str) -> Any:
    """The value under `keys`; None where there is none or a container, which is no name and no number."""
    for key in keys:
        tree = tree.get(key) if isinstance(tree, Mapping) else None
    return None if isinstance(tree, Mapping | list | set | tuple) else tree


def _number(value: Any, decimals: int = 0) -> str:
    """A number with separators and a true minus; a dash for nothing; any other value as its text."""
    if (number := _finite(value)) is not None:
        return f"{number:,.{decimals}f}".replace("-", "−")
    return "–" if value is None or isinstance(value, float) else str(value)


def _percent(value: Any) -> str:
    """A fraction in whole percent, or what `_number` makes of anything else."""
    number = _finite(value)
    return _number(value) if number is None else f"{100 * number:.0f}\u202f%"


def _interval(row: Mapping[str, Any]) -> tuple[float, ...] | None:
    """The lower end of the success interval, the success, and the upper end, as fractions; or None."""
    last = row.get("last")
    ends = last.get("success_interval") if isinstance(last, Mapping) else None
    if not isinstance(ends, Sequence) or len(ends) != 2:
        return None
    numbers = [_finite(value) for value in (ends[0], _scalar(last, "success"), ends[1])]
    fractions = tuple(number for number in numbers if number is not None and 0 <= number <= 1)
    return fractions if len(fractions) == 3 else None


def _decimals(values: Iterable[Any]) -> int:
    """How many decimals a column needs, so that its points stand under each other."""
    largest = max((abs(number) for value in values if (number := _finite(value)) is not None), default=0)
    return 2 if largest < 10 else 1 if largest < 1000 else 0


def _median(values: Iterable[float]) -> float | None:
    """The median of the finite values, or None."""
    finite = [value for value in values if math.isfinite(value)]
    return median(finite) if finite else None
