"""What is wrong with a data set, found before training starts."""

from __future__ import annotations

import numpy as np

from gtp_vision.datasets.arrays import Array
from gtp_vision.datasets.store import Store
from gtp_vision.errors import GtpVisionError

_PIECE = 1 << 18  # rows looked at together, so that a mapped file is streamed
_TOLERANCE = 1e-5  # actions that left [-1, 1] by float rounding are not an error


def problems(store: Store) -> list[str]:
    """Every kind of fault of the store, a sentence each: the array, the episode, the frame and the mend."""
    found: list[str] = []
    found += misfits(store)
    if found:  # row arithmetic below relies on the lengths
        return found
    found += _flat("rewards", store.rewards, store)
    found += _flat("actions", store.actions, store)
    if not found:
        found += _range(store)
    for name, array in store.observations.items():
        if array.dtype == np.uint8 and array.ndim == 4 and all(array.shape):
            continue
        if array.dtype.kind == "f" and array.ndim == 2 and array.shape[1]:
            found += _flat(f"observations/{name}", array, store)
        else:
            found.append(
                f"observations/{name} is {array.dtype} {array.shape}; wanted uint8 (N, H, W, C) or float (N, D)"
            )
    if not len(store.transitions):
        found.append("no transition: every episode has one frame; record longer episodes")
    return found


def validate(store: Store) -> Store:
    """The store itself, if nothing is wrong with it.

    Raises:
        GtpVisionError: the first fault, with the file's name.
    """
    found = problems(store)
    if found:
        more = f" ({len(found) - 1} more: see gtp-vision data inspect)" if len(found) > 1 else ""
        raise GtpVisionError(f"{store.path or 'data set'}: {found[0]}{more}")
    return store


def misfits(store: Store) -> list[str]:
    """The faults of shapes and lengths among `problems`: all row arithmetic relies on there being none."""
    flat = {name: getattr(store, name) for name in ("rewards", "terminals", "timeouts", "episode_ends")}
    found = [
        f"{name} has shape {array.shape}; wanted one number a row" for name, array in flat.items() if array.ndim != 1
    ]
    if store.actions.ndim != 2 or not store.actions.shape[1]:
        found.append(f"actions have shape {store.actions.shape}; wanted (frames, dimensions)")
    if found:
        return found
    ends, frames = store.episode_ends, len(store)
    if not frames or not len(ends):
        return ["no episodes: the file is empty; record some"]
    if ends[-1] != frames or np.any(np.diff(np.concatenate([[0], ends])) <= 0):
        return [f"episode_ends must increase up to the {frames} frames; they end at {ends[-1]}"]
    counts = {name: len(array) for name, array in flat.items() if name != "episode_ends"}
    counts |= {f"observations/{name}": len(array) for name, array in store.observations.items()}
    found = [
        f"{name} has {rows} rows and actions {frames}; every array needs one row a frame"
        for name, rows in counts.items()
        if rows != frames
    ]
    inside = np.setdiff1d(np.flatnonzero(store.timeouts), ends - 1)
    if not found and len(inside):
        found.append(
            f"timeouts stand inside an episode, first at {place(store, int(inside[0]))}; end the episode there"
        )
    return found


def _flat(name: str, array: Array, store: Store) -> list[str]:
    for start in range(0, len(array), _PIECE):
        bad = ~np.isfinite(np.asarray(array[start : start + _PIECE]))
        if bad.any():
            row = start + int(np.flatnonzero(bad.reshape(len(bad), -1).any(1))[0])
            return [f"{name} holds a value that is not finite at {place(store, row)}; remove or mend that episode"]
    return []


def _range(store: Store) -> list[str]:
    for start in range(0, len(store), _PIECE):
        piece = np.abs(np.asarray(store.actions[start : start + _PIECE]))
        bad = np.flatnonzero(piece.max(1) > 1 + _TOLERANCE)
        if len(bad):
            row, worst = start + int(bad[0]), float(piece.max())
            return [
                f"actions leave [-1, 1] (largest magnitude {worst:.4g}, first at {place(store, row)}); "
                f"scale each dimension to [-1, 1] when writing the file"
            ]
    return []


def place(store: Store, row: int) -> str:
    """`episode E, frame F` of a row."""
    episode = int(store.episode_of(np.array([row]))[0])
    return f"episode {episode}, frame {row - int(store.episode_starts[episode])}"
