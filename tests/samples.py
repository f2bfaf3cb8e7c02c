"""Small real files of every format, and the makers of larger ones."""

from __future__ import annotations

import io
import json
import os
import struct
import subprocess
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import h5py
import imageio_ffmpeg
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from gymnasium import spaces
from PIL import Image
from stores import make_store

from gtp_vision.datasets.formats import d4rl, lerobot_writer, native
from gtp_vision.datasets.store import Store

Copied = Callable[[str], Path]
Contents = dict[str, Any]
LENGTHS = (6, 9)
ROWS = sum(LENGTHS)
FORMATS = {
    "native": "native",
    "native_gzip": "native",
    "ogbench": "ogbench",
    "ogbench_plain": "ogbench",
    "d4rl": "d4rl",
    "d4rl_mapped": "d4rl",
    "d4rl_npz": "d4rl",
    "robomimic": "robomimic",
    "robomimic_mapped": "robomimic",
    "minari": "minari",
    "minari_jpeg": "minari",
    "minari_arrow": "minari",
    "lerobot": "lerobot",
    "aloha": "aloha",
    "dm_env": "dm_env",
    "dm_env_npz": "dm_env",
    "maniskill": "maniskill",
    "zarr": "zarr",
    "zarr_zip": "zarr",
    "rlds": "rlds",
}
"""Each sample's format. Those called `mapped` are large enough to be read in place."""
MAIN, METADATA = "data/main_data.hdf5", "data/metadata.json"
INFO, EPISODES = "meta/info.json", "meta/episodes/chunk-000/file-000.parquet"
DATA, VIDEO = "data/chunk-000/file-00{}.parquet", "videos/{}/chunk-000/file-00{}.mp4"
FRONT, TOP, WRIST = "observation.images.front", "observation.images.top", "observation.images.wrist"


def make(folder: Path) -> dict[str, Path]:
    """Write all samples into a folder; returns their paths by name."""
    cameras = {"front": (8, 6, 3), "wrist": (4, 4, 1)}
    box, bounded = spaces.Box(-np.inf, np.inf, (5,), np.float64), spaces.Box(-2, 2, (2,), np.float32)
    with_camera = spaces.Dict({"arm": box, "front": spaces.Box(0, 255, (40, 48, 3), np.uint8)})
    shapes = {"front": (32, 48, 3), "wrist": (16, 16, 1)}
    dark = _dark(shapes, state=3, attributes={"tasks": ["pick"], "fps": 5})
    return {
        "native": native.write(folder / "native.h5", make_store(LENGTHS, cameras=cameras)),
        "native_gzip": native.write(folder / "gzip.h5", make_store(LENGTHS, cameras=cameras), compression="gzip"),
        "ogbench": npz(folder / "cube-single-play-v0.npz", ogbench_contents()),
        "ogbench_plain": npz(folder / "scene-play-v0.npz", ogbench_contents(), np.savez),
        "d4rl": d4rl_file(folder / "hopper.hdf5", hopper(LENGTHS, falls=(0,))),
        "d4rl_mapped": d4rl.write(folder / "maze.hdf5", _dark({"front": (96, 80, 3)})),
        "d4rl_npz": npz(folder / "hopper.npz", hopper(LENGTHS, falls=(0,))),
        "robomimic": robomimic_file(folder / "lift.hdf5", LENGTHS, compressed=True)[0],
        "robomimic_mapped": robomimic_file(folder / "can.hdf5", LENGTHS, side=64, later=False)[0],
        "minari": minari_folder(folder / "minari", box, bounded, LENGTHS, "walker/state-v0")[0],
        "minari_jpeg": minari_folder(folder / "minari", with_camera, bounded, LENGTHS, "walker/camera-v0")[0],
        "minari_arrow": minari_folder(folder / "minari_arrow", box, bounded, LENGTHS, data_format="arrow")[0],
        "lerobot": lerobot_writer.write(folder / "lerobot", dark),
        "aloha": aloha_folder(folder / "aloha")[0],
        "dm_env": d4rl_file(folder / "walker.hdf5", joined(dm_env_episodes(LENGTHS))),
        "dm_env_npz": dm_env_folder(folder / "buffer", dm_env_episodes(LENGTHS)),
        "maniskill": maniskill_file(folder / "trajectory.h5", LENGTHS)[0],
        "zarr": replay_buffer(folder / "pusht.zarr", replay_contents(), LENGTHS),
        "zarr_zip": replay_buffer(folder / "pusht.zarr.zip", replay_contents(), LENGTHS, version=3, chunk=1),
        "rlds": rlds_folder(folder / "bridge" / "1.0.0", rlds_contents()),
    }


def _dark(cameras: dict[str, tuple[int, int, int]], **options: Any) -> Store:
    """A store with nearly black cameras, so that random damage rarely changes only a pixel."""
    store = make_store(LENGTHS, cameras=cameras, **({"state": None} | options))
    for name, (height, width, channels) in cameras.items():
        store.observations[name][:] = 0
        store.observations[name][:, height // 2, width // 2] = np.arange(ROWS)[:, None] * np.ones(channels)
    return store


def ogbench_contents() -> Contents:
    """Arrays such as OGBench's files hold them."""
    random = np.random.default_rng(0)
    return {
        "observations": random.normal(size=(ROWS, 28)),
        "actions": random.uniform(-1, 1, (ROWS, 5)).astype(np.float32),
        "terminals": np.isin(np.arange(ROWS), np.cumsum(LENGTHS) - 1),
        "qpos": random.normal(size=(ROWS, 21)),
        "qvel": random.normal(size=(ROWS, 20)),
    }


def npz(path: Path, contents: Contents, save: Callable[..., None] = np.savez_compressed) -> Path:
    save(path, **contents)
    return path


def d4rl_file(path: Path, contents: Contents) -> Path:
    """A file as D4RL's own scripts write it: gzip, flags as bool."""
    with h5py.File(path, "w") as file:
        for name, array in contents.items():
            file.create_dataset(name, data=array, compression="gzip")
    return path


def hopper(lengths: Sequence[int] = (6, 4, 5, 3), falls: Sequence[int] = (1,), width: int = 11) -> Contents:
    """Episodes of a robot that falls (terminal) in some of them and is stopped (timeout) in the others."""
    random = np.random.default_rng(0)
    rows, last = sum(lengths), np.cumsum(lengths) - 1
    after = random.normal(size=(rows, width)).astype(np.float32)
    before = np.roll(after, 1, axis=0)
    before[[0, *(last[:-1] + 1)]] = random.normal(size=(len(lengths), width))
    terminals, timeouts = np.zeros((2, rows), bool)
    terminals[last[list(falls)]] = True
    timeouts[np.setdiff1d(last, last[list(falls)])] = True
    return {
        "observations": before,
        "next_observations": after,
        "actions": random.uniform(-1, 1, (rows, 3)).astype(np.float32),
        "rewards": random.normal(size=rows).astype(np.float32),
        "terminals": terminals,
        "timeouts": timeouts,
        "infos/qvel": random.normal(size=(rows, 6)),
        "metadata/algorithm": np.array([1.0]),
    }


ENV_ARGS = {"env_name": "Lift", "type": 1, "env_kwargs": {"camera_names": ["agentview"], "camera_heights": 84}}


def robomimic_file(
    path: Path, lengths: Sequence[int], *, later: bool = True, compressed: bool = False, side: int = 8
) -> tuple[Path, list[dict[str, np.ndarray]]]:
    """A file as robomimic's dataset_states_to_obs.py writes it, and its contents; odd demonstrations do not succeed."""
    random = np.random.default_rng(0)
    options = {"compression": "gzip"} if compressed else {}
    contents = []
    with h5py.File(path, "w") as file:
        data = file.create_group("data")
        data.attrs.update(total=sum(lengths), env_args=json.dumps(ENV_ARGS, indent=4))
        for number, length in enumerate(lengths):
            image = np.zeros((length + 1, side, side, 3), np.uint8)  # mostly black, as in `_dark`
            image[:, 1] = random.integers(0, 256, (length + 1, side, 3))
            observations = {
                "agentview_image": image,
                "robot0_eef_pos": random.normal(size=(length + 1, 3)),
                "phase": random.integers(0, 4, length + 1),
            }
            dones = (np.arange(length) >= length - 2).astype(np.int64) * (number % 2 == 0)
            flat = {
                "actions": random.uniform(-1, 1, (length, 7)),
                "states": random.normal(size=(length, 4)),
                "rewards": dones.astype(np.float64),
                "dones": dones,
            }
            demo = data.create_group(f"demo_{number}")
            demo.attrs.update(num_samples=length, model_file="<mujoco/>")
            for name, array in flat.items():
                demo[name] = array
            for name, frames in observations.items():
                demo.create_dataset(f"obs/{name}", data=frames[:-1], **options)
                if later:
                    demo.create_dataset(f"next_obs/{name}", data=frames[1:], **options)
            contents.append(flat | observations)
        file["mask/train"] = np.array(["demo_1"], dtype="S")
    return path, contents


def isaac_lab(path: Path, lengths: tuple[int, ...] = (6, 5)) -> Path:
    """A file as Isaac Lab's HDF5DatasetFileHandler writes it: compressed, nested, with success as an attribute."""
    with h5py.File(path, "w") as file:
        data = file.create_group("data")
        data.attrs.update(env_args=json.dumps({"env_name": "Isaac-Stack", "type": 2}), total=sum(lengths))
        for number, steps in enumerate(lengths):
            demo = data.create_group(f"demo_{number}")
            demo.attrs.update(num_samples=steps, success=number == 0, seed=number)
            rows = np.arange(steps, dtype=np.float32)
            held = {
                "actions": np.full((steps, 3), 0.5, np.float32),
                "obs/eef_pos": np.stack([rows] * 3, 1),
                "obs/info/object_pose/cube": np.tile(np.eye(4, dtype=np.float32), (steps, 1, 1)) * rows[:, None, None],
                "obs/info/signals/grasp": rows >= 3,
                "obs/rgb/table_cam": np.zeros((steps, 8, 6, 3), np.uint8) + rows.astype(np.uint8)[:, None, None, None],
                "obs/datagen_info/target_eef_pose/franka": np.zeros((steps, 4, 4), np.float32),
                "initial_state/robot/joint_position": np.zeros((1, 9), np.float32),
                "states/robot/joint_position": np.zeros((steps, 9), np.float32),
            }
            for name, array in held.items():
                demo.create_dataset(name, data=array, compression="gzip")
    return path


LIBERO_TASK = "put the bowl on the plate"


def libero(path: Path, convention: str = "opengl", instruction: Any = LIBERO_TASK) -> tuple[Path, np.ndarray]:
    """A file as LIBERO's scripts/create_dataset.py writes it, and the images, upright."""
    upright = np.random.default_rng(0).integers(0, 256, (2, 4, 10, 8, 3), np.uint8)
    with h5py.File(path, "w") as file:
        data = file.create_group("data")
        data.attrs["env_args"] = json.dumps({"type": 1, "env_name": "Libero_Kitchen", "bddl_file": "a.bddl"})
        data.attrs["problem_info"] = json.dumps({"problem_name": "kitchen", "language_instruction": instruction})
        data.attrs.update(macros_image_convention=convention, bddl_file_name="a.bddl", num_demos=2, total=8)
        for number, images in enumerate(upright):
            demo = data.create_group(f"demo_{number}")
            demo.attrs.update(num_samples=4, model_file="<mujoco/>", init_state=np.zeros(9))
            demo["obs/agentview_rgb"] = images[:, ::-1] if convention == "opengl" else images
            demo["obs/ee_states"] = np.arange(24.0).reshape(4, 6)
            demo["actions"], demo["states"] = np.full((4, 7), 0.5), np.zeros((4, 9))
            demo["rewards"] = demo["dones"] = np.array([0, 0, 0, 1], np.uint8)
    return path, upright.reshape(8, 10, 8, 3)


def minari_folder(
    root: Path,
    observations: spaces.Space,
    actions: spaces.Space,
    lengths: Sequence[int],
    name: str = "walker/test-v0",
    infos: Sequence[Contents] | None = None,
    **options: Any,
) -> tuple[Path, list[Contents]]:
    """A data set that Minari makes of random episodes, with `infos` of each, and what it was given."""
    import minari
    from minari.data_collector import EpisodeBuffer

    observations.seed(0)
    actions.seed(1)
    random = np.random.default_rng(2)
    contents = []
    for number, length in enumerate(lengths):
        flag = np.zeros((2, length), bool)
        flag[number % 2, -1] = True  # even episodes terminate, odd ones are truncated
        contents.append(
            {
                "observations": _stacked(observations, [observations.sample() for _ in range(length + 1)]),
                "actions": _stacked(actions, [actions.sample() for _ in range(length)]),
                "rewards": random.normal(size=length),
                "terminations": flag[0],
                "truncations": flag[1],
            }
        )
    infos = infos or [{} for _ in contents]
    buffers = [EpisodeBuffer(id=n, seed=n, infos=infos[n], **episode) for n, episode in enumerate(contents)]
    before = os.environ.get("MINARI_DATASETS_PATH")
    os.environ["MINARI_DATASETS_PATH"] = str(root)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of metadata that are not needed here
            minari.create_dataset_from_buffers(
                name, buffers, observation_space=observations, action_space=actions, **options
            )
        return Path(minari.load_dataset(name).storage.data_path).parent, contents
    finally:
        os.environ.pop("MINARI_DATASETS_PATH")
        os.environ.update({} if before is None else {"MINARI_DATASETS_PATH": before})


def _stacked(space: spaces.Space, samples: list[Any]) -> Any:
    if isinstance(space, spaces.Dict):
        return {key: _stacked(inner, [sample[key] for sample in samples]) for key, inner in space.spaces.items()}
    if isinstance(space, spaces.Tuple):
        return tuple(_stacked(inner, [sample[i] for sample in samples]) for i, inner in enumerate(space.spaces))
    return samples if isinstance(space, spaces.Text) else np.asarray(samples)


def replay_contents(lengths: Sequence[int] = LENGTHS) -> Contents:
    """Arrays such as Diffusion Policy records of PushT, with images as floats from 0 to 255."""
    random, rows = np.random.default_rng(0), sum(lengths)
    image = np.zeros((rows, 36, 40, 3), np.float32)
    image[:, 1] = random.integers(0, 256, (rows, 40, 3))
    return {
        "img": image,
        "state": random.normal(size=(rows, 5)).astype(np.float32),
        "keypoint": random.normal(size=(rows, 9, 2)),
        "action": random.uniform(-1, 1, (rows, 2)).astype(np.float32),
    }


def replay_buffer(
    path: Path, data: Contents, lengths: Sequence[int], *, version: int = 2, chunk: int = 4, **codecs: Any
) -> Path:
    """A replay buffer as Diffusion Policy's `ReplayBuffer` lays it out, written by zarr: a folder, or a zip.

    `chunk` is the number of rows of a chunk, `codecs` are zarr's compressors of arrays by their names.
    """
    import zarr

    store = zarr.storage.ZipStore(path, mode="w") if path.suffix == ".zip" else zarr.storage.LocalStore(path)
    group = zarr.open_group(store, mode="w", zarr_format=version)  # type: ignore[arg-type]
    arrays = {f"data/{name}": array for name, array in data.items()} | {"meta/episode_ends": np.cumsum(lengths)}
    for name, array in arrays.items():
        target = group.create_array(
            name,
            shape=array.shape,
            dtype=array.dtype,
            chunks=(chunk, *array.shape[1:]),
            compressors=codecs.get(name.split("/")[1], "auto"),
            config={"write_empty_chunks": True},
        )
        target[:] = array
    store.close()
    return path


def rlds_contents(lengths: Sequence[int] = LENGTHS) -> list[Contents]:
    """Steps of episodes such as Open X-Embodiment has them; even episodes end in a terminal."""
    random = np.random.default_rng(0)
    contents: list[Contents] = []
    for number, length in enumerate(lengths):
        image = np.zeros((length, 10, 8, 3), np.uint8)
        image[:, 1] = random.integers(0, 256, (length, 8, 3))
        last = np.arange(length) == length - 1
        contents.append(
            {
                "observation/image": image,
                "observation/state": random.normal(size=(length, 5)).astype(np.float32),
                "action": random.uniform(-1, 1, (length, 7)).astype(np.float32),
                "reward": last.astype(np.float32),
                "is_first": np.arange(length) == 0,
                "is_last": last,
                "is_terminal": last & (number % 2 == 0),
                "language_instruction": [("pick it", "place it")[number % 2]] * length,
            }
        )
    return contents


def rlds_folder(root: Path, contents: Sequence[Contents], splits: Sequence[tuple[str, int]] = (("train", 1),)) -> Path:
    """A version of a data set as TensorFlow Datasets lays it out; `splits` are names and numbers of shards.

    Episodes are dealt to the shards one after another. tests/datasets/toy_rlds was written by the library itself.
    """
    from gtp_vision.datasets.formats import tfrecords

    def declared(name: str, values: Any) -> Contents:
        if isinstance(values, list):
            return {"text": {}}
        shape = {"dimensions": [str(size) for size in values.shape[1:]]} if values.ndim > 1 else {}
        if name.rpartition("/")[2].startswith("image"):
            return {"image": {"dtype": "uint8", "shape": shape, "encodingFormat": "png"}}
        return {"tensor": {"dtype": str(values.dtype), "shape": shape, "encoding": "none"}}

    def nested(flat: Contents) -> Contents:
        groups = {name.partition("/")[0] for name in flat if "/" in name}
        inner = {
            group: nested({name.partition("/")[2]: flat[name] for name in flat if name.startswith(f"{group}/")})
            for group in groups
        }
        return {"featuresDict": {"features": inner | {name: flat[name] for name in flat if "/" not in name}}}

    def record(episode: Contents) -> bytes:
        example = tfrecords.message_class()()
        for name, values in episode.items():
            value = example.features.feature.add(key=f"steps/{name}").value
            if isinstance(values, list):
                value.bytes_list.value.extend([text.encode() for text in values])
            elif name.rpartition("/")[2].startswith("image"):
                value.bytes_list.value.extend([encoded(frame.squeeze()) for frame in values])
            elif values.dtype.kind == "f":
                value.float_list.value.extend(values.ravel().tolist())
            else:
                value.int64_list.value.extend(values.ravel().astype(np.int64).tolist())
        content = example.SerializeToString()
        parts = (struct.pack("<Q", len(content)), content)
        return b"".join(part + struct.pack("<I", tfrecords.masked(part)) for part in parts)

    root.mkdir(parents=True)
    steps = nested({name: declared(name, values) for name, values in contents[0].items()})
    features = {"featuresDict": {"features": {"steps": {"sequence": {"feature": steps, "length": "-1"}}}}}
    (root / "features.json").write_text(json.dumps(features))
    (root / "dataset_info.json").write_text(json.dumps({"fileFormat": "tfrecord", "name": root.parent.name}))
    shards = [(split, number, count) for split, count in splits for number in range(count)]
    for place, (split, number, count) in enumerate(shards):
        own = [record(contents[n]) for n in range(len(contents)) if n * len(shards) // len(contents) == place]
        name = f"{root.parent.name}-{split}.tfrecord-{number:05}-of-{count:05}"
        (root / name).write_bytes(b"".join(own))
    return root


def aloha_folder(
    folder: Path, lengths: Sequence[int] = LENGTHS, *, more: Contents | None = None
) -> tuple[Path, list[Contents]]:
    """A folder as record_episodes.py of ACT and Mobile ALOHA writes it, and its contents.

    The camera `cam_high` is plain, `cam_wrist` is compressed by OpenCV, which takes arrays for blue, green, red. `more`
    are further arrays of one row.
    """
    random, contents = np.random.default_rng(0), []
    folder.mkdir(parents=True)
    for number, length in enumerate(lengths):
        plain = np.zeros((length, 24, 32, 3), np.uint8)
        plain[:, 1] = random.integers(0, 256, (length, 32, 3))
        colors = np.zeros((length, 16, 16, 3), np.uint8) + np.array([200, 100, 0], np.uint8)
        colors[..., 2] += (11 * np.arange(length) + number).astype(np.uint8)[:, None, None]
        files = [encoded(frame[..., ::-1], "JPEG") for frame in colors]
        longest = max(map(len, files))
        held = {
            "observations/qpos": random.normal(size=(length, 14)).astype(np.float32),
            "observations/qvel": random.normal(size=(length, 14)).astype(np.float32),
            "observations/images/cam_high": plain,
            "observations/images/cam_wrist": np.stack(
                [np.frombuffer(file.ljust(longest, b"\0"), np.uint8) for file in files]
            ),
            "action": random.uniform(-1, 1, (length, 14)).astype(np.float32),
        } | {name: np.repeat(np.asarray(row)[None], length, 0) for name, row in (more or {}).items()}
        with h5py.File(folder / f"episode_{number}.hdf5", "w") as file:
            file.attrs.update(sim=False, compress=True)
            for name, array in held.items():
                chunks = (1, *array.shape[1:]) if "images" in name else None
                file.create_dataset(name, data=array, chunks=chunks)
            file["compress_len"] = np.array([[len(file) for file in files]], np.float32)
        contents.append(held | {"colors": colors})
    return folder, contents


def dm_env_episodes(lengths: Sequence[int]) -> list[Contents]:
    """Episodes as V-D4RL's and DrQ-v2's replay buffers hold them: the first row has a dummy action."""
    random, found = np.random.default_rng(0), []
    for number, length in enumerate(lengths):
        rows = np.arange(length)
        frames = np.zeros((length, 3, 40, 44), np.uint8)
        frames[:, 1] = random.integers(0, 256, (length, 40, 44))
        found.append(
            {
                "observation": frames,
                "action": (random.uniform(-1, 1, (length, 2)) * (rows > 0)[:, None]).astype(np.float32),
                "reward": (random.uniform(size=length) * (rows > 0)).astype(np.float32),
                "discount": 1 - ((rows == length - 1) & (number == 0)).astype(np.float32),
                "step_type": (np.minimum(rows, 1) + (rows == length - 1)).astype(np.float64),
            }
        )
    return found


def joined(parts: Sequence[Contents]) -> Contents:
    """The arrays of episodes, one after another."""
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def dm_env_folder(folder: Path, parts: Sequence[Contents]) -> Path:
    """A replay buffer's folder: an npz for each episode, without `step_type`, and with columns."""
    folder.mkdir()
    for number, part in enumerate(parts):
        columns = {name: part[name][:, None] for name in ("reward", "discount") if name in part}
        kept = {name: array for name, array in part.items() if name != "step_type"} | columns
        np.savez_compressed(folder / f"20221104T083921_{number}_{len(part['action']) - 1}.npz", **kept)
    return folder


def maniskill_file(path: Path, lengths: Sequence[int]) -> tuple[Path, list[Contents]]:
    """A file as ManiSkill's RecordEpisode writes it with images, and its contents; `lengths` count actions."""
    random, contents = np.random.default_rng(0), []
    with h5py.File(path, "w") as file:
        for number, length in enumerate(lengths):
            image = np.zeros((length + 1, 16, 16, 3), np.uint8)
            image[:, 1] = random.integers(0, 256, (length + 1, 16, 3))
            is_solved = (np.arange(length) >= length - 2) & (number == 0)
            held = {
                "obs/agent/qpos": random.normal(size=(length + 1, 9)).astype(np.float32),
                "obs/extra/tcp_pose": random.normal(size=(length + 1, 7)).astype(np.float32),
                "obs/sensor_data/base_camera/rgb": image,
                "obs/sensor_param/base_camera/intrinsic_cv": np.zeros((length + 1, 3, 3), np.float32),
                "env_states/actors/cube": np.zeros((length + 1, 13), np.float32),
                "actions": random.uniform(-1, 1, (length, 4)).astype(np.float32),
                "terminated": is_solved,
                "truncated": np.arange(length) == length - 1,
                "success": is_solved,
                "rewards": random.uniform(size=length).astype(np.float32),
            }
            for name, array in held.items():
                file.create_dataset(f"traj_{number}/{name}", data=array, compression="gzip", compression_opts=5)
            contents.append(held)
    description = {"env_id": "PickCube-v1", "env_kwargs": {"obs_mode": "rgb"}, "max_episode_steps": 50}
    path.with_suffix(".json").write_text(json.dumps({"env_info": description, "episodes": []}))
    return path, contents


# A LeRobot data set by the published schema, written without our own code -----------------------------------------

LEROBOT_LENGTHS = (4, 3, 5)  # the first two episodes lie in one file, the third in another
LEROBOT_ENDS = np.cumsum(LEROBOT_LENGTHS)
LEROBOT_ROWS = int(LEROBOT_ENDS[-1])
FPS = 5


def brightness(row: int) -> int:
    """The brightness by which a test recognizes a frame after compression."""
    return 20 + 16 * row


def gray_frames(rows: Sequence[int], size: tuple[int, int]) -> np.ndarray:
    return np.stack([np.full((*size, 3), brightness(row), np.uint8) for row in rows])


def mp4(
    path: Path,
    frames: np.ndarray,
    codec: str = "libx264",
    fps: float = FPS,
    more: Sequence[str] = (),
    pixels: str = "rgb24",
) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    height, width = frames.shape[1:3]
    options = (
        f"-y -f rawvideo -pix_fmt {pixels} -s {width}x{height} -r {fps} -i - -c:v {codec} -pix_fmt yuv420p".split()
    )
    options += more
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-loglevel", "error", *options, str(path)]
    subprocess.run(command, input=frames.tobytes(), check=True)


def encoded(pixels: np.ndarray, form: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, form)
    return buffer.getvalue()


def lerobot_contents() -> Contents:
    """Rows of a robot with joint angles in degrees, as its table holds them."""
    random, row = np.random.default_rng(0), np.arange(LEROBOT_ROWS)
    frame = row - np.repeat(LEROBOT_ENDS - LEROBOT_LENGTHS, LEROBOT_LENGTHS)
    return {
        "observation.state": random.normal(size=(LEROBOT_ROWS, 6)).astype(np.float32),
        "observation.gripper": random.normal(size=LEROBOT_ROWS).astype(np.float32),
        "observation.grid": np.arange(LEROBOT_ROWS * 4, dtype=np.int64).reshape(LEROBOT_ROWS, 2, 2),
        "action": (180 * random.uniform(-1, 1, (LEROBOT_ROWS, 6)) * (np.arange(6) < 5)).astype(np.float32),
        WRIST: [{"bytes": encoded(np.full((10, 8, 3), n, np.uint8)), "path": None} for n in row],
        "next.reward": (row == 6).astype(np.float32),
        "next.done": np.isin(row, LEROBOT_ENDS - 1),
        "next.success": row == 6,
        "timestamp": (frame / FPS).astype(np.float32),
        "frame_index": frame,
        "episode_index": np.repeat(np.arange(3), LEROBOT_LENGTHS),
        "index": row,
        "task_index": np.repeat([1, 0, 1], LEROBOT_LENGTHS),
    }


def _features(contents: Contents) -> Contents:
    cameras = {
        FRONT: {"dtype": "video", "shape": [32, 48, 3], "names": ["height", "width", "channels"]},
        TOP: {"dtype": "video", "shape": [3, 24, 24], "names": ["channels", "height", "width"]},
        WRIST: {"dtype": "image", "shape": [10, 8, 3], "names": ["height", "width", "channel"]},
        "observation.language": {"dtype": "string", "shape": [1], "names": None},
    }
    return {
        key: {"dtype": str(array.dtype), "shape": list(array.shape[1:] or [1]), "names": None}
        for key, array in contents.items()
        if key != WRIST
    } | cameras


def published_lerobot(root: Path) -> Path:
    contents = lerobot_contents()
    for place, rows in enumerate((slice(0, 7), slice(7, 12))):
        path = root / DATA.format(place)
        path.parent.mkdir(parents=True, exist_ok=True)
        columns = {name: pa.array([np.asarray(x).tolist() for x in values[rows]]) for name, values in contents.items()}
        columns |= {"observation.state": pa.array(list(contents["observation.state"][rows]))}
        columns |= {"action": pa.array(list(contents["action"][rows]))}
        pq.write_table(pa.table(columns), path, row_group_size=4)
        mp4(root / VIDEO.format(FRONT, place), gray_frames(range(LEROBOT_ROWS)[rows], (32, 48)))
    # The other camera has one file, whose first two frames belong to no episode.
    mp4(root / VIDEO.format(TOP, 0), gray_frames([0, 0, *range(LEROBOT_ROWS)], (24, 24)), codec="libsvtav1")
    episodes = {
        "episode_index": range(3),
        "tasks": [["place it"], ["pick it"], ["place it"]],
        "length": LEROBOT_LENGTHS,
        "dataset_from_index": LEROBOT_ENDS - LEROBOT_LENGTHS,
        "dataset_to_index": LEROBOT_ENDS,
        f"videos/{FRONT}/from_timestamp": [0.0, 4 / FPS, 0.0],
        f"videos/{FRONT}/to_timestamp": [4 / FPS, 7 / FPS, 5 / FPS],
        f"videos/{TOP}/from_timestamp": [2 / FPS, 6 / FPS, 9 / FPS],
        f"videos/{TOP}/to_timestamp": [6 / FPS, 9 / FPS, 14 / FPS],
    }
    for prefix, files in (("data", [0, 0, 1]), (f"videos/{FRONT}", [0, 0, 1]), (f"videos/{TOP}", [0] * 3)):
        episodes |= {f"{prefix}/chunk_index": [0] * 3, f"{prefix}/file_index": files}
    (root / EPISODES).parent.mkdir(parents=True)
    pq.write_table(pa.table({name: pa.array(list(column)) for name, column in episodes.items()}), root / EPISODES)
    tasks = {"task_index": [0, 1], "__index_level_0__": ["pick it", "place it"]}
    pq.write_table(pa.table(tasks), root / "meta/tasks.parquet")
    low, high = contents["action"].min(0) - 1, contents["action"].max(0) + 1
    low[5] = high[5] = 0
    (root / "meta/stats.json").write_text(json.dumps({"action": {"min": low.tolist(), "max": high.tolist()}}))
    info = {
        "codebase_version": "v3.0",
        "robot_type": "so101",
        "total_episodes": 3,
        "total_frames": LEROBOT_ROWS,
        "fps": FPS,
        "data_path": "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet",
        "video_path": "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4",
        "features": _features(contents),
    }
    (root / INFO).write_text(json.dumps(info))
    return root
