"""Rows of dm_env, in which action, reward and discount LED TO the observation of their row.

    V-D4RL, HDF5            observation (N, C, H, W), action, reward, discount, step_type; flat, 0 begins an episode
    V-D4RL and DreamerV2    an npz for each episode: image (T, H, W, C), action, reward, is_first, is_terminal
    DrQ-v2, URLB, ExORL     an npz for each episode: observation, action, reward, discount, maybe physics

One file, or a folder of them in the order of their names. The first row of an episode holds no action but zeros or
NaN (dm_env has None there): row t of the store has the observation of row t with action, reward and end of row t + 1,
as V-D4RL's own buffer pairs them. The last row is the final observation, a timeout. The MDP ended where the discount is
0, or by `is_terminal`. An array `success` or `is_success` marks the episodes in any of whose rows it is true.

Rows with `is_first` may also be RLDS's or DreamerV3's, where the action of a row is taken in it. They differ in the
first rows, whose actions are all 0 only here, and the last ones, whose actions are all 0 only there; a file that fits
both or neither is refused, and so is one with `next_step_type` (TF-Agents).
"""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

import h5py
import numpy as np

from gtp_vision.core import sandbox
from gtp_vision.core.errors import GtpVisionError
from gtp_vision.core.success import KEYS, marked
from gtp_vision.datasets import hdf5, npz
from gtp_vision.datasets.formats import episodes, near_misses
from gtp_vision.datasets.formats.format import Format
from gtp_vision.datasets.layout import FileArrays, Layout, Piece, piece_of
from gtp_vision.datasets.success import attributes_of
from gtp_vision.datasets.unpacking import through_cache

_WHAT = "an npz of an episode"
_FLAT = {"action", "reward", "discount", "step_type", "is_first", "is_last", "is_terminal"}
_UNREAD = {"physics", "reset"}
_MOST_CHANNELS = 12  # of four frames stacked in the first axis
_ANY = episodes.NUMBERS + "SUO"


def holds_rows(names: Collection[str]) -> bool:
    """Whether arrays with these names can be rows of dm_env."""
    names = set(names)
    is_marked = "discount" in names or {"is_first", "is_terminal"} <= names
    return {"action", "reward"} <= names and is_marked and bool({"observation", "image"} & names)


@dataclass(frozen=True)
class _File:
    """An open file: the names of its arrays, one array by its name, and an observation by its name and rows."""

    path: Path
    names: set[str]
    is_episode: bool
    load: Callable[[str], np.ndarray]
    observation: Callable[[str, int], Piece | None]


def layout(path: Path) -> Layout:
    """Return the layout of a file or a folder of files.

    Raises:
        GtpVisionError: damage; rows that may be RLDS's; episodes with other arrays.
    """
    files = _files(path) or [path]
    return through_cache(path, lambda: _opened(path, files), "dm_env")


def _files(folder: Path) -> list[Path]:
    return episodes.files_in(folder, ".npz") or episodes.files_in(folder, ".hdf5", ".h5")


def _is_hdf5(file: h5py.File, path: Path) -> bool:
    names = hdf5.children(file, path)
    return holds_rows(names) and isinstance(hdf5.member(file, "action", path), h5py.Dataset)


def _is_other(path: Path) -> bool:
    """Whether a path is an npz of such rows, or a folder whose first file holds them."""
    first = next(iter(_files(path)), path)
    if first.suffix != ".npz" and path.is_dir():
        try:
            with hdf5.open_file(first) as file:
                return _is_hdf5(file, first)
        except GtpVisionError:
            return False
    return first.is_file() and holds_rows(npz.names(first))


@contextmanager
def _opened(path: Path, files: list[Path]) -> Iterator[FileArrays]:
    observations: dict[str, list[Piece]] = {}
    flat: list[tuple[np.ndarray, ...]] = []
    omitted, marks = set[str](), dict[str, list[bool | None]]()
    for each in files:
        with _open(each) as file:
            if not holds_rows(file.names):
                raise GtpVisionError(
                    f"{each} does not hold the arrays of the other files of its folder; move it elsewhere"
                )
            action = _columns(file, "action")
            is_first = _is_first(file, len(action))
            flat.append(_shifted(file, action, is_first))
            shown = sorted(file.names - _FLAT - _UNREAD - set(KEYS))
            found = {name: file.observation(name, len(action)) for name in shown}
            for key in file.names & set(KEYS):
                of_episodes = np.fmax.reduceat(_column(file, key, len(action)), np.flatnonzero(is_first))
                marks.setdefault(key, []).extend(map(marked, of_episodes))
        kept = {_named(name, piece, found): piece for name, piece in episodes.usable(found, each.name, path).items()}
        if observations and kept.keys() != observations.keys():
            raise GtpVisionError(
                f"{each} holds {', '.join(kept)}, other files {', '.join(observations)}; move it elsewhere"
            )
        for name, piece in kept.items():
            observations.setdefault(name, []).append(piece)
        omitted |= (file.names & _UNREAD) | {name for name, piece in found.items() if piece is None}
        sandbox.heartbeat()
    if len({part[0].shape[1] for part in flat}) > 1:
        raise GtpVisionError(f"{path}: actions of its files differ in their dimensions; keep files of one robot")
    actions, rewards, terminals, last = (np.concatenate(parts) for parts in zip(*flat, strict=True))
    ends = np.flatnonzero(last) + 1
    attributes = {"suite": "dm_env", "source": path.name} | ({"left_out": sorted(omitted)} if omitted else {})
    for key in [key for key in KEYS if len(marks.get(key, ())) == len(ends)][:1]:
        attributes |= attributes_of(marks[key], f"episodes ({key})")
    try:
        yield FileArrays(
            observations=observations,
            actions=actions,
            rewards=rewards,
            terminals=terminals,
            timeouts=last,
            episode_ends=ends,
            attributes=attributes,
        )
    finally:
        _loaded.cache_clear()


def _named(name: str, piece: Piece, found: Collection[str]) -> str:
    """Return the store's name of an observation: `observation` and `image` say nothing of what they are."""
    if name in ("observation", "image") and len({"observation", "image"} & set(found)) == 1:
        return "camera" if len(piece.shape) == 3 else "state"
    return name


def _is_first(file: _File, rows: int) -> np.ndarray:
    """Return bool (rows,), the first row of each episode."""
    if "step_type" in file.names:
        is_first = _column(file, "step_type", rows) == 0
    elif "is_first" in file.names:
        is_first = _column(file, "is_first", rows) != 0
    else:
        is_first = (np.arange(rows) == 0) & file.is_episode
    if not rows or not is_first[0]:
        raise GtpVisionError(
            f"{file.path}: its first row does not begin an episode (step_type 0 or is_first); without these, an npz "
            f"holds one episode, and an HDF5 file needs 'step_type', 0 in the first row of each episode"
        )
    return is_first


def _shifted(file: _File, action: np.ndarray, is_first: np.ndarray) -> tuple[np.ndarray, ...]:
    """Return actions, rewards, terminals and last rows, with what led to the next row in each."""
    last, has_dummies = np.append(is_first[1:], True), episodes.hold_nothing(action[is_first])
    if "is_first" in file.names and (not has_dummies or not action[last].any()):
        raise GtpVisionError(f"{file.path}: {near_misses.RLDS}")
    if not has_dummies or "next_step_type" in file.names:
        raise GtpVisionError(
            f"{file.path}: the first rows of its episodes hold actions, so that the action of a row is taken in it, "
            f"which dm_env's are not; rename 'observation' to 'observations', 'action' to 'actions' and 'reward' to "
            f"'rewards', and add 'terminals', 1 where the MDP ended, and 'timeouts', 1 in the last row of each other "
            f"episode"
        )
    if "is_terminal" in file.names:
        ended = _column(file, "is_terminal", len(action)) != 0
    else:
        discount = _column(file, "discount", len(action))
        discount[is_first] = 1  # dm_env has none there
        if not np.isfinite(discount).all():
            raise GtpVisionError(
                f"{file.path}: 'discount' is not finite in row {np.argmin(np.isfinite(discount))}; write 1 or 0"
            )
        ended = discount == 0
    rewards = _column(file, "reward", len(action))

    def up(values: np.ndarray) -> np.ndarray:
        shifted = np.roll(values, -1, axis=0)
        shifted[last] = 0
        return shifted

    return up(action), up(rewards), up(ended), last


def _columns(file: _File, name: str) -> np.ndarray:
    values = file.load(name)
    if values.ndim != 2 or not values.shape[1] or values.dtype.kind not in "fiu":
        raise GtpVisionError(
            f"{file.path}: '{name}' is {values.dtype} {values.shape}; wanted floats (rows, dimensions)"
        )
    return episodes.to_float32(values)


def _column(file: _File, name: str, rows: int) -> np.ndarray:
    values = file.load(name)
    if values.size != rows:
        raise GtpVisionError(f"{file.path}: '{name}' has shape {values.shape}, wanted ({rows},)")
    return values.reshape(rows).astype(np.float64)


@contextmanager
def _open(path: Path) -> Iterator[_File]:
    with path.open("rb") as stream:
        is_npz = stream.read(len(hdf5.MAGIC)) != hdf5.MAGIC
    if is_npz:
        with npz.open_archive(path, _WHAT) as archive:
            yield _File(
                path,
                npz.names(path),
                True,
                lambda name: npz.load(archive, name),
                lambda name, rows: _of_archive(archive, name, rows, path),
            )
        return
    with hdf5.open_file(path) as file:

        def load(name: str) -> np.ndarray:
            data = hdf5.array(file, name, path, kinds=episodes.NUMBERS)
            return episodes.read_rows(data, 0, data.shape[0], path)

        def observation(name: str, rows: int) -> Piece | None:
            piece = _observation(hdf5.array(file, name, path, kinds=_ANY, rows=rows), name, path)
            return piece and episodes.reopened(piece, path, lambda again: _observation(again[name], name, path))

        yield _File(path, set(hdf5.children(file, path)), False, load, observation)


def _of_archive(archive: zipfile.ZipFile, name: str, rows: int, path: Path) -> Piece | None:
    with archive.open(f"{name}.npy") as stream:
        (shape, dtype, _) = npz.header(archive, name, stream, _ANY)
    if shape[:1] != (rows,):
        raise GtpVisionError(f"{path}: '{name}' has shape {shape} and 'action' {rows} rows; copy the file again")
    return _as_observation(Piece(rows, shape[1:], dtype, lambda start, stop: _loaded(path, name)[start:stop]), name)


def _observation(data: h5py.Dataset, name: str, path: Path) -> Piece | None:
    return _as_observation(piece_of(data, path), name)


def _as_observation(stored: Piece, name: str) -> Piece | None:
    """Return an observation as the store needs it, also of frames that are stacked in their first axis."""
    shape = stored.shape
    if stored.dtype.kind not in episodes.NUMBERS or not all(shape):
        return None
    if stored.dtype == np.uint8 and len(shape) == 3 and shape[0] <= _MOST_CHANNELS < shape[2]:
        turned = (shape[1], shape[2], shape[0])
        return replace(stored, shape=turned, read=lambda a, b: stored.read(a, b).transpose(0, 2, 3, 1), place=None)
    return episodes.as_observation(stored, name)


@lru_cache(maxsize=1)
def _loaded(path: Path, name: str) -> np.ndarray:
    with npz.open_archive(path, _WHAT) as archive:
        return npz.load(archive, name)


DM_ENV = Format(
    "dm_env",
    "dm_env rows, HDF5 or npz",
    lambda path, _: layout(path),
    hdf5=_is_hdf5,
    other=_is_other,
)
