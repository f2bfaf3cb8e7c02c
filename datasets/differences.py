"""Differences between a data set and its conversion to another format, in sentences."""

from __future__ import annotations

from typing import Any

import numpy as np

from gtp_vision.core import depth
from gtp_vision.core.progress import Progress
from gtp_vision.datasets.arrays import Array
from gtp_vision.datasets.layout import PROGRESS_BYTES, row_ranges
from gtp_vision.datasets.scaling import ROUNDING, in_file_units
from gtp_vision.datasets.store import ACTION_BOUNDS, Store


def differences(before: Store, after: Store) -> list[str]:
    """Compare every number and pixel of a converted data set with the original.

    Returns:
        A sentence for each kind of difference. Rows without an outcome are reported separately: nothing is learned
        from their actions and rewards. New attributes are not a difference.
    """
    sentences: list[str] = []
    if not np.array_equal(before.episode_ends, after.episode_ends):
        shorter = before.without_final_observations()
        if not np.array_equal(shorter.episode_ends, after.episode_ends):
            return [
                f"{after.episodes} episodes of {len(after)} frames were made of {before.episodes} episodes of "
                f"{len(before)} frames"
            ]
        rows, actions = len(before) - len(shorter), len(before.transitions) - len(shorter.transitions)
        so = f", so {actions} actions lost their outcome (--to native keeps them)" if actions else ""
        sentences = [f"the observations after the last action of {rows} episodes were left out{so}"]
        before = shorter
    sentences += _flat_differences(before, after)
    size = before.nbytes()
    with Progress(total=size, desc="comparing", unit="B", unit_scale=True, disable=size < PROGRESS_BYTES) as bar:
        for name, array in before.observations.items():
            if name in after.observations:
                sentences += _observation_differences(name, array, after.observations[name], bar)
            else:
                sentences.append(f"the observation '{name}' was left out")
    lost = [name for name in before.attributes if before.attributes[name] != after.attributes.get(name)]
    return sentences + ([f"these attributes are missing or changed: {', '.join(lost)}"] if lost else [])


def _flat_differences(before: Store, after: Store) -> list[str]:
    known = before.has_outcome
    if not np.array_equal(known, after.has_outcome):
        return [f"{np.count_nonzero(known != after.has_outcome)} rows gained or lost their outcome"]
    sentences, lost = [], []
    for name in ("actions", "rewards", "terminals"):
        old, new = (np.asarray(getattr(store, name), np.float32).reshape(len(store), -1) for store in (before, after))
        differ = _is_different(old, new)
        if name == "actions" and _bounds(before) != _bounds(after):  # scaled by the conversion
            old, new = in_file_units(before), in_file_units(after)
            slack = ROUNDING * np.ptp(old[known], axis=0)
            differ = np.asarray(~np.isclose(old, new, rtol=ROUNDING, atol=slack, equal_nan=True).all(1))
        if np.any(differ & known):
            most = float(np.nanmax(np.abs(old[known].astype(np.float64) - new[known])))
            sentences.append(f"{name} differ in {np.count_nonzero(differ & known)} rows, by at most {most:.3g}")
        if np.any(differ & ~known):
            lost.append(f"{name} of {np.count_nonzero(differ & ~known)} rows")
    if lost:
        sentences.append(f"the {', '.join(lost)} without an outcome, from which nothing is learned, were not kept")
    return sentences


def _observation_differences(name: str, before: Array, after: Array, bar: Progress) -> list[str]:
    rows, total, largest, count = 0, 0.0, 0.0, 0
    is_depth = before.ndim == 4 and before.shape[3] == depth.BYTES
    for start, stop in row_ranges(before):
        old, new = np.asarray(before[start:stop]), np.asarray(after[start:stop])
        if old.shape != new.shape:
            return [f"'{name}' has the shape {after.shape} instead of {before.shape}"]
        old, new = (depth.millimeters(x) if is_depth else x for x in (old, new))
        count += old.size
        rows += int(np.count_nonzero(_is_different(old, new)))
        error = np.abs(old.astype(np.float32) - new)
        total, largest = total + float(error.sum(dtype=np.float64)), max(largest, float(error.max(initial=0)))
        bar.update(old.nbytes)
    if not rows:
        return []
    if before.ndim == 4:
        kind, unit = ("distances", "mm") if is_depth else ("frames", "of 255")
        return [
            f"{kind} of the camera '{name}' differ by {total / count:.3g} {unit} on average, by {largest:g} at most"
        ]
    return [f"'{name}' differs in {rows} rows, by at most {largest:.3g}"]


def _bounds(store: Store) -> list[Any]:
    return [store.attributes.get(bound) for bound in ACTION_BOUNDS]


def _is_different(old: np.ndarray, new: np.ndarray) -> np.ndarray:
    """Return bool (N,): whether a row has a number that differs; a NaN equals another NaN."""
    same = old == new
    if old.dtype.kind == "f":
        same |= np.isnan(old) & np.isnan(new)
    return ~same.reshape(len(old), -1).all(1)
