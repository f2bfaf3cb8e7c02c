"""The native format: plain HDF5 with flat arrays over all frames, every frame stored once.

Layout, version 1 (N frames, E episodes):

    /observations/<name>   uint8 (N, H, W, C) for a camera, float32 (N, D) for a state
    /actions               float32 (N, A) in [-1, 1]
    /rewards               float32 (N,)
    /terminals /timeouts   uint8 (N,)
    /episode_ends          int64 (E,)
    attributes             format = "gtp-vision", version = 1, metadata = JSON (provenance, rendering)

Arrays are contiguous and uncompressed, so each is mapped at its offset in the file: memory speed once cached,
pages shared by all processes. A compressed array (of a small file in a repository) is unpacked once into the cache.
Arrays `simulator/<name>` (N, ...) are the simulator's state before each action, which no policy sees; a last row that
holds the observation after the last action has the state after it. They are float64, as the simulator has them.
An array `success` or `is_success`, one flag a row or one an episode, marks what succeeded, as the metadata's
`episode_success` does. Also accepted: flags that are bool and rewards and flags of shape (N, 1), both in place; flags
that are floats and rewards that are integers, which are converted into the cache.

Other members are left out, as the `answers` of a recording (`serving/recording.py`).

A folder of such files that are named by numbers (000000.h5, 000001.h5, ...: a replay store) is one data set; their
observations, and what -1 and 1 of their actions stand for, must agree.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from gtp_vision.core import sandbox
from gtp_vision.core.errors import GtpVisionError, first_line
from gtp_vision.core.files import atomic_write, cached, evict, from_cache, require_space
from gtp_vision.core.progress import Progress
from gtp_vision.core.success import KEYS
from gtp_vision.datasets import hdf5, names
from gtp_vision.datasets.arrays import Array
from gtp_vision.datasets.formats import episodes
from gtp_vision.datasets.formats.format import Format, Snapshots
from gtp_vision.datasets.formats.native_checks import FLAT, checked_arrays, writable
from gtp_vision.datasets.instructions import named_tasks
from gtp_vision.datasets.layout import (
    PROGRESS_BYTES,
    FileArrays,
    Layout,
    Piece,
    piece_of,
    row_ranges,
    to_store,
)
from gtp_vision.datasets.store import ACTION_BOUNDS, EPISODE_ATTRIBUTES, Store
from gtp_vision.datasets.success import MARKS, WORDS, attributes_of
from gtp_vision.datasets.unpacking import through_cache

FORMAT, VERSION = "gtp-vision", 1
SIMULATOR = "simulator"
"""Group of the simulator's states."""
_SUFFIXES, _NUMBERED = (".h5", ".hdf5"), re.compile(r"[0-9]{6,9}\.h5")
_ROOM = "make room, choose another place, or set GTP_VISION_CACHE to another disk if it is a file of the cache"


@contextmanager
def create(
    path: Path,
    shapes: Mapping[str, tuple[tuple[int, ...], Any]],
    metadata: Mapping[str, Any],
    *,
    compression: str | None = None,
) -> Iterator[dict[str, h5py.Dataset]]:
    """Create a native file of `shapes` by name; it is written atomically when the block ends without an exception.

    Yields name to h5py data set, to be filled by slices or by `write_rows`. Compression is None for mappable files;
    "gzip" for small ones. `metadata` is provenance, stored as JSON.

    Raises:
        GtpVisionError: the file cannot be written, e.g. because the disk is full.
    """
    is_filling = False
    try:
        with atomic_write(path) as temporary, h5py.File(temporary, "w") as file:
            file.attrs.update(format=FORMAT, version=VERSION, metadata=json.dumps(metadata))
            arrays = {}
            for name, (shape, dtype) in shapes.items():
                options: dict[str, Any] = {}
                if compression and len(shape) > 1 and shape[0]:
                    options = {"compression": compression, "compression_opts": 9, "shuffle": False}
                    # One image row over many frames: a static background then compresses well.
                    strip = (1, *shape[2:]) if len(shape) == 4 else shape[1:]
                    options["chunks"] = (min(shape[0], 256), *strip)
                arrays[name] = file.create_dataset(name, shape, dtype, **options)
            is_filling = True
            yield arrays
            is_filling = False
    except (OSError, RuntimeError) as error:
        if is_filling:  # an error of the block, which may read a damaged file
            raise
        raise GtpVisionError(f"{path} cannot be written ({first_line(error)}); {_ROOM}") from error


def write_rows(target: h5py.Dataset, start: int, values: np.ndarray) -> None:
    """Write rows into an array of `create`, from row `start` on; a full disk is a GtpVisionError."""
    try:
        target[start : start + len(values)] = values
    except OSError as error:  # not to be confused with damage of the file that is being read
        raise GtpVisionError(f"{target.file.filename} cannot be written ({first_line(error)}); {_ROOM}") from error


def write(
    path: str | Path,
    store: Store,
    *,
    compression: str | None = None,
    beside: Mapping[str, np.ndarray] | None = None,
) -> Path:
    """Write a store to a native file, and return its path; compression as in `create`.

    `beside` are further arrays by their paths in the file, which readers of data sets leave out.

    Raises GtpVisionError: a type, shape, length or name that the format cannot hold; the disk is full.
    """
    path = Path(path)
    store = writable(store)
    arrays: dict[str, Array] = {f"observations/{name}": array for name, array in store.observations.items()}
    arrays |= {name: getattr(store, name) for name in FLAT}
    arrays |= beside or {}
    shapes = {name: (array.shape, array.dtype) for name, array in arrays.items()}
    with create(path, shapes, store.attributes, compression=compression) as file:
        for name, array in arrays.items():
            _copy(array, file[name])
    return path


def layout(path: Path, *, elsewhere: bool = False) -> Layout:
    """Return where the arrays of a native file lie; compressed ones are unpacked into the cache.

    `elsewhere`: observations may be missing, because they lie in other files (only in the cache).
    """
    with hdf5.open_file(path) as file:
        metadata = _check_attributes(file, path)
        arrays = checked_arrays(file, path, elsewhere)
        if MARKS not in metadata and set(KEYS) & set(hdf5.children(file, path)):
            ends = episodes.read_rows(arrays["episode_ends"], 0, len(arrays["episode_ends"]), path).ravel()
            metadata |= episodes.flat_marks(file, ("",), ends, path, metadata.get("filters"))
        found = {name: _in_place(name, data, path) for name, data in arrays.items()}
        if None in found.values():
            unpacked = cached(path, str(VERSION), *names.key())
            copied = [name for name in arrays if name in FLAT or not found[name]]

            def read_back() -> dict[str, Any]:
                with names.reading(None):
                    unpacked_arrays = layout(unpacked, elsewhere=True)["arrays"]
                return {name: unpacked_arrays[name] for name in copied}

            found |= from_cache(
                unpacked, read_back, lambda: _unpack(file, path, {name: arrays[name] for name in copied}, unpacked)
            )
        return {"arrays": found, "attributes": metadata}


def snapshots(path: Path, numbers: Sequence[int]) -> list[dict[str, Any]]:
    """Return the arrays of `simulator` in some episodes; empty if there are none, or if the data set is a folder."""
    if path.is_dir():
        return []
    with hdf5.open_file(path) as file:
        if SIMULATOR not in hdf5.children(file, path):
            return []
        ends = hdf5.array(file, "episode_ends", path, kinds="iu")
        stops = episodes.read_rows(ends, 0, ends.shape[0], path).ravel().astype(int)
        held, starts = hdf5.group(file, SIMULATOR, path), [0, *stops[:-1]]
        arrays = {name: hdf5.array(held, name, path, kinds="iuf", rows=stops[-1]) for name in hdf5.children(held, path)}
        return [
            Snapshots({name: episodes.read_rows(x, starts[n], stops[n], path) for name, x in arrays.items()}).record()
            for n in numbers
        ]


def is_folder(path: Path) -> bool:
    """Whether a folder's HDF5 files are named by numbers, and the first one is of this format."""
    found = episodes.files_in(path, *_SUFFIXES)
    if not found or not all(_NUMBERED.fullmatch(each.name) for each in found):
        return False
    try:
        with hdf5.open_file(found[0]) as file:
            return is_native(file, found[0])
    except GtpVisionError:
        return False


def folder_layout(path: Path) -> Layout:
    """Return the layout of a folder of native files: one after another.

    Raises GtpVisionError: a file is damaged, or of another task or format than the first.
    """
    return through_cache(path, lambda: _joined(path), "native folder")


@contextmanager
def _joined(path: Path) -> Iterator[FileArrays]:
    flat: dict[str, list[np.ndarray]] = {name: [] for name in FLAT}
    pieces: dict[str, list[Piece]] = {}
    marks, attributes, tasks, rows = list[bool | None](), dict[str, Any](), list[tuple[Path, Any]](), 0
    texts: list[str] = []
    for each in episodes.files_in(path, *_SUFFIXES):
        with hdf5.open_file(each) as file:
            own, arrays = _check_attributes(file, each), checked_arrays(file, each, False)
            actions = episodes.read_rows(arrays["actions"], 0, arrays["actions"].shape[0], each)
            found = {"actions": actions} | _flat_values(file, each, arrays)
            observations = {name: data for name, data in arrays.items() if name not in FLAT}
            task = {name: (data.shape[1:], data.dtype.str) for name, data in observations.items()}
            tasks.append((each, (task, found["actions"].shape[1:], *(own.get(bound) for bound in ACTION_BOUNDS))))
            if tasks[-1][1] != tasks[0][1]:
                raise GtpVisionError(
                    f"{each} and {tasks[0][0].name} are of different tasks: {tasks[-1][1]} and {tasks[0][1]} "
                    f"(observations, actions, their bounds); move one of them elsewhere"
                )
            for name, data in observations.items():
                again = partial(_again, name, each)
                short = name.removeprefix("observations/")
                pieces.setdefault(short, []).append(episodes.reopened(piece_of(data, each), each, again))
        found["episode_ends"] = found["episode_ends"] + rows
        rows += len(found["actions"])
        texts += named_tasks(own, len(found["episode_ends"])) or [""]
        marks += own.get(MARKS) or [None] * len(found["episode_ends"])
        for name, values in found.items():
            flat[name].append(values)
        attributes = {name: value for name, value in own.items() if name not in EPISODE_ATTRIBUTES} | attributes
        sandbox.heartbeat()
    words = str(attributes.pop(WORDS, "episodes marked so"))
    yield FileArrays(
        observations=pieces,
        **{name: np.concatenate(values) for name, values in flat.items()},
        attributes=attributes | attributes_of(marks, words) | episodes.tasks(texts),
    )


def _again(name: str, path: Path, file: h5py.File) -> Piece:
    return piece_of(hdf5.array(file, name, path), path)


def array_layout(data: h5py.Dataset, path: Path) -> dict[str, Any]:
    """Return the layout of one contiguous array."""
    return {
        "dtype": data.dtype.str,
        "shape": list(data.shape),
        "pieces": [[str(path), data.id.get_offset(), data.shape[0]]],
    }


def _in_place(name: str, data: h5py.Dataset, path: Path) -> dict[str, Any] | None:
    """Return the layout of an array that can be mapped in its file; None if it must be unpacked or converted."""
    if (data.size and hdf5.offset(data, path) is None) or data.dtype.kind in FLAT.get(name, ("", ""))[1]:
        return None
    found = array_layout(data, path)
    if data.dtype.kind == "b":  # HDF5 stores them as bytes of 0 and 1
        found["dtype"] = "|u1"
    if name in FLAT and name != "actions":
        found["shape"] = [data.shape[0]]
    return found


def read(path: Path) -> Store:
    """Open a native file of a trusted source; `formats.open_store` is the function for untrusted files."""
    return to_store(layout(path), path)


def is_native(file: h5py.File, path: Path) -> bool:
    """Whether an HDF5 file has the attribute of this format."""
    return hdf5.text_attribute(file, "format", path) == FORMAT


def _check_attributes(file: h5py.File, path: Path) -> dict[str, Any]:
    """Return the metadata, if the file is of this format and version."""
    if not is_native(file, path):
        raise GtpVisionError(
            f"{path} is HDF5 but not a gtp-vision file (no attribute format='{FORMAT}'); "
            f"write it with gtp_vision.datasets.formats.native.write"
        )
    version = hdf5.text_attribute(file, "version", path)
    if version is None:
        raise GtpVisionError(
            f"{path} has the attribute 'format' but no attribute 'version'; set file.attrs['version'] = {VERSION}"
        )
    if version != str(VERSION):
        raise GtpVisionError(
            f"{path} has version {version} of the format, this program reads {VERSION}; "
            f"update gtp-vision or write the file again"
        )
    return hdf5.json_attribute(file, "metadata", path)


def _flat_values(file: h5py.File, path: Path, arrays: Mapping[str, h5py.Dataset]) -> dict[str, np.ndarray]:
    """Return the arrays of `FLAT` but the actions, with the store's dtypes."""
    frames, ends = arrays["actions"].shape[0], arrays["episode_ends"]
    return {
        "rewards": episodes.to_float32(episodes.column(file, "rewards", path, frames)),
        **{name: episodes.flags(file, name, path, frames).astype(np.uint8) for name in ("terminals", "timeouts")},
        "episode_ends": episodes.read_rows(ends, 0, len(ends), path).reshape(len(ends)).astype(np.int64),
    }


def _unpack(file: h5py.File, path: Path, arrays: Mapping[str, h5py.Dataset], target: Path) -> None:
    """Write arrays into a file of the cache, those of `FLAT` with the store's dtypes."""
    contents: dict[str, Any] = dict(arrays) | _flat_values(file, path, arrays)
    shapes = {name: (data.shape, data.dtype) for name, data in contents.items()}
    size = sum(hdf5.nbytes(*described) for described in shapes.values())
    evict(target.parent, size)
    require_space(target.parent, size, f"unpacking {path.name}")
    with create(target, shapes, {}) as unpacked:
        for name, data in contents.items():
            _copy(data, unpacked[name], f"unpacking {path.name}" if size > PROGRESS_BYTES else None)


def _copy(source: Any, target: h5py.Dataset, label: str | None = None) -> None:
    for start, stop in Progress(list(row_ranges(source)), desc=label, disable=label is None):
        write_rows(target, start, source[start:stop])
        sandbox.heartbeat()


NATIVE = Format(
    "native",
    "gtp-vision HDF5",
    lambda path, _: folder_layout(path) if path.is_dir() else layout(path),
    hdf5=is_native,
    other=is_folder,
    write=write,
    snapshots=snapshots,
)
