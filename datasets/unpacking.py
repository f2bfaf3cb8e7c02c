"""How a data set in another format gets a layout, see `layout`.

Large arrays that lie in its file as the store needs them are mapped in place; all others are copied once into a native
file in the cache. Frames are cropped and resized on the way.
"""

from __future__ import annotations

import itertools
import json
import os
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from gtp_vision.core import depth, sandbox
from gtp_vision.core.errors import GtpVisionError
from gtp_vision.core.files import atomic_write, cached, evict, from_cache, require_space
from gtp_vision.core.framing import FRAMES, Framing
from gtp_vision.core.progress import Progress
from gtp_vision.core.safe_json import read_json
from gtp_vision.core.side_by_side import side_by_side, workers_for
from gtp_vision.datasets import hdf5, names
from gtp_vision.datasets.layout import (
    COPY_BYTES,
    PROGRESS_BYTES,
    FileArrays,
    Layout,
    Piece,
    piece_in_memory,
    to_store,
)

_VERSION = "6"  # of the cache's entries: raise it when a reader's result changes
_MIN_MAPPED = 1 << 16  # mean bytes of a piece below which one copy is cheaper than gathering from many places

_framing: ContextVar[Framing | None] = ContextVar("framing", default=None)
_seeks: ContextVar[bool] = ContextVar("seeks", default=False)


@contextmanager
def framed(framing: Framing | None, *, seeks: bool = False) -> Iterator[None]:
    """Crop and resize the frames of all data sets that are unpacked in a block; with `seeks`, leave videos unpacked."""
    tokens = _framing.set(framing), _seeks.set(seeks)
    try:
        yield
    finally:
        _framing.reset(tokens[0])
        _seeks.reset(tokens[1])


def seeks() -> bool:
    """Return whether frames stay in their videos."""
    return _seeks.get()


def with_frames(found: Layout, path: Path) -> Layout:
    """Return a layout with frames cropped and resized as `framed` says, if its reader mapped them where they lie."""
    framing = _framing.get()
    held = Framing.of(found["attributes"].get(FRAMES))
    if framing is None or (held is not None and replace(held, recorded={}) == framing):
        return found
    store = to_store(found, path)
    source = FileArrays(
        observations={name: [piece_in_memory(array)] for name, array in store.observations.items()},
        **{name: getattr(store, name) for name in ("actions", "rewards", "terminals", "timeouts", "episode_ends")},
        attributes=dict(store.attributes),
    )
    return through_cache(path, lambda: nullcontext(source), FRAMES)


def through_cache(path: Path, opened: Callable[[], AbstractContextManager[FileArrays]], *key: str) -> Layout:
    """Return the layout of a data set in another format, unpacked into the cache on first use.

    `opened` is called when the entry of the cache for the content and `key` is missing or damaged.
    """
    framing = _framing.get()
    of_frames = [] if framing is None else [json.dumps(framing.record())]
    target = cached(path, _VERSION, *key, *names.key(), *of_frames)

    def make() -> None:
        with opened() as arrays:
            unpack(arrays if framing is None else _with_frames(arrays, framing, path), target, path)

    def read() -> Layout:
        with names.reading(None):
            return read_unpacked(target, path)

    return from_cache(target, read, make)


def unpack(source: FileArrays, target: Path, path: Path) -> None:
    """Copy what cannot be mapped in place into the native file `target`, and note beside it where the rest lies.

    Of frames that stay in videos, `target` has the places, `videos/<name>`. Files are named relative to `path`, the
    source's file or folder, so that it may be moved.

    Raises:
        GtpVisionError: pieces of one array that differ in shape or dtype; the disk is full.
    """
    from gtp_vision.datasets.formats import native

    label = f"unpacking {path.name}"
    in_place: dict[str, dict[str, Any]] = {}
    shapes: dict[str, tuple[tuple[int, ...], Any]] = {}
    videos: dict[str, np.ndarray] = {}
    for name, pieces in source.observations.items():
        shape, dtype = _stored_as(name, pieces)
        rows = sum(piece.rows for piece in pieces)
        if rows != len(source.actions):
            raise GtpVisionError(
                f"{label}: the observation '{name}' has {rows} frames for {len(source.actions)} actions; "
                f"every frame needs both"
            )
        if seeks() and all(piece.video for piece in pieces):
            files, videos[f"videos/{name}"] = _videos(name, pieces, path)
            in_place[f"observations/{name}"] = {"dtype": dtype.str, "shape": [rows, *shape], "videos": files}
        elif _is_mappable(pieces, dtype):
            in_place[f"observations/{name}"] = {
                "dtype": dtype.str,
                "shape": [rows, *shape],
                "pieces": [[os.path.relpath(p.place[0], path), p.place[1], p.rows] for p in pieces if p.place],
            }
        else:
            shapes[f"observations/{name}"] = ((rows, *shape), dtype)
    with np.errstate(over="ignore"):  # numbers too large for float32 become infinite, which validation reports
        flat: dict[str, np.ndarray] = {
            "actions": np.asarray(source.actions, np.float32),
            "rewards": np.asarray(source.rewards, np.float32),
            "terminals": np.asarray(source.terminals, bool).astype(np.uint8),
            "timeouts": np.asarray(source.timeouts, bool).astype(np.uint8),
            "episode_ends": np.asarray(source.episode_ends, np.int64),
            **videos,
        }
    distances = depth.attribute(name for name, pieces in source.observations.items() if pieces[0].is_depth)
    copied = sum(hdf5.nbytes(shape, np.dtype(dtype)) for shape, dtype in shapes.values())
    needed = copied + sum(array.nbytes for array in flat.values())
    smaller = "task.image_size to smaller frames, or " if any(len(shape) == 4 for shape, _ in shapes.values()) else ""
    has_videos = any(
        pieces[0].video for name, pieces in source.observations.items() if f"observations/{name}" in shapes
    )
    kept = "task.video=seek to read frames from their videos, " if has_videos else ""
    evict(target.parent, needed, kept and f"{kept}or ")
    require_space(target.parent, needed, label, f"set {kept}{smaller}GTP_VISION_CACHE to another disk")
    if copied >= PROGRESS_BYTES:
        other = "; task.video=seek (--video seek) would read frames from their videos instead" if has_videos else ""
        print(f"gtp-vision: {label} takes {copied / 1e9:.3g} GB in {target.parent}{other}", file=sys.stderr, flush=True)
    shapes |= {name: (array.shape, array.dtype) for name, array in flat.items()}
    if in_place:
        with atomic_write(target.with_suffix(".json")) as temporary:
            temporary.write_text(json.dumps(in_place))
    with (
        native.create(target, shapes, source.attributes | distances) as file,
        Progress(total=copied, desc=label, unit="B", unit_scale=True, disable=copied < PROGRESS_BYTES) as bar,
    ):
        for name, array in flat.items():
            native.write_rows(file[name], 0, array)
        jobs = [
            job
            for name, pieces in source.observations.items()
            if f"observations/{name}" in file
            for job in _jobs(file[f"observations/{name}"], pieces)
        ]
        beside, alone = ([job for job in jobs if job.is_independent is yes] for yes in (True, False))
        share = COPY_BYTES // workers_for(len(beside))
        stopped = threading.Event()
        for _ in side_by_side(lambda job: _fill(job, bar, share, stopped), beside):
            pass
        for job in alone:
            _fill(job, bar, COPY_BYTES, stopped)


def read_unpacked(target: Path, path: Path) -> Layout:
    """Return the layout of a file that `unpack` wrote, with the arrays that lie in the source at `path`."""
    from gtp_vision.datasets.formats import native

    sidecar = target.with_suffix(".json")
    in_place = read_json(sidecar) if sidecar.exists() else {}
    for name, entry in in_place.items():
        if "videos" in entry:
            for file in entry["videos"]:
                file["path"] = os.path.normpath(path.absolute() / file["path"])
            with hdf5.open_file(target) as cache:
                places = hdf5.array(cache, f"videos/{name.removeprefix('observations/')}", target, kinds="i")
                entry["pieces"] = native.array_layout(places, target)["pieces"]
        else:
            entry["pieces"] = [[os.path.normpath(path.absolute() / file), *where] for file, *where in entry["pieces"]]
    found = native.layout(target, elsewhere=bool(in_place))
    found["arrays"] |= in_place
    return found


def _with_frames(source: FileArrays, framing: Framing, path: Path) -> FileArrays:
    """Return a data set with its frames cropped and resized as they are read, and the attribute that says so."""
    shapes: dict[str, Any] = {name: p[0].shape for name, p in source.observations.items() if _is_camera(p[0])}
    if shapes and FRAMES in source.attributes:
        raise GtpVisionError(
            f"{path}: its frames were cropped or resized before (attribute '{FRAMES}'); leave out task.image_size and "
            f"task.image_crop, or import the original"
        )
    framing = replace(framing, recorded=shapes)
    observations = {
        name: [_framed(name, piece, framing) for piece in pieces] if name in shapes else pieces
        for name, pieces in source.observations.items()
    }
    attributes = source.attributes | ({FRAMES: framing.record()} if shapes else {})
    return replace(source, observations=observations, attributes=attributes)


def _framed(name: str, piece: Piece, framing: Framing) -> Piece:
    shape = framing.shape(name, piece.shape)
    if shape == piece.shape:
        return piece
    if piece.framed is not None:
        return replace(piece, shape=shape, read=piece.framed(framing), place=None)

    def read(start: int, stop: int) -> np.ndarray:
        return framing(name, np.asarray(piece.read(start, stop)))

    return replace(piece, shape=shape, read=read, place=None)


def _videos(name: str, pieces: Sequence[Piece], path: Path) -> tuple[list[dict[str, Any]], np.ndarray]:
    """Return the `VideoFile`s of a camera whose frames stay in them, and the places of the rows."""
    framing, files, places = _framing.get(), list[dict[str, Any]](), list[np.ndarray]()
    for number, video in enumerate(piece.video for piece in pieces if piece.video is not None):
        is_framed = framing is not None and framing.shape(name, video.shape) != video.shape
        places.append(np.insert(video.places(), 0, number, axis=1))
        files.append(
            {
                "path": os.path.relpath(video.path, path),
                "shape": video.shape,
                "framing": framing.record() if framing is not None and is_framed else None,
                "camera": name,
            }
        )
    return files, np.concatenate(places)


def _is_camera(piece: Piece) -> bool:
    return piece.dtype == np.uint8 and len(piece.shape) == 3


def _stored_as(name: str, pieces: Sequence[Piece]) -> tuple[tuple[int, ...], np.dtype]:
    """Return the row shape and dtype in which an observation is stored."""
    shape, dtype = pieces[0].shape, pieces[0].dtype
    for number, piece in enumerate(pieces):
        if (piece.shape, piece.dtype) != (shape, dtype):
            raise GtpVisionError(
                f"the observation '{name}' is {piece.dtype} {piece.shape} in episode {number} and {dtype} {shape} in "
                f"episode 0; all episodes need the same"
            )
    if _is_camera(pieces[0]):
        return shape, dtype
    return (int(np.prod(shape, dtype=np.int64)),), np.dtype(np.float32)


def _is_mappable(pieces: Sequence[Piece], dtype: np.dtype) -> bool:
    if any(piece.place is None or piece.dtype != dtype for piece in pieces):
        return False
    if dtype != np.uint8 and len(pieces[0].shape) != 1:
        return False
    total = sum(hdf5.nbytes((piece.rows, *piece.shape), dtype) for piece in pieces)
    return total >= _MIN_MAPPED * len(pieces)


@dataclass(frozen=True)
class _Job:
    """Pieces to copy, one after the other, into the rows of an array from `at` on."""

    target: h5py.Dataset
    at: int
    pieces: Sequence[Piece]
    is_independent: bool


def _jobs(target: h5py.Dataset, pieces: Sequence[Piece]) -> Iterator[_Job]:
    """Yield an array's pieces; those that may be read beside others each for itself."""
    at = 0
    for is_independent, group in itertools.groupby(pieces, lambda piece: piece.is_independent):
        members = list(group)
        for some in [[piece] for piece in members] if is_independent else [members]:
            yield _Job(target, at, some, is_independent)
            at += sum(piece.rows for piece in some)


def _fill(job: _Job, bar: Progress, share: int, stopped: threading.Event) -> None:
    """Copy a job's rows in ranges of about `share` bytes; it ends early when another one has failed."""
    from gtp_vision.datasets.formats import native

    target, at = job.target, job.at
    row = hdf5.nbytes(target.shape[1:], target.dtype)
    step = max(1, share // max(1, row))
    # Rows of many short pieces are written together: a call of HDF5 takes as long as copying 100 kB.
    most = min(step, sum(piece.rows for piece in job.pieces))
    waiting, held = np.empty((most, *target.shape[1:]), target.dtype), 0
    try:
        with _Rows() as rows_of, np.errstate(over="ignore"):  # as in `unpack`
            for piece in job.pieces:
                for start in range(0, piece.rows, step):
                    if stopped.is_set():
                        return
                    values = rows_of(piece, start, min(start + step, piece.rows))
                    if held + len(values) > len(waiting):
                        native.write_rows(target, at - held, waiting[:held])
                        held = 0
                    waiting[held : held + len(values)] = values.reshape(len(values), *target.shape[1:])
                    held, at = held + len(values), at + len(values)
                    bar.update(len(values) * row)
                    sandbox.heartbeat()
        if held:
            native.write_rows(target, at - held, waiting[:held])
    except BaseException:
        stopped.set()
        raise


class _Rows:
    """Reads rows of pieces: those with a place from there, without the library of their format."""

    def __init__(self) -> None:
        self._path: Path | None = None
        self._file = -1

    def __enter__(self) -> _Rows:
        return self

    def __exit__(self, *error: object) -> None:
        if self._path is not None:
            os.close(self._file)

    def __call__(self, piece: Piece, start: int, stop: int) -> np.ndarray:
        """Return rows `start` to `stop - 1` as stored."""
        if piece.place is None:
            return np.asarray(piece.read(start, stop))
        path, offset = piece.place
        if path != self._path:
            self.__exit__()
            self._file, self._path = os.open(path, os.O_RDONLY), path
        row = hdf5.nbytes(piece.shape, piece.dtype)
        raw = os.pread(self._file, (stop - start) * row, offset + start * row)
        if len(raw) < (stop - start) * row:
            raise GtpVisionError(f"{path} has become shorter than it was a moment ago; copy the file again")
        return np.frombuffer(raw, piece.dtype).reshape(stop - start, *piece.shape)
