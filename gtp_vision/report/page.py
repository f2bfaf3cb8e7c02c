"""The report: what some runs learned, as one HTML file that needs no network and no server.

Run folders may come from strangers and may be unfinished. So every text reaches the page through
Jinja's escaping, the curves hold no text but numbers, a link that leaves its run folder is not
followed, and what is missing or damaged is said on the page instead of stopping it.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2

from gtp_vision.core import html
from gtp_vision.core.errors import GtpVisionError
from gtp_vision.report import text
from gtp_vision.report.compare import SELECTIONS, compare
from gtp_vision.report.health import health_of
from gtp_vision.report.plots import MAX_POINTS, keys_of, panels_of, tell_apart
from gtp_vision.report.run_folder import (
    MAX_VIDEOS,
    Clip,
    RunFolder,
    chosen,
    clips_of,
    date_of,
    members,
    pictures_of,
    probes_of,
    read_run,
    row_of,
)
from gtp_vision.report.text import scalar
from gtp_vision.report.videos import sides_of

_HERE = Path(__file__).parent / "templates"


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
    read = [read_run(member) for folder in runs for member in members(folder)]
    tell_apart(read)
    # before rendering: all of these may add to what is wanting
    clips = {place: clips_of(run) for place, run in enumerate(read)}
    sides, used = sides_of(read, clips)
    videos = [_videos(run, clips[place], used) for place, run in enumerate(read)]
    health = [health_of(run) for run in read]
    pictures = pictures_of(read, "first_batch", wanted="picture of the first batch")
    augmented = pictures_of(read, "augmentation")
    rows = [row_of(run) for run in read]
    rows += [{"eval_seconds": scalar(row, "last", "seconds"), **row, "run": None} for row in baselines]
    template = _environment().get_template("page.html.j2")
    page = template.render(
        title=title,
        runs=read,
        rows=rows,
        dates=sorted({date_of(run) for run in read}),
        notes=notes,
        videos=videos,
        sides=sides,
        **html.script(_HERE / "together.js"),
        health=[one for one in health if one.run.series or one.warnings],
        comparison=compare(read),
        selections=SELECTIONS,
        pictures=pictures,
        augmented=augmented,
        probes=[probe for run in read for probe in probes_of(run)],
        unprobed=[(run, note) for run in read if (note := scalar(run.results, "probe", "note"))],
        panels=panels_of(read),
        meters=[key for key in keys_of(read) if key.startswith("time/") or key == "eval/seconds"],
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


def _videos(run: RunFolder, clips: Sequence[Clip], used: Collection[Clip]) -> tuple[Any, ...]:
    """The run, the step of its videos, a few of them that are not shown elsewhere, and those of saliency."""
    seen = [clip for clip in clips if not clip.saliency]
    left = MAX_VIDEOS - sum(clip in used for clip in seen)
    shown = chosen(run, [clip for clip in seen if clip not in used], max(0, left))
    return run, clips[0].step if clips else "", shown, chosen(run, [c for c in clips if c.saliency], MAX_VIDEOS)


def _environment() -> jinja2.Environment:
    """Where the page's templates lie, and how they tell numbers."""
    environment = html.environment(_HERE)
    environment.filters |= {"get": text.scalar, "number": text.number_text, "percent": text.percent_text}
    environment.filters |= {"decimals": text.decimals_of, "interval": text.interval_of}
    environment.filters |= {"median": text.median_of}
    return environment
