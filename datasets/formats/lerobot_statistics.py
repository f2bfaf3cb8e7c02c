"""The statistics that LeRobot keeps of every feature, in meta/stats.json and of each episode in meta/episodes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from gtp_vision.datasets.arrays import Array

Statistics = dict[str, np.ndarray]
_SAMPLED = 8  # frames of an episode that are looked at


def of_rows(rows: Array) -> Statistics:
    """Minimum, maximum, mean, standard deviation, each (D,), and count (1,), of numbers (n,) or (n, D)."""
    values = np.asarray(rows, np.float64)
    values = values[:, None] if values.ndim == 1 else values
    with np.errstate(invalid="ignore"):  # what is not finite is for validation to tell
        moments = {"mean": values.mean(0), "std": values.std(0)}
    return {"min": values.min(0), "max": values.max(0), **moments, "count": np.array([len(values)])}


def of_frames(frames: Array, start: int, end: int) -> Statistics:
    """The same of some of the frames `start` to `end - 1`, colours from 0 to 1; each (C, 1, 1), count of the frames."""
    rows = np.unique(np.linspace(start, end - 1, min(_SAMPLED, end - start)).astype(int))
    picked = np.asarray(frames[rows])
    values = np.ascontiguousarray(picked.reshape(-1, picked.shape[3]).T).astype(np.float32) / 255
    found = {"min": values.min(1), "max": values.max(1), "mean": values.mean(1), "std": values.std(1)}
    return {kind: value[:, None, None] for kind, value in found.items()} | {"count": np.array([len(rows)])}


def together(parts: Sequence[Statistics]) -> dict[str, Any]:
    """The statistics of all episodes together, as lists."""
    stacked = {kind: np.stack([part[kind] for part in parts]).astype(np.float64) for kind in parts[0]}
    count = stacked["count"].reshape(-1, *[1] * (stacked["mean"].ndim - 1))
    total = count.sum()
    mean = (count * stacked["mean"]).sum(0) / total
    variance = (count * (stacked["std"] ** 2 + (stacked["mean"] - mean) ** 2)).sum(0) / total
    found = {"min": stacked["min"].min(0), "max": stacked["max"].max(0), "mean": mean, "std": np.sqrt(variance)}
    return {kind: value.tolist() for kind, value in found.items()} | {"count": [int(total)]}
