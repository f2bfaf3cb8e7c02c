"""LeRobot's statistics of every feature: of the data set in meta/stats.json, of each episode in meta/episodes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from gtp_vision.datasets.arrays import Array

Statistics = dict[str, np.ndarray]
_SAMPLED = 8  # frames of an episode that are read


def of_rows(rows: Array) -> Statistics:
    """Compute min, max, mean and std, each (D,), and count (1,), of numbers (n,) or (n, D)."""
    values = np.asarray(rows, np.float64)
    values = values[:, None] if values.ndim == 1 else values
    with np.errstate(invalid="ignore"):  # validation reports values that are not finite
        moments = {"mean": values.mean(0), "std": values.std(0)}
    return {"min": values.min(0), "max": values.max(0), **moments, "count": np.array([len(values)])}


def of_frames(frames: Array, start: int, end: int) -> Statistics:
    """Compute the same of a sample of frames `start` to `end - 1`, colors from 0 to 1; each (C, 1, 1), count (1,)."""
    rows = np.unique(np.linspace(start, end - 1, min(_SAMPLED, end - start)).astype(int))
    sample = np.asarray(frames[rows])
    values = np.ascontiguousarray(sample.reshape(-1, sample.shape[3]).T).astype(np.float32) / 255
    found = {"min": values.min(1), "max": values.max(1), "mean": values.mean(1), "std": values.std(1)}
    return {kind: value[:, None, None] for kind, value in found.items()} | {"count": np.array([len(rows)])}


def combined(episodes: Sequence[Statistics]) -> dict[str, Any]:
    """Combine the statistics of all episodes, as lists."""
    stacked = {kind: np.stack([episode[kind] for episode in episodes]).astype(np.float64) for kind in episodes[0]}
    count = stacked["count"].reshape(-1, *[1] * (stacked["mean"].ndim - 1))
    total = count.sum()
    mean = (count * stacked["mean"]).sum(0) / total
    variance = (count * (stacked["std"] ** 2 + (stacked["mean"] - mean) ** 2)).sum(0) / total
    found = {"min": stacked["min"].min(0), "max": stacked["max"].max(0), "mean": mean, "std": np.sqrt(variance)}
    return {kind: value.tolist() for kind, value in found.items()} | {"count": [int(total)]}
