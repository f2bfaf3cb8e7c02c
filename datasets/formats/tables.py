"""Reading Parquet and JSON files of strangers, a batch at a time: no value is believed before it is checked."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

# Arrow's own allocators take 128 MB at once, which the limit on memory counts; it looks here when it is imported.
os.environ.setdefault("ARROW_DEFAULT_MEMORY_POOL", "system")

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from gtp_vision.core import safe_json, sandbox
from gtp_vision.core.errors import GtpVisionError
from gtp_vision.datasets import hdf5

_JSON_BYTES = 50_000_000
_BUFFER = 1 << 20  # bytes of a column that are read together


def fault(text: str) -> GtpVisionError:
    """The error of one sentence, also where a name in it holds a line's end."""
    return GtpVisionError(" ".join("".join(c if c.isprintable() else " " for c in text).split()))


def inside(folder: Path, name: str) -> Path:
    """A file below a folder.

    Raises:
        GtpVisionError: it is missing, or lies elsewhere (`..`, a root, a link).
    """
    path = folder / name
    try:
        if not path.resolve().is_relative_to(folder.resolve()):
            raise fault(f"{folder}: '{name}' leads out of the folder; copy the file itself into it")
        if not path.is_file():
            raise fault(f"{folder} has no file '{name}'; copy the data set again")
    except (OSError, ValueError, RuntimeError) as error:  # a null byte, links in a circle, a name too long
        raise fault(f"{folder}: '{name[:200]}' is no name of a file ({hdf5.first_line(error)})") from error
    return path


def json_object(path: Path) -> dict[str, Any]:
    """A JSON file that holds an object.

    Raises:
        GtpVisionError: it does not, or is larger than 50 MB.
    """
    try:
        if path.stat().st_size > _JSON_BYTES:
            raise ValueError(f"more than {_JSON_BYTES / 1e6:.0f} MB")
        return safe_json.json_object(path.read_bytes())
    except (OSError, ValueError) as error:
        raise fault(f"{path} cannot be read as JSON ({hdf5.first_line(error)}); copy it again") from error


def batches(path: Path, names: Sequence[str], rows: int) -> Iterator[list[pa.Array]]:
    """The columns `names` of a Parquet file, in batches of at most `rows` rows.

    Raises:
        GtpVisionError: damage; no column of a name, or several.
    """
    with _faults(path):
        _be_frugal()
        with pq.ParquetFile(path, buffer_size=_BUFFER, pre_buffer=False, page_checksum_verification=True) as file:
            for name in names:
                if len(file.schema_arrow.get_all_field_indices(name)) != 1:
                    raise fault(f"{path} has not one column '{name}'; copy or convert the data set again")
            for batch in file.iter_batches(rows, columns=list(names), use_threads=False):
                sandbox.alive()
                yield [batch.column(batch.schema.get_field_index(name)) for name in names]


def columns_of_text(path: Path) -> list[str]:
    """The names of a Parquet file's columns that hold text.

    Raises:
        GtpVisionError: damage.
    """
    _be_frugal()
    with _faults(path), pq.ParquetFile(path, pre_buffer=False) as file:
        kinds = pa.types.is_string, pa.types.is_large_string
        return [field.name for field in file.schema_arrow if any(kind(field.type) for kind in kinds)]


def numbers(array: pa.Array, width: int, name: str, path: Path) -> np.ndarray:
    """A column as (rows, width): numbers, or lists of lists of numbers with `width` in all.

    Raises:
        GtpVisionError: missing values, another type, another width.
    """
    rows = len(array)
    with _faults(path):
        while isinstance(array.type, pa.ListType | pa.LargeListType | pa.FixedSizeListType):
            if array.null_count:
                break
            if not isinstance(array.type, pa.FixedSizeListType):
                lengths = array.value_lengths().to_numpy(zero_copy_only=False)
                if len(lengths) and lengths.min() != lengths.max():
                    raise fault(f"{path}: the lists in '{name}' differ in length; write the data set again")
            array = array.flatten()
        kind = array.type
        if array.null_count:
            raise fault(f"{path}: a value in '{name}' is missing; remove that episode")
        if not (pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind)):
            raise fault(f"{path}: '{name}' holds {kind} and no numbers; write the data set again")
        if len(array) != rows * width:
            raise fault(
                f"{path}: '{name}' has {len(array) / max(1, rows):g} numbers a row, but meta/info.json says {width}"
            )
        return np.asarray(array.to_numpy(zero_copy_only=False)).reshape(rows, width)


def integers(array: pa.Array, width: int, name: str, path: Path) -> np.ndarray:
    """As `numbers`, int64.

    Raises:
        GtpVisionError: as `numbers`, and for floats.
    """
    found = numbers(array, width, name, path)
    if found.dtype.kind not in "iub":
        raise fault(f"{path}: '{name}' holds {found.dtype} and no integers; write the data set again")
    return found.astype(np.int64)


def pictures(array: pa.Array, name: str, path: Path) -> list[bytes]:
    """A column of encoded pictures: bytes, or Hugging Face's struct of bytes and path.

    Raises:
        GtpVisionError: another type, or a picture that is not inside the file.
    """
    with _faults(path):
        if isinstance(array.type, pa.StructType) and array.type.get_field_index("bytes") >= 0:
            array = array.field("bytes")
        if not (pa.types.is_binary(array.type) or pa.types.is_large_binary(array.type)):
            raise fault(f"{path}: '{name}' holds {array.type} and no pictures; write the data set again")
        if array.null_count:
            raise fault(f"{path}: a picture of '{name}' is not inside the file; write it with embedded pictures")
        return list(array.to_pylist())


def _be_frugal() -> None:
    """Keep Arrow from starting threads, whose stacks the limit on memory counts."""
    pa.set_cpu_count(1)
    pa.set_io_thread_count(1)


@contextmanager
def _faults(path: Path) -> Iterator[None]:
    try:
        yield
    except MemoryError:  # the process apart knows what to say
        raise
    except (pa.ArrowException, OSError, ValueError, KeyError, TypeError, OverflowError) as error:
        raise fault(
            f"{path} cannot be read as Parquet ({hdf5.first_line(error)}); it is truncated or damaged: copy it again"
        ) from error
