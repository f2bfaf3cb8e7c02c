"""Reading untrusted HDF5: links and objects are not followed, and every declared size is checked before it is used.

Every function raises a GtpVisionError that names the file (`path`) and the member. Damage that makes the HDF5 library
itself hang or crash is handled by `core.sandbox`, in whose child process data sets are opened.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from gtp_vision.core.errors import GtpVisionError, first_line
from gtp_vision.core.files import lfs_pointer
from gtp_vision.core.safe_json import parse_json
from gtp_vision.datasets import names

MAGIC = b"\x89HDF\r\n\x1a\n"
KINDS = {
    **{"f": "floats", "i": "integers", "u": "integers", "b": "booleans", "c": "complex numbers"},
    **{"S": "text", "U": "text", "O": "text or objects"},
}
"""Names of NumPy's kinds of dtype."""
DAMAGE = (OSError, RuntimeError, ValueError, KeyError, TypeError)
"""What h5py raises for damaged headers and chunks."""
MAX_COMPRESSION = 1100  # deflate makes at most 1032 bytes of one
_SLACK = 1 << 20  # bytes that an array may declare without having any


class _Dataset(h5py.Dataset):
    """An array whose header is read once: h5py reads it again for every use of a property."""

    @cached_property
    def type(self) -> h5py.h5t.TypeID:
        """The type in the file."""
        return self.id.get_type()

    @cached_property
    def dtype(self) -> np.dtype:
        """NumPy's type."""
        return self.type.dtype


@contextmanager
def open_file(path: Path) -> Iterator[h5py.File]:
    """Open the file for reading; errors of HDF5 inside the block are reported as faults of the file."""
    try:
        with h5py.File(path, "r") as file:
            yield file
    except BlockingIOError as error:  # HDF5's own lock
        raise GtpVisionError(f"{path} is open for writing in another program; wait until that closes it") from error
    except (OSError, RuntimeError) as error:
        is_pointer = path.is_file() and lfs_pointer(path)
        reason = is_pointer or "it is missing, truncated or of another format; copy it again"
        raise GtpVisionError(f"{path} cannot be read as HDF5 ({first_line(error)}): {reason}") from error


def member(parent: h5py.Group, name: str, path: Path) -> h5py.Dataset | h5py.Group:
    """Return a member of a group (`name` may be a path below it) that is reached by hard links only."""
    for key in "/".join(map(names.source, name.split("/"))).split("/"):
        encoded = key.encode(errors="surrogateescape")
        try:
            if not isinstance(parent, h5py.Group):
                raise _missing(parent, key, name, path)
            if parent.id.links.get_info(encoded).type != h5py.h5l.TYPE_HARD:
                raise GtpVisionError(
                    f"{path}: '{_below(parent, key)}' is a link, which is not followed; copy the array itself"
                )
            # A third of the time of parent[key], which counts in files of many thousand arrays.
            found = h5py.h5o.open(parent.id, encoded)
            if isinstance(found, h5py.h5d.DatasetID):
                parent = _Dataset(found, readonly=True)
                _ = parent.dtype, parent.shape  # read from the header only now
            else:
                parent = h5py.Group(found) if isinstance(found, h5py.h5g.GroupID) else parent[key]
        except DAMAGE as error:
            if not _holds(parent, encoded):
                raise _missing(parent, key, name, path) from error
            raise _damaged(_below(parent, key), path, error) from error
    return parent


def group(parent: h5py.Group, name: str, path: Path) -> h5py.Group:
    """Return a member that is a group; see `member`."""
    found = member(parent, name, path)
    if not isinstance(found, h5py.Group):
        raise GtpVisionError(f"{path}: '{found.name.lstrip('/')}' is not a group; write the file again")
    return found


def array(
    parent: h5py.Group, name: str, path: Path, *, kinds: str = "uf", ndim: int | None = None, rows: int | None = None
) -> h5py.Dataset:
    """Return a member that is an array of numbers inside the file, as large as it declares.

    `kinds` of dtype as NumPy names them, e.g. "uf" for unsigned integers and floats, `ndim` and `rows` (None: any) must
    fit.
    """
    return checked_array(member(parent, name, path), path, kinds=kinds, ndim=ndim, rows=rows)


def checked_array(
    data: h5py.Dataset | h5py.Group, path: Path, *, kinds: str, ndim: int | None = None, rows: int | None = None
) -> h5py.Dataset:
    """Return what `member` returned if it is such an array; see `array`."""
    fault = _array_fault(data, kinds, ndim, rows)
    if fault:
        raise GtpVisionError(f"{path}: '{data.name.lstrip('/')}' {fault}")
    return data


def _array_fault(data: h5py.Dataset | h5py.Group, kinds: str, ndim: int | None, rows: int | None) -> str | None:
    is_array = isinstance(data, h5py.Dataset)
    if not is_array or (data.id.get_offset() is None and (data.external or data.is_virtual)):
        return "is not an array inside the file; write the file again"
    shape, dtype = data.shape, data.dtype
    if dtype.kind not in kinds:
        wanted = " or ".join(dict.fromkeys(KINDS[kind] for kind in kinds if kind in KINDS))
        return f"holds {KINDS.get(dtype.kind, 'other values')} (dtype {dtype}), wanted {wanted}; write it again"
    if not shape or (ndim and len(shape) != ndim):
        return f"has shape {shape}, wanted {ndim or 'one or more'} dimensions"
    if rows is not None and shape[0] != rows:
        return f"has {shape[0]} rows, wanted {rows}; write the file again"
    declared, stored = nbytes(shape, dtype), data.id.get_storage_size()
    if declared > MAX_COMPRESSION * stored + _SLACK:
        return (
            f"declares {declared / 1e9:.1f} GB in shape {shape}, but the file holds {stored} bytes of it; it was not "
            f"written completely: copy or write it again"
        )
    return None


def offset(data: h5py.Dataset, path: Path) -> int | None:
    """Return the byte at which an array begins, if it can be mapped there; None if it can only be read.

    Only NumPy's own types can be mapped: HDF5 knows numbers of 3 bytes, of 4 bits, or floats with another exponent,
    which it converts when they are read.
    """
    start, size = data.id.get_offset(), nbytes(data.shape, data.dtype)
    stored_type = data.type if isinstance(data, _Dataset) else data.id.get_type()
    if start is None or data.id.get_storage_size() != size or _type_of(data.dtype) != stored_type:
        return None
    if start + size > path.stat().st_size:
        raise GtpVisionError(
            f"{path}: '{data.name.lstrip('/')}' lies beyond the end of the file, which is truncated; copy it again"
        )
    return int(start)


def children(parent: h5py.Group, path: Path) -> list[str]:
    """Return the names of a group's members."""
    try:
        return names.listed(str(name) for name in parent)
    except DAMAGE as error:
        raise _damaged(parent.name, path, error) from error


def text_attribute(node: h5py.File | h5py.Group, name: str, path: Path, default: str | None = None) -> str | None:
    """Return an attribute as text; `default` if it is missing."""
    try:
        value = node.attrs.get(name)
    except DAMAGE as error:
        raise _damaged(f"{node.name}' with attribute '{name}", path, error) from error
    return default if value is None else text(value)


def text(value: Any) -> str:
    """Return text that HDF5 holds as bytes or as a string."""
    return bytes(value).decode("utf-8", "replace") if isinstance(value, bytes) else str(value)


def json_attribute(node: h5py.File | h5py.Group, name: str, path: Path) -> dict[str, Any]:
    """Return an attribute that holds a JSON object; an empty one if it is missing."""
    return parse_json(text_attribute(node, name, path) or "{}", f"{path}: the attribute '{name}'")


def nbytes(shape: tuple[int, ...], dtype: np.dtype) -> int:
    """Return the bytes of an array, exact however large."""
    total = dtype.itemsize
    for size in shape:
        total *= int(size)
    return total


_type_of = cache(h5py.h5t.py_create)


def _holds(parent: h5py.Group, key: bytes) -> bool:
    try:
        return key in parent.id
    except DAMAGE:  # of the group itself
        return True


def _missing(parent: h5py.Group | h5py.Dataset, key: str, name: str, path: Path) -> GtpVisionError:
    for role in (part for part in name.split("/") if names.source(part) != part):
        return names.missing(role, path, list(parent) if isinstance(parent, h5py.Group) else [])
    return GtpVisionError(f"{path} has no '{_below(parent, key)}'; write the file again")


def _below(parent: h5py.Group, key: str) -> str:
    return f"{parent.name}/{key}".lstrip("/")


def _damaged(name: str, path: Path, error: BaseException) -> GtpVisionError:
    return GtpVisionError(f"{path}: '{name.lstrip('/')}' is damaged ({first_line(error)}); copy the file again")
