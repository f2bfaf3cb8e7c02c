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

The attribute `missing_chunks` counts chunks that are not stored.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from gtp_vision.core import depth
from gtp_vision.core.errors import GtpVisionError, propose
from gtp_vision.core.success import KEYS, marked
from gtp_vision.datasets import hdf5, npz
from gtp_vision.datasets import success as successes
from gtp_vision.datasets.formats import episodes
from gtp_vision.datasets.formats.format import Format
from gtp_vision.datasets.formats.zarr_store import METADATA, ZarrStore
from gtp_vision.datasets.layout import FileArrays, Layout, Piece
from gtp_vision.datasets.unpacking import through_cache

_DATA, _ENDS = "data/", "meta/episode_ends"
_ACTIONS, _REWARDS = ("action", "actions"), ("reward", "rewards")
_TERMINALS = ("terminals", "terminal", "dones", "done")
_POSE = ("eef_pos", "eef_rot_axis_angle", "gripper_width")  # of UMI's robot<i>
_OF_EPISODES = ("_demo_start_pose", "_demo_end_pose")
_BLOCK = 1 << 22  # bytes that are read together, if a chunk is not larger


def recognises(path: Path) -> bool:
    """Whether a folder or a zip holds a replay buffer."""
    if path.is_dir():
        return any((path / _ENDS / name).is_file() for name in METADATA)
    held = npz.members(path)
    return any(f"{_ENDS}/{name}" in held for name in METADATA)


def layout(path: Path) -> Layout:
    """Return the layout of a replay buffer, unpacked once into the cache.

    Raises:
        GtpVisionError: damage, a codec that is not of numbers or images, missing arrays, lengths that disagree, links
            that lead out of the folder.
    """
    return through_cache(path, lambda: _opened(path), "zarr")


@contextmanager
def _opened(path: Path) -> Iterator[FileArrays]:
    store = ZarrStore(path, _DATA)
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


def _episode_ends(store: ZarrStore) -> np.ndarray:
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


def _actions(store: ZarrStore, names: Sequence[str], ends: np.ndarray) -> tuple[np.ndarray, bool]:
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


def _observation(store: ZarrStore, name: str, rows: int) -> Piece | None:
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


def _reader(store: ZarrStore, name: str, array: Any, *, as_bytes: bool = False) -> Callable[[int, int], np.ndarray]:
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


def _marks(store: ZarrStore, name: str | None, ends: np.ndarray) -> dict[str, Any]:
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


ZARR = Format(
    "zarr",
    "replay buffer (zarr)",
    lambda path, _: layout(path),
    other=recognises,
    success=lambda store: successes.unknown("it has no marks of success"),
)
