"""Arrays of HDF5 files whose rows are JPEG files: bytes or text of one length, padded with zeros, or of any length."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from gtp_vision.core import sandbox
from gtp_vision.core.errors import GtpVisionError
from gtp_vision.core.jpeg import JPEG_ERRORS, decoded_jpeg, reason
from gtp_vision.datasets.formats import episodes
from gtp_vision.datasets.layout import Piece

Shape = tuple[int, ...]


def is_encoded(data: h5py.Dataset) -> bool:
    """Whether the rows of an array can be JPEG files."""
    if data.dtype.kind == "S":
        return bool(data.ndim == 1)
    stored = data.dtype if data.dtype.kind == "u" else h5py.check_vlen_dtype(data.dtype)
    return stored == np.uint8 and data.ndim == (1 if data.dtype.kind == "O" else 2)


def piece(data: h5py.Dataset, parent: h5py.Group, path: Path, *, shape: Sequence[int] | None = None) -> Piece:
    """Return the frames of an array of JPEG files as a piece of uint8 rows (H, W, C).

    All have `shape`, (H, W, C) or (H, W); None: that of the first frame. Raises GtpVisionError: other rows or shapes.
    """
    full_name, rows = data.name, data.shape[0]
    if not is_encoded(data) or not rows or (shape is not None and len(shape) not in (2, 3)):
        raise GtpVisionError(f"{path}: '{full_name.lstrip('/')}' holds neither numbers nor JPEG frames; write it again")
    place = f"{path}: '{full_name.lstrip('/')}'"

    def read(start: int, stop: int, wanted: Shape | None) -> np.ndarray:
        return frames(episodes.read_rows(parent[full_name], start, stop, path), wanted, start, place)

    found = read(0, 1, None if shape is None else (*shape, 1)[:3]).shape[1:]  # before memory is allocated for all
    return Piece(rows, found, np.dtype(np.uint8), lambda start, stop: read(start, stop, found))


def frames(encoded: Sequence[Any] | np.ndarray, wanted: Shape | None, first: int, place: str) -> np.ndarray:
    """Decode JPEG files to uint8 (N, H, W, C), all of a shape (None: that of the first).

    The files are bytes or arrays of them; the first is frame `first` of `place`.
    """
    out: np.ndarray | None = None
    for row, content in enumerate(encoded):
        try:
            file = content if isinstance(content, bytes) else np.asarray(content, np.uint8).tobytes()
            frame = decoded_jpeg(file, [] if wanted is None else [wanted])
        except JPEG_ERRORS as error:
            size = f" of {'x'.join(map(str, wanted))}" if wanted else ""
            raise GtpVisionError(
                f"{place} has no JPEG image{size} at frame {first + row} ({reason(error)}); copy the file again"
            ) from error
        out = np.empty((len(encoded), *frame.shape), np.uint8) if out is None else out
        out[row] = frame
        sandbox.heartbeat()
    assert out is not None, "rows were asked for"
    return out
