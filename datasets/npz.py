"""Reading untrusted npz archives: nothing is unpickled, and every declared size is checked before it is used."""

from __future__ import annotations

import lzma
import struct
import tokenize
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Literal

import numpy as np

from gtp_vision.core.errors import GtpVisionError, first_line
from gtp_vision.core.files import lfs_pointer
from gtp_vision.datasets import hdf5
from gtp_vision.datasets.names import listed, missing, source

Order = Literal["C", "F"]
_DAMAGE = (
    *(zipfile.BadZipFile, zlib.error, lzma.LZMAError, struct.error, EOFError),
    *(ValueError, KeyError, OverflowError, RuntimeError),
)


def names(path: Path) -> set[str]:
    """Return the names of the arrays in a file; none if it is not an npz archive."""
    return set(listed(name.removesuffix(".npy") for name in members(path) if name.endswith(".npy")))


def members(path: Path) -> set[str]:
    """Return the names of a zip archive's members; none if it is not one."""
    try:
        with zipfile.ZipFile(path) as archive:
            return set(archive.namelist())
    except (OSError, *_DAMAGE):
        return set()


def member(archive: zipfile.ZipFile, name: str) -> str:
    """Return the member of an archive that holds an array; a GtpVisionError if it has a chosen name and is missing."""
    held, known = source(name), {found.removesuffix(".npy") for found in archive.namelist()}
    if held != name and held not in known:
        raise missing(name, str(archive.filename), known)
    return f"{held}.npy"


@contextmanager
def open_archive(path: Path, what: str) -> Iterator[zipfile.ZipFile]:
    """Open an archive of `what`; every error inside the block is reported as a fault of the file."""
    try:
        with zipfile.ZipFile(path) as archive:
            yield archive
    except (OSError, *_DAMAGE) as error:
        is_pointer = path.is_file() and lfs_pointer(path)
        reason = is_pointer or "it is missing, truncated or of another format; copy or download it again"
        raise GtpVisionError(
            f"{path} cannot be read as {what} ({type(error).__name__}: {first_line(error)}): {reason}"
        ) from error


def header(
    archive: zipfile.ZipFile, name: str, stream: IO[bytes], kinds: str = "uifb"
) -> tuple[tuple[int, ...], np.dtype, Order]:
    """Read shape, dtype and order of a member, of NumPy's `kinds`, that is as large as it declares."""
    version = np.lib.format.read_magic(stream)
    reader = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    try:
        shape, is_fortran, dtype = reader(stream)
    except (tokenize.TokenError, SyntaxError, TypeError, RecursionError, MemoryError) as error:  # of Python's parser
        raise ValueError(f"the header of {name} is damaged") from error
    if dtype.kind not in kinds:
        held = f"{hdf5.KINDS.get(dtype.kind, 'other values')} (dtype {dtype})"
        raise GtpVisionError(
            f"{archive.filename}: '{name}' holds {held}, wanted numbers, and nothing is unpickled; write it again"
        )
    if not all(type(size) is int and size >= 0 for size in shape):
        raise ValueError(f"{name} has shape {shape}")
    size, found = hdf5.nbytes(shape, dtype), archive.getinfo(member(archive, name))
    if size > min(found.file_size, hdf5.MAX_COMPRESSION * found.compress_size):
        raise ValueError(f"{name} declares {size} bytes, more than the file holds")
    return shape, dtype, "F" if is_fortran else "C"


def load(archive: zipfile.ZipFile, name: str, kinds: str = "uifb") -> np.ndarray:
    """Read a member whole."""
    with archive.open(member(archive, name)) as stream:
        shape, dtype, order = header(archive, name, stream, kinds)
        return np.frombuffer(exactly(stream, hdf5.nbytes(shape, dtype)), dtype).reshape(shape, order=order)


def exactly(stream: IO[bytes], size: int) -> bytes:
    """Read so many bytes."""
    raw = stream.read(size)
    if len(raw) != size:
        raise EOFError(f"ended {size - len(raw)} bytes early")
    return raw
