"""robosuite's Lift by a scripted policy, into a file of robomimic's format."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from gtp_vision.collection.lift_policy import lift_episode
from gtp_vision.collection.recording import EpisodeParts, recorded, require_at_least, seed_of, versions
from gtp_vision.core.errors import GtpVisionError
from gtp_vision.datasets.formats import robomimic
from gtp_vision.envs.rendering import choose_backend
from gtp_vision.envs.robosuite import RobosuiteEnv, lift_env_args

_CAMERAS = "agentview,robot0_eye_in_hand"


@dataclass(frozen=True)
class _Episodes:
    """Records episode k as a function of (seed, k) alone."""

    env_args: Mapping[str, Any]
    seed: int
    noise: float
    limit: int

    def make(self) -> RobosuiteEnv:
        return RobosuiteEnv(self.env_args)

    def record(self, env: RobosuiteEnv, episode: int) -> dict[str, np.ndarray]:
        return lift_episode(env, seed_of(self.seed, episode), noise=self.noise, limit=self.limit)


def collect(
    env: str,
    out: Path,
    *,
    episodes: int = 20,
    seed: int = 0,
    noise: float = 0.1,
    limit: int = 100,
    cameras: str | None = None,
    size: int | None = None,
    states_only: bool = False,
    processes: int,
    command: str,
    progress: bool = True,
    overwrite: bool = False,
) -> str:
    """Record a scripted policy at robosuite's Lift.

    Episode k is a function of (seed, k) alone. The last tenth of the episodes is robomimic's filter `valid`, all others
    are `train`; of a single episode there is no filter.

    Args:
        env: Lift.
        out: the HDF5 file to be; an existing one is replaced when the new one is whole.
        episodes: how many.
        seed: of the whole set.
        noise: largest deviation of an episode's action noise.
        limit: most steps of an episode; one that has not lifted the cube by then is kept, without reward.
        cameras: names with commas between; None is the agent's view and the hand's.
        size: height and width of the frames, default 84.
        states_only: record no camera.
        processes: worker processes.
        command: the command line, recorded in the file.
        progress: show a bar.
        overwrite: replace what stands there already.

    Returns:
        What was recorded, a sentence.

    Raises:
        GtpVisionError: another environment; a setting out of range; robosuite or OpenGL is missing.
    """
    if env != "Lift":
        raise GtpVisionError(f"nobody demonstrates robosuite's '{env}'; choose robosuite/Lift")
    if states_only and (cameras is not None or size is not None):
        raise GtpVisionError("--states-only records no camera: leave out --cameras and --size, or --states-only")
    names = [] if states_only else [name.strip() for name in (_CAMERAS if cameras is None else cameras).split(",")]
    if len(set(names)) < len(names):
        raise GtpVisionError(f"--cameras {cameras} names a camera twice; leave one out")
    size = 84 if size is None else size
    require_at_least(episodes=(episodes, 1), limit=(limit, 1), processes=(processes, 1), seed=(seed, 0))
    require_at_least(noise=(noise, 0), size=(size, 1))
    choose_backend(required=bool(names))
    env_args = lift_env_args(names, size)
    settings = {"env": env, "episodes": episodes, "seed": seed, "noise": noise, "limit": limit}
    settings |= {"env_args": env_args, "versions": versions("robosuite", "mujoco", pixels=bool(names))}
    with recorded(
        out,
        _Episodes(env_args, seed, noise, limit),
        episodes=episodes,
        settings=settings,
        command=command,
        processes=processes,
        progress=progress,
        overwrite=overwrite,
    ) as parts:
        successes = sum(bool(parts.load(number, "success")["success"]) for number in range(episodes))
        record = {"source": "scripted policy", "command": parts.command, "successes": successes}
        with parts.whole(out) as aside:
            steps = _write(aside, parts, {**settings, **record})
    return f"{out}: {episodes} episodes, {steps} steps, {successes} with success, {out.stat().st_size / 1e6:.1f} MB"


def _write(path: Path, parts: EpisodeParts, record: dict[str, Any]) -> int:
    """The file; returns its number of steps."""
    steps = 0
    with h5py.File(path, "w") as file:
        data = file.create_group("data")
        for number in range(parts.count):
            episode = parts.load(number)
            frames = {name.removeprefix("obs/"): array for name, array in episode.items() if name.startswith("obs/")}
            dones = np.zeros(len(episode["actions"]), np.int64)
            dones[-1] = episode["success"]
            robomimic.write_demo(
                data,
                number,
                obs={name: array[:-1] for name, array in frames.items()},
                next_obs={name: array[1:] for name, array in frames.items()},
                actions=episode["actions"],
                rewards=episode["rewards"],
                dones=dones,
                states=episode["states"],
                model_file=str(episode["model_file"]),
            )
            steps += len(dones)
        data.attrs.update(total=steps, env_args=json.dumps(record.pop("env_args"), indent=4))
        data.attrs["gtp_vision"] = json.dumps(record)
        held_back = max(1, parts.count // 10)
        if parts.count > held_back:
            for name, numbers in (
                ("train", range(parts.count - held_back)),
                ("valid", range(parts.count - held_back, parts.count)),
            ):
                file[f"mask/{name}"] = np.array([f"demo_{number}" for number in numbers], dtype="S")
    return steps
