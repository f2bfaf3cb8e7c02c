"""LeRobot's statistics of every feature: of the data set in meta/stats.json, of each episode in meta/episodes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from gtp_vision.core import depth
from gtp_vision.datasets.arrays import Array
from gtp_vision.datasets.formats.lerobot_meta import DEPTH_BITS
from gtp_vision.datasets.statistics import QUANTILES, array_statistics

Statistics = dict[str, np.ndarray]
_SAMPLED = 8  # frames of an episode that are read


def of_rows(rows: Array) -> Statistics:
    """Compute min, max, mean, std and quantiles (q01 to q99), each (D,), and count (1,), of numbers (n,) or (n, D)."""
    values = np.asarray(rows, np.float64)[:, None] if rows.ndim == 1 else rows
    with np.errstate(invalid="ignore"):  # validation reports values that are not finite
        found = array_statistics(values)
    quantiles = {_key(q): found.quantiles[str(q)] for q in QUANTILES}
    listed = {kind: getattr(found, kind) for kind in ("min", "max", "mean", "std")} | quantiles
    return {kind: np.array(numbers) for kind, numbers in listed.items()} | {"count": np.array([len(values)])}


def levels(frames: Array, start: int, end: int, step: int = 0) -> tuple[np.ndarray, int]:
    """Count the pixels of each level, int (3, 256), in a sample of frames `start` to `end - 1`, and those frames.

    LeRobot decodes gray videos in three colors, and refuses statistics of another shape. Of a depth camera they are the
    codes of `step` millimeters, (1, 4096).
    """
    rows = np.unique(np.linspace(start, end - 1, min(_SAMPLED, end - start)).astype(int))
    pixels = np.asarray(frames[rows])
    pixels = depth.quantized(depth.millimeters(pixels), step)[..., None] if step else pixels
    pixels = pixels.reshape(-1, pixels.shape[3])
    pixels = pixels.repeat(3, 1) if pixels.shape[1] == 1 and not step else pixels
    count = 1 << (DEPTH_BITS if step else 8)
    return np.stack([np.bincount(channel, minlength=count) for channel in pixels.T]), len(rows)


def of_levels(counted: Sequence[tuple[np.ndarray, int]], unit: float = 1 / 255) -> Statistics:
    """Compute the same of the frames of some `levels`, in units: colors from 0 to 1; each (3, 1, 1), count (1,)."""
    counts = np.sum([pixels for pixels, _ in counted], axis=0)
    color, share = np.arange(counts.shape[1]) * unit, counts / counts.sum(1, keepdims=True)
    mean = share @ color
    found = {
        "min": color[(counts > 0).argmax(1)],
        "max": color[::-1][(counts[:, ::-1] > 0).argmax(1)],
        "mean": mean,
        "std": np.sqrt((share * (color - mean[:, None]) ** 2).sum(1)),
    } | {_key(q): color[(share.cumsum(1) >= q - 1e-9).argmax(1)] for q in QUANTILES}
    frames = sum(number for _, number in counted)
    return {kind: value[:, None, None] for kind, value in found.items()} | {"count": np.array([frames])}


def _key(quantile: float) -> str:
    return f"q{round(100 * quantile):02d}"
