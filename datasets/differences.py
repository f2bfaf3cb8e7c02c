"""What a conversion did not keep: two stores compared, for a person."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from tqdm import tqdm

from gtp_vision.datasets.arrays import Array
from gtp_vision.datasets.layout import COPY_BYTES
from gtp_vision.datasets.store import Store

_PROGRESS_BYTES = 1 << 28  # a bar is shown for more
_FLAT = ("actions", "rewards", "terminals")


def differences(before: Store, after: Store) -> list[str]:
    """A sentence for each kind of thing in which a converted data set is not the one it was made from.

    Every number and every pixel is compared. What rows without an outcome hold is told apart: nothing is learnt from
    their actions and rewards. Attributes that are new are no difference.
    """
    if not np.array_equal(before.episode_ends, after.episode_ends):
        return [
            f"{after.episodes} episodes of {len(after)} frames were made of {before.episodes} episodes of "
            f"{len(before)} frames"
        ]
    told = _flat(before, after)
    with tqdm(total=before.nbytes(), desc="comparing", unit="B", unit_scale=True,
              disable=before.nbytes() < _PROGRESS_BYTES) as bar:  # fmt: skip
        for name, array in before.observations.items():
            if name in after.observations:
                told += _observation(name, array, after.observations[name], bar)
            else:
                told.append(f"the observation '{name}' was left out")
    gone = [name for name in before.attributes if before.attributes[name] != after.attributes.get(name)]
    return told + ([f"these attributes are gone or changed: {', '.join(gone)}"] if gone else [])


def _flat(before: Store, after: Store) -> list[str]:
    known = before.has_outcome
    if not np.array_equal(known, after.has_outcome):
        return [f"{np.count_nonzero(known != after.has_outcome)} rows gained or lost their outcome"]
    told, emptied = [], []
    for name in _FLAT:
        one, other = (np.asarray(getattr(store, name), np.float32).reshape(len(store), -1) for store in (before, after))
        differ = _unlike(one, other)
        if np.any(differ & known):
            told.append(f"{name} differ in {np.count_nonzero(differ & known)} rows, {_most(one[known], other[known])}")
        if np.any(differ & ~known):
            emptied.append(f"{name} of {np.count_nonzero(differ & ~known)} rows")
    if emptied:
        told.append(f"the {', '.join(emptied)} without an outcome, which nothing is learnt from, were not kept")
    return told


def _observation(name: str, before: Array, after: Array, bar: tqdm) -> list[str]:
    rows, total, largest = 0, 0.0, 0.0
    for start, stop in _pieces(before):
        one, other = np.asarray(before[start:stop]), np.asarray(after[start:stop])
        if one.shape != other.shape:
            return [f"'{name}' has the shape {after.shape} instead of {before.shape}"]
        rows += int(np.count_nonzero(_unlike(one, other)))
        error = np.abs(one.astype(np.float32) - other)
        total, largest = total + float(error.sum(dtype=np.float64)), max(largest, float(error.max(initial=0)))
        bar.update(one.nbytes)
    if not rows:
        return []
    if before.ndim == 4:
        mean = total / max(1, int(np.prod(before.shape)))
        return [f"frames of the camera '{name}' are off by {mean:.3g} of 255 on average, by {largest:g} at most"]
    return [f"'{name}' differs in {rows} rows, by at most {largest:.3g}"]


def _unlike(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Bool (N,): whether a row has a number that is not the same; a NaN is the same as another."""
    same = one == other
    if one.dtype.kind == "f":
        same |= np.isnan(one) & np.isnan(other)
    return ~same.reshape(len(one), -1).all(1)


def _most(one: np.ndarray, other: np.ndarray) -> str:
    return f"by at most {float(np.nanmax(np.abs(one.astype(np.float64) - other))):.3g}"


def _pieces(array: Array) -> Iterator[tuple[int, int]]:
    """(start, stop) of row ranges of about `COPY_BYTES`."""
    step = max(1, COPY_BYTES // max(1, int(np.prod(array.shape[1:])) * array.dtype.itemsize))
    for start in range(0, len(array), step):
        yield start, min(start + step, len(array))
