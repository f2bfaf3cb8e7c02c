"""Faults of a data set, found before training starts."""

from __future__ import annotations

import numpy as np

from gtp_vision.core.errors import GtpVisionError
from gtp_vision.datasets.arrays import Array
from gtp_vision.datasets.scaling import ROUNDING, has_bounds, pair_of
from gtp_vision.datasets.store import ACTION_BOUNDS, Store

_ROWS = 1 << 18  # read together, so that a mapped file is streamed
_CHANNELS = (1, 3, 4)  # of an image; no image is so few pixels high
SCALE = "set task.action_scaling=minmax (or quantile, meanstd), or write a scaled file: gtp-vision data convert --scale"
"""The advice about actions in other units."""


def problems(store: Store) -> list[str]:
    """Return every kind of fault of the store, a sentence each: array, episode, frame and what to do."""
    found = shape_errors(store)
    if found:  # row arithmetic below relies on the lengths
        return found
    found += _nonfinite("rewards", store.rewards, store)
    found += _nonfinite("actions", store.actions, store)
    if not found:
        found += _out_of_range(store)
    found += _bound_faults(store)
    for name, array in store.observations.items():
        fault = observation_fault(name, array)
        if fault:
            found.append(fault)
        elif array.ndim == 2:
            found += _nonfinite(f"observations/{name}", array, store)
    if not len(store.transitions):
        found.append("the data set has no transition: every episode has one frame; record longer episodes")
    return found


def validate(store: Store) -> Store:
    """Return the store, or raise a GtpVisionError with the first of `problems` and the file's name."""
    found = problems(store)
    if found:
        more = f" ({len(found) - 1} more: see gtp-vision data inspect)" if len(found) > 1 else ""
        raise GtpVisionError(f"{store.path or 'data set'}: {found[0]}{more}")
    return store


def observation_fault(name: str, array: Array) -> str | None:
    """Return the fault of an observation's type and shape; None if it is a camera or a state."""
    is_image, is_state = array.ndim == 4 and all(array.shape), array.ndim == 2 and array.shape[1]
    held = f"observations/{name} is {array.dtype} {array.shape}"
    if is_image and array.dtype.kind == "f":
        return f"{held}; wanted uint8 (N, H, W, C): if it is a camera of 0 to 1, multiply by 255 and write uint8"
    if is_image and array.dtype == np.uint8:
        if array.shape[1] in _CHANNELS and array.shape[-1] not in _CHANNELS:
            return f"{held}, its channels first; wanted uint8 (N, H, W, C): write it with transpose(0, 2, 3, 1)"
        return None
    if is_state and array.dtype.kind == "f":
        return None
    advice = ": write a state as float32" if is_state and array.dtype.kind in "biu" else ""
    return f"{held}; wanted uint8 (N, H, W, C) or float (N, D){advice}"


def shape_errors(store: Store) -> list[str]:
    """Return the faults of shapes and lengths among `problems`; row arithmetic needs a store without any."""
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
        return ["the data set is empty: it has no episodes; record some"]
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
            f"timeouts are set inside an episode, first at {location(store, int(inside[0]))}; end the episode there"
        )
    return found


def _nonfinite(name: str, array: Array, store: Store) -> list[str]:
    for start in range(0, len(array), _ROWS):
        bad = ~np.isfinite(np.asarray(array[start : start + _ROWS]))
        if bad.any():
            row = start + int(np.flatnonzero(bad.reshape(len(bad), -1).any(1))[0])
            return [f"{name} holds a value that is not finite at {location(store, row)}; remove or fix that episode"]
    return []


def _out_of_range(store: Store) -> list[str]:
    for start in range(0, len(store), _ROWS):
        magnitude = np.abs(np.asarray(store.actions[start : start + _ROWS]))
        bad = np.flatnonzero(magnitude.max(1) > 1 + ROUNDING)
        if len(bad):
            return [
                f"actions leave [-1, 1] (largest magnitude {float(magnitude.max()):.4g}, first at "
                f"{location(store, start + int(bad[0]))}); {SCALE}"
            ]
    return []


def _bound_faults(store: Store) -> list[str]:
    """Check the attributes that say what -1 and 1 stand for."""
    fits = not has_bounds(store) or pair_of(store.attributes, store.action_dim) is not None
    wanted = f"{store.action_dim} finite numbers each, the low not above the high"
    return [] if fits else [f"the attributes {' and '.join(ACTION_BOUNDS)} must be {wanted}; correct them"]


def location(store: Store, row: int) -> str:
    """Return `episode E, frame F` of a row, E as numbered in the file."""
    episode = int(store.episode_of(np.array([row]))[0])
    number = episode if store.numbers is None else store.numbers[episode]
    return place(number, row - int(store.episode_starts[episode]))


def place(episode: int, frame: int) -> str:
    """Return the words by which messages name a frame of an episode."""
    return f"episode {episode}, frame {frame}"
