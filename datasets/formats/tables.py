"""Reading untrusted Parquet files a batch at a time: every value is checked before it is used.

Every function raises a GtpVisionError that names the file and the column.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

# Arrow's own allocators reserve 128 MB, which count for the memory limit; this is read when Arrow is imported.
os.environ.setdefault("ARROW_DEFAULT_MEMORY_POOL", "system")

import numpy as np

from gtp_vision.core import sandbox
from gtp_vision.core.errors import GtpVisionError, first_line
from gtp_vision.core.extras import optional
from gtp_vision.core.files import lfs_pointer

if TYPE_CHECKING:
    import pyarrow as pa
else:
    pa = optional("pyarrow", "lerobot", "a Parquet file")
pq = optional("pyarrow.parquet", "lerobot", "a Parquet file")

_BUFFER = 1 << 20  # bytes of a column that are read together


def inside(folder: Path, name: str) -> Path:
    """Return the path of a file below a folder; it must exist and not lead elsewhere (`..`, a root, a link).

    Links of a snapshot in the cache of the Hugging Face hub (.../snapshots/REVISION) into its .../blobs are followed,
    also if the folder is one of several in it.
    """
    path = folder / name
    try:
        real, file = folder.resolve(), path.resolve()
        homes = [real, *(parent.parent / "blobs" for parent in real.parents if parent.name == "snapshots")]
        if not any(file.is_relative_to(home) for home in homes):
            raise GtpVisionError(
                f"{folder}: '{name}' leads out of the folder; copy the folder with what its links lead to (cp -rL)"
            )
        if not path.is_file():
            raise GtpVisionError(f"{folder} has no file '{name}'; copy the data set again")
        if pointer := lfs_pointer(path):
            raise GtpVisionError(f"{path} cannot be read: {pointer}")
    except (OSError, ValueError, RuntimeError) as error:  # a null byte, links in a circle, a name too long
        raise GtpVisionError(f"{folder}: '{name[:200]}' is not the name of a file ({first_line(error)})") from error
    return path


def batches(path: Path, names: Sequence[str], rows: int) -> Iterator[list[pa.Array]]:
    """Yield the columns `names` of a Parquet file, in batches of at most `rows` rows."""
    with faults(path):  # absolute, as Arrow takes a:b/c for an address
        _use_one_thread()
        with pq.ParquetFile(
            path.absolute(), buffer_size=_BUFFER, pre_buffer=False, page_checksum_verification=True
        ) as file:
            for name in names:
                if len(file.schema_arrow.get_all_field_indices(name)) != 1:
                    raise GtpVisionError(f"{path} has not one column '{name}'; copy or convert the data set again")
            for batch in file.iter_batches(rows, columns=list(names), use_threads=False):
                sandbox.heartbeat()
                yield [batch.column(batch.schema.get_field_index(name)) for name in names]


def columns_of_text(path: Path) -> list[str]:
    """Return the names of a Parquet file's columns that hold text."""
    _use_one_thread()
    with faults(path), pq.ParquetFile(path.absolute(), pre_buffer=False) as file:
        kinds = pa.types.is_string, pa.types.is_large_string
        return [field.name for field in file.schema_arrow if any(kind(field.type) for kind in kinds)]


def numbers(array: pa.Array, width: int, name: str, path: Path, *, allow_missing: bool = False) -> np.ndarray:
    """Return a column as (rows, width): numbers, or nested lists of `width` numbers in all.

    A missing number is a GtpVisionError, or NaN if `allow_missing`.
    """
    rows = len(array)
    with faults(path):
        if allow_missing and array.null_count:
            array = array.cast(pa.float64()).fill_null(np.nan)
        while isinstance(array.type, pa.ListType | pa.LargeListType | pa.FixedSizeListType):
            if array.null_count:
                break
            if not isinstance(array.type, pa.FixedSizeListType):
                lengths = array.value_lengths().to_numpy(zero_copy_only=False)
                if len(lengths) and lengths.min() != lengths.max():
                    raise GtpVisionError(f"{path}: the lists in '{name}' differ in length; write the data set again")
            array = array.flatten()
        kind = array.type
        if array.null_count:
            raise GtpVisionError(f"{path}: a value in '{name}' is missing; remove that episode")
        if not (pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind)):
            raise GtpVisionError(f"{path}: '{name}' holds {kind} instead of numbers; write the data set again")
        if len(array) != rows * width:
            raise GtpVisionError(
                f"{path}: '{name}' has {len(array) / max(1, rows):g} numbers a row, wanted {width}; write it again"
            )
        return np.asarray(array.to_numpy(zero_copy_only=False)).reshape(rows, width)


def integers(array: pa.Array, width: int, name: str, path: Path) -> np.ndarray:
    """Return a column of integers as int64 (rows, width); see `numbers`."""
    found = numbers(array, width, name, path)
    if found.dtype.kind not in "iub":
        raise GtpVisionError(f"{path}: '{name}' holds {found.dtype} instead of integers; write the data set again")
    return found.astype(np.int64)


def encoded_images(array: pa.Array, name: str, path: Path) -> list[bytes]:
    """Return a column of encoded images: bytes, or Hugging Face's struct of bytes and path."""
    with faults(path):
        if isinstance(array.type, pa.StructType) and array.type.get_field_index("bytes") >= 0:
            array = array.field("bytes")
        if not (pa.types.is_binary(array.type) or pa.types.is_large_binary(array.type)):
            raise GtpVisionError(f"{path}: '{name}' holds {array.type} instead of images; write the data set again")
        if array.null_count:
            raise GtpVisionError(f"{path}: an image of '{name}' is not inside the file; write it with embedded images")
        return list(array.to_pylist())


def _use_one_thread() -> None:
    """Keep Arrow from starting threads, whose stacks count for the memory limit."""
    pa.set_cpu_count(1)
    pa.set_io_thread_count(1)


@contextmanager
def faults(path: Path, kind: str = "Parquet") -> Iterator[None]:
    """Report what Arrow raises in the block as a fault of the file."""
    try:
        yield
    except MemoryError:  # the sandbox reports it
        raise
    except (pa.ArrowException, OSError, ValueError, KeyError, TypeError, OverflowError) as error:
        raise GtpVisionError(
            f"{path} cannot be read as {kind} ({first_line(error)}): it is truncated or damaged; copy it again"
        ) from error
