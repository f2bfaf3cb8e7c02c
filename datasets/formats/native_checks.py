"""Checks of the native format: of a file that is read, and of a store that is written."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np

from gtp_vision.core.errors import GtpVisionError, first_line
from gtp_vision.datasets import hdf5
from gtp_vision.datasets.arrays import Array, Segmented
from gtp_vision.datasets.formats import episodes
from gtp_vision.datasets.layout import check_filters
from gtp_vision.datasets.store import Store
from gtp_vision.datasets.validation import observation_fault, shape_errors
from gtp_vision.datasets.videos import Videos

FLAT = {
    "actions": ("f", "", "float32 (frames, dimensions) in [-1, 1]"),
    "rewards": ("f", "biu", "float32 (frames,)"),
    "terminals": ("uib", "f", "uint8 (frames,), 1 where the MDP ended by the row's action"),
    "timeouts": ("uib", "f", "uint8 (frames,), 1 in the last row of each episode that does not end in a terminal"),
    "episode_ends": ("ui", "", "int64 (episodes,), for each episode the row after its last, counted from the first"),
}
"""Each array's kinds of dtype that are mapped in place (bool as bytes), kinds that are converted, and what to write."""
_OBSERVATIONS = "a group with uint8 (frames, H, W, C) for each camera and float32 (frames, D) for each state"
_ANY_KIND = "biufcSUOVmM"  # all, since wrong ones are reported together


def checked_arrays(file: h5py.File, path: Path, elsewhere: bool) -> dict[str, h5py.Dataset]:
    """Return name to array, if all arrays are inside the file, of the right types and shapes, and of one length.

    Raises GtpVisionError: everything that is missing or of a wrong type, in one sentence; links, damage, other lengths.
    """
    members = hdf5.children(file, path)
    faults = [f"has no '{name}' (wanted {wanted})" for name, (*_, wanted) in FLAT.items() if name not in members]
    names: list[str] = []
    if "observations" in members:
        names = episodes.member_names(hdf5.group(file, "observations", path), path)
        if not names:
            raise GtpVisionError(f"{path} has no array in its group 'observations'; write the file again")
    elif not elsewhere:
        faults.insert(0, f"has no 'observations' (wanted {_OBSERVATIONS})")
    arrays: dict[str, h5py.Dataset] = {}
    for name in [*(f"observations/{key}" for key in names), *(name for name in FLAT if name in members)]:
        arrays[name] = data = hdf5.array(file, name, path, kinds=_ANY_KIND)
        faults += filter(None, [_array_fault(name, data)])
    if faults:
        raise GtpVisionError(f"{path}: {'; '.join(faults)}; write the file again")
    frames = arrays["actions"].shape[0]
    for name, data in arrays.items():
        if name != "episode_ends" and data.shape[0] != frames:
            raise GtpVisionError(
                f"{path}: '{name}' has shape {data.shape}, but 'actions' has {frames} rows; write one row per frame"
            )
    return arrays


def _array_fault(name: str, data: h5py.Dataset) -> str | None:
    """Return the fault of an array's type or shape, with what is wanted."""
    if name not in FLAT:
        wanted = "uint8 (frames, H, W, C) for a camera or float32 (frames, D) for a state"
        return None if data.dtype.kind in "uf" else f"{_held(name, data.dtype)} (wanted {wanted})"
    kept, converted, wanted = FLAT[name]
    if data.dtype.kind not in kept + converted:
        return f"{_held(name, data.dtype)} (wanted {wanted})"
    fits = data.ndim == 2 if name == "actions" else data.ndim == 1 or data.shape[1:] == (1,)
    return None if fits else f"'{name}' has shape {data.shape} (wanted {wanted})"


def _held(name: str, dtype: np.dtype) -> str:
    """Return what an array of a wrong type holds, in words."""
    discrete = ", and discrete actions are not supported" if name == "actions" and dtype.kind in "iu" else ""
    return f"'{name}' holds {hdf5.KINDS.get(dtype.kind, 'other values')}{discrete}"


def writable(store: Store) -> Store:
    """Return the store with the dtypes of the format.

    Raises:
        GtpVisionError: a type, shape, length or name that the format cannot hold.
    """
    place = store.path or "the data set"
    observations: dict[str, Array] = {
        name: array if isinstance(array, np.ndarray | Segmented | Videos) else np.asarray(array)
        for name, array in store.observations.items()
    }
    flat: dict[str, np.ndarray] = {name: np.asarray(getattr(store, name)) for name in FLAT}
    for name, array in flat.items():
        kept, converted, wanted = FLAT[name]
        if array.size and array.dtype.kind not in kept + converted:  # an empty list becomes floats
            raise GtpVisionError(f"{place}: {_held(name, array.dtype)}; write {wanted}")
        if not np.isfinite(array).all() and name in ("terminals", "timeouts"):
            raise GtpVisionError(f"{place}: '{name}' holds a number that is not finite; write {wanted}")
    converted_store = replace(
        store,
        observations=observations,
        actions=flat["actions"].astype(np.float32, copy=False),
        rewards=flat["rewards"].astype(np.float32, copy=False),
        terminals=(flat["terminals"] != 0).astype(np.uint8),
        timeouts=(flat["timeouts"] != 0).astype(np.uint8),
        episode_ends=flat["episode_ends"].astype(np.int64),
    )
    faults = shape_errors(converted_store)
    if not observations:
        faults.append("the store has no observation; give at least one camera or state")
    for name, observed in observations.items():
        if "/" in episodes.check_name(str(name), place):
            faults.append(f"the observation '{name}' has a '/' in its name; write it without")
        faults += filter(None, [observation_fault(name, observed)])
    if faults:
        raise GtpVisionError(f"{place}: {faults[0]}")
    try:
        json.dumps(store.attributes)
    except (TypeError, ValueError, RecursionError) as error:
        raise GtpVisionError(
            f"{place}: the attributes cannot be written as JSON ({first_line(error)}); use text, numbers, lists, dicts"
        ) from error
    check_filters(converted_store)
    return converted_store
