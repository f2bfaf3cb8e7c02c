"""PNG files of a data set: contact sheets of frames, histograms of actions."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from gtp_vision.core import depth
from gtp_vision.core.errors import GtpVisionError
from gtp_vision.core.files import atomic_write
from gtp_vision.datasets.statistics import array_statistics
from gtp_vision.datasets.store import Store
from gtp_vision.datasets.validation import observation_fault, shape_errors

_EPISODES = 6
MAX_CAMERAS = 16  # that are drawn; more are only counted
SIDE = 192  # longest side of a drawn frame, in pixels
_GAP, _LINE, _TEXT = 4, 16, 12
_MAX_SIDE = 1024  # of a frame, before rows and columns are skipped
_MAX_PANELS = 64  # dimensions that are drawn; more are only counted
_COLUMNS = 6  # panels in a line, at most
_BINS = 51
_ROWS = 1 << 18  # read together, so that a mapped file is streamed


def check_target(
    path: Path,
    kind: str = "PNG",
    suffixes: Sequence[str] = (".png",),
    magics: Sequence[bytes] = (b"\x89png\r\n\x1a\n",),
) -> None:
    """Refuse a path, unless a file may be written to it: only a file of the same kind is replaced.

    `suffixes` are endings that the name may have; `magics` is how such a file begins, in lower case, after blanks.
    """
    if path.suffix.lower() not in suffixes:
        raise GtpVisionError(f"{path} cannot be a {kind} file; choose a name that ends in {suffixes[0]}")
    if any(parent.exists() and not parent.is_dir() for parent in path.parents):
        raise GtpVisionError(f"{path} lies below a file; choose another place")
    if not path.exists():
        return
    start = b""
    if path.is_file():
        with path.open("rb") as file:
            start = file.read(200).lstrip().lower()
    if not start.startswith(tuple(magics)):
        raise GtpVisionError(f"{path} exists and is not a {kind} file, so it is not replaced; choose another name")


def write_contact_sheet(path: Path, store: Store) -> None:
    """Write a PNG of the first, middle and last frame of some episodes, with all cameras side by side."""
    _check_shapes(store)
    images = {name: array for name, array in store.observations.items() if array.ndim > 2}
    faults = {name: observation_fault(name, array) for name, array in images.items()}
    cameras = {name: array for name, array in images.items() if not faults[name]}
    if not cameras:
        fault = next(iter(faults.values()), None)
        raise GtpVisionError(
            f"{store.path}: {fault}; fix that to draw a camera"
            if fault
            else f"{store.path} has no camera: its states cannot be drawn as frames"
        )
    drawn = list(cameras)[:MAX_CAMERAS]
    heads = [f"{name} {'x'.join(map(str, cameras[name].shape[1:]))}" for name in drawn]
    if len(cameras) > len(drawn):
        heads[-1] += f" ({len(cameras) - len(drawn)} more cameras are not drawn)"
    rows, captions = [], []
    for episode in np.linspace(0, store.episodes - 1, min(_EPISODES, store.episodes)).astype(int).tolist():
        first, last = int(store.episode_starts[episode]), int(store.episode_ends[episode]) - 1
        shown = (first, (first + last) // 2, last)
        rows.append([_subsampled(cameras[name][row]) for name in drawn for row in shown])
        captions.append([f"episode {episode}, frame {row - first}" for _ in drawn for row in shown])
    write_sheet(path, rows, heads=heads, captions=captions)


def write_sheet(
    path: Path,
    rows: Sequence[Sequence[np.ndarray]],
    *,
    heads: Sequence[str] = (),
    captions: Sequence[Sequence[str]] = (),
) -> None:
    """Write frames in rows of equal length as one PNG, scaled to a visible size.

    Frames are as `rgb` takes them, of one size in each column. Titles `heads` stand above an equal number of columns
    each, `captions` below the frames.
    """
    check_target(path)
    font = ImageFont.load_default(size=_TEXT)
    cells = [[_scaled(frame) for frame in row] for row in rows]
    top, below = (_LINE if heads else 0), (_LINE if captions else 0)
    lefts = np.cumsum([_GAP, *(cell.width + _GAP for cell in cells[0])]).tolist()
    height = max(cell.height for cell in cells[0]) + below + _GAP
    sheet = Image.new("RGB", (lefts[-1], top + _GAP + height * len(cells)), "white")
    draw = ImageDraw.Draw(sheet)
    span = len(cells[0]) // max(1, len(heads))
    for number, head in enumerate(heads):
        left, right = lefts[number * span], lefts[(number + 1) * span]
        draw.text((left, 2), _fitting(head, right - left, font), "black", font)
    for number, row in enumerate(cells):
        upper = top + _GAP + number * height
        for column, cell in enumerate(row):
            sheet.paste(cell, (lefts[column], upper))
            if captions:
                text = _fitting(captions[number][column], lefts[column + 1] - lefts[column], font)
                draw.text((lefts[column], upper + height - _LINE - _GAP), text, "dimgray", font)
    with atomic_write(path) as temporary:
        sheet.save(temporary, "PNG")


def write_action_histograms(path: Path, store: Store) -> None:
    """Write a PNG with a histogram of the actions in each dimension; near-constant dimensions are red.

    All panels span one range, [-1, 1] or more, so that scales can be compared.
    """
    check_target(path)
    _check_shapes(store)
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    count = min(store.action_dim, _MAX_PANELS)
    rows = store.transitions
    if not len(rows):
        raise GtpVisionError(f"{store.path} has no action with an outcome to draw; record longer episodes")
    with np.errstate(all="ignore"):  # values that are not finite are not drawn
        numbers = array_statistics(store.actions[rows])
    lows, highs, finite = _finite(store, count)
    low, high = min(-1.0, *lows), max(1.0, *highs)
    edges = np.linspace(low, high, _BINS + 1)
    lines = -(-count // _COLUMNS)
    columns = -(-count // lines)
    figure = Figure(figsize=(2.1 * columns + 0.3, 1.5 * lines + 0.7), layout="constrained")
    FigureCanvasAgg(figure)
    more = f" (the first {count})" if store.action_dim > count else ""
    figure.suptitle(f"{store.action_dim} action dimensions{more}, share of {len(rows)} rows", fontsize=10)
    panels: Any = figure.subplots(lines, columns, squeeze=False).ravel()
    for dimension, panel in enumerate(panels):
        if dimension >= count:
            panel.set_axis_off()
            continue
        constant = dimension in numbers.constant
        share = _histogram(store, dimension, edges) / len(rows)
        panel.bar(edges[:-1], share, np.diff(edges), align="edge", color="tab:red" if constant else "tab:blue")
        extent = f"{lows[dimension]:.3g} to {highs[dimension]:.3g}" if finite[dimension] else "nothing finite"
        nonfinite = len(rows) - finite[dimension]
        panel.set_title(
            f"{dimension}: {extent}"
            + (f" ({nonfinite} not finite)" if finite[dimension] and nonfinite else "")
            + (" (near-constant)" if constant else ""),
            fontsize=7,
            color="tab:red" if constant else "black",
        )
        panel.set_xlim(low, high)
        panel.set_ylim(0, max(0.02, 1.1 * share.max()))
        panel.tick_params(labelsize=6)
    with atomic_write(path) as temporary:
        figure.savefig(temporary, format="png", dpi=120)


def _check_shapes(store: Store) -> None:
    if faults := shape_errors(store):
        raise GtpVisionError(f"{store.path}: {faults[0]}; fix that to draw the data set")


def _finite(store: Store, count: int) -> tuple[list[float], list[float], list[int]]:
    """Return the least, the largest and the number of the finite actions, in each of the first `count` dimensions."""
    lows, highs, finite = np.full(count, np.inf), np.full(count, -np.inf), np.zeros(count, np.int64)
    for start in range(0, len(store.transitions), _ROWS):
        piece = np.asarray(store.actions[store.transitions[start : start + _ROWS]], np.float64)[:, :count]
        good = np.isfinite(piece)
        lows = np.minimum(lows, np.where(good, piece, np.inf).min(0))
        highs = np.maximum(highs, np.where(good, piece, -np.inf).max(0))
        finite += good.sum(0)
    return lows.tolist(), highs.tolist(), finite.tolist()


def _histogram(store: Store, dimension: int, edges: np.ndarray) -> np.ndarray:
    total = np.zeros(len(edges) - 1)
    for start in range(0, len(store.transitions), _ROWS):
        total += np.histogram(store.actions[store.transitions[start : start + _ROWS], dimension], edges)[0]
    return total


def rgb(frames: np.ndarray) -> np.ndarray:
    """Convert frames of any number of channels, uint8 (..., C) or float in [0, 1], to uint8 (..., 3).

    Of more than 3 channels the first 3 are shown, one as gray; two are distances, the farthest one white.
    """
    if frames.shape[-1] == depth.BYTES and frames.dtype == np.uint8:
        distances = depth.millimeters(frames).astype(np.float32)
        frames = (distances / max(1.0, distances.max()))[..., None]
    shown = frames[..., :3] if frames.shape[-1] > 2 else frames[..., :1].repeat(3, -1)
    return shown if shown.dtype == np.uint8 else (255 * shown.clip(0, 1)).round().astype(np.uint8)


def picture(frame: np.ndarray) -> Image.Image:
    """Convert a frame to an RGB image whose longest side is at most `SIDE`, see `rgb`."""
    frame = _subsampled(frame)
    image = Image.fromarray(np.ascontiguousarray(rgb(frame)))
    width, height = size_of(frame.shape)
    if (width, height) != image.size:
        image = image.resize((width, height), Image.Resampling.BOX)
    return image


def size_of(shape: Sequence[int]) -> tuple[int, int]:
    """Return width and height of `picture` for a frame of a shape (H, W, C)."""
    step = -(-max(shape[:2]) // _MAX_SIDE)
    height, width = (-(-side // step) for side in shape[:2])
    longest = max(height, width, SIDE)
    return max(1, width * SIDE // longest), max(1, height * SIDE // longest)


def _subsampled(frame: np.ndarray) -> np.ndarray:
    """Copy every n-th pixel of a frame, so that its size is bounded."""
    step = -(-max(frame.shape[:2]) // _MAX_SIDE)
    return np.array(frame[::step, ::step, :4])


def _scaled(frame: np.ndarray) -> Image.Image:
    """Convert a frame to an image whose longest side is about `SIDE`; small ones are enlarged by an integer factor."""
    image = picture(frame)
    factor = max(1, SIDE // max(image.size))
    return image.resize((image.width * factor, image.height * factor), Image.Resampling.NEAREST)


def _fitting(text: str, width: int, font: Any) -> str:
    """Cut a text to a width in pixels."""
    text = "".join(letter if letter.isprintable() else "?" for letter in text[:200])
    while text and font.getlength(text) > width:
        text = text[:-1]
    return text
