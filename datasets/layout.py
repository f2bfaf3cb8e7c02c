"""Layouts: where the arrays of a data set lie in files.

A reader describes its file as a `FileArrays`. `unpacking` makes a layout of it, a JSON object, so that it can cross a
process boundary:

    {"arrays": {name: {"dtype": "|u1", "shape": [N, ...], "pieces": [[path, byte offset, rows], ...]}},
     "attributes": {...}}

Of frames that stay in videos, an entry has `videos`, the `VideoFile`s, and its pieces are those of `Videos.places`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from gtp_vision.core.errors import GtpVisionError
from gtp_vision.core.framing import Framing
from gtp_vision.datasets import hdf5
from gtp_vision.datasets.arrays import Array, Segmented
from gtp_vision.datasets.mapped import map_file
from gtp_vision.datasets.store import Store
from gtp_vision.datasets.videos import VideoFile, Videos

Layout = dict[str, Any]

COPY_BYTES = 1 << 25  # frames are copied in ranges of about 32 MB, so that memory stays bounded
PROGRESS_BYTES = 1 << 28  # a progress bar is shown for more


def row_ranges(array: Any, dtype: np.dtype | None = None) -> Iterator[tuple[int, int]]:
    """Yield (start, stop) of ranges of an array's rows, each of about `COPY_BYTES` in its dtype or in `dtype`."""
    step = max(1, COPY_BYTES // max(1, hdf5.nbytes(array.shape[1:], dtype or array.dtype)))
    for start in range(0, array.shape[0], step):
        yield start, min(start + step, array.shape[0])


@dataclass(frozen=True)
class VideoRows:
    """Some rows of a camera in a video.

    Attributes:
        path: the file.
        shape: (H, W, C), as recorded.
        places: returns the places of the rows, int64 (rows, 4), as in `Videos` behind the number of the file.
    """

    path: Path
    shape: tuple[int, int, int]
    places: Callable[[], np.ndarray]


@dataclass(frozen=True)
class Piece:
    """Some rows of one array, as the file holds them.

    Attributes:
        rows: number of rows.
        shape: of one row.
        dtype: as stored.
        read: (start, stop) to the array of these rows; called in order, from the first row to the last, once.
        place: file and byte offset of rows that lie contiguously in C order; None for others.
        is_depth: whether the rows are distances, see `core.depth`.
        framed: for a framing, a `read` of rows cropped and resized, if the reader has a faster way to them.
        is_independent: whether it may be read while other pieces are, in other threads.
        video: where its frames are, if they can be decoded one by one.
    """

    rows: int
    shape: tuple[int, ...]
    dtype: np.dtype
    read: Callable[[int, int], np.ndarray]
    place: tuple[Path, int] | None = None
    is_depth: bool = False
    framed: Callable[[Framing], Callable[[int, int], np.ndarray]] | None = None
    is_independent: bool = False
    video: VideoRows | None = None


def piece_of(data: h5py.Dataset, path: Path, start: int = 0, stop: int | None = None) -> Piece:
    """Return the rows `start` to `stop - 1` of an HDF5 array."""
    stop = data.shape[0] if stop is None else stop
    return Piece(
        rows=stop - start,
        shape=data.shape[1:],
        dtype=data.dtype,
        read=lambda low, high: data[start + low : start + high],
        place=place_of(data, path, start),
    )


def place_of(data: h5py.Dataset, path: Path, start: int = 0) -> tuple[Path, int] | None:
    """Return the `Piece.place` of an array's rows from `start` on."""
    offset = hdf5.offset(data, path)
    return None if offset is None else (path, offset + start * hdf5.nbytes(data.shape[1:], data.dtype))


def piece_in_memory(values: Array) -> Piece:
    """Return an array that the reader holds in memory as a piece."""
    return Piece(len(values), values.shape[1:], values.dtype, lambda low, high: values[low:high])


@dataclass
class FileArrays:
    """A data set as its reader describes it; rows and episodes as in `Store`.

    Attributes:
        observations: name to pieces: uint8 rows (H, W, C) are a camera, all others a state, stored as float32 (D,).
        actions: (N, A), stored as float32.
        rewards: (N,), stored as float32.
        terminals: (N,), not 0 where the MDP ended.
        timeouts: (N,), not 0 where the recording stopped; an episode's last row is a terminal or a timeout.
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


def to_store(found: Layout, path: Path) -> Store:
    """Map a layout's arrays; `path` is the data set as the user named it, for messages.

    Raises GtpVisionError: a file became shorter or was removed after its layout was made; filters that name unknown
    episodes.
    """
    try:
        arrays: dict[str, Array] = {name: map_array(entry, path) for name, entry in found["arrays"].items()}
    except FileNotFoundError as error:  # another process may have evicted it from the cache
        raise GtpVisionError(
            f"{path}: {error.filename}, which holds its arrays, was removed a moment ago; try again, and if that is a "
            f"file of the cache set GTP_VISION_CACHE_SIZE to more GB"
        ) from error
    prefix = "observations/"
    flat = {
        name: array if isinstance(array, np.ndarray) else np.asarray(array)
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
    """Raise a GtpVisionError unless the attribute `filters`, if present, names groups of the store's episodes."""
    filters, place = store.attributes.get("filters", {}), store.path or "data set"
    if not isinstance(filters, dict) or not all(isinstance(numbers, list) for numbers in filters.values()):
        raise GtpVisionError(f"{place}: the attribute 'filters' must map names to lists of episodes; correct it")
    for name, numbers in filters.items():
        for number in numbers:
            if type(number) is not int or not 0 <= number < store.episodes:
                raise GtpVisionError(
                    f"{place}: the filter {name[:80]!a} names episode {ascii(number)[:20]} of {store.episodes}; "
                    f"correct the attribute 'filters'"
                )


def map_array(entry: Mapping[str, Any], path: Path) -> Array:
    """Map an array of a layout. Raises GtpVisionError: its file became shorter."""
    if "videos" in entry:
        places = map_array({"dtype": "<i8", "shape": [entry["shape"][0], 5], "pieces": entry["pieces"]}, path)
        videos = [VideoFile(**file) for file in entry["videos"]]
        return Videos(path, videos, np.asarray(places), tuple(entry["shape"][1:]))
    dtype, shape = np.dtype(entry["dtype"]), tuple(entry["shape"])
    row = hdf5.nbytes(shape[1:], dtype)
    if not shape[0] or not row:
        return np.empty(shape, dtype)
    files: dict[str, np.memmap] = {}
    segments: list[np.ndarray] = []
    for file, offset, rows in entry["pieces"]:
        if offset + rows * row > Path(file).stat().st_size:
            raise GtpVisionError(f"{path} has become shorter than it was a moment ago; copy the file again")
        if len(entry["pieces"]) == 1:
            return map_file(file, dtype=dtype, shape=shape, offset=offset)
        if file not in files:
            files[file] = map_file(file)
        segments.append(np.ndarray((rows, *shape[1:]), dtype, buffer=files[file], offset=offset))
    return Segmented(segments)
