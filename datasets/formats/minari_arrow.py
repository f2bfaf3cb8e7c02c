"""Minari's data sets that are stored by Arrow (`data_format` arrow or parquet): a folder per episode.

    data/metadata.json                   as of any Minari data set
    data/<k>/part-0.arrow (.parquet)     T + 1 rows, of which only observations and infos have a last one
        observations                     lists of a fixed size; structs of Dict and Tuple spaces; JPEG files as binary
        actions rewards terminations truncations
        infos                            a struct

Layout of `minari/dataset/_storages/arrow_storage.py`. A file is validated before its values are used.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from gtp_vision.core import sandbox
from gtp_vision.core.errors import GtpVisionError
from gtp_vision.core.extras import optional
from gtp_vision.core.files import data_files
from gtp_vision.core.success import KEYS, marked
from gtp_vision.datasets import names
from gtp_vision.datasets.formats import episodes, jpeg, tables
from gtp_vision.datasets.formats.minari_spaces import Episode, Leaf, add, leaves, shape_of
from gtp_vision.datasets.layout import Piece

if TYPE_CHECKING:
    import pyarrow as pa
else:
    pa = optional("pyarrow", "minari", "Minari's Arrow format")
pq = optional("pyarrow.parquet", "minari", "Minari's Arrow format")

FORMATS = ("arrow", "parquet")


def read(folder: Path, metadata: Mapping[str, Any], observed: Any) -> Iterator[Episode]:
    """Yield the episodes of a folder `data`, in their order."""
    total, form = metadata.get("total_episodes"), str(metadata["data_format"])
    if not isinstance(total, int) or total < 1:
        raise GtpVisionError(f"{folder}: metadata.json has no number of episodes 'total_episodes'; copy it again")
    for number in range(total):
        yield _episode(folder, number, form, observed)
        sandbox.heartbeat()


def _episode(folder: Path, number: int, form: str, observed: Any) -> Episode:
    inside = folder / str(number)
    parts = sorted(data_files(inside, f"*.{form}"), key=lambda part: (len(part.name), part.name))
    if len(parts) != 1:
        raise GtpVisionError(f"{folder} has {len(parts)} files '{number}/*.{form}', wanted one; copy the whole folder")
    path = tables.inside(folder, f"{number}/{parts[0].name}")
    table = _table(path)
    rows = len(table)
    if rows < 2:
        raise GtpVisionError(f"{path} has {rows} rows, wanted one more than the episode's steps; copy it again")
    found: dict[str, Piece | None] = {}
    for leaf in leaves(observed, folder):
        add(found, leaf, _observation(path, table, leaf), folder)
    flat = {
        name: _numbers(_column(table, [name], path), name, path)[:-1].reshape(rows - 1)
        for name in ("rewards", "terminations", "truncations")
    }
    actions = _numbers(_column(table, ["actions"], path), "actions", path)
    return Episode(
        name=f"{number}",
        observations=found,
        actions=episodes.to_float32(actions[:-1]),
        rewards=flat["rewards"],
        terminations=flat["terminations"] != 0,
        truncations=flat["truncations"] != 0,
        mark=_mark(table, path),
    )


def _observation(path: Path, table: pa.Table, leaf: Leaf) -> Piece | None:
    keys = ["observations", *map(str, leaf.place)]
    name, rows, shape = "/".join(keys), len(table), shape_of(leaf.space)
    column = _column(table, keys, path)
    if pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
        return None
    if pa.types.is_binary(column.type) or pa.types.is_large_binary(column.type):
        if len(shape) not in (2, 3):
            raise GtpVisionError(f"{path}: '{name}' holds neither numbers nor JPEG frames; write it again")
        size = (*shape, 1)[:3]

        def decoded(start: int, stop: int) -> np.ndarray:
            encoded = _column(_table(path), keys, path).slice(start, stop - start).to_pylist()
            return jpeg.frames(encoded, size, start, f"{path}: '{name}'")

        decoded(0, 1)  # checks the shape before memory is allocated for it
        return Piece(rows, size, np.dtype(np.uint8), decoded)
    first = _numbers(column.slice(0, 1), name, path)
    if math.prod(shape) != first.shape[1]:
        shape = first.shape[1:]

    def stored(start: int, stop: int) -> np.ndarray:
        values = _column(_table(path), keys, path).slice(start, stop - start)
        return _numbers(values, name, path).reshape(stop - start, *shape)

    return episodes.as_observation(Piece(rows, shape, first.dtype, stored), keys[-1])


def _mark(table: pa.Table, path: Path) -> bool | None:
    """Read whether an episode succeeded, of any step; None if its infos do not say."""
    if "infos" not in table.column_names or not pa.types.is_struct(table.schema.field("infos").type):
        return None
    held = {table.schema.field("infos").type.field(n).name for n in range(table.schema.field("infos").type.num_fields)}
    for key in KEYS:
        if key in held:
            values = [marked(value) for value in _column(table, ["infos", key], path).to_pylist()]
            if known := [value for value in values if value is not None]:
                return any(known)
    return None


def _table(path: Path) -> pa.Table:
    with tables.faults(path, "Arrow"):
        pa.set_cpu_count(1)  # whose stacks count for the memory limit
        pa.set_io_thread_count(1)
        if path.suffix == ".parquet":
            table = pq.read_table(path.absolute(), use_threads=False, memory_map=True, partitioning=None)
        else:
            table = pa.ipc.open_file(pa.memory_map(str(path.absolute()))).read_all()
        table.validate(full=True)
        return table


def _column(table: pa.Table, keys: Sequence[str], path: Path) -> pa.Array:
    """Return the array at a place: a column, and the fields of structs in it."""
    with tables.faults(path, "Arrow"):
        if table.column_names.count(first := names.source(keys[0])) != 1:
            raise GtpVisionError(f"{path} has not one column '{first}'; copy or create the data set again")
        array = table.column(first).combine_chunks()
        for depth, key in enumerate(keys[1:], 2):
            if not pa.types.is_struct(array.type) or array.type.get_field_index(key) < 0:
                raise GtpVisionError(f"{path} has no '{'/'.join(keys[:depth])}'; copy or create the data set again")
            array = array.field(key)
        return array


def _numbers(array: pa.Array, name: str, path: Path) -> np.ndarray:
    """Return a column of numbers, or of lists of a fixed size of them, as (rows, width)."""
    is_list = pa.types.is_fixed_size_list(array.type)
    return tables.numbers(array, array.type.list_size if is_list else 1, name, path)
