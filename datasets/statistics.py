"""Statistics of a data set that networks are scaled by."""

from __future__ import annotations

import numpy as np

from gtp_vision.datasets.arrays import Array
from gtp_vision.datasets.store import Store

_PIECE = 64
_FRAMES = 2048  # enough for a mean to a level or two, and 25 MB of 64x64 frames


def mean_images(store: Store) -> dict[str, np.ndarray]:
    """The mean frame of every camera, over frames spread evenly over the recordings.

    Returns:
        Camera name to float32 (H, W, C) in [0, 255].
    """
    rows = np.linspace(0, len(store) - 1, min(len(store), _FRAMES)).astype(np.int64)
    return {name: _mean(array, rows) for name, array in store.observations.items() if array.ndim == 4}


def _mean(images: Array, rows: np.ndarray) -> np.ndarray:
    total = np.zeros(images.shape[1:], np.float64)
    for start in range(0, len(rows), _PIECE):  # in pieces, so that memory does not grow with the camera
        total += images[rows[start : start + _PIECE]].sum(0, dtype=np.float64)
    return (total / len(rows)).astype(np.float32)
