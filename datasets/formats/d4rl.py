"""D4RL's files: flat HDF5 with observations, actions, rewards, terminals, timeouts, and often next_observations, infos.

Rows map one to one, with the meaning that D4RL's `qlearning_dataset` gives them: a row with `timeouts` has no outcome
(also if it is a terminal), nor has the file's last row unless it is a terminal. Where an episode ends:

    `metadata/episode_ends` (our writer's)    at these rows
    mazes: `infos/goal`, or most terminals    at timeouts, and where the next row does not continue this one;
    continue to their `next_observations`     `terminals` mean "at the goal" and stay inside episodes
    others with `timeouts`                    at terminals and timeouts
    others with `next_observations`           at terminals, and where the next row is not the `next_observations` row
    others, environment's name known          at terminals, and after the time limit of that environment
    all others                                at terminals

Without `next_observations` the next row of a maze does not continue this one if the position jumps by more than 1
(metre): the ant is reset to the start. At full speed MuJoCo's ant makes 4.2 m/s, 0.42 in one of D4RL's steps of 0.1 s.
Resets of other robots cannot be distinguished from their motion (HalfCheetah's look like a stride), so they are not
guessed. The attribute `episode_ends` holds which of these was used.

The same arrays in an npz (D4RL's dictionary, saved by `np.savez`) are read as the HDF5 file would be. It differs from
OGBench's, whose `terminals` are the ends of recordings, by `rewards`. A file with
`masks` that contradict its `terminals` (as OGBench's loader and FQL have them) is refused, and so is one whose actions
led to their rows, as those of dm_env do: with `step_type` or `is_first`, and actions of 0 in all first rows.
"""

from __future__ import annotations

import json
import math
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from gtp_vision.core import sandbox
from gtp_vision.core.errors import GtpVisionError
from gtp_vision.core.files import atomic_write, cache_dir, require_space
from gtp_vision.core.success import KEYS
from gtp_vision.datasets import hdf5, npz
from gtp_vision.datasets import success as successes
from gtp_vision.datasets.arrays import Array
from gtp_vision.datasets.formats import episodes, native, near_misses
from gtp_vision.datasets.formats.format import Format, units_notes
from gtp_vision.datasets.layout import FileArrays, Layout, piece_of, row_ranges
from gtp_vision.datasets.names import source
from gtp_vision.datasets.store import Store
from gtp_vision.datasets.unpacking import through_cache

_OURS = "gtp_vision"  # the attribute in which our writer stores what the format cannot hold
_JUMP = 1.0  # metres per step, see above
_SAME = 1e-6  # distance up to which an observation equals `next_observations`
_ARRAYS = {"observations", "actions", "rewards", "terminals"}
_OTHERS = (
    *("timeouts", "next_observations", "masks", "infos/goal", "infos/qpos", "step_type", "is_first"),
    *(*KEYS, *(f"infos/{key}" for key in KEYS)),
)
"""Other arrays that are read."""
_TIME_LIMIT = {"hopper": 1000, "halfcheetah": 1000, "walker2d": 1000, "ant": 1000}  # of Gym's tasks, versions 0 to 5


def is_d4rl(file: h5py.File, path: Path) -> bool:
    """Whether an HDF5 file has D4RL's arrays at its root; arrays that are damaged or links are a GtpVisionError."""
    names = set(hdf5.children(file, path))
    if native.is_native(file, path) or not {"observations", "actions"} <= names:
        return False
    are_arrays = all(isinstance(hdf5.member(file, name, path), h5py.Dataset) for name in ("observations", "actions"))
    return are_arrays and names >= _ARRAYS


def is_npz(path: Path) -> bool:
    """Whether a file is an npz archive with D4RL's arrays; see the module."""
    names = npz.names(path)
    return names >= _ARRAYS and "valids" not in names


def layout(path: Path, env: str | None = None) -> Layout:
    """Return the layout of a D4RL file; contiguous float32 or uint8 observations are mapped in place.

    The environment's name defines the time limit of old files without `timeouts`.
    """
    limit = _TIME_LIMIT.get((env or "").split("-")[0].lower())
    found = through_cache(path, lambda: _opened(path, limit), "d4rl", str(limit))
    if env and found["attributes"].get("suite") == "d4rl":
        found["attributes"].setdefault("env", env)
    return found


def write(path: Path, store: Store) -> Path:
    """Write a store in D4RL's format; reading returns the same store, and D4RL finds the same transitions.

    What the format cannot hold (episodes that continue after a terminal, the observation's name, attributes) is stored
    in `metadata/episode_ends` and in the attribute `gtp_vision`. Raises GtpVisionError: more than one observation
    array.
    """
    if len(store.observations) != 1:
        raise GtpVisionError(
            f"D4RL's format holds one observation array, the data set has {len(store.observations)} "
            f"({', '.join(store.observations) or 'none'}); convert it to robomimic instead"
        )
    ((name, observations),) = store.observations.items()
    terminals = np.asarray(store.terminals, bool)
    timeouts = np.asarray(store.timeouts, bool).copy()
    last = store.episode_ends - 1
    timeouts[last] |= ~terminals[last]
    flat: dict[str, Array] = {
        "observations": observations,
        "actions": np.asarray(store.actions, np.float32),
        "rewards": np.asarray(store.rewards, np.float32),
        "terminals": terminals,
        "timeouts": timeouts,
        "metadata/episode_ends": np.asarray(store.episode_ends, np.int64),
    }
    with atomic_write(path) as temporary, h5py.File(temporary, "w") as file:
        file.attrs[_OURS] = json.dumps({"observation": name, "attributes": dict(store.attributes)})
        for key, array in flat.items():
            target = file.create_dataset(key, array.shape, array.dtype)
            for start, stop in row_ranges(array):
                target[start:stop] = array[start:stop]
    return path


@contextmanager
def _hdf5(path: Path) -> Iterator[h5py.File]:
    """Open the file; an npz is unpacked into a temporary HDF5 file, chunked so that nothing is mapped in it."""
    names = npz.names(path)
    if not names:
        with hdf5.open_file(path) as file:
            yield file
        return
    cache_dir().mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache_dir()) as folder:
        copy = h5py.File(Path(folder) / "arrays.h5", "w")  # open, so it outlives its name, but not this process
    with copy, npz.open_archive(path, "an npz of D4RL's arrays") as archive:
        for name in sorted(names & {*_ARRAYS, *_OTHERS}):
            with archive.open(npz.member(archive, name)) as stream:
                shape, dtype, order = npz.header(archive, name, stream)
                require_space(cache_dir(), hdf5.nbytes(shape, dtype), f"unpacking {path.name}")
                target = copy.create_dataset(source(name), shape, dtype, chunks=True if shape and all(shape) else None)
                if order == "F" or not shape:
                    target[...] = npz.load(archive, name)
                    continue
                for start, stop in row_ranges(target):
                    size = hdf5.nbytes((stop - start, *shape[1:]), dtype)
                    rows = np.frombuffer(npz.exactly(stream, size), dtype)
                    native.write_rows(target, start, rows.reshape(stop - start, *shape[1:]))
                    sandbox.heartbeat()
        copy.flush()
        yield copy


@contextmanager
def _opened(path: Path, limit: int | None) -> Iterator[FileArrays]:
    with _hdf5(path) as file:
        observations = hdf5.array(file, "observations", path)
        is_camera = observations.dtype == np.uint8 and observations.ndim == 4
        if not is_camera and (observations.dtype.kind != "f" or observations.ndim != 2):
            raise GtpVisionError(
                f"{path}: 'observations' are {observations.dtype} {observations.shape}; wanted states, float (N, D), "
                f"or frames, uint8 (N, H, W, C)"
            )
        rows = observations.shape[0]
        if not rows:
            raise GtpVisionError(f"{path}: 'observations' has no rows; copy the file again")
        actions = episodes.matrix(file, "actions", path, kinds="f", count=rows)
        rewards = episodes.column(file, "rewards", path, rows)
        terminals = episodes.flags(file, "terminals", path, rows)
        if "masks" in hdf5.children(file, path):
            _check_masks(episodes.flags(file, "masks", path, rows), terminals, path)
        _check_rows(file, actions, path)
        ends, timeouts, how = _episodes(file, path, observations, terminals, limit)
        ours = hdf5.json_attribute(file, _OURS, path)
        name, attributes = ours.get("observation"), ours.get("attributes")
        if not isinstance(attributes, dict):
            attributes = {"source": path.name, "suite": "d4rl", "episode_ends": how}
            attributes |= episodes.flat_marks(file, ("", "infos"), ends, path)
        if isinstance(name, str) and "/" not in name:
            episodes.check_name(name, path)
        else:
            name = "camera" if is_camera else "state"

        def stored(start: int, stop: int) -> np.ndarray:
            return episodes.read_rows(observations, start, stop, path)

        yield FileArrays(
            observations={name: [replace(piece_of(observations, path), read=stored)]},
            actions=actions,
            rewards=rewards,
            terminals=terminals,
            timeouts=timeouts,
            episode_ends=ends,
            attributes=attributes,
        )


def _episodes(
    file: h5py.File, path: Path, observations: h5py.Dataset, terminals: np.ndarray, limit: int | None
) -> tuple[np.ndarray, np.ndarray, str]:
    """Return exclusive episode ends, timeouts of all rows, and the source of the ends; see the module."""
    rows, names = len(terminals), set(hdf5.children(file, path))
    marked = np.zeros(rows, bool)
    if "timeouts" in names:
        marked = episodes.flags(file, "timeouts", path, rows)
    infos = set(hdf5.children(hdf5.group(file, "infos", path), path)) if "infos" in names else set()
    metadata = set(hdf5.children(hdf5.group(file, "metadata", path), path)) if "metadata" in names else set()
    broken = np.zeros(rows, bool)  # the next row does not continue this one
    is_maze = "goal" in infos
    if "episode_ends" in metadata:
        last, how = _written_ends(file, path, rows), "metadata/episode_ends"
    else:
        if "next_observations" in names:
            announced = hdf5.array(file, "next_observations", path, ndim=observations.ndim, rows=rows)
            if announced.shape != observations.shape:
                raise GtpVisionError(
                    f"{path}: 'next_observations' has shape {announced.shape}, 'observations' {observations.shape}; "
                    f"write the file again"
                )
            broken = _broken(observations, announced, _SAME, path)
            inside = terminals & ~marked
            inside[-1] = False
            is_maze |= bool(np.sum(inside & ~broken) > np.sum(inside & broken))
            source = "next_observations"
        elif is_maze:
            place = hdf5.array(file, "infos/qpos", path, ndim=2, rows=rows) if "qpos" in infos else observations
            broken = _broken(place, place, _JUMP, path, width=2) if place.ndim == 2 else broken
            source = "leaps"
        if is_maze:
            last, how = marked | broken, f"timeouts and {source}"
        elif "timeouts" in names:
            last, how = marked | terminals, "terminals and timeouts"
        elif "next_observations" in names:
            last, how = terminals | broken, "terminals and next_observations"
        elif limit:
            marked = _steps_since(terminals) % limit == limit - 1
            last, how = marked | terminals, f"terminals and every {limit} steps"
        else:
            last, how = terminals.copy(), "terminals"
    last[-1] = True
    return np.flatnonzero(last) + 1, marked | (last & ~terminals), how


def _check_rows(file: h5py.File, actions: np.ndarray, path: Path) -> None:
    """Raise if the rows hold the actions that led to them, renamed from dm_env's or Dreamer's: the first ones are 0."""
    names = set(hdf5.children(file, path))
    for name, first in (("step_type", 0), ("is_first", 1)):
        if name in names:
            is_first = episodes.column(file, name, path, len(actions)) == first
            if is_first.any() and actions.any() and episodes.hold_nothing(actions[is_first]):
                raise GtpVisionError(f"{path}: {near_misses.other_rows(names)}")


def _check_masks(masks: np.ndarray, terminals: np.ndarray, path: Path) -> None:
    """Raise unless `masks` are 1 - `terminals`."""
    differ = np.flatnonzero(masks == terminals)
    if len(differ):
        raise GtpVisionError(
            f"{path}: 'masks' and 'terminals' contradict each other in {len(differ)} of {len(masks)} rows, first in "
            f"row {differ[0]}; where 'terminals' are the ends of recordings, as OGBench's loader and FQL have them, "
            f"write 'terminals' = (masks == 0) and 'timeouts' = (terminals == 1) & (masks == 1), and leave out 'masks'"
        )


def _written_ends(file: h5py.File, path: Path, rows: int) -> np.ndarray:
    """Return bool (rows,), the last rows of the episodes that our writer wrote."""
    ends = hdf5.array(file, "metadata/episode_ends", path, kinds="ui", ndim=1)
    if not 0 < len(ends) <= rows:
        raise GtpVisionError(f"{path}: 'metadata/episode_ends' has {len(ends)} entries for {rows} rows; write it again")
    ends = episodes.read_rows(ends, 0, len(ends), path).astype(np.int64)
    if ends[0] <= 0 or ends[-1] != rows or np.any(np.diff(ends) <= 0):
        raise GtpVisionError(
            f"{path}: 'metadata/episode_ends' must increase up to the {rows} rows, but ends at {ends[-1]}; write it "
            f"again"
        )
    last = np.zeros(rows, bool)
    last[ends - 1] = True
    return last


def _steps_since(terminals: np.ndarray) -> np.ndarray:
    """Return for each row its distance to the row after the last terminal."""
    starts = np.concatenate([[0], np.flatnonzero(terminals[:-1]) + 1])
    rows = np.arange(len(terminals))
    return rows - starts[np.searchsorted(starts, rows, side="right") - 1]


def _broken(
    after: h5py.Dataset, before: h5py.Dataset, limit: float, path: Path, width: int | None = None
) -> np.ndarray:
    """Return bool (N,): the first `width` numbers of `after[i + 1]` are over `limit` away from those of `before[i]`."""
    found = np.zeros(after.shape[0], bool)
    for start, end in row_ranges(after, np.dtype(np.float64)):
        stop = min(end, len(found) - 1)
        new, old = episodes.read_rows(after, start + 1, stop + 1, path), episodes.read_rows(before, start, stop, path)
        difference = (new.astype(np.float64) - old).reshape(stop - start, math.prod(new.shape[1:]))[:, :width]
        with np.errstate(invalid="ignore", over="ignore"):  # validation reports values that are not finite
            found[start:stop] = np.linalg.norm(difference, axis=1) > limit
        sandbox.heartbeat()
    return found


def _notes(store: Store) -> list[str]:
    last = int(store.final_observations.sum())
    said = (
        f"the last rows of {last} episodes hold nothing but the observation after the last action, with action 0 and "
        f"timeout 1: D4RL's qlearning_dataset leaves them out, other programs may learn them"
    )
    return units_notes(store) + ([said] if last else [])


def _success(store: Store) -> dict[str, Any]:
    if str(store.attributes.get("episode_ends")).startswith("timeouts and"):  # how `_episodes` marks a maze
        solved = successes.episodes_with(store, np.asarray(store.terminals, bool))
        return successes.rate(solved, store.episodes, "episodes with a terminal, as at the goal of a maze")
    return successes.unknown("D4RL marks success only in its mazes; other robots' terminals are falls")


D4RL = Format(
    "d4rl",
    "D4RL HDF5 or npz",
    layout,
    hdf5=is_d4rl,
    other=is_npz,
    write=write,
    success=_success,
    notes=_notes,
)
