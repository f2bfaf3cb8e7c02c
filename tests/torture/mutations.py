"""Mutations of bytes, numbers, values and files, chosen by a generator; each returns a description."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

LARGE = (0, 1, 0x7F, 0xFF, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFF, 1 << 40, (1 << 63) - 1, (1 << 64) - 1)
STRANGE: tuple[Any, ...] = (
    *(None, True, -1, 0, 10**30, 1e308, float("nan"), "", "..", "a\nb", "\ud800", [], {}, [[]], {"a": None}, "x" * 500),
)

Mutation = Callable[[bytearray, np.random.Generator], bytearray]


def pick(random: np.random.Generator, choices: Any) -> Any:
    """One of a sequence, of any types."""
    return choices[int(random.integers(len(choices)))]


def _place(content: bytearray, random: np.random.Generator) -> int:
    """A byte, mostly one at or near a byte other than 0: the structures of a format are there."""
    held = np.flatnonzero(np.frombuffer(content, np.uint8)) if random.random() < 0.7 else []
    if len(held):
        return int(np.clip(random.choice(held) + random.integers(-8, 9), 0, len(content) - 1))
    return int(random.integers(len(content)))


def flip(content: bytearray, random: np.random.Generator) -> bytearray:
    """Replace a few bytes, or bits of them."""
    for _ in range(random.integers(1, 9)):
        content[_place(content, random)] ^= pick(random, (1 << int(random.integers(8)), int(random.integers(256))))
    return content


def zero(content: bytearray, random: np.random.Generator) -> bytearray:
    """Overwrite a range with zeros."""
    start, size = _place(content, random), int(random.integers(1, 200))
    content[start : start + size] = bytes(len(content[start : start + size]))
    return content


def cut(content: bytearray, random: np.random.Generator) -> bytearray:
    """Remove the end."""
    return content[: int(random.integers(len(content)))]


def append(content: bytearray, random: np.random.Generator) -> bytearray:
    """Append random bytes."""
    return content + random.bytes(int(random.integers(1, 5000)))


def copy(content: bytearray, random: np.random.Generator) -> bytearray:
    """Insert a range again, or overwrite another range with it."""
    size, one, other = int(random.integers(1, 300)), _place(content, random), _place(content, random)
    copied = content[one : one + size]
    content[other : other + pick(random, (0, len(copied)))] = copied
    return content


def enlarge(content: bytearray, random: np.random.Generator) -> bytearray:
    """Replace a number of 1, 2, 4 or 8 bytes: sizes and offsets are such numbers."""
    width = pick(random, (1, 2, 4, 8))
    start = _place(content, random) // width * width
    number = pick(random, LARGE) if random.random() < 0.7 else int(random.integers(1 << 32))
    content[start : start + width] = (number % (1 << (8 * width))).to_bytes(width, "little")
    return content


BYTES: tuple[Mutation, ...] = (flip, flip, flip, zero, cut, append, copy, copy, enlarge, enlarge, enlarge)


def damage(path: Path, random: np.random.Generator) -> str:
    """Damage a file or folder in one way."""
    if path.is_file():
        return damage_file(path, random)
    files = sorted(file for file in path.rglob("*") if file.is_file())
    file, other, kind = pick(random, files), pick(random, files), random.random()
    if kind < 0.05:
        file.unlink()
        return f"remove {file.name}"
    if kind < 0.1:
        file.write_bytes(b"")
        return f"empty {file.name}"
    if kind < 0.15:
        content = file.read_bytes()
        shutil.copyfile(other, path / "spare")
        (path / "spare").rename(file)
        other.write_bytes(content)
        return f"exchange {file.name} and {other.name}"
    documents = [file for file in files if file.suffix == ".json" or file.name == ".zarray"]
    if documents and kind < 0.5:
        return damage_json(pick(random, documents), random)
    return damage_file(file, random)


def damage_file(path: Path, random: np.random.Generator) -> str:
    """Damage a file as what it is, or its bytes."""
    arrays = {".parquet": damage_parquet, ".h5": damage_hdf5, ".hdf5": damage_hdf5}
    if path.suffix in arrays and random.random() < 0.3:
        return f"{path.name}: {arrays[path.suffix](path, random)}"
    return damage_bytes(path, random)


def damage_bytes(path: Path, random: np.random.Generator) -> str:
    """Damage the bytes of a file."""
    mutate = pick(random, BYTES)
    path.write_bytes(mutate(bytearray(path.read_bytes()), random) if path.stat().st_size else b"x")
    return f"{mutate.__name__} {path.name}"


def _odd(old: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """An array that a reader does not expect."""
    rows = old if old.ndim else old.reshape(1)
    others: list[Callable[[], np.ndarray]] = [
        *(lambda: rows[:-1], lambda: rows[:0], lambda: rows[..., :0], lambda: old[..., None], lambda: old.reshape(-1)),
        *(lambda: np.concatenate([rows, rows]), lambda: np.zeros(()), lambda: np.full(old.shape, b"words")),
        *((lambda value=value: np.full(old.shape, value)) for value in (np.nan, 1e308, -3)),
        lambda: np.zeros(old.shape, [("x", "f4"), ("y", "i4")]),
        *((lambda kind=kind: np.zeros(old.shape, kind)) for kind in ("f2", ">f4", "g", "u2", ">i8", "?", "c16", "i1")),
    ]
    return pick(random, others)()


def damage_hdf5(path: Path, random: np.random.Generator) -> str:
    """Replace an array, a group or an attribute."""
    with h5py.File(path, "r+") as file:
        names: list[str] = []
        file.visit(names.append)
        name, kind = pick(random, names), random.random()
        if kind < 0.2:
            node = file[name] if file[name].attrs and random.random() < 0.5 else file
            key = next(iter(node.attrs or ["format"]))
            values = (b"\xff\xfe", "", "{", 3.5, np.zeros(3), h5py.Empty("f"), "[" * 500, np.array([b"a", b"b"]))
            node.attrs[key] = pick(random, values)
            return f"attribute {key} of {node.name}"
        old = file[name][()] if isinstance(file[name], h5py.Dataset) else np.zeros((15, 3))
        if kind < 0.3:
            file.move(name, f"{name}2" if random.random() < 0.5 else f"{name}0/\u00e9")
            return f"rename {name}"
        del file[name]
        if kind < 0.4:
            file.create_group(name)
            return f"group {name}"
        if kind < 0.45:
            return f"without {name}"
        file[name] = new = _odd(old, random)
        return f"{name} is {new.dtype} {new.shape}"


def damage_parquet(path: Path, random: np.random.Generator) -> str:
    """Replace a column of the table."""
    table = pq.read_table(path)
    at, rows = int(random.integers(table.num_columns)), table.num_rows
    name, old = table.column_names[at], table.column(at)
    others = [
        *(pa.nulls(rows), pa.nulls(rows, old.type), pa.array([[]] * rows, pa.list_(pa.float32()))),
        pa.array([[1.0] * row for row in range(rows)], pa.list_(pa.float64())),
        *(pa.array([value] * rows) for value in ("a", b"a", [1.0, 2.0], {"bytes": b"a", "path": None})),
        *(pa.array([value] * rows) for value in (-1, 0, 1, 1 << 40, (1 << 63) - 1, float("nan"), 1e308, True)),
    ]
    new = pick(random, others)
    table = table.set_column(at, name, new) if random.random() < 0.9 else table.append_column(name, old)
    pq.write_table(table, path)
    return f"{name} is {new.type}"


def damage_json(path: Path, random: np.random.Generator) -> str:
    """Replace or remove one value, anywhere in the document (and in JSON inside its strings)."""
    document = json.loads(path.read_text())
    what = change_json(document, random)
    path.write_text(json.dumps(document))
    return f"{path.name}: {what}"


def change_json(document: Any, random: np.random.Generator) -> str:
    """Replace or remove one value in a document."""
    keys = list(document) if isinstance(document, dict) else list(range(len(document)))
    if not keys:
        return "nothing"
    key = pick(random, keys)
    value = document[key]
    if isinstance(value, str) and value.startswith("{") and random.random() < 0.8:
        inner = json.loads(value)
        what = change_json(inner, random)
        document[key] = json.dumps(inner)
        return f"{key} > {what}"
    if isinstance(value, dict | list) and value and random.random() < 0.8:
        return f"{key} > {change_json(value, random)}"
    if random.random() < 0.15:
        del document[key]
        return f"without {key}"
    is_number = isinstance(value, int) and random.random() < 0.5
    document[key] = value + pick(random, (-1, 1)) if is_number else pick(random, STRANGE)
    return f"{key} = {str(document[key])[:30]!r}"
