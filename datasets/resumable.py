"""Arrays that take long to make: entries of the cache that are written piece by piece, and gone on with if killed.

An entry is a plain HDF5 file, mapped when it is whole. Beside it a JSON file says how many of its rows are done; both
are evicted together, as all entries are.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Callable
from io import FileIO
from pathlib import Path

import h5py
import numpy as np
from tqdm import tqdm

from gtp_vision.core.errors import GtpVisionError
from gtp_vision.core.files import atomic_write, evict, require_space, touch
from gtp_vision.core.locks import FileLock
from gtp_vision.datasets import hdf5
from gtp_vision.datasets.formats import native
from gtp_vision.datasets.mapped import mapped

_NAME = "features"
_SAVE_SECONDS = 1.0  # between two notes of how far it is: each waits for the disk


class OutOfRangeError(Exception):
    """A piece holds numbers that the array's dtype does not."""


def whole(target: Path) -> np.ndarray | None:
    """The finished array of an entry, mapped; None if there is none, or it is damaged or half done."""
    found = _opened(target)
    if found is None or found[2] < found[1].shape[0]:
        return None
    touch(target)
    return found[1]


def discard(target: Path) -> None:
    """Forget an entry; who has it mapped keeps what he sees."""
    target.with_suffix(".json").unlink(missing_ok=True)
    target.unlink(missing_ok=True)


def made(
    target: Path,
    shape: tuple[int, ...],
    dtype: np.dtype,
    piece: int,
    compute: Callable[[int, int], np.ndarray],
    label: str,
) -> np.ndarray:
    """The array of an entry, made as far as it is not there; of several processes one makes it and the others wait.

    Args:
        target: the entry, of the cache, with the ending .h5.
        shape: (N, ...).
        dtype: of a new entry; one that is half done keeps its own.
        piece: rows that are computed at once; pieces begin at its multiples.
        compute: first and exclusive last row to the rows' values, of any float.
        label: of the progress bar.

    Returns:
        (N, ...), mapped.

    Raises:
        OutOfRangeError: values that are finite, but not in the entry's dtype.
        GtpVisionError: no room on the disk or in the cache; values that are not finite.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(target.with_suffix(".lock"), f"computes {label}", waits=True):
        found = _opened(target)
        if found is None or found[1].shape != shape:
            _create(target, shape, dtype, label)
            found = _opened(target)
        if found is None:
            raise GtpVisionError(f"{target} was removed while it was made; set GTP_VISION_CACHE_SIZE to more GB")
        offset, array, done = found
        if done < len(array):
            _fill(target, offset, array, done - done % piece, piece, compute, label)
        return array


def _fill(
    target: Path,
    offset: int,
    array: np.ndarray,
    done: int,
    piece: int,
    compute: Callable[[int, int], np.ndarray],
    label: str,
) -> None:
    saved, row = time.monotonic(), array.nbytes // max(1, len(array))
    bar = tqdm(total=len(array), initial=done, desc=label, unit="frame", delay=1.0, mininterval=0.5)
    with target.open("r+b", buffering=0) as file, bar:
        try:
            while done < len(array):
                stop = min(done + piece, len(array))
                values = _cast(compute(done, stop), array.dtype, done, label)
                _write(file, offset + done * row, values)
                bar.update(stop - done)
                done = stop
                if time.monotonic() - saved > _SAVE_SECONDS:
                    _save(target, file, done)
                    saved = time.monotonic()
        finally:
            _save(target, file, done)


def _write(file: FileIO, at: int, values: np.ndarray) -> None:
    """A write tells of a full disk, where a mapped page would kill the process."""
    left = values.data.cast("B")
    try:
        while left:
            count = os.pwrite(file.fileno(), left, at)
            left, at = left[count:], at + count
    except OSError as error:
        raise GtpVisionError(
            f"{file.name} cannot be written ({hdf5.first_line(error)}); make room, or set GTP_VISION_CACHE to another "
            f"disk"
        ) from error


def _cast(values: np.ndarray, dtype: np.dtype, first: int, label: str) -> np.ndarray:
    with np.errstate(over="ignore"):
        cast = np.ascontiguousarray(values, dtype)
    if not np.isfinite(cast).all():
        bad = ~np.isfinite(values).reshape(len(values), -1).all(1)
        if bad.any():
            raise GtpVisionError(
                f"{label}: what comes of frame {first + int(bad.argmax())} is not finite; look at the data there, and "
                f"at encoder.weights if there are any"
            )
        raise OutOfRangeError
    return cast


def _create(target: Path, shape: tuple[int, ...], dtype: np.dtype, label: str) -> None:
    needed = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
    discard(target)  # the note first: it must never speak of another file
    evict(target.parent, needed)
    require_space(target.parent, needed, label)
    with native.create(target, {_NAME: (shape, dtype)}, {"made": label}) as file:
        native.put(file[_NAME], shape[0] - 1, np.zeros((1, *shape[1:]), dtype))  # so that all of it has its place
    _note(target, 0)


def _opened(target: Path) -> tuple[int, np.ndarray, int] | None:
    """Where the array begins in the file, the array mapped, and how many rows are done; None if it is damaged."""
    try:
        done = json.loads(target.with_suffix(".json").read_text())["done"]
        with h5py.File(target, "r", locking=False) as file:
            data = file[_NAME]
            offset, shape, dtype = hdf5.offset(data, target), data.shape, data.dtype
        if offset is None or not isinstance(done, int) or not 0 <= done <= shape[0]:
            return None
        return offset, mapped(target, dtype=dtype, shape=shape, offset=offset), done
    except (GtpVisionError, OSError, RuntimeError, ValueError, KeyError, TypeError, AttributeError):
        return None


def _save(target: Path, file: FileIO, done: int) -> None:
    """Note that the first `done` rows are on the disk."""
    with contextlib.suppress(OSError):  # a disk without room for the note: it goes on from the one before
        os.fsync(file.fileno())
        _note(target, done)


def _note(target: Path, done: int) -> None:
    with atomic_write(target.with_suffix(".json")) as aside:
        aside.write_text(json.dumps({"done": done}))
