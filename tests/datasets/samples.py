"""Small real files of every format, for tests that run over all of them."""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from gymnasium import spaces

from gtp_vision.datasets.formats import d4rl, lerobot_writer, native
from gtp_vision.datasets.store import Store

MakeStore = Callable[..., Store]
LENGTHS = (6, 9)
FORMATS = {
    "native": "native",
    "native_gzip": "native",
    "ogbench": "ogbench",
    "ogbench_plain": "ogbench",
    "d4rl": "d4rl",
    "d4rl_mapped": "d4rl",
    "robomimic": "robomimic",
    "robomimic_mapped": "robomimic",
    "minari": "minari",
    "minari_jpeg": "minari",
    "lerobot": "lerobot",
}
"""Each sample's format. Those called `mapped` are large enough to be read where they lie."""


def make(folder: Path, make_store: MakeStore) -> dict[str, Path]:
    """Write all samples into a folder; their names to their paths."""
    cameras = {"front": (8, 6, 3), "wrist": (4, 4, 1)}
    made = {
        "native": native.write(folder / "native.h5", make_store(LENGTHS, cameras=cameras)),
        "native_gzip": native.write(folder / "gzip.h5", make_store(LENGTHS, cameras=cameras), compression="gzip"),
        "ogbench": _ogbench(folder / "cube-single-play-v0.npz", np.savez_compressed),
        "ogbench_plain": _ogbench(folder / "scene-play-v0.npz", np.savez),
        "d4rl": _d4rl(folder / "hopper.hdf5"),
        "d4rl_mapped": d4rl.write(folder / "maze.hdf5", _plain(make_store, {"front": (96, 80, 3)})),
        "robomimic": _robomimic(folder / "lift.hdf5", side=8, compression="gzip", later=True),
        "robomimic_mapped": _robomimic(folder / "can.hdf5", side=64, compression=None, later=False),
        "minari": _minari(folder / "minari", "walker/state-v0", camera=None),
        "minari_jpeg": _minari(folder / "minari", "walker/camera-v0", camera=(40, 48, 3)),
        "lerobot": folder / "lerobot",
    }
    shapes = {"front": (32, 48, 3), "wrist": (16, 16, 1)}
    lerobot_writer.write(made["lerobot"], _plain(make_store, shapes, state=3, attributes={"tasks": ["pick"], "fps": 5}))
    return made


def _plain(make_store: MakeStore, cameras: dict[str, tuple[int, int, int]], **options: Any) -> Store:
    """A store whose cameras are nearly black, so that what is damaged at random is rarely a pixel."""
    store = make_store(LENGTHS, cameras=cameras, **({"state": None} | options))
    for name, (height, width, channels) in cameras.items():
        store.observations[name][:] = 0
        store.observations[name][:, height // 2, width // 2] = np.arange(sum(LENGTHS))[:, None] * np.ones(channels)
    return store


def _ogbench(path: Path, save: Callable[..., None]) -> Path:
    random, rows = np.random.default_rng(0), sum(LENGTHS)
    save(
        path,
        observations=random.normal(size=(rows, 28)),
        actions=random.uniform(-1, 1, (rows, 5)).astype(np.float32),
        terminals=np.isin(np.arange(rows), np.cumsum(LENGTHS) - 1),
        qpos=random.normal(size=(rows, 21)),
        qvel=random.normal(size=(rows, 20)),
    )
    return path


def _d4rl(path: Path) -> Path:
    """A robot that falls in the first episode and is stopped in the second, as D4RL's own scripts write it."""
    random, rows = np.random.default_rng(0), sum(LENGTHS)
    before, after = random.normal(size=(2, rows, 11)).astype(np.float32)
    fell = np.arange(rows) == LENGTHS[0] - 1
    before[1:] = np.where(fell[:-1, None], before[1:], after[:-1])
    contents = {
        "observations": before,
        "next_observations": after,
        "actions": random.uniform(-1, 1, (rows, 3)).astype(np.float32),
        "rewards": random.normal(size=rows).astype(np.float32),
        "terminals": fell,
        "timeouts": np.arange(rows) == rows - 1,
        "infos/qvel": random.normal(size=(rows, 6)),
    }
    with h5py.File(path, "w") as file:
        for name, array in contents.items():
            file.create_dataset(name, data=array, compression="gzip")
    return path


def _robomimic(path: Path, *, side: int, compression: str | None, later: bool) -> Path:
    """Demonstrations with one camera and a state, as robomimic's dataset_states_to_obs.py writes them."""
    random = np.random.default_rng(0)
    with h5py.File(path, "w") as file:
        data = file.create_group("data")
        data.attrs["env_args"] = json.dumps({"env_name": "Lift", "type": 1, "env_kwargs": {}})
        data.attrs["total"] = sum(LENGTHS)
        for number, length in enumerate(LENGTHS):
            demo = data.create_group(f"demo_{number}")
            demo.attrs["num_samples"] = length
            demo["actions"] = random.uniform(-1, 1, (length, 7))
            demo["rewards"] = demo["dones"] = (np.arange(length) == length - 1).astype(np.int64)
            demo["states"] = random.normal(size=(length, 4))
            seen = {
                "agentview_image": np.zeros((length + 1, side, side, 3), np.uint8),
                "robot0_eef_pos": random.normal(size=(length + 1, 3)),
            }
            seen["agentview_image"][:, 1] = np.arange(length + 1)[:, None, None]
            for name, array in seen.items():
                demo.create_dataset(f"obs/{name}", data=array[:-1], compression=compression)
                if later:
                    demo.create_dataset(f"next_obs/{name}", data=array[1:], compression=compression)
        file["mask/train"] = np.array(["demo_1"], dtype="S")
    return path


def _minari(root: Path, name: str, camera: tuple[int, int, int] | None) -> Path:
    """A data set that Minari itself makes; a camera of several rows and columns becomes JPEG there."""
    import minari
    from minari.data_collector import EpisodeBuffer

    vector = spaces.Box(-np.inf, np.inf, (5,), np.float64)
    observed = spaces.Dict({"arm": vector, "front": spaces.Box(0, 255, camera, np.uint8)}) if camera else vector
    acted = spaces.Box(-2, 2, (2,), np.float32)
    random = np.random.default_rng(0)
    buffers = []
    for number, length in enumerate(LENGTHS):
        flag = np.zeros((2, length), bool)
        flag[number % 2, -1] = True
        seen: Any = random.normal(size=(length + 1, 5))
        if camera:
            seen = {"arm": seen, "front": random.integers(0, 256, (length + 1, *camera), np.uint8)}
        buffers.append(
            EpisodeBuffer(
                id=number,
                seed=number,
                infos={},
                observations=seen,
                actions=random.uniform(-2, 2, (length, 2)).astype(np.float32),
                rewards=random.normal(size=length),
                terminations=flag[0],
                truncations=flag[1],
            )
        )
    before = os.environ.get("MINARI_DATASETS_PATH")
    os.environ["MINARI_DATASETS_PATH"] = str(root)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of metadata that nobody needs here
            minari.create_dataset_from_buffers(name, buffers, observation_space=observed, action_space=acted)
        return Path(minari.load_dataset(name).storage.data_path).parent
    finally:
        os.environ.pop("MINARI_DATASETS_PATH")
        os.environ.update({} if before is None else {"MINARI_DATASETS_PATH": before})
