"""The report: one self-contained HTML file about some runs.

Run folders are untrusted and may be unfinished. So every text reaches the page through Jinja's escaping, the curves
contain no text but numbers, links out of a run folder are not followed, and missing or damaged files are listed on the
page instead of being errors.
"""

from __future__ import annotations

import functools
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2

from gtp_vision.core import html
from gtp_vision.core.errors import GtpVisionError
from gtp_vision.core.files import atomic_write
from gtp_vision.report import text
from gtp_vision.report.compare import SELECTIONS, compare
from gtp_vision.report.health import health_of
from gtp_vision.report.plots import MAX_POINTS, keys_of, panels_of, set_styles
from gtp_vision.report.rounds import rounds_on_page
from gtp_vision.report.run_folder import (
    MAX_VIDEOS,
    Clip,
    RunFolder,
    clips_of,
    date_of,
    embed_some,
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

    Args:
        runs: run folders; a folder of several seeds stands for their runs.
        out: the file, written atomically.
        title: of the page.
        baselines: rows of the table without a run folder, shaped like a `results.json`.
        notes: sentences under the table.

    Raises:
        GtpVisionError: no run is given, a folder is missing or not a run, or `out` is a folder.
    """
    if not runs:
        raise GtpVisionError("the report needs a run folder; name at least one")
    if out.is_dir():
        raise GtpVisionError(f"the report cannot be written to {out}, which is a folder; give a file name")
    read = [read_run(member) for folder in runs for member in members(folder)]
    set_styles(read)
    # before rendering: all of these may add to a run's problems
    clips = {index: clips_of(run) for index, run in enumerate(read)}
    sides, used = sides_of(read, clips)
    videos = [_videos(run, clips[index], used) for index, run in enumerate(read)]
    health = [health_of(run) for run in read]
    pictures = pictures_of(read, "first_batch", problem="no picture of the first batch")
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
        health=[item for item in health if item.run.series or item.warnings],
        comparison=compare(read),
        selections=SELECTIONS,
        pictures=pictures,
        augmented=augmented,
        rounds=[(run, entries) for run in read if (entries := rounds_on_page(run))],
        probes=[probe for run in read for probe in probes_of(run)],
        unprobed=[(run, note) for run in read if (note := scalar(run.results, "probe", "note"))],
        panels=panels_of(read),
        meters=[key for key in keys_of(read) if key.startswith("time/") or key == "eval/seconds"],
        max_points=MAX_POINTS,
    )
    with atomic_write(out) as temporary:
        temporary.write_text(page, encoding="utf-8", errors="replace")  # JSON may hold half a surrogate pair
    return out


def _videos(run: RunFolder, clips: Sequence[Clip], used: Collection[Clip]) -> tuple[Any, ...]:
    """The run, the step of its videos, some videos that are not shown elsewhere, and some with saliency."""
    plain = [clip for clip in clips if not clip.saliency]
    limit = max(0, MAX_VIDEOS - sum(clip in used for clip in plain))
    shown = embed_some(run, [clip for clip in plain if clip not in used], limit)
    saliency = embed_some(run, [clip for clip in clips if clip.saliency], MAX_VIDEOS)
    return run, clips[0].step if clips else "", shown, saliency


@functools.cache  # compiling the template takes as long as filling it
def _environment() -> jinja2.Environment:
    """The page's templates, with filters for numbers."""
    environment = html.environment(_HERE)
    environment.filters |= {"get": text.scalar, "number": text.number_text, "percent": text.percent_text}
    environment.filters |= {"decimals": text.decimals_of, "interval": text.interval_of, "success": text.success_text}
    environment.filters |= {"median": text.median_of, "tasks": text.tasks_of}
    return environment
