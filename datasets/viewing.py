"""The HTML page of `gtp-vision data view`: episodes frame by frame, with all cameras and numbers.

One file that needs no network. Frames are stored in one sheet per camera and episode. Lines are drawn here, so that
without scripts they and the first frames are visible.
"""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from gtp_vision.core import html
from gtp_vision.core.errors import GtpVisionError
from gtp_vision.core.files import atomic_write
from gtp_vision.datasets import pictures
from gtp_vision.datasets.arrays import Array
from gtp_vision.datasets.inspection import entries
from gtp_vision.datasets.pictures import MAX_CAMERAS, picture, size_of
from gtp_vision.datasets.store import Store
from gtp_vision.datasets.success import marks_of
from gtp_vision.datasets.validation import observation_fault, shape_errors

EPISODES = 6
MAX_EPISODES = 50
_MOMENTS = 300  # of an episode, evenly spread
_MAX_EVENTS = 100  # rewards and terminals of an episode that are shown in addition
_PIXELS = 40_000_000  # of all frames on the page: as JPEG about 10 MB
_LINES = 16  # of a panel
_PANELS = 12  # of states
_WIDTH, _HEIGHT = 600, 90  # of a panel, in its own coordinates
_QUALITY = 80
_FPS = 15.0  # of data sets without `fps`


@dataclass(frozen=True)
class Film:
    """Frames of a camera in an episode, as one image.

    Attributes:
        name: of the camera.
        address: data URI of the image.
        width, height: of a frame, in pixels.
        columns, lines: of frames in the image.
        every: the image has a frame of every so many moments.
    """

    name: str
    address: str
    width: int
    height: int
    columns: int
    lines: int
    every: int


@dataclass(frozen=True)
class Panel:
    """Lines over an episode's frames.

    All episodes have the same range `low` to `high`. `paths` are in SVG, in `_WIDTH` times `_HEIGHT`; `values`, of each
    line at each moment, are None where not finite; `left_out` dimensions are not drawn.
    """

    name: str
    low: float
    high: float
    paths: list[str]
    values: list[list[float | None]]
    left_out: int


@dataclass(frozen=True)
class Episode:
    """An episode on the page; its moments are frames that can be shown, counted from the episode's start."""

    number: int
    summary: str
    moments: list[int]
    films: list[Film] = field(default_factory=list)
    panels: list[Panel] = field(default_factory=list)


def check_target(path: Path, episodes: int) -> None:
    """Raise a GtpVisionError unless a page of so many episodes may be written to the path; see `pictures`."""
    if not 1 <= episodes <= MAX_EPISODES:
        raise GtpVisionError(f"{episodes} episodes cannot be shown; choose from 1 to {MAX_EPISODES}")
    pictures.check_target(path, "HTML", (".html", ".htm"), (b"<!doctype html", b"<html"))


def write_page(path: Path, found: dict[str, Any], store: Store, episodes: int = EPISODES) -> None:
    """Write the page of the facts of `inspection.inspect` and `episodes` episodes, evenly spread from first to last."""
    check_target(path, episodes)
    chosen = np.linspace(0, store.episodes - 1, min(episodes, store.episodes)).astype(int).tolist()
    is_part = len(chosen) < store.episodes
    notes = [f"{len(chosen)} of {store.episodes} episodes are shown; --episodes N shows more"] if is_part else []
    text = page(found, store, chosen, notes)
    with atomic_write(path) as temporary:
        temporary.write_text(text, encoding="utf-8", errors="replace")  # JSON may hold half a surrogate pair


def page(
    found: dict[str, Any],
    store: Store,
    chosen: list[int],
    notes: Sequence[str],
    labelling: Mapping[str, Any] | None = None,
) -> str:
    """Return the page of the facts of `inspection.inspect` and of the chosen episodes; none if their lengths disagree.

    `notes` are sentences about what is left out. With `labelling`, the values for label.js, it is that of `data label`.
    """
    shown: list[Episode] = []
    if not shape_errors(store):
        with np.errstate(all="ignore"):  # numbers that are too large are among the faults
            shown, more = _episodes(store, chosen)
            notes = [*notes, *more]
    here = Path(__file__)
    scripts = [here.with_name("view.js"), *([here.with_name("label.js")] if labelling else [])]
    return str(
        html.environment(here.parent)
        .get_template("view.html.j2")
        .render(
            title=Path(found["path"]).name or found["path"],
            found=found,
            entries=[(name, text) for name, text in entries(found) if name not in ("PROBLEM", "WARNING", "faults")],
            episodes=shown,
            notes=notes if shown else [],
            width=_WIDTH,
            height=_HEIGHT,
            values=html.block(
                {
                    "fps": _fps(store),
                    "episodes": [
                        {"moments": episode.moments, "panels": [panel.values for panel in episode.panels]}
                        for episode in shown
                    ],
                }
            ),
            labelling=html.block(labelling) if labelling else None,
            **html.script(*scripts),
        )
    )


def _episodes(store: Store, chosen: list[int]) -> tuple[list[Episode], list[str]]:
    """Return the chosen episodes, and notes on what is left out of them."""
    images = {name: array for name, array in store.observations.items() if array.ndim > 2}
    cameras = [name for name, array in images.items() if not observation_fault(name, array)]
    states = [
        name
        for name, array in store.observations.items()
        if array.ndim == 2 and array.shape[1] and array.dtype.kind in "fiub"
    ]
    shown = {episode: _moments(store, episode) for episode in chosen}
    notes = []
    if any(len(rows) < store.episode_ends[episode] - store.episode_starts[episode] for episode, rows in shown.items()):
        notes.append(f"of long episodes {_MOMENTS} evenly spread frames are shown, and those with rewards or terminals")
    if len(cameras) > MAX_CAMERAS:
        notes.append(f"{MAX_CAMERAS} of {len(cameras)} cameras are shown")
    if len(states) > _PANELS:
        notes.append(f"{_PANELS} of {len(states)} states are drawn")
    undrawn = [name for name in images if name not in cameras]
    if undrawn:
        notes.append(f"not drawn because of their faults: {', '.join(undrawn)}")
    cameras, states = cameras[:MAX_CAMERAS], states[:_PANELS]
    sizes = [size_of(store.observations[name].shape[1:]) for name in cameras]
    most = max(2, _PIXELS // max(1, len(chosen) * sum(width * height for width, height in sizes)))
    if cameras and most < max(map(len, shown.values())):
        notes.append(f"of each camera and episode at most {most} frames are shown")
    drawn = [_panels(store, shown, "action", store.actions, needs_outcome=True)]
    drawn += [_panels(store, shown, "reward", store.rewards[:, None], needs_outcome=True)]
    drawn += [_panels(store, shown, name, store.observations[name], needs_outcome=False) for name in states]
    return [
        Episode(
            number=int(episode if store.numbers is None else store.numbers[episode]),
            summary=_summary(store, episode),
            moments=(rows - store.episode_starts[episode]).tolist(),
            films=[_film(store, name, rows, most) for name in cameras],
            panels=[panels[place] for panels in drawn],
        )
        for place, (episode, rows) in enumerate(shown.items())
    ], notes


def _moments(store: Store, episode: int) -> np.ndarray:
    """Return the rows of an episode that are shown: evenly spread ones, and those with rewards or terminals."""
    first, end = int(store.episode_starts[episode]), int(store.episode_ends[episode])
    even = np.linspace(first, end - 1, min(_MOMENTS, end - first)).astype(np.int64)
    changes = np.flatnonzero(np.diff(np.asarray(store.rewards[first:end]))) + first
    events = np.union1d(changes, changes + 1)  # both sides, so that the step is drawn as one
    events = np.union1d(events, np.flatnonzero(np.asarray(store.terminals[first:end])) + first)
    return np.union1d(even, events) if len(events) <= _MAX_EVENTS else even


def _summary(store: Store, episode: int) -> str:
    """Return length, return, end, success and task of an episode in words."""
    first, end = int(store.episode_starts[episode]), int(store.episode_ends[episode])
    gained = float(np.asarray(store.rewards[first : int(store.last_outcomes[episode]) + 1], np.float64).sum())
    terminals = np.flatnonzero(np.asarray(store.terminals[first:end]))
    summary = [f"{end - first} frames", f"return {gained:.4g}" if math.isfinite(gained) else "return not finite"]
    if not len(terminals):
        summary.append("no terminal")
    elif terminals.tolist() == [end - first - 1]:
        summary.append("ends in a terminal")
    else:
        summary.append(f"{len(terminals)} terminals, the first at frame {terminals[0]}")
    if (mark := marks_of(store)[episode]) is not None:
        summary.append("a success" if mark else "a failure")
    tasks, numbers = store.attributes.get("tasks"), store.attributes.get("episode_tasks")
    if isinstance(tasks, list) and isinstance(numbers, list) and len(numbers) == store.episodes:
        number = numbers[episode]
        if isinstance(number, int) and 0 <= number < len(tasks):
            summary.append(str(tasks[number])[:200])
    return ", ".join(summary)


def _film(store: Store, name: str, rows: np.ndarray, most: int) -> Film:
    every = -(-len(rows) // most)
    rows = rows[::every]
    array = store.observations[name]
    width, height = size_of(array.shape[1:])
    columns = max(1, min(len(rows), round(math.sqrt(len(rows) * height / width))))
    lines = -(-len(rows) // columns)
    sheet = Image.new("RGB", (columns * width, lines * height))
    for number, row in enumerate(rows.tolist()):
        sheet.paste(picture(np.asarray(array[row])), (number % columns * width, number // columns * height))
    file = io.BytesIO()
    sheet.save(file, "JPEG", quality=_QUALITY, subsampling=0)
    return Film(name, html.data_uri(file.getvalue(), "image/jpeg"), width, height, columns, lines, every)


def _panels(store: Store, shown: dict[int, np.ndarray], name: str, array: Array, *, needs_outcome: bool) -> list[Panel]:
    """Return the panels of an array (N, D) in all shown episodes, on one scale."""
    pieces: list[np.ndarray] = []
    for rows in shown.values():
        values = np.asarray(array[rows], np.float64)[:, :_LINES]
        if needs_outcome:  # an action without an outcome may be padding
            values[~store.has_outcome[rows]] = np.nan
        values[~np.isfinite(values)] = np.nan
        pieces.append(values)
    finite = np.concatenate([values[np.isfinite(values)] for values in pieces])
    low, high = (float(finite.min()), float(finite.max())) if len(finite) else (0.0, 0.0)
    if array is store.actions:
        low, high = min(low, -1.0), max(high, 1.0)
    if low == high:
        margin = max(0.5, abs(low) / 100)
        low, high = low - margin, high + margin
    return [
        Panel(
            name=name,
            low=low,
            high=high,
            paths=[_path(rows - rows[0], line, low, high) for line in values.T],
            values=[[_short(value) for value in line] for line in values.T.tolist()],
            left_out=int(array.shape[1]) - values.shape[1],
        )
        for rows, values in zip(shown.values(), pieces, strict=True)
    ]


def _path(at: np.ndarray, values: np.ndarray, low: float, high: float) -> str:
    """Return an SVG path, interrupted at values that are not finite."""
    across = _WIDTH * at / max(1, at[-1])
    up = _HEIGHT * (1 - (values / 2 - low / 2) / (high / 2 - low / 2))  # halves, because the range may overflow
    points, pen = [], "M"
    for x, y in zip(across.tolist(), up.tolist(), strict=True):
        if math.isfinite(y):
            points.append(f"{pen}{x:.1f} {y:.1f}{'h0' if pen == 'M' else ''}")  # h0 makes a single point visible
            pen = "L"
        else:
            pen = "M"
    return "".join(points)


def _short(value: float) -> float | None:
    return float(f"{value:.4g}") if math.isfinite(value) else None


def _fps(store: Store) -> float:
    fps = store.attributes.get("fps")
    return float(fps) if isinstance(fps, int | float) and 1 <= fps <= 120 else _FPS
