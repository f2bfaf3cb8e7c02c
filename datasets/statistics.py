"""Statistics of a data set by which networks are scaled, streamed over mapped arrays."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from gtp_vision.core import depth
from gtp_vision.datasets.arrays import Array, Lookup
from gtp_vision.datasets.store import Store

_FRAMES = 2048  # that a mean image is taken from: exact to a level or two, and 25 MB of 64x64 frames
_TOGETHER = 64  # frames read together, so that memory does not grow with the camera
_BYTES = 1 << 22  # of numbers read together, which fit the processor's cache
_SAMPLE = 1 << 17  # rows that quantiles are taken from; such a quantile is off by at most 0.003 in rank
_SAMPLE_BYTES = 1 << 26  # of them; fewer rows if they are very wide, but at least 1000
QUANTILES = (0.01, 0.1, 0.5, 0.9, 0.99)
"""Of which the statistics hold the levels."""
_MIN_SPREAD = 1e-4  # relative to the magnitude; less is rounding or the noise of an idle sensor
_ROUNDING = 1e-6  # relative to the magnitude; values that differ by less are one value
_IGNORING = 1e30  # a divisor that leaves nothing of a number


@dataclass(frozen=True)
class ArrayStatistics:
    """Statistics of each dimension of an array (N, D).

    Attributes:
        mean, std, min, max: (D,), over all rows; `std` is the population's deviation.
        quantiles: "0.01", "0.1", "0.5", "0.9" and "0.99" to (D,), over at most 131072 rows or 67 MB, spread evenly.
        constant: near-constant dimensions, which must not be divided by their deviation: it is below 1e-4 of their
            magnitude, or 98 % of their values are the same.
    """

    mean: list[float]
    std: list[float]
    min: list[float]
    max: list[float]
    quantiles: dict[str, list[float]]
    constant: list[int]

    def fixed(self) -> np.ndarray:
        """Return bool (D,), the dimensions with one value, up to rounding."""
        magnitude = np.maximum(np.abs(self.mean), 1e-2)
        return np.asarray(np.subtract(self.max, self.min) <= _ROUNDING * magnitude)

    def standardizer(self, mode: str = "meanstd") -> tuple[np.ndarray, np.ndarray]:
        """Return what to subtract and what to divide by, float32 (D,) each.

        `meanstd` gives mean 0 and deviation 1, `minmax` and `quantile` the extremes, or the quantiles 1 % and 99 %, at
        -1 and 1. Near-constant dimensions are divided by 1. One with a single value has a divisor that leaves 0 of any
        other value: nothing can be learned about those.
        """
        if mode == "meanstd":
            offset, scale = np.asarray(self.mean, np.float32), np.asarray(self.std, np.float32)
        else:
            low, high = (self.min, self.max) if mode == "minmax" else (self.quantiles[q] for q in ("0.01", "0.99"))
            offset, scale = (np.asarray(f(high, low) / 2, np.float32) for f in (np.add, np.subtract))
        scale[self.constant] = 1.0
        scale[self.fixed()] = _IGNORING
        return offset, scale

    def bounds(self) -> np.ndarray:
        """Return float32 (2, D), a policy's least and largest action: -1 and 1, or twice a dimension's one value."""
        value = np.clip(self.quantiles["0.5"], -1, 1)
        return np.where(self.fixed(), value, [[-1.0], [1.0]]).astype(np.float32)

    def record(self) -> dict[str, Any]:
        """Return the statistics as JSON-able values."""
        return asdict(self)


def array_statistics(array: Array) -> ArrayStatistics:
    """Compute the statistics of an array (N, D) of numbers, N and D at least 1."""
    count, width = array.shape[0], array.shape[1]
    origin = np.asarray(array[0:1], np.float64)[0]  # sums of differences from it lose no digits
    total, squares = np.zeros(width), np.zeros(width)
    low, high = np.full(width, np.inf), np.full(width, -np.inf)
    rows = max(1, _BYTES // (array.dtype.itemsize * width))
    for start in range(0, count, rows):
        piece = np.asarray(array[start : start + rows])
        low, high = np.minimum(low, piece.min(0)), np.maximum(high, piece.max(0))
        centered = piece - origin
        total += centered.sum(0)
        squares += np.einsum("nd,nd->d", centered, centered)
    mean = total / count
    std = np.sqrt(np.maximum(squares / count - mean**2, 0.0))
    mean += origin
    sampled = min(count, _SAMPLE, max(1000, _SAMPLE_BYTES // (array.dtype.itemsize * width)))
    spread = np.linspace(0, count - 1, sampled).astype(np.int64)
    levels = np.quantile(np.asarray(array[spread]), QUANTILES, axis=0)
    magnitude = np.maximum(np.abs(mean), 1e-2)  # so that noise of a millionth around 0 is constant, too
    is_constant = (levels[-1] - levels[0]) <= _ROUNDING * magnitude
    return ArrayStatistics(
        mean=mean.tolist(),
        std=std.tolist(),
        min=low.astype(np.float64).tolist(),
        max=high.astype(np.float64).tolist(),
        quantiles={str(q): level.tolist() for q, level in zip(QUANTILES, levels.astype(np.float64), strict=True)},
        constant=np.flatnonzero((std <= _MIN_SPREAD * magnitude) | is_constant).tolist(),
    )


def store_statistics(store: Store) -> dict[str, ArrayStatistics]:
    """Compute the statistics of `actions` (rows with an outcome: others may be padding) and of every state.

    Instructions have none: their vectors are of one scale.
    """
    states = {name: x for name, x in store.observations.items() if x.ndim == 2 and not isinstance(x, Lookup)}
    return {"actions": action_statistics(store)} | {
        f"observations/{name}": array_statistics(array) for name, array in states.items()
    }


def action_statistics(store: Store) -> ArrayStatistics:
    """Compute the statistics of the actions with an outcome."""
    return array_statistics(store.actions if store.has_outcome.all() else store.actions[store.transitions])


def mean_images(store: Store) -> dict[str, np.ndarray]:
    """Compute the mean frame of every camera, float32 (H, W, C) in [0, 255], over frames spread over the recordings."""
    rows = mean_rows(len(store))
    return {name: _mean(array, rows) for name, array in store.observations.items() if array.ndim == 4}


def farthest(store: Store) -> dict[str, float]:
    """Find the farthest distance of every depth camera, in millimeters, in the frames of `mean_images`; at least 1."""
    rows, found = mean_rows(len(store)), dict[str, float]()
    cameras = {name: x for name, x in store.observations.items() if x.ndim == 4 and x.shape[3] == depth.BYTES}
    for name, images in cameras.items():
        pieces = (images[rows[start : start + _TOGETHER]] for start in range(0, len(rows), _TOGETHER))
        found[name] = max(1.0, *(float(depth.millimeters(piece).max()) for piece in pieces))
    return found


def mean_rows(count: int) -> np.ndarray:
    """int64, the rows of `count` that a mean frame is taken from."""
    return np.linspace(0, count - 1, min(count, _FRAMES)).astype(np.int64)


def _mean(images: Array, rows: np.ndarray) -> np.ndarray:
    total = np.zeros(images.shape[1:], np.float64)
    for start in range(0, len(rows), _TOGETHER):
        total += images[rows[start : start + _TOGETHER]].sum(0, dtype=np.float64)
    return (total / len(rows)).astype(np.float32)
