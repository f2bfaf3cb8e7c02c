"""What is wrong with a data set, found before training starts."""

from __future__ import annotations

import numpy as np

from gtp_vision.core.errors import GtpVisionError
from gtp_vision.datasets.arrays import Array
from gtp_vision.datasets.store import Store

_PIECE = 1 << 18  # rows looked at together, so that a mapped file is streamed
_CHANNELS = (1, 3, 4)  # of a picture; no picture is so few pixels high
_TOLERANCE = 1e-5  # actions that left [-1, 1] by float rounding are not an error


def problems(store: Store) -> list[str]:
    """Every kind of fault of the store, a sentence each: the array, the episode, the frame and the mend."""
    found: list[str] = []
    found += shape_errors(store)
    if found:  # row arithmetic below relies on the lengths
        return found
    found += _flat("rewards", store.rewards, store)
    found += _flat("actions", store.actions, store)
    if not found:
        found += _range(store)
    for name, array in store.observations.items():
        fault = observation_fault(name, array)
        if fault:
            found.append(fault)
        elif array.ndim == 2:
            found += _flat(f"observations/{name}", array, store)
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


def observation_fault(name: str, array: Array) -> str | None:
    """What is wrong with an observation's type and shape, with the mend; None if it is a camera or a state."""
    told = f"observations/{name} is {array.dtype} {array.shape}"
    picture = array.ndim == 4 and all(array.shape)
    if picture and array.dtype.kind == "f":
        return f"{told}; wanted uint8 (N, H, W, C): if it is a camera of 0 to 1, multiply by 255 and write uint8"
    if picture and array.dtype == np.uint8:
        if array.shape[1] in _CHANNELS and array.shape[-1] not in _CHANNELS:
            return f"{told}, its channels first; wanted uint8 (N, H, W, C): write it with transpose(0, 2, 3, 1)"
        return None
    if array.ndim == 2 and array.shape[1]:
        if array.dtype.kind == "f":
            return None
        if array.dtype.kind in "biu":
            return f"{told}; wanted uint8 (N, H, W, C) or float (N, D): write a state as float32"
    return f"{told}; wanted uint8 (N, H, W, C) or float (N, D)"


def shape_errors(store: Store) -> list[str]:
    """The faults of shapes and lengths among `problems`: all row arithmetic relies on there being none."""
    flat = {name: getattr(store, name) for name in ("rewards", "terminals", "timeouts", "episode_ends")}
    found = [
        f"{name} has shape {array.shape}; wanted one number a row, (frames,)"
        for name, array in flat.items()
        if array.ndim != 1
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
            f"timeouts stand inside an episode, first at {location(store, int(inside[0]))}; end the episode there"
        )
    return found


def _flat(name: str, array: Array, store: Store) -> list[str]:
    for start in range(0, len(array), _PIECE):
        bad = ~np.isfinite(np.asarray(array[start : start + _PIECE]))
        if bad.any():
            row = start + int(np.flatnonzero(bad.reshape(len(bad), -1).any(1))[0])
            return [f"{name} holds a value that is not finite at {location(store, row)}; remove or mend that episode"]
    return []


def _range(store: Store) -> list[str]:
    for start in range(0, len(store), _PIECE):
        piece = np.abs(np.asarray(store.actions[start : start + _PIECE]))
        bad = np.flatnonzero(piece.max(1) > 1 + _TOLERANCE)
        if len(bad):
            row, worst = start + int(bad[0]), float(piece.max())
            return [
                f"actions leave [-1, 1] (largest magnitude {worst:.4g}, first at {location(store, row)}); "
                f"scale each dimension to [-1, 1] when writing the file"
            ]
    return []


def location(store: Store, row: int) -> str:
    """`episode E, frame F` of a row, E as the file counts."""
    episode = int(store.episode_of(np.array([row]))[0])
    number = episode if store.numbers is None else store.numbers[episode]
    return f"episode {number}, frame {row - int(store.episode_starts[episode])}"
