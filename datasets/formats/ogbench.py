"""OGBench's files: `name.npz` with observations, actions, terminals, qpos, qvel and, for manipulation, button_states.

`terminals` marks the last recorded state of a trajectory, not the end of the MDP. Single-task rewards and
terminals are OGBench's own relabelling of the recorded states (reward of the state before the action, as
from version 1.2 on).
"""

from __future__ import annotations

import zipfile
import zlib
from pathlib import Path
from typing import IO, Any

import numpy as np

from gtp_vision.datasets.files import cached, fingerprint, require_space
from gtp_vision.datasets.formats import native
from gtp_vision.datasets.store import Store
from gtp_vision.errors import GtpVisionError

_PIECE = 1 << 25  # bytes decompressed at a time
_INFO = ("qpos", "button_states")


def dataset_name(env: str) -> str:
    """The data set of an environment name: `cube-single-play-singletask-task1-v0` is `cube-single-play-v0`."""
    parts = env.split("-")
    if "singletask" in parts:
        return "-".join(parts[: parts.index("singletask")] + parts[-1:])
    return env


def locate(env: str, folder: Path, *, download: bool = True) -> Path:
    """The training file of an environment in `folder`, by OGBench's own downloader if it is not there.

    Raises:
        GtpVisionError: no file and no network, with the place where the file belongs.
    """
    name = dataset_name(env)
    path = folder.expanduser() / f"{name}.npz"
    if path.exists():
        return path
    if not download:
        raise GtpVisionError(f"no data set at {path}; put {name}.npz and {name}-val.npz there")
    import ogbench

    try:
        ogbench.download_datasets([name], str(folder))
    except Exception as error:  # the downloader raises whatever its transport raises
        raise GtpVisionError(
            f"the data set {name} could not be downloaded ({type(error).__name__}: {error}); put {name}.npz and "
            f"{name}-val.npz into {folder}, or set task.dataset to a file"
        ) from error
    return path


def read(path: Path, env: str) -> Store:
    """An OGBench file as a store, through the cache: decompressed once, then mapped.

    Args:
        path: the .npz file.
        env: environment name; a `singletask` one has its rewards and terminals relabelled.

    Raises:
        GtpVisionError: truncated or missing members, lengths that disagree.
    """
    try:
        target = cached(f"{path.stem}-{fingerprint(path, env)}.h5")
        if not target.exists():
            _convert(path, env, target)
    except (OSError, zipfile.BadZipFile, zlib.error, EOFError, ValueError, KeyError, RuntimeError) as error:
        raise GtpVisionError(
            f"{path} cannot be read as an OGBench file ({type(error).__name__}: {error}); "
            f"it is missing, truncated or of another format: copy or download it again"
        ) from error
    store = native.read(target)
    store.path = path
    return store


def _convert(path: Path, env: str, target: Path) -> None:
    with zipfile.ZipFile(path) as archive:
        small = {name: _load(archive, name) for name in ("actions", "terminals")}
        info = {name: _load(archive, name) for name in _INFO if f"{name}.npy" in archive.namelist()}
        with archive.open("observations.npy") as stream:
            shape, dtype = _header(stream)
            frames = len(small["actions"])
            ends = np.flatnonzero(small["terminals"]) + 1
            if shape[0] != frames or len(small["terminals"]) != frames or not len(ends) or ends[-1] != frames:
                raise ValueError(
                    f"observations {shape}, actions {small['actions'].shape} and terminals "
                    f"{small['terminals'].shape} do not describe whole trajectories"
                )
            image = dtype == np.uint8
            name = "observations/" + ("camera" if image else "state")
            size = frames * int(np.prod(shape[1:])) * (1 if image else 4)
            require_space(target.parent, size, f"unpacking {path.name}")
            rewards, terminals = _relabel(env, info, frames)
            timeouts = small["terminals"].astype(np.uint8)
            shapes: dict[str, tuple[tuple[int, ...], Any]] = {
                name: (shape, np.uint8 if image else np.float32),
                "actions": (small["actions"].shape, np.float32),
                "rewards": ((frames,), np.float32),
                "terminals": ((frames,), np.uint8),
                "timeouts": ((frames,), np.uint8),
                "episode_ends": ((len(ends),), np.int64),
            }
            metadata = {"source": path.name, "suite": "ogbench", "env": env, "rendering": {}}
            with native.create(target, shapes, metadata) as made:
                made["actions"][:] = small["actions"]
                made["rewards"][:], made["terminals"][:] = rewards, terminals
                made["timeouts"][:], made["episode_ends"][:] = timeouts, ends
                row_bytes = int(np.prod(shape[1:])) * dtype.itemsize
                piece = max(1, _PIECE // row_bytes)
                for start in range(0, frames, piece):
                    rows = min(piece, frames - start)
                    raw = _exactly(stream, rows * row_bytes)
                    made[name][start : start + rows] = np.frombuffer(raw, dtype).reshape(rows, *shape[1:])


def _relabel(env: str, info: dict[str, np.ndarray], frames: int) -> tuple[np.ndarray, np.ndarray]:
    if "singletask" not in env.split("-"):
        return np.zeros(frames, np.float32), np.zeros(frames, np.uint8)
    if "qpos" not in info:
        raise KeyError("qpos, which single-task rewards are computed from")
    for name, array in info.items():
        if len(array) != frames:
            raise ValueError(f"{name} has {len(array)} rows for {frames} frames")
    import gymnasium
    import ogbench
    from ogbench.relabel_utils import relabel_dataset

    name = env.removeprefix("visual-")  # states are enough: nothing is rendered here
    try:
        simulator = ogbench.make_env_and_datasets(name, env_only=True)
    except gymnasium.error.Error as error:
        raise GtpVisionError(f"'{env}' is no OGBench environment ({error}); check the name") from error
    try:
        labels = dict(info)
        relabel_dataset(name, simulator, labels)
    finally:
        simulator.close()
    return labels["rewards"], (1 - labels["masks"]).astype(np.uint8)


def _header(stream: IO[bytes]) -> tuple[tuple[int, ...], np.dtype]:
    version = np.lib.format.read_magic(stream)
    reader = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, fortran, dtype = reader(stream)
    if fortran or dtype.hasobject:
        raise ValueError(f"an array of dtype {dtype} in this order is not an OGBench array")
    return shape, dtype


def _load(archive: zipfile.ZipFile, name: str) -> np.ndarray:
    with archive.open(f"{name}.npy") as stream:
        shape, dtype = _header(stream)
        size = int(np.prod(shape, dtype=np.float64)) * dtype.itemsize
        if size > archive.getinfo(f"{name}.npy").file_size:
            raise ValueError(f"{name} claims {size} bytes, which are not there")
        return np.frombuffer(_exactly(stream, size), dtype).reshape(shape)


def _exactly(stream: IO[bytes], size: int) -> bytes:
    raw = stream.read(size)
    if len(raw) != size:
        raise EOFError(f"ended {size - len(raw)} bytes early")
    return raw
