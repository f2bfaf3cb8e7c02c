"""Pictures for a person who looks at data: labelled contact sheets of frames, histograms of actions."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from gtp_vision.core.errors import GtpVisionError
from gtp_vision.core.files import atomic_write
from gtp_vision.datasets.statistics import array_statistics
from gtp_vision.datasets.store import Store
from gtp_vision.datasets.validation import observation_fault, shape_errors

_EPISODES = 6
CAMERAS = 16  # more are named, not drawn
SIDE = 192  # longest side of a drawn frame, in pixels
_GAP, _LINE, _TEXT = 4, 16, 12
_READ = 1024  # a longer side is thinned out before it is scaled
_PANELS = 64  # more dimensions are counted, not drawn
_ABREAST = 6  # panels in a line, at most
_BINS = 51
_PIECE = 1 << 18  # rows looked at together, so that a mapped file is streamed
_MAGIC = b"\x89PNG\r\n\x1a\n"


def check_target(path: Path) -> None:
    """Raise unless a PNG may be written there: nothing else that stands there is replaced.

    Raises:
        GtpVisionError: another ending than .png; a folder, or a file that is no PNG; a path below a file.
    """
    if path.suffix.lower() != ".png":
        raise GtpVisionError(f"{path} is to be a PNG; give a name that ends in .png")
    if any(parent.exists() and not parent.is_dir() for parent in path.parents):
        raise GtpVisionError(f"{path} lies below a file; choose another place")
    if not path.exists():
        return
    magic = b""
    if path.is_file():
        with path.open("rb") as file:
            magic = file.read(len(_MAGIC))
    if magic != _MAGIC:
        raise GtpVisionError(f"{path} is there already and is no PNG, so it is not replaced; choose another name")


def write_contact_sheet(path: Path, store: Store) -> None:
    """A PNG of the first, middle and last frames of some episodes, from the first to the last, all cameras abreast.

    Raises:
        GtpVisionError: the store has no camera that can be drawn, or its lengths disagree; `check_target` refuses.
    """
    _refuse_misfits(store)
    pictured = {name: array for name, array in store.observations.items() if array.ndim > 2}
    faults = {name: observation_fault(name, array) for name, array in pictured.items()}
    cameras = {name: array for name, array in pictured.items() if not faults[name]}
    if not cameras:
        why = next(iter(faults.values()), None)
        raise GtpVisionError(
            f"{store.path}: {why}; no camera can be drawn before"
            if why
            else f"{store.path} holds no camera: there are no frames to draw, only states"
        )
    drawn = list(cameras)[:CAMERAS]
    heads = [f"{name} {'x'.join(map(str, cameras[name].shape[1:]))}" for name in drawn]
    if len(cameras) > len(drawn):
        heads[-1] += f" ({len(cameras) - len(drawn)} more cameras are not drawn)"
    rows, captions = [], []
    for episode in np.linspace(0, store.episodes - 1, min(_EPISODES, store.episodes)).astype(int).tolist():
        first, last = int(store.episode_starts[episode]), int(store.episode_ends[episode]) - 1
        shown = (first, (first + last) // 2, last)
        rows.append([_thinned(cameras[name][row]) for name in drawn for row in shown])
        captions.append([f"episode {episode}, frame {row - first}" for _ in drawn for row in shown])
    write_sheet(path, rows, heads=heads, captions=captions)


def write_sheet(
    path: Path,
    rows: Sequence[Sequence[np.ndarray]],
    *,
    heads: Sequence[str] = (),
    captions: Sequence[Sequence[str]] = (),
) -> None:
    """Frames in rows and columns as one PNG, scaled so that a person sees something.

    Args:
        path: the file to be.
        rows: of equal length; uint8 (H, W, C) frames, of one size in each column. Of more than 3 channels the first
            3 are drawn, of 2 the first.
        heads: over the columns, each over as many as the others.
        captions: one below each frame.

    Raises:
        GtpVisionError: `check_target` refuses.
    """
    check_target(path)
    font = ImageFont.load_default(size=_TEXT)
    cells = [[_scaled(frame) for frame in row] for row in rows]
    top, below = (_LINE if heads else 0), (_LINE if captions else 0)
    lefts = np.cumsum([_GAP, *(cell.width + _GAP for cell in cells[0])]).tolist()
    height = max(cell.height for cell in cells[0]) + below + _GAP
    picture = Image.new("RGB", (lefts[-1], top + _GAP + height * len(cells)), "white")
    draw = ImageDraw.Draw(picture)
    span = len(cells[0]) // max(1, len(heads))
    for number, head in enumerate(heads):
        left, right = lefts[number * span], lefts[(number + 1) * span]
        draw.text((left, 2), _fitting(head, right - left, font), "black", font)
    for number, row in enumerate(cells):
        upper = top + _GAP + number * height
        for column, cell in enumerate(row):
            picture.paste(cell, (lefts[column], upper))
            if captions:
                text = _fitting(captions[number][column], lefts[column + 1] - lefts[column], font)
                draw.text((lefts[column], upper + height - _LINE - _GAP), text, "dimgray", font)
    with atomic_write(path) as aside:
        picture.save(aside, "PNG")


def write_action_histograms(path: Path, store: Store) -> None:
    """A PNG with a histogram of the actions in each dimension, near-constant ones marked.

    All panels span one range, [-1, 1] or more, so that scales can be compared.

    Raises:
        GtpVisionError: the store's lengths disagree, or it has no action with an outcome; `check_target` refuses.
    """
    check_target(path)
    _refuse_misfits(store)
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    count = min(store.action_dim, _PANELS)
    rows = store.transitions
    if not len(rows):
        raise GtpVisionError(f"{store.path} has no action with an outcome: there is nothing to draw")
    with np.errstate(all="ignore"):  # what is not finite is not drawn
        numbers = array_statistics(store.actions[rows])
    lows, highs, finite = _finite(store, count)
    low, high = min(-1.0, *lows), max(1.0, *highs)
    edges = np.linspace(low, high, _BINS + 1)
    lines = -(-count // _ABREAST)
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
        known = f"{lows[dimension]:.3g} to {highs[dimension]:.3g}" if finite[dimension] else "nothing finite"
        unknown = len(rows) - finite[dimension]
        panel.set_title(
            f"{dimension}: {known}"
            + (f" ({unknown} not finite)" if finite[dimension] and unknown else "")
            + (" (near-constant)" if constant else ""),
            fontsize=7,
            color="tab:red" if constant else "black",
        )
        panel.set_xlim(low, high)
        panel.set_ylim(0, max(0.02, 1.1 * share.max()))
        panel.tick_params(labelsize=6)
    with atomic_write(path) as aside:
        figure.savefig(aside, format="png", dpi=120)


def _refuse_misfits(store: Store) -> None:
    found = shape_errors(store)
    if found:
        raise GtpVisionError(f"{store.path}: {found[0]}; nothing can be drawn before")


def _finite(store: Store, count: int) -> tuple[list[float], list[float], list[int]]:
    """Least, largest and number of the finite actions with an outcome, in each of the first `count` dimensions."""
    lows, highs, finite = np.full(count, np.inf), np.full(count, -np.inf), np.zeros(count, np.int64)
    for start in range(0, len(store.transitions), _PIECE):
        piece = np.asarray(store.actions[store.transitions[start : start + _PIECE]], np.float64)[:, :count]
        good = np.isfinite(piece)
        lows = np.minimum(lows, np.where(good, piece, np.inf).min(0))
        highs = np.maximum(highs, np.where(good, piece, -np.inf).max(0))
        finite += good.sum(0)
    return lows.tolist(), highs.tolist(), finite.tolist()


def _histogram(store: Store, dimension: int, edges: np.ndarray) -> np.ndarray:
    total = np.zeros(len(edges) - 1)
    for start in range(0, len(store.transitions), _PIECE):
        total += np.histogram(store.actions[store.transitions[start : start + _PIECE], dimension], edges)[0]
    return total


def picture(frame: np.ndarray) -> Image.Image:
    """A frame as an RGB picture whose longest side is at most `SIDE`.

    Args:
        frame: uint8 (H, W, C). Of more than 3 channels the first 3 are drawn, of 2 the first.
    """
    frame = _thinned(frame)
    image = Image.fromarray(np.ascontiguousarray(frame[..., :3] if frame.shape[-1] > 2 else frame[..., 0]))
    width, height = size_of(frame.shape)
    if (width, height) != image.size:
        image = image.resize((width, height), Image.Resampling.BOX)
    return image.convert("RGB")


def size_of(shape: Sequence[int]) -> tuple[int, int]:
    """Width and height of `picture` for a frame of a shape (H, W, C)."""
    step = -(-max(shape[:2]) // _READ)
    height, width = (-(-side // step) for side in shape[:2])
    longest = max(height, width, SIDE)
    return max(1, width * SIDE // longest), max(1, height * SIDE // longest)


def _thinned(frame: np.ndarray) -> np.ndarray:
    """A frame of bounded size: of a larger one every n-th pixel."""
    step = -(-max(frame.shape[:2]) // _READ)
    return np.array(frame[::step, ::step, :4])


def _scaled(frame: np.ndarray) -> Image.Image:
    """As a picture whose longest side is about `SIDE`: small ones by a whole factor, so that pixels stay pixels."""
    image = picture(frame)
    factor = max(1, SIDE // max(image.size))
    return image.resize((image.width * factor, image.height * factor), Image.Resampling.NEAREST)


def _fitting(text: str, width: int, font: Any) -> str:
    """As much of the text as the width holds."""
    text = "".join(letter if letter.isprintable() else "?" for letter in text[:200])
    while text and font.getlength(text) > width:
        text = text[:-1]
    return text
