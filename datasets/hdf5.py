"""Reading HDF5 files of strangers: no links out of them, no objects, and no size believed before it is checked.

Damage that the HDF5 library itself cannot survive (it may hang or crash) is met by `quarantine`, in whose process
these functions run when a data set is opened.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from gtp_vision.core import safe_json
from gtp_vision.core.errors import GtpVisionError

MAGIC = b"\x89HDF\r\n\x1a\n"
WORDS = {
    **{"f": "floats", "i": "whole numbers", "u": "whole numbers", "b": "yes or no", "c": "complex numbers"},
    **{"S": "text", "O": "text or objects"},
}
"""NumPy's kinds of dtype as people call them."""
_DENSEST = 1100  # deflate makes at most 1032 bytes of one; more is a lie
_SLACK = 1 << 20  # bytes that an array may declare without having any


@contextmanager
def opened(path: Path) -> Iterator[h5py.File]:
    """The file, for reading; whatever HDF5 complains about in the block is told as a fault of the file.

    Raises:
        GtpVisionError: it is missing, truncated, damaged or no HDF5.
    """
    try:
        with h5py.File(path, "r") as file:
            yield file
    except BlockingIOError as error:  # HDF5's own lock
        raise GtpVisionError(f"{path} is open for writing in another program; wait until that closes it") from error
    except (OSError, RuntimeError) as error:
        raise GtpVisionError(
            f"{path} cannot be read as HDF5 ({first_line(error)}); it is missing, truncated or of another format: "
            f"copy it again"
        ) from error


def child(parent: h5py.Group, name: str, path: Path) -> h5py.Dataset | h5py.Group:
    """A member of a group (`name` may be a path below it), its header read.

    Raises:
        GtpVisionError: it is missing, damaged, or reached by a link that is not a hard one.
    """
    for key in name.split("/"):
        whole = f"{parent.name}/{key}".lstrip("/")
        try:
            link = parent.get(key, getlink=True)
        except (KeyError, RuntimeError, OSError, ValueError, TypeError) as error:
            raise _damaged(whole, path, error) from error
        if link is None:
            raise GtpVisionError(f"{path} has no '{whole}'; write the file again")
        if not isinstance(link, h5py.HardLink):
            raise GtpVisionError(f"{path}: '{whole}' is a link out of its place, which is not followed; copy the array")
        try:
            found = parent[key]
            if isinstance(found, h5py.Dataset):
                _ = found.dtype, found.shape  # read from the header only now
        except (KeyError, RuntimeError, OSError, ValueError, TypeError) as error:
            raise _damaged(whole, path, error) from error
        parent = found
    return found


def group(parent: h5py.Group, name: str, path: Path) -> h5py.Group:
    """A group; see `child`.

    Raises:
        GtpVisionError: as `child`, and if it is no group.
    """
    found = child(parent, name, path)
    if not isinstance(found, h5py.Group):
        raise GtpVisionError(f"{path}: '{found.name.lstrip('/')}' is not a group; write the file again")
    return found


def array(
    parent: h5py.Group, name: str, path: Path, *, kinds: str = "uf", ndim: int | None = None, rows: int | None = None
) -> h5py.Dataset:
    """An array of numbers that lies inside the file, in the size it declares.

    Args:
        parent: the group it is looked for in.
        name: of the array, below `parent`.
        path: of the file, for messages.
        kinds: NumPy's kinds of dtype that are accepted, e.g. "uf" for unsigned integers and floats.
        ndim: how many dimensions it must have; None for any number above 0.
        rows: how many rows it must have; None for any number.

    Raises:
        GtpVisionError: as `child`; another type, shape or length; bytes in another file; a size that is not there.
    """
    data = child(parent, name, path)
    whole = data.name.lstrip("/")
    if not isinstance(data, h5py.Dataset) or data.external or data.is_virtual:
        raise GtpVisionError(f"{path}: '{whole}' is not an array inside the file; write the file again")
    if data.dtype.kind not in kinds:
        wanted = " or ".join(dict.fromkeys(WORDS[kind] for kind in kinds if kind in WORDS))
        held = f"{WORDS.get(data.dtype.kind, 'no numbers')} (dtype {data.dtype})"
        raise GtpVisionError(f"{path}: '{whole}' holds {held}, wanted {wanted}; write it again")
    if not data.shape or (ndim and data.ndim != ndim):
        raise GtpVisionError(f"{path}: '{whole}' has shape {data.shape}, wanted {ndim or 'one or more'} dimensions")
    if rows is not None and data.shape[0] != rows:
        raise GtpVisionError(f"{path}: '{whole}' has {data.shape[0]} rows, wanted {rows}; write the file again")
    declared = nbytes(data.shape, data.dtype)
    if declared > _DENSEST * data.id.get_storage_size() + _SLACK:
        raise GtpVisionError(
            f"{path}: '{whole}' declares {declared / 1e9:.1f} GB in shape {data.shape}, but the file holds "
            f"{data.id.get_storage_size()} bytes of it; it was not written to its end: copy or write it again"
        )
    return data


def offset(data: h5py.Dataset, path: Path) -> int | None:
    """The byte at which an array begins in the file, if it can be mapped there; None if it can only be read.

    Only NumPy's own types can be mapped: HDF5 knows numbers of 3 bytes, of 4 bits, or floats with another exponent,
    which it converts when they are read.

    Raises:
        GtpVisionError: the array does not end before the file does.
    """
    start, size = data.id.get_offset(), nbytes(data.shape, data.dtype)
    if start is None or data.id.get_storage_size() != size or h5py.h5t.py_create(data.dtype) != data.id.get_type():
        return None
    if start + size > path.stat().st_size:
        raise GtpVisionError(
            f"{path}: '{data.name.lstrip('/')}' lies beyond the end of the file; it is truncated: copy it again"
        )
    return int(start)


def children(parent: h5py.Group, path: Path) -> list[str]:
    """The names of a group's members.

    Raises:
        GtpVisionError: the group is damaged.
    """
    try:
        return [str(name) for name in parent]
    except (KeyError, RuntimeError, OSError, ValueError, TypeError) as error:
        raise _damaged(parent.name, path, error) from error


def text(node: h5py.File | h5py.Group, name: str, path: Path, default: str | None = None) -> str | None:
    """An attribute as text; `default` if there is none.

    Raises:
        GtpVisionError: it is damaged.
    """
    try:
        value = node.attrs.get(name)
    except (KeyError, RuntimeError, OSError, ValueError, TypeError) as error:
        raise _damaged(f"{node.name}' with attribute '{name}", path, error) from error
    if value is None:
        return default
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)


def json_object(node: h5py.File | h5py.Group, name: str, path: Path) -> dict[str, Any]:
    """An attribute that holds a JSON object; empty if there is none.

    Raises:
        GtpVisionError: it is damaged or no JSON object.
    """
    try:
        return safe_json.json_object(text(node, name, path) or "{}")
    except ValueError as error:
        raise GtpVisionError(f"{path}: the attribute '{name}' is not a JSON object; write the file again") from error


def nbytes(shape: tuple[int, ...], dtype: np.dtype) -> int:
    """Bytes of an array, exact however large."""
    total = dtype.itemsize
    for size in shape:
        total *= int(size)
    return total


def first_line(error: BaseException) -> str:
    """What an exception says, without what follows."""
    return (str(error).splitlines() or [type(error).__name__])[0]


def _damaged(name: str, path: Path, error: BaseException) -> GtpVisionError:
    return GtpVisionError(f"{path}: '{name.lstrip('/')}' is damaged ({first_line(error)}); copy the file again")
