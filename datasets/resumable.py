"""Arrays that take long to compute: entries of the cache that are written piece by piece and resumed after a kill.

An entry is a plain HDF5 file, mapped when it is complete, with a JSON file that holds the number of finished rows.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import time
from collections.abc import Callable
from io import FileIO
from pathlib import Path

import h5py
import numpy as np

from gtp_vision.core.errors import GtpVisionError, first_line
from gtp_vision.core.files import atomic_write, evict, require_space, touch
from gtp_vision.core.locks import FileLock
from gtp_vision.core.progress import Progress
from gtp_vision.core.safe_json import read_json
from gtp_vision.datasets import hdf5
from gtp_vision.datasets.formats import native
from gtp_vision.datasets.mapped import map_file

_NAME = "features"
_SAVE_SECONDS = 1.0  # between two notes of the progress, each of which waits for the disk


class OutOfRangeError(Exception):
    """A piece holds finite numbers that the array's dtype cannot hold."""


def finished_array(target: Path) -> np.ndarray | None:
    """Map the array of an entry; None if it is missing, damaged or unfinished."""
    found = _opened(target)
    if found is None or found[2] < found[1].shape[0]:
        return None
    touch(target)
    return found[1]


def discard(target: Path) -> None:
    """Remove an entry; processes that have mapped it keep the array."""
    target.with_suffix(".json").unlink(missing_ok=True)
    target.unlink(missing_ok=True)


def compute_array(
    target: Path,
    shape: tuple[int, ...],
    dtype: np.dtype,
    piece: int,
    compute: Callable[[int, int], np.ndarray],
    label: str,
) -> np.ndarray:
    """Compute the missing rows of an entry of the cache (.h5); of several processes one computes and the others wait.

    `compute` maps first and exclusive last row to the rows' values, of any float; pieces begin at multiples of `piece`.
    An unfinished entry keeps its own dtype.

    Returns:
        (N, ...), mapped.

    Raises:
        OutOfRangeError: finite values that the entry's dtype cannot hold.
        GtpVisionError: the disk or the cache is full; values that are not finite.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(target.with_suffix(".lock"), f"computes {label}", waits=True):
        found = _opened(target)
        if found is None or found[1].shape != shape:
            _create(target, shape, dtype, label)
            found = _opened(target)
        if found is None:
            raise GtpVisionError(f"{target} was removed while it was computed; set GTP_VISION_CACHE_SIZE to more GB")
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
    bar = Progress(total=len(array), initial=done, desc=label, unit="frame", delay=1.0)
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
    """Write through the file: on a full disk that is an error, where writing to a mapped page kills the process."""
    left = values.data.cast("B")
    try:
        while left:
            count = os.pwrite(file.fileno(), left, at)
            left, at = left[count:], at + count
    except OSError as error:
        raise GtpVisionError(
            f"{file.name} cannot be written ({first_line(error)}); make room, or set GTP_VISION_CACHE to another disk"
        ) from error


def _cast(values: np.ndarray, dtype: np.dtype, first: int, label: str) -> np.ndarray:
    with np.errstate(over="ignore"):
        cast = np.ascontiguousarray(values, dtype)
    if not np.isfinite(cast).all():
        bad = ~np.isfinite(values).reshape(len(values), -1).all(1)
        if bad.any():
            raise GtpVisionError(
                f"{label}: the result of frame {first + int(bad.argmax())} is not finite; check the data there, and "
                f"encoder.weights if they are set"
            )
        raise OutOfRangeError
    return cast


def _create(target: Path, shape: tuple[int, ...], dtype: np.dtype, label: str) -> None:
    needed = math.prod(shape) * dtype.itemsize
    discard(target)  # its note first, which must never belong to another array
    evict(target.parent, needed)
    require_space(target.parent, needed, label)
    with native.create(target, {_NAME: (shape, dtype)}, {"made": label}) as file:
        native.write_rows(file[_NAME], shape[0] - 1, np.zeros((1, *shape[1:]), dtype))  # allocates the whole array
    _note(target, 0)


def _opened(target: Path) -> tuple[int, np.ndarray, int] | None:
    """Return the array's offset in the file, the array, and the number of finished rows; None if it is damaged."""
    try:
        done = read_json(target.with_suffix(".json"))["done"]
        with h5py.File(target, "r", locking=False) as file:
            data = file[_NAME]
            offset, shape, dtype = hdf5.offset(data, target), data.shape, data.dtype
        if offset is None or not isinstance(done, int) or not 0 <= done <= shape[0]:
            return None
        return offset, map_file(target, dtype=dtype, shape=shape, offset=offset), done
    except (GtpVisionError, OSError, RuntimeError, ValueError, KeyError, TypeError, AttributeError):
        return None


def _save(target: Path, file: FileIO, done: int) -> None:
    """Note that the first `done` rows are on the disk."""
    with contextlib.suppress(OSError):  # without room for the note, the one before stays valid
        os.fsync(file.fileno())
        _note(target, done)


def _note(target: Path, done: int) -> None:
    with atomic_write(target.with_suffix(".json")) as aside:
        aside.write_text(json.dumps({"done": done}))
