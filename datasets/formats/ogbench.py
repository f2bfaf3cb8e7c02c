"""OGBench's files: `name.npz` with observations, actions, terminals, qpos, qvel and, for manipulation, button_states.

`terminals` marks the last recorded state of a trajectory, not the end of the MDP. Single-task rewards and terminals are
OGBench's own relabeling of the recorded states (reward of the state before the action, as of version 1.2).
"""

from __future__ import annotations

import re
import warnings
import zipfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import IO, Any

import numpy as np

from gtp_vision.core import sandbox
from gtp_vision.core.errors import GtpVisionError
from gtp_vision.core.extras import require
from gtp_vision.core.files import cached, from_cache
from gtp_vision.core.safe_json import parse_json
from gtp_vision.datasets import hdf5, npz
from gtp_vision.datasets.formats import native
from gtp_vision.datasets.formats.format import Format, Snapshots
from gtp_vision.datasets.layout import FileArrays, Layout, Piece
from gtp_vision.datasets.store import Store
from gtp_vision.datasets.success import episodes_with, rate, unknown
from gtp_vision.datasets.unpacking import through_cache

_INFO = ("qpos", "button_states")
_WHAT = "an OGBench file"
_STATES = ("qpos", "qvel", "button_states")
_NAME = re.compile(  # of a data set, or of a single task on it
    r"(visual-)?((point|ant|humanoid)maze-\w+|antsoccer-\w+|cube-\w+|scene|puzzle-\dx\d|powderworld-\w+)"
    r"(-(navigate|stitch|explore|play|noisy))?(-singletask(-task[1-9])?)?(-oraclerep)?(-v0)?"
)
_NOTE, _MAX_NOTE = "gtp_vision", 1 << 16
_ARRAYS = {"observations", "actions", "terminals"}
_NOT_OURS = {"rewards", "next_observations", "timeouts", "masks", "valids"}  # under which `terminals` mean other things


def dataset_name(env: str) -> str:
    """Return the data set of an environment: `cube-single-play-v0` for `cube-single-play-singletask-task1-v0`."""
    parts = env.split("-")
    if "singletask" in parts:
        return "-".join(parts[: parts.index("singletask")] + parts[-1:])
    return env


def locate(env: str, folder: Path, *, download: bool = True) -> Path:
    """Return the training file of an environment in `folder`; a missing one is downloaded with its validation file.

    Raises:
        GtpVisionError: the file is missing and cannot be downloaded.
    """
    name = dataset_name(env)
    folder = folder.expanduser()
    path = folder / f"{name}.npz"
    if path.exists():
        return path
    if not download:
        raise GtpVisionError(f"found no data set at {path}; put {name}.npz and {name}-val.npz there")
    from gtp_vision.datasets.download import download as fetch

    try:
        fetch(f"ogbench/{name}", folder)
    except GtpVisionError as error:
        raise GtpVisionError(f"{error}, or set task.dataset to a file") from error
    return path


def recognises(path: Path) -> bool:
    """Whether the file is an archive with OGBench's arrays, and none from which `terminals` are known to differ."""
    found = npz.names(path)
    return found >= _ARRAYS and not found & _NOT_OURS


def layout(path: Path, env: str | None = None) -> Layout:
    """Return the layout of an OGBench file, decompressed once into the cache.

    Rewards and terminals of a `singletask` environment, by `env` or the file's name, are relabeled.
    """
    if env is None:
        env = path.stem
    elif not _NAME.fullmatch(env):
        raise GtpVisionError(
            f"'{env}' is not the name of an OGBench environment; use one like cube-single-play-v0 or, with rewards, "
            f"cube-single-play-singletask-task1-v0"
        )
    found = through_cache(path, lambda: _opened(path), "ogbench")
    found["attributes"]["env"] = env
    if "singletask" in env.split("-"):  # frames are unpacked once for all tasks, labels per task
        require("ogbench", f"the reward of {env}", "ogbench", "mujoco")
        found["attributes"]["ogbench"] = version("ogbench")
        found["arrays"] |= _labels(path, env, found["arrays"]["actions"]["shape"][0])
    return found


def states(path: Path) -> dict[str, Any]:
    """Return the layouts of the simulator's states in the file, float32 (N, D), which no policy reads."""

    def computed() -> dict[str, np.ndarray]:
        with npz.open_archive(path, _WHAT) as archive:
            arrays = {name: npz.load(archive, name) for name in _STATES if f"{name}.npy" in archive.namelist()}
        return {name: array.astype(np.float32) for name, array in arrays.items() if array.ndim == 2}

    return _computed_once(cached(path, "ogbench states"), computed)


def snapshots(path: Path, numbers: Sequence[int]) -> list[dict[str, Any]]:
    """Return the simulator's states in some trajectories; empty if the file has none."""
    with npz.open_archive(path, _WHAT) as archive:
        ends = np.flatnonzero(npz.load(archive, "terminals")) + 1
        arrays = {name: npz.load(archive, name) for name in _STATES if f"{name}.npy" in archive.namelist()}
    if any(array.ndim != 2 or len(array) != ends[-1] for array in arrays.values()):
        raise GtpVisionError(f"{path}: {' and '.join(arrays)} have other lengths than 'terminals'; write it again")
    starts = [0, *ends[:-1]]
    spans = [slice(starts[number], ends[number]) for number in numbers]
    return [Snapshots({name: array[rows] for name, array in arrays.items()}).record() for rows in spans if arrays]


@contextmanager
def _opened(path: Path) -> Iterator[FileArrays]:
    with npz.open_archive(path, _WHAT) as archive:
        small = {name: npz.load(archive, name) for name in ("actions", "terminals")}
        if small["actions"].dtype.kind in "iu":
            raise GtpVisionError(
                f"{path}: 'actions' holds integers, and discrete actions are not supported; choose a data set with "
                f"continuous actions"
            )
        with archive.open("observations.npy") as stream:
            shape, dtype, order = npz.header(archive, "observations", stream)
            if order == "F":
                raise ValueError("observations are in Fortran's order; write them by np.ascontiguousarray")
            rows = {array.shape[:1] for array in small.values()} | {shape[:1]}
            ends = np.flatnonzero(small["terminals"]) + 1
            ndims = small["actions"].ndim, small["terminals"].ndim
            if len(rows) == 1 and ndims == (2, 1) and tuple(ends[-1:]) != shape[:1]:
                raise GtpVisionError(
                    f"{path}: 'terminals' of OGBench mark the last row of each trajectory, but the file's last row is "
                    f"not marked: its trajectories are not whole, or it is D4RL's: add 'rewards' and 'timeouts', which "
                    f"D4RL has and OGBench has not"
                )
            if len(rows) > 1 or ndims != (2, 1):
                raise ValueError(
                    f"observations {shape}, actions {small['actions'].shape} and terminals "
                    f"{small['terminals'].shape} do not describe whole trajectories"
                )
            frames = shape[0]
            yield FileArrays(
                observations={"camera" if dtype == np.uint8 else "state": [_streamed(stream, shape, dtype)]},
                actions=small["actions"],
                rewards=np.zeros(frames),
                terminals=np.zeros(frames),
                timeouts=small["terminals"],
                episode_ends=ends,
                attributes={"rendering": {}} | _record(archive) | {"source": path.name, "suite": "ogbench"},
            )


def _labels(path: Path, env: str, frames: int) -> dict[str, Any]:
    """Return the layouts of a single task's rewards and terminals."""

    def computed() -> dict[str, np.ndarray]:
        with npz.open_archive(path, _WHAT) as archive:
            info = {name: npz.load(archive, name) for name in _INFO if f"{name}.npy" in archive.namelist()}
            rewards, terminals = _relabel(path, env, info, frames)
        return {"rewards": rewards.astype(np.float32), "terminals": terminals}

    return _computed_once(cached(path, "ogbench labels", env, version("ogbench")), computed)


def _computed_once(target: Path, compute: Callable[[], dict[str, np.ndarray]]) -> dict[str, Any]:
    """Return the layouts of arrays that are computed once into an entry of the cache."""

    def make() -> None:
        arrays = compute()
        with native.create(target, {name: (array.shape, array.dtype) for name, array in arrays.items()}, {}) as file:
            for name, array in arrays.items():
                native.write_rows(file[name], 0, array)

    def read() -> dict[str, Any]:
        with hdf5.open_file(target) as file:
            return {name: native.array_layout(hdf5.array(file, name, target), target) for name in file}

    return from_cache(target, read, make)


def _record(archive: zipfile.ZipFile) -> dict[str, Any]:
    """Return the note of `gtp-vision data collect`; OGBench's own files have none."""
    if f"{_NOTE}.npy" not in archive.namelist():
        return {}
    if archive.getinfo(f"{_NOTE}.npy").file_size > _MAX_NOTE:
        raise ValueError(f"{_NOTE} is longer than {_MAX_NOTE} bytes")
    try:
        note = parse_json(str(npz.load(archive, _NOTE, kinds="U")[()]), _NOTE)
        note = {name: note[name] for name in ("rendering", "recipe", "seed", "command", "versions") if name in note}
        rendering = dict(note.get("rendering", {}))
    except (GtpVisionError, ValueError, TypeError, IndexError) as error:
        raise ValueError(f"{_NOTE} is not the JSON object that gtp-vision writes") from error
    for name, value in rendering.items():
        if value is not None and not (isinstance(value, int) and 0 <= value < 1 << 20):
            raise ValueError(f"{_NOTE} has the rendering {name[:40]!r} {str(value)[:40]!r}, not a small integer")
    return note


def _streamed(stream: IO[bytes], shape: tuple[int, ...], dtype: np.dtype) -> Piece:
    row = int(np.prod(shape[1:])) * dtype.itemsize

    def read(start: int, stop: int) -> np.ndarray:
        return np.frombuffer(npz.exactly(stream, (stop - start) * row), dtype).reshape(stop - start, *shape[1:])

    return Piece(shape[0], shape[1:], dtype, read)


def _relabel(path: Path, env: str, info: dict[str, np.ndarray], frames: int) -> tuple[np.ndarray, np.ndarray]:
    if "qpos" not in info:
        raise KeyError("qpos, which single-task rewards are computed from")
    for name, array in info.items():
        if array.ndim != 2 or len(array) != frames:
            raise ValueError(f"{name} has shape {array.shape} for {frames} frames")
    name = env.removeprefix("visual-")  # nothing is rendered here
    with sandbox.unlimited_memory(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*Box (low|high).*")  # Gymnasium's, of OGBench's own spaces
        import gymnasium
        import ogbench
        from ogbench.relabel_utils import relabel_dataset

        try:
            simulator = ogbench.make_env_and_datasets(name, env_only=True)
        except gymnasium.error.Error as error:
            raise GtpVisionError(f"'{env}' is not an OGBench environment ({error}); check the name") from error
        width, wanted = info["qpos"].shape[1], simulator.unwrapped.model.nq
        if width != wanted:  # the numbers are those of another robot or object
            simulator.close()
            raise GtpVisionError(
                f"{path}: 'qpos' has {width} numbers per frame, but '{env}' has {wanted}; name the environment that "
                f"the file was recorded in"
            )
        try:
            labels = dict(info)
            relabel_dataset(name, simulator, labels)
        except (IndexError, ValueError) as error:
            raise ValueError(f"its states are not those of {name}") from error
        finally:
            simulator.close()
    return labels["rewards"], (1 - labels["masks"]).astype(np.uint8)


def _success(store: Store) -> dict[str, Any]:
    if "singletask" not in str(store.attributes.get("env", "")).split("-"):
        return unknown("these recordings have no task; name one with --env NAME-singletask-task1-v0")
    solved = episodes_with(store, np.asarray(store.terminals, bool))
    return rate(solved, store.episodes, "episodes with a terminal, the task's goal")


OGBENCH = Format(
    "ogbench", "OGBench npz", layout, other=recognises, states=states, snapshots=snapshots, success=_success
)
