"""Layouts: where the arrays of a data set lie in files, and the way from a foreign file to one.

A reader describes its file as a `FileArrays`. Large arrays that lie in it as the store wants them are mapped in place;
everything else is copied once into a native file in the cache. The result is a layout, a JSON object, so that it can
cross a process boundary:

    {"arrays": {name: {"dtype": "|u1", "shape": [N, ...], "pieces": [[path, byte offset, rows], ...]}},
     "attributes": {...}}
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from tqdm import tqdm

from gtp_vision.core import sandbox
from gtp_vision.core.errors import GtpVisionError
from gtp_vision.core.files import atomic_write, cached, evict, from_cache, require_space
from gtp_vision.datasets import hdf5
from gtp_vision.datasets.arrays import Array, Segmented
from gtp_vision.datasets.mapped import mapped
from gtp_vision.datasets.store import Store

Layout = dict[str, Any]

_VERSION = "1"  # of what readers make of files: another one makes the cache's entries anew
COPY_BYTES = 1 << 25  # frames are copied in pieces of about 32 MB, so that memory stays bounded
_WORTH_MAPPING = 1 << 16  # mean bytes of a piece below which copying once beats gathering from everywhere
_PROGRESS_BYTES = 1 << 28  # a bar is shown for more


@dataclass(frozen=True)
class Piece:
    """Some rows of one array, as the source holds them.

    Attributes:
        rows: how many.
        shape: of one row.
        dtype: as stored.
        read: (start, stop) to the array of these rows; called in order, from the first row to the last, once.
        place: file and byte offset, where the rows lie one after another in C order; None where they do not.
    """

    rows: int
    shape: tuple[int, ...]
    dtype: np.dtype
    read: Callable[[int, int], np.ndarray]
    place: tuple[Path, int] | None = None


def piece_of(data: h5py.Dataset, path: Path, start: int = 0, stop: int | None = None) -> Piece:
    """The rows `start` to `stop - 1` of an HDF5 array."""
    stop = data.shape[0] if stop is None else stop
    offset = hdf5.offset(data, path)
    row = int(np.prod(data.shape[1:], dtype=np.int64)) * data.dtype.itemsize
    return Piece(
        rows=stop - start,
        shape=data.shape[1:],
        dtype=data.dtype,
        read=lambda low, high: data[start + low : start + high],
        place=None if offset is None else (path, offset + start * row),
    )


def piece_in_memory(values: np.ndarray) -> Piece:
    """An array that the reader has already made."""
    return Piece(len(values), values.shape[1:], values.dtype, lambda low, high: values[low:high])


@dataclass
class FileArrays:
    """A data set as its reader understands it; rows and episodes as in `Store`.

    Attributes:
        observations: name to pieces: uint8 rows (H, W, C) are a camera, all others a state, stored as float32 (D,).
        actions: (N, A), stored as float32.
        rewards: (N,), stored as float32.
        terminals: (N,), not 0 where the MDP ended.
        timeouts: (N,), not 0 where the recording stopped; an episode's last row is one of both.
        episode_ends: (E,) exclusive ends.
        attributes: provenance and what evaluation needs, JSON-able.
    """

    observations: Mapping[str, Sequence[Piece]]
    actions: np.ndarray
    rewards: np.ndarray
    terminals: np.ndarray
    timeouts: np.ndarray
    episode_ends: np.ndarray
    attributes: dict[str, Any] = field(default_factory=dict)


def through_cache(path: Path, opened: Callable[[], AbstractContextManager[FileArrays]], *key: str) -> Layout:
    """The layout of a foreign data set, unpacked into the cache when it is not there yet.

    Args:
        path: file or folder.
        opened: opens it as a source; only called when the cache has nothing, or a damaged entry.
        *key: what the result depends on beside the content: the reader's name, its options.
    """
    target = cached(path, _VERSION, *key)

    def make() -> None:
        with opened() as source:
            unpack(source, target, path)

    return from_cache(target, lambda: of_unpacked(target, path), make)


def unpack(source: FileArrays, target: Path, path: Path) -> None:
    """Write what is not mapped in place into the native file `target`, and beside it where the rest lies.

    Places are written relative to `path`, the source's file or folder, so that it may be moved.

    Raises:
        GtpVisionError: pieces of one array that do not fit each other; no room on the disk.
    """
    from gtp_vision.datasets.formats import native

    label = f"unpacking {path.name}"
    in_place: dict[str, dict[str, Any]] = {}
    shapes: dict[str, tuple[tuple[int, ...], Any]] = {}
    for name, pieces in source.observations.items():
        shape, dtype = _agreed(name, pieces)
        rows = sum(piece.rows for piece in pieces)
        if rows != len(source.actions):
            raise GtpVisionError(
                f"{label}: the observation '{name}' has {rows} frames for {len(source.actions)} actions; "
                f"every frame needs both"
            )
        if _mappable(pieces, dtype):
            in_place[f"observations/{name}"] = {
                "dtype": dtype.str,
                "shape": [rows, *shape],
                "pieces": [[os.path.relpath(p.place[0], path), p.place[1], p.rows] for p in pieces if p.place],
            }
        else:
            shapes[f"observations/{name}"] = ((rows, *shape), dtype)
    with np.errstate(over="ignore"):  # what is too large for float32 is infinite, and validation tells where
        actions, rewards = np.asarray(source.actions, np.float32), np.asarray(source.rewards, np.float32)
    flat: dict[str, np.ndarray] = {
        "actions": actions,
        "rewards": rewards,
        "terminals": np.asarray(source.terminals, bool).astype(np.uint8),
        "timeouts": np.asarray(source.timeouts, bool).astype(np.uint8),
        "episode_ends": np.asarray(source.episode_ends, np.int64),
    }
    copied = sum(int(np.prod(shape, dtype=np.float64)) * np.dtype(dtype).itemsize for shape, dtype in shapes.values())
    needed = copied + sum(array.nbytes for array in flat.values())
    evict(target.parent, needed)
    require_space(target.parent, needed, label)
    shapes |= {name: (array.shape, array.dtype) for name, array in flat.items()}
    sidecar = target.with_suffix(".json")
    if in_place:
        with atomic_write(sidecar) as aside:
            aside.write_text(json.dumps(in_place))
    with (
        native.create(target, shapes, source.attributes) as made,
        tqdm(total=copied, desc=label, unit="B", unit_scale=True, disable=copied < _PROGRESS_BYTES) as bar,
    ):
        for name, array in flat.items():
            native.put(made[name], 0, array)
        for name, pieces in source.observations.items():
            if f"observations/{name}" in made:
                _fill(made[f"observations/{name}"], pieces, bar)


def of_unpacked(target: Path, path: Path) -> Layout:
    """The layout of a file that `unpack` made, with the arrays that lie in the source at `path`."""
    from gtp_vision.datasets.formats import native

    sidecar = target.with_suffix(".json")
    elsewhere = json.loads(sidecar.read_text()) if sidecar.exists() else {}
    for entry in elsewhere.values():
        entry["pieces"] = [[os.path.normpath(path.absolute() / file), *where] for file, *where in entry["pieces"]]
    found = native.layout(target, elsewhere=bool(elsewhere))
    found["arrays"] |= elsewhere
    return found


def to_store(found: Layout, path: Path) -> Store:
    """Map a layout's arrays.

    Args:
        found: the layout.
        path: the data set as the user named it, for messages.

    Raises:
        GtpVisionError: a file is shorter than its layout says, or gone: it changed in between; filters that name no
            episode.
    """
    try:
        arrays: dict[str, Array] = {name: _mapped(entry, path) for name, entry in found["arrays"].items()}
    except FileNotFoundError as error:  # another process may have evicted it from the cache
        raise GtpVisionError(
            f"{path}: {error.filename}, where its arrays lie, was removed a moment ago; try again, and set "
            f"GTP_VISION_CACHE_SIZE to more GB if that lies in the cache"
        ) from error
    prefix = "observations/"
    flat = {
        name: np.asarray(array) if isinstance(array, Segmented) else array
        for name, array in arrays.items()
        if not name.startswith(prefix)
    }
    store = Store(
        observations={name.removeprefix(prefix): a for name, a in arrays.items() if name.startswith(prefix)},
        actions=flat["actions"],
        rewards=flat["rewards"],
        terminals=flat["terminals"],
        timeouts=flat["timeouts"],
        episode_ends=np.asarray(flat["episode_ends"], np.int64),
        attributes=found["attributes"],
        path=path,
    )
    check_filters(store)
    return store


def check_filters(store: Store) -> None:
    """Raise unless the attribute `filters`, if there is one, names groups of the store's episodes.

    Raises:
        GtpVisionError: it does not.
    """
    filters, place = store.attributes.get("filters", {}), store.path or "data set"
    if not isinstance(filters, dict) or not all(isinstance(numbers, list) for numbers in filters.values()):
        raise GtpVisionError(f"{place}: the attribute 'filters' is no object of lists of episodes; correct it")
    for name, numbers in filters.items():
        for number in numbers:
            if type(number) is not int or not 0 <= number < store.episodes:
                raise GtpVisionError(
                    f"{place}: the filter {name[:80]!a} names episode {ascii(number)[:20]} of {store.episodes}; "
                    f"correct the attribute 'filters'"
                )


def _agreed(name: str, pieces: Sequence[Piece]) -> tuple[tuple[int, ...], np.dtype]:
    """The row shape and dtype in which an observation is stored."""
    for number, piece in enumerate(pieces):
        if piece.shape != pieces[0].shape or piece.dtype != pieces[0].dtype:
            raise GtpVisionError(
                f"the observation '{name}' is {piece.dtype} {piece.shape} in episode {number} and {pieces[0].dtype} "
                f"{pieces[0].shape} in episode 0; all episodes need the same"
            )
    shape, dtype = pieces[0].shape, pieces[0].dtype
    if dtype == np.uint8 and len(shape) == 3:
        return shape, dtype
    return (int(np.prod(shape, dtype=np.int64)),), np.dtype(np.float32)


def _mappable(pieces: Sequence[Piece], dtype: np.dtype) -> bool:
    if any(piece.place is None or piece.dtype != dtype for piece in pieces):
        return False
    if dtype != np.uint8 and len(pieces[0].shape) != 1:
        return False
    total = sum(piece.rows * int(np.prod(piece.shape)) * dtype.itemsize for piece in pieces)
    return total >= _WORTH_MAPPING * len(pieces)


def _fill(target: h5py.Dataset, pieces: Sequence[Piece], bar: tqdm) -> None:
    from gtp_vision.datasets.formats import native

    row, at = int(np.prod(target.shape[1:])) * target.dtype.itemsize, 0
    step = max(1, COPY_BYTES // max(1, row))
    for piece in pieces:
        for start in range(0, piece.rows, step):
            values = np.asarray(piece.read(start, min(start + step, piece.rows)))
            native.put(target, at, values.reshape(len(values), *target.shape[1:]))
            at += len(values)
            bar.update(len(values) * row)
            sandbox.alive()


def _mapped(entry: Mapping[str, Any], path: Path) -> Array:
    dtype, shape = np.dtype(entry["dtype"]), tuple(entry["shape"])
    row = int(np.prod(shape[1:], dtype=np.int64)) * dtype.itemsize
    if not shape[0] or not row:
        return np.empty(shape, dtype)
    files: dict[str, np.memmap] = {}
    parts: list[np.ndarray] = []
    for file, offset, rows in entry["pieces"]:
        if offset + rows * row > Path(file).stat().st_size:
            raise GtpVisionError(f"{path} has become shorter than it was a moment ago; copy the file again")
        if len(entry["pieces"]) == 1:
            return mapped(file, dtype=dtype, shape=shape, offset=offset)
        if file not in files:
            files[file] = mapped(file)
        parts.append(np.ndarray((rows, *shape[1:]), dtype, buffer=files[file], offset=offset))
    return Segmented(parts)
