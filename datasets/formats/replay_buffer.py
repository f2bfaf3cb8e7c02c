"""Replay buffers of Diffusion Policy and UMI: a zarr group (version 2 or 3), as a folder or in one zip.

    data/action             (N, A)
    data/<key>              (N, ...) rows of all episodes, one after another
    meta/episode_ends       int64 (E,), the row after each episode's last

Layout of `ReplayBuffer` in real-stanford/diffusion_policy, `common/replay_buffer.py`. The action of a row is taken in
it; rewards are those of `reward` or `rewards`, else 0; terminals those of `terminal`, `terminals`, `done` or `dones`,
else none. The last row of each episode that is not a terminal is a timeout. Success is what `success` or `is_success`
say, in `data` of each row or in `meta` of each episode. Images are often floats that hold whole numbers from 0 to 255
(PushT's `img`): they are cameras.

UMI records poses without actions (`scripts_slam_pipeline/07_generate_replay_buffer.py`). Its own sampler joins
`eef_pos`, `eef_rot_axis_angle` and `gripper_width` of each robot, and begins a chunk with the pose of the row itself,
which its controller drops as late. Here the action of a row is the joined pose of the next one, and of an episode's
last row its own. `demo_start_pose` and `demo_end_pose` are left out as UMI's loader leaves them out: they tell a policy
where the episode ends. Its frames are JPEG XL, which the extra `umi` decodes.

A zarr array may name any codec of numcodecs, of which `pickle` executes code: only codecs of numbers and images are
accepted, before zarr sees the array. Chunks that are not stored read as the array's fill value, which zarr's writers
rely on for constant chunks and which a broken copy looks like; the attribute `missing_chunks` counts them.
"""

from __future__ import annotations

import contextlib
import math
import os
import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from gtp_vision.core import depth, sandbox
from gtp_vision.core.errors import GtpVisionError, first_line, propose
from gtp_vision.core.safe_json import parse_json
from gtp_vision.core.success import KEYS, marked
from gtp_vision.datasets import hdf5, names, npz
from gtp_vision.datasets import success as successes
from gtp_vision.datasets.formats import episodes, tables
from gtp_vision.datasets.formats.format import Format
from gtp_vision.datasets.layout import FileArrays, Layout, Piece, through_cache

_DATA, _ENDS = "data/", "meta/episode_ends"
_METADATA = (".zarray", "zarr.json")  # of an array in version 2 and 3
_ACTIONS, _REWARDS = ("action", "actions"), ("reward", "rewards")
_TERMINALS = ("terminals", "terminal", "dones", "done")
_POSE = ("eef_pos", "eef_rot_axis_angle", "gripper_width")  # of UMI's robot<i>
_OF_EPISODES = ("_demo_start_pose", "_demo_end_pose")
_IMAGE_CODECS = "imagecodecs_"
_CODECS = {
    *("blosc", "zstd", "zlib", "gzip", "lz4", "lzma", "bz2", "shuffle", "delta", "bitround", "quantize", "astype"),
    *("fixedscaleoffset", "packbits", "crc32", "crc32c", "adler32", "fletcher32"),
    *("bytes", "transpose", "sharding_indexed", "endian"),
}
_MAX_METADATA = 1 << 20  # bytes
_MAX_COMPRESSION = 40_000  # bytes of one: runs in Zstandard
_BLOCK = 1 << 22  # bytes that are read together, if a chunk is not larger


def recognises(path: Path) -> bool:
    """Whether a folder or a zip holds a replay buffer."""
    if path.is_dir():
        return any((path / _ENDS / name).is_file() for name in _METADATA)
    held = npz.members(path)
    return any(f"{_ENDS}/{name}" in held for name in _METADATA)


def layout(path: Path) -> Layout:
    """Return the layout of a replay buffer, unpacked once into the cache.

    Raises:
        GtpVisionError: damage, a codec that is not of numbers or images, missing arrays, lengths that disagree, links
            that lead out of the folder.
    """
    return through_cache(path, lambda: _opened(path), "zarr")


@contextmanager
def _opened(path: Path) -> Iterator[FileArrays]:
    store = _Store(path)
    listed = store.arrays(_DATA)
    ends = _episode_ends(store)
    rows = int(ends[-1])
    actions, is_made = _actions(store, listed, ends)
    taken = {name: _first(listed, name) for name in (_ACTIONS, _REWARDS, _TERMINALS, KEYS)}
    rewards, terminals = (
        store.column(f"{_DATA}{name}", rows) if name else np.zeros(rows)
        for name in (taken[_REWARDS], taken[_TERMINALS])
    )
    last = np.isin(np.arange(rows), ends - 1)
    shown = [name for name in listed if name not in taken.values() and not name.endswith(_OF_EPISODES)]
    found = {name: _observation(store, f"{_DATA}{name}", rows) for name in shown}
    attributes = {"suite": "zarr", "source": path.resolve().name, "env": "", "rendering": {}}
    attributes |= _marks(store, taken[KEYS], ends)
    attributes |= episodes.left_out({episodes.check_name(name.replace("/", "_"), path): x for name, x in found.items()})
    attributes |= {"actions_from": "poses of the next row"} if is_made else {}
    attributes |= {"missing_chunks": store.missing} if store.missing else {}
    pieces = episodes.usable({name.replace("/", "_"): piece for name, piece in found.items()}, "data", path)
    yield FileArrays(
        observations={name: [piece] for name, piece in pieces.items()},
        actions=actions,
        rewards=rewards,
        terminals=terminals != 0,
        timeouts=last & (terminals == 0),
        episode_ends=ends,
        attributes=attributes,
    )


def _episode_ends(store: _Store) -> np.ndarray:
    ends = store.numbers(_ENDS, "iu", 1).astype(np.int64)
    if not len(ends):
        raise GtpVisionError(f"{store.path} has no episode: '{_ENDS}' is empty; record one")
    if ends[0] < 1 or (np.diff(ends) < 1).any():
        wrong = int(np.argmax(np.diff(ends, prepend=0) < 1))
        raise GtpVisionError(
            f"{store.path}: '{_ENDS}' does not increase at episode {wrong} ({ends[wrong]}); write the row after the "
            f"last one of each episode"
        )
    return ends


def _actions(store: _Store, names: Sequence[str], ends: np.ndarray) -> tuple[np.ndarray, bool]:
    """Return actions, float32 (N, A), and whether they were made of UMI's poses."""
    rows = int(ends[-1])
    if name := _first(names, _ACTIONS):
        return episodes.to_float32(store.numbers(f"{_DATA}{name}", "fiu", 2, rows)), False
    robots = sorted({name.split("_")[0] for name in names if name.startswith("robot") and name.endswith(_POSE[0])})
    if not robots:
        raise GtpVisionError(
            f"{store.path} has no 'data/action': {propose('action', names)}; write the action of each row, (N, A)"
        )
    poses = [f"{robot}_{part}" for robot in robots for part in _POSE if f"{robot}_{part}" in names]
    pose = np.concatenate([store.numbers(f"{_DATA}{name}", "f", 2, rows) for name in poses], axis=1)
    following = np.arange(1, rows + 1)
    following[ends - 1] -= 1
    return episodes.to_float32(pose[following]), True


def _observation(store: _Store, name: str, rows: int) -> Piece | None:
    if not store.holds_numbers(name):
        return None
    array = store.open(name)
    shape = tuple(array.shape[1:])
    if array.shape[0] != rows:
        raise GtpVisionError(f"{store.path}: '{name}' has {array.shape[0]} rows, but '{_ENDS}' ends at {rows}")
    if not math.prod(shape):
        raise GtpVisionError(f"{store.path}: '{name}' has shape {array.shape}: its rows are empty")
    read, dtype = _reader(store, name, array), array.dtype
    is_float = dtype.kind == "f" and not depth.is_depth(name, shape, dtype)
    if episodes.is_image(shape) and is_float and _as_bytes(store.rows(name, array, 0, 1)) is not None:
        read, dtype = _reader(store, name, array, as_bytes=True), np.dtype(np.uint8)
    return episodes.as_observation(Piece(rows, shape, dtype, read), name)


def _as_bytes(values: np.ndarray) -> np.ndarray | None:
    """Return floats as bytes; None if they are not whole numbers from 0 to 255."""
    with np.errstate(invalid="ignore"):
        found = values.astype(np.uint8)
    return found if (found == values).all() else None


def _reader(store: _Store, name: str, array: Any, *, as_bytes: bool = False) -> Callable[[int, int], np.ndarray]:
    """Return a function that reads rows in order, and every chunk once; `as_bytes`: floats that hold bytes."""
    row = hdf5.nbytes(array.shape[1:], array.dtype)
    size = array.chunks[0] * max(1, _BLOCK // max(1, row * array.chunks[0]))
    held: list[tuple[int, np.ndarray]] = []

    def block(start: int, stop: int) -> np.ndarray:
        values = store.rows(name, array, start, stop)
        converted = _as_bytes(values) if as_bytes else values
        if converted is None:
            raise GtpVisionError(
                f"{store.path}: '{name}' holds whole numbers from 0 to 255 in its first frame, but not in frames "
                f"{start} to {start + len(values) - 1}; write it as uint8"
            )
        return converted

    def read(start: int, stop: int) -> np.ndarray:
        parts = []
        while start < stop:
            number = start // size
            if not held or held[0][0] != number:
                held.clear()  # before the next one is read
                held.append((number, block(number * size, (number + 1) * size)))
            parts.append(held[0][1][start - number * size : stop - number * size])
            start += len(parts[-1])
        if stop == array.shape[0]:
            held.clear()
        return np.concatenate(parts)

    return read


def _marks(store: _Store, name: str | None, ends: np.ndarray) -> dict[str, Any]:
    """Return the attributes of marks of rows in `data`, or of episodes in `meta`."""
    if name:
        values = np.fmax.reduceat(store.column(f"{_DATA}{name}", int(ends[-1])), np.concatenate([[0], ends[:-1]]))
        return successes.attributes_of([marked(value) for value in values], f"episodes (data/{name})")
    if name := _first(store.arrays("meta/"), KEYS):
        values = store.column(f"meta/{name}", len(ends))
        return successes.attributes_of([marked(value) for value in values], f"episodes (meta/{name})")
    return {}


def _first(names: Sequence[str], wanted: Sequence[str]) -> str | None:
    return next((name for name in wanted if name in names), None)


class _Store:
    """A zarr store whose arrays are checked before zarr opens them.

    Attributes:
        path: the folder or zip.
        missing: array name to a sentence on its chunks that are not stored.
    """

    def __init__(self, path: Path) -> None:
        self.path, self.missing = path, dict[str, str]()
        sizes = _sizes(path)
        self._metadata = dict(_documents(path, sizes))
        self._stored = _stored(sizes, self._metadata)
        self._paths = {name: name for name in self._metadata}
        for role, member in names.chosen().items():
            if role in names.ROLES and (place := f"{_DATA}{member}") in self._metadata:
                of_arrays: tuple[dict[str, Any], ...] = (self._metadata, self._stored, self._paths)
                for held in of_arrays:
                    held[f"{_DATA}{role}"] = held.pop(place)
        zarr = _library()
        kind = zarr.storage.ZipStore if path.is_file() else zarr.storage.LocalStore
        self._store = kind(path, read_only=True)
        self._open = zarr.open_array

    def arrays(self, prefix: str) -> list[str]:
        """Return the names of arrays below a group, without the group's name."""
        return [name.removeprefix(prefix) for name in sorted(self._metadata) if name.startswith(prefix)]

    def holds_numbers(self, name: str) -> bool:
        """Whether an array holds numbers and not text, objects or records."""
        version, metadata = self._metadata[name]
        kind = metadata.get("dtype" if version == 2 else "data_type")
        return isinstance(kind, str) and re.fullmatch("[<>|][biuf][0-9]+|(bool|u?int|float)[0-9]*", kind) is not None

    def open(self, name: str) -> Any:
        """Return an array of numbers as zarr opens it; it is as large as it declares."""
        version, metadata = self._metadata[name]
        place = f"{self.path}: '{name}'"
        if not self.holds_numbers(name):
            raise GtpVisionError(f"{place} holds text or objects, wanted numbers; write it again")
        for codec in _codecs(metadata):
            if codec.startswith(_IMAGE_CODECS):
                _image_codecs(place)
            elif codec.removeprefix("numcodecs.") not in _CODECS:
                raise GtpVisionError(
                    f"{place} is stored by the codec {codec[:40]!a}, which is not one of numbers or images; write it "
                    f"again, e.g. with Blosc"
                )
        with self._faults(name):
            array = self._open(store=self._store, path=self._paths[name], mode="r", zarr_format=version)
            shape, chunks = array.shape, array.shards or array.chunks
        if not shape or not all(chunks):
            raise GtpVisionError(f"{place} has shape {shape} in chunks of {chunks}, wanted one or more dimensions")
        count = math.prod(-(-extent // chunk) for extent, chunk in zip(shape, chunks, strict=True))
        held, size = self._stored[name]
        declared = hdf5.nbytes(tuple(chunks), array.dtype) * min(held, count)
        if declared > _MAX_COMPRESSION * size:
            raise GtpVisionError(
                f"{place} declares {declared / 1e9:.3g} GB in chunks of {chunks}, of which {size} bytes are "
                f"stored; copy the whole data set again"
            )
        if held < count:
            self.missing[name] = f"{count - held} of {count} chunks are not stored and read as one value"
        return array

    def numbers(self, name: str, kinds: str, ndim: int, rows: int | None = None) -> np.ndarray:
        """Read an array of some kinds of dtype whole."""
        if name not in self._metadata:
            raise GtpVisionError(f"{self.path} has no '{name}'; write the data set again")
        array = self.open(name)
        if array.dtype.kind not in kinds or array.ndim != ndim or rows not in (None, array.shape[0]):
            wanted = " or ".join(dict.fromkeys(hdf5.KINDS[kind] for kind in kinds))
            raise GtpVisionError(
                f"{self.path}: '{name}' is {array.dtype} {array.shape}, wanted {wanted} in {ndim} dimensions"
                + (f" and {rows} rows, where '{_ENDS}' ends" if rows is not None else "")
            )
        return self.rows(name, array, 0, array.shape[0])

    def column(self, name: str, rows: int) -> np.ndarray:
        """Read one number a row, (N,); an array (N, 1) is accepted."""
        array = self.open(name)
        if math.prod(array.shape) != rows:
            raise GtpVisionError(f"{self.path}: '{name}' has shape {array.shape}, wanted ({rows},)")
        return self.rows(name, array, 0, array.shape[0]).reshape(rows)

    def rows(self, name: str, array: Any, start: int, stop: int) -> np.ndarray:
        """Read rows of an array that `open` returned."""
        with self._faults(name):
            found = np.asarray(array[start:stop])
        sandbox.heartbeat()
        return found

    @contextmanager
    def _faults(self, name: str) -> Iterator[None]:
        try:
            yield
        except MemoryError as error:
            raise GtpVisionError(
                f"{self.path}: a chunk of '{name}' does not fit into memory; write it in chunks of a few frames"
            ) from error
        except Exception as error:  # zarr and the codecs raise errors of many types for damaged chunks
            reason = first_line(error) or type(error).__name__
            raise GtpVisionError(
                f"{self.path}: '{name}' cannot be read ({reason}): it is damaged or not complete; copy it again"
            ) from error


def _codecs(metadata: Mapping[str, Any]) -> Iterator[str]:
    """Yield the names of all codecs of an array, also those inside others."""
    todo: list[Any] = [metadata.get(name) for name in ("compressor", "filters", "codecs", "storage_transformers")]
    while todo:
        value = todo.pop()
        if isinstance(value, dict):
            yield from (str(value[key]) for key in ("id", "name") if key in value)
            todo += value.values()
        elif isinstance(value, list):
            todo += value


def _documents(path: Path, sizes: Mapping[str, int]) -> Iterator[tuple[str, tuple[int, dict[str, Any]]]]:
    """Yield the names of arrays, each with the version of its metadata and these."""
    with contextlib.nullcontext() if path.is_dir() else npz.open_archive(path, "a zip of zarr") as archive:
        for key, size in sizes.items():
            name, _, kind = key.rpartition("/")
            if kind not in _METADATA or (kind == _METADATA[1] and f"{name}/{_METADATA[0]}" in sizes):
                continue
            if size > _MAX_METADATA:
                raise GtpVisionError(f"{path}: '{key}' has {size} bytes; write the data set again")
            content = (path / key).read_bytes() if archive is None else archive.read(key)
            found = parse_json(content, f"{path}: '{key}'", advice="copy the data set again")
            if kind == _METADATA[0] or found.get("node_type") == "array":
                yield name, (2 + _METADATA.index(kind), found)


def _stored(sizes: Mapping[str, int], arrays: Collection[str]) -> dict[str, tuple[int, int]]:
    """Return the number of chunks that are stored of each array, and their bytes."""
    found = dict.fromkeys(arrays, (0, 0))
    for key, size in sizes.items():
        place, _, name = key.rpartition("/")
        while place and place not in found and not name.startswith("."):
            place = place.rpartition("/")[0]
        if place in found and not name.startswith((".", _METADATA[1])):
            found[place] = (found[place][0] + 1, found[place][1] + size)
    return found


def _sizes(path: Path) -> dict[str, int]:
    """Return the bytes of everything that a store holds, by its key; links must not lead out of a folder."""
    if path.is_file():
        with npz.open_archive(path, "a zip of zarr") as archive:
            return {member.filename: member.file_size for member in archive.infolist() if not member.is_dir()}
    found = {}
    for folder, inner, files in os.walk(path):
        for name in (*inner, *files):
            inside = os.path.join(folder, name)
            key = os.path.relpath(inside, path).replace(os.sep, "/")
            if os.path.islink(inside):
                tables.inside(path, key)
            if name in files:
                found[key] = os.path.getsize(inside)
        sandbox.heartbeat()
    return found


@cache
def _library() -> Any:
    """Import zarr, and start its threads, whose stacks would count for the memory limit of a file."""
    with sandbox.unlimited_memory():
        try:
            import zarr
            from numcodecs import blosc
        except ImportError as error:
            raise GtpVisionError("reading zarr needs its library; run pip install 'zarr>=3.1'") from error
        blosc.set_nthreads(1)
        zarr.config.set({"async.concurrency": 1, "threading.max_workers": 1})
        _ = zarr.array(np.zeros(9), store=zarr.storage.MemoryStore())[:]
    return zarr


def _image_codecs(place: str) -> None:
    try:
        from imagecodecs import numcodecs
    except ImportError as error:
        raise GtpVisionError(
            f"{place} is stored as images that imagecodecs decodes (UMI's JPEG XL); run pip install 'gtp-vision[umi]'"
        ) from error
    numcodecs.register_codecs()


ZARR = Format(
    "zarr",
    "replay buffer (zarr)",
    lambda path, _: layout(path),
    other=recognises,
    success=lambda store: successes.unknown("it has no marks of success"),
)
