"""Damage: bytes, numbers, values and whole files become others, as a generator decides; each tells what it did."""

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
    None,
    True,
    -1,
    0,
    10**30,
    1e308,
    float("nan"),
    "",
    "..",
    "a\nb",
    "\ud800",
    [],
    {},
    [[]],
    {"a": None},
    "x" * 500,
)

Bytes = bytearray
Mutation = Callable[[Bytes, np.random.Generator], Bytes]


def place(content: Bytes, random: np.random.Generator) -> int:
    """A byte, mostly one that holds or neighbours something other than 0: there a format's structures are."""
    if random.random() < 0.7:
        held = np.flatnonzero(np.frombuffer(content, np.uint8))
        if len(held):
            return int(np.clip(random.choice(held) + random.integers(-8, 9), 0, len(content) - 1))
    return int(random.integers(len(content)))


def flip(content: Bytes, random: np.random.Generator) -> Bytes:
    """A few bytes become others."""
    for _ in range(random.integers(1, 9)):
        content[place(content, random)] = random.integers(256)
    return content


def flip_a_bit(content: Bytes, random: np.random.Generator) -> Bytes:
    """One bit becomes the other."""
    content[place(content, random)] ^= 1 << int(random.integers(8))
    return content


def zero(content: Bytes, random: np.random.Generator) -> Bytes:
    """A stretch becomes zeros."""
    start, size = place(content, random), int(random.integers(1, 200))
    content[start : start + size] = bytes(len(content[start : start + size]))
    return content


def cut(content: Bytes, random: np.random.Generator) -> Bytes:
    """The end is missing."""
    return content[: int(random.integers(len(content)))]


def append(content: Bytes, random: np.random.Generator) -> Bytes:
    """Something follows the end."""
    return content + random.bytes(int(random.integers(1, 5000)))


def duplicate(content: Bytes, random: np.random.Generator) -> Bytes:
    """A stretch stands there twice."""
    start, size = place(content, random), int(random.integers(1, 500))
    return content[: start + size] + content[start:]


def swap(content: Bytes, random: np.random.Generator) -> Bytes:
    """Two stretches change places."""
    size = int(random.integers(1, 100))
    one, other = place(content, random), place(content, random)
    first, second = content[one : one + size], content[other : other + size]
    content[one : one + len(second)], content[other : other + len(first)] = second, first
    return content


def enlarge(content: Bytes, random: np.random.Generator) -> Bytes:
    """A number of 1, 2, 4 or 8 bytes becomes another: sizes and offsets are such numbers."""
    width = int(random.choice([1, 2, 4, 8]))
    start = place(content, random) // width * width
    number = int(random.choice(np.array(LARGE, object))) if random.random() < 0.7 else int(random.integers(1 << 32))
    content[start : start + width] = (number % (1 << (8 * width))).to_bytes(width, "little")
    return content


BYTES: tuple[Mutation, ...] = (flip, flip, flip_a_bit, zero, cut, append, duplicate, swap, enlarge, enlarge, enlarge)


def damage(path: Path, random: np.random.Generator) -> str:
    """Damage a file or folder in one way; what was done."""
    if path.is_file():
        return damage_file(path, random)
    files = sorted(file for file in path.rglob("*") if file.is_file())
    file = files[random.integers(len(files))]
    kind = random.random()
    if kind < 0.05:
        file.unlink()
        return f"remove {file.name}"
    if kind < 0.1:
        file.write_bytes(b"")
        return f"empty {file.name}"
    if kind < 0.15:
        other = files[random.integers(len(files))]
        shutil.copyfile(other, path / "spare")
        file.rename(other)
        (path / "spare").rename(file)
        return f"exchange {file.name} and {other.name}"
    documents = [file for file in files if file.suffix == ".json"]
    if documents and kind < 0.5:
        return damage_json(documents[random.integers(len(documents))], random)
    return damage_file(file, random)


def damage_file(path: Path, random: np.random.Generator) -> str:
    """Damage a file by what it is, or by its bytes; what was done."""
    arrays = {".npz": damage_npz, ".parquet": damage_parquet, ".h5": damage_hdf5, ".hdf5": damage_hdf5}
    if path.suffix in arrays and random.random() < 0.3:
        return f"{path.name}: {arrays[path.suffix](path, random)}"
    mutate = BYTES[random.integers(len(BYTES))]
    path.write_bytes(mutate(bytearray(path.read_bytes()), random) if path.stat().st_size else b"x")
    return f"{mutate.__name__} {path.name}"


def odd(old: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """An array that is not what a reader waits for."""
    others: list[Callable[[], np.ndarray]] = [
        lambda: old[:-1] if old.ndim else old,
        lambda: old[:0] if old.ndim else old,
        lambda: old[..., :0] if old.ndim else old,
        lambda: old[..., None],
        lambda: old.reshape(-1),
        lambda: np.concatenate([old, old]) if old.ndim else old,
        lambda: np.zeros(()),
        lambda: np.full(old.shape, np.nan),
        lambda: np.full(old.shape, 1e308),
        lambda: np.full(old.shape, -3, np.int64),
        lambda: np.full(old.shape, b"words"),
        lambda: np.zeros(old.shape, [("x", "f4"), ("y", "i4")]),
        *((lambda kind=kind: np.zeros(old.shape, kind)) for kind in ("f2", ">f4", "g", "u2", ">i8", "?", "c16", "i1")),
    ]
    return others[random.integers(len(others))]()


def damage_hdf5(path: Path, random: np.random.Generator) -> str:
    """An array, a group or an attribute becomes another."""
    with h5py.File(path, "r+") as file:
        names: list[str] = []
        file.visit(names.append)
        name = names[random.integers(len(names))]
        kind = random.random()
        if kind < 0.2:
            node = file[name] if file[name].attrs and random.random() < 0.5 else file
            key = next(iter(node.attrs or ["format"]))
            strange = (b"\xff\xfe", "", "{", 3.5, np.zeros(3), h5py.Empty("f"), "[" * 500, np.array([b"a", b"b"]))
            node.attrs[key] = strange[random.integers(len(strange))]
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
        new = odd(old, random)
        file[name] = new
        return f"{name} is {new.dtype} {new.shape}"


def damage_npz(path: Path, random: np.random.Generator) -> str:
    """A member of the archive becomes another."""
    with np.load(path) as archive:
        members = dict(archive)
    name = list(members)[random.integers(len(members))]
    members[name] = odd(members[name], random)
    np.savez(path, **members)
    return f"{name} is {members[name].dtype} {members[name].shape}"


def damage_parquet(path: Path, random: np.random.Generator) -> str:
    """A column of the table becomes another."""
    table = pq.read_table(path)
    at = int(random.integers(table.num_columns))
    rows, old = table.num_rows, table.column(at)
    others = [
        pa.nulls(rows),
        pa.nulls(rows, old.type),
        pa.array(["a"] * rows),
        pa.array([b"a"] * rows),
        pa.array([[1.0, 2.0]] * rows),
        pa.array([[]] * rows, pa.list_(pa.float32())),
        pa.array([[1.0] * row for row in range(rows)], pa.list_(pa.float64())),
        pa.array([{"bytes": b"a", "path": None}] * rows),
        *(pa.array([value] * rows) for value in (-1, 0, 1, 1 << 40, (1 << 63) - 1, float("nan"), 1e308, True)),
    ]
    new = others[random.integers(len(others))]
    name = table.column_names[at]
    table = table.set_column(at, name, new) if random.random() < 0.9 else table.append_column(name, old)
    pq.write_table(table, path)
    return f"{name} is {new.type}"


def damage_json(path: Path, random: np.random.Generator) -> str:
    """One value, anywhere in the document (and in JSON inside its strings), becomes another or disappears."""
    document = json.loads(path.read_text())
    what = change_json(document, random)
    path.write_text(json.dumps(document))
    return f"{path.name}: {what}"


def change_json(document: Any, random: np.random.Generator) -> str:
    """One value in a document becomes another or disappears; which."""
    keys = list(document) if isinstance(document, dict) else list(range(len(document)))
    if not keys:
        return "nothing"
    key = keys[random.integers(len(keys))]
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
    document[key] = STRANGE[random.integers(len(STRANGE))]
    if isinstance(value, int) and random.random() < 0.5:
        document[key] = value + int(random.choice([-1, 1]))
    return f"{key} = {str(document[key])[:30]!r}"
