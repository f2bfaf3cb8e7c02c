"""robosuite's Lift by a scripted policy (above the cube, down, close, up), into a file of robomimic's format."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from gtp_vision.collection.recording import EpisodeParts, Execution, recorded, require_at_least, seed_of, versions
from gtp_vision.core.errors import GtpVisionError
from gtp_vision.datasets.formats import robomimic
from gtp_vision.envs.rendering import choose_backend
from gtp_vision.envs.robosuite import RobosuiteEnv, lift_env_args

_CAMERAS = "agentview,robot0_eye_in_hand"
_METERS = 0.05  # by which an action of 1 moves the hand's target
_ABOVE = np.array([0.0, 0.0, 0.08])  # meters above the cube's center, from where the hand moves straight down
_NEAR = 0.015  # meters
_CLOSING = 8  # steps until the fingers hold the cube
_UP = np.array([0.0, 0.0, 0.15])


@dataclass(frozen=True)
class _Episodes:
    """Records episode k as a function of (seed, k) only."""

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
    execution: Execution,
) -> str:
    """Record a scripted policy at robosuite's Lift, and return a summary of one sentence.

    Episode k is a function of (seed, k) only. The last tenth of the episodes is robomimic's filter `valid`, all others
    are `train`; a single episode has no filter. `noise` is as in `lift_episode`; an episode that fails to lift the cube
    within `limit` steps is kept, without reward. `cameras` are names separated by commas; None is the agent's view and
    the hand's.

    Raises:
        GtpVisionError: another environment; a setting out of range; robosuite or OpenGL is missing.
    """
    if env != "Lift":
        raise GtpVisionError(f"robosuite's '{env}' has no scripted policy; choose robosuite/Lift")
    if states_only and (cameras is not None or size is not None):
        raise GtpVisionError("--states-only does not record cameras: leave out --cameras and --size, or --states-only")
    names = [] if states_only else [name.strip() for name in (_CAMERAS if cameras is None else cameras).split(",")]
    if len(set(names)) < len(names):
        raise GtpVisionError(f"--cameras {cameras} names a camera twice; leave one out")
    size = 84 if size is None else size
    require_at_least(episodes=(episodes, 1), limit=(limit, 1), seed=(seed, 0), noise=(noise, 0), size=(size, 1))
    choose_backend(required=bool(names))
    env_args = lift_env_args(names, size)
    settings = {"env": env, "episodes": episodes, "seed": seed, "noise": noise, "limit": limit}
    settings |= {"env_args": env_args, "versions": versions("robosuite", "mujoco", pixels=bool(names))}
    with recorded(
        out,
        _Episodes(env_args, seed, noise, limit),
        episodes=episodes,
        settings=settings,
        execution=execution,
    ) as parts:
        successes = sum(bool(parts.load(number, "success")["success"]) for number in range(episodes))
        record = {"source": "scripted policy", "command": parts.command, "successes": successes}
        with parts.whole(out) as aside:
            steps = _write(aside, parts, {**settings, **record})
    return f"{out}: {episodes} episodes, {steps} steps, {successes} with success, {out.stat().st_size / 1e6:.1f} MB"


def _write(path: Path, parts: EpisodeParts, record: dict[str, Any]) -> int:
    """Write the file, and return its number of steps."""
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
            names = np.array([f"demo_{number}" for number in range(parts.count)], dtype="S")
            file["mask/train"], file["mask/valid"] = names[:-held_back], names[-held_back:]
    return steps


def lift_episode(env: RobosuiteEnv, seed: int, *, noise: float, limit: int) -> dict[str, np.ndarray]:
    """Record one episode of T steps; it ends when the cube is lifted, or after `limit` steps.

    The Gaussian noise on the arm's actions has a standard deviation uniform in [0, `noise`].

    Returns:
        `obs/<key>` (T + 1, ...), the last after the last action; actions float32 (T, 7) in [-1, 1]; rewards
        float32 (T,), 1 where the cube is lifted; states float64 (T, D) before each action; model_file, text ();
        success bool ().
    """
    rng = np.random.default_rng(seed)
    observation, info = env.reset(seed=seed)
    model = env.model_file()
    deviation = rng.uniform(0, noise)
    observations, states = [observation], []
    actions: list[np.ndarray] = []
    rewards: list[float] = []
    lowered, closed = False, 0
    while not info["success"] and len(actions) < limit:
        hand, cube = observation["robot0_eef_pos"], observation["object"][:3]
        lowered = lowered or bool(np.linalg.norm((cube + _ABOVE - hand)[:2]) < _NEAR)
        goal = cube + _UP if closed >= _CLOSING else cube if lowered else cube + _ABOVE
        closed += int(closed > 0 or (lowered and bool(np.linalg.norm(cube - hand) < _NEAR)))
        action = np.zeros(7)
        action[:3] = (goal - hand) / _METERS
        action[:6] = np.clip(action[:6], -1, 1) + deviation * rng.normal(size=6)
        action[6] = 1.0 if closed else -1.0
        action = np.clip(action, -1, 1).astype(np.float32)
        states.append(env.state())
        observation, reward, _, _, info = env.step(action)
        observations.append(observation)
        actions.append(action)
        rewards.append(reward)
    return {f"obs/{key}": np.stack([row[key] for row in observations]) for key in observation} | {
        "actions": np.stack(actions),
        "rewards": np.array(rewards, np.float32),
        "states": np.stack(states),
        "model_file": np.array(model),
        "success": np.array(bool(info["success"])),
    }
