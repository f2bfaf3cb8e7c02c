"""ALOHA's two simulated tasks (Zhao et al., RSS 2023) of gym-aloha: two arms insert a peg, or hand a cube over."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np

from gtp_vision.core.errors import GtpVisionError, propose
from gtp_vision.core.extras import require
from gtp_vision.envs.rendering import Rendering, choose_backend
from gtp_vision.envs.showing import Cameras, Shown, has_frames, space_of
from gtp_vision.envs.simulator import EnvSpec, Simulator

TASKS = {
    "AlohaInsertion-v0": ("insertion", "Insert the peg into the socket."),
    "AlohaTransferCube-v0": ("transfer_cube", "Pick up the cube with the right arm and transfer it to the left arm."),
}
"""gym-aloha's names; its short ones, and the instruction."""
_STEPS = 400
_CAMERAS = {"top": "top", "angle": "angle", "vis": "front_close"}  # ACT's names of frames, the model's of cameras
_JOINTS, _OBJECT = 14, {"insertion": 14, "transfer_cube": 7}


def make(spec: EnvSpec) -> gymnasium.Env:
    """Make one of the tasks with a limit of 400 steps, that of ACT and LeRobot; gym-aloha registers 300.

    Args:
        spec: `name` is `aloha/AlohaInsertion-v0` or `aloha/AlohaTransferCube-v0`; what is shown without a data set are
            `top` and `state`, or for `pixels=False` `state` and `environment_state`.

    Raises:
        GtpVisionError: another task, see `Aloha`.
    """
    task = spec.name.partition("/")[2]
    if task not in TASKS:
        raise GtpVisionError(f"aloha has no task '{task}': {propose(task, TASKS)}")
    frames: Shown = {"top": (480, 640, 3), "state": (_JOINTS,)}
    states: Shown = {"state": (_JOINTS,), "environment_state": (_OBJECT[TASKS[task][0]],)}
    shown = spec.shown or (frames if spec.pixels else states)
    return gymnasium.wrappers.TimeLimit(Aloha(task, shown, spec.rendering), spec.max_episode_steps or _STEPS)


class Aloha(gymnasium.Env):
    """One of gym-aloha's tasks at 50 Hz, with chosen observations and the bounds of its actions.

    `state` or `qpos` (14,): of the left arm, then the right, six joints in radians and the gripper, 0 closed to 1
    open; `qvel` (14,), their velocities; `environment_state`, position in meters and quaternion (w, x, y, z) of the
    cube, or of peg and socket; `top`, `angle`, `vis`, frames uint8 (H, W, 3). Actions (14,) are wanted positions in the
    units of `state`. gym-aloha declares [-1, 1] for them, which the arms leave; here the bounds are those of the
    model's actuators. Rewards are 0 to 4, by contact; 4 is success, which ends the episode. So do actions that make the
    physics unstable, as a failure.

    Args:
        task: one of `TASKS`.
        shown: names and shapes of the observations.
        rendering: quality of the frames.

    Raises:
        GtpVisionError: gym-aloha is not installed; an unknown observation; no OpenGL library for frames.
    """

    def __init__(self, task: str, shown: Shown, rendering: Rendering) -> None:
        require("aloha", f"aloha/{task}", "gym_aloha")
        short, self._instruction = TASKS[task]
        states = {"state": (_JOINTS,), "qpos": (_JOINTS,), "qvel": (_JOINTS,), "environment_state": (_OBJECT[short],)}
        self.observation_space = space_of(f"aloha/{task}", shown, states, _CAMERAS)
        self._shown = shown
        choose_backend(required=has_frames(shown))
        from gym_aloha.env import AlohaEnv

        self.simulator: Any = AlohaEnv(short)
        self._physics, self._task = self.simulator._env.physics, self.simulator._env.task
        # It would render three cameras in each step.
        self._task.get_observation = lambda physics: {"images": {"top": np.zeros((0, 0, 3), np.uint8)}}
        self._cameras = Cameras(self._physics.model.ptr, rendering) if has_frames(shown) else None
        arms = self._physics.model.actuator_ctrlrange.reshape(2, 8, 2)[:, :6]
        bounds = np.concatenate([arms, np.array([[[0.0, 1.0]]] * 2)], 1).reshape(_JOINTS, 2).astype(np.float32)
        self.action_space = gymnasium.spaces.Box(bounds[:, 0], bounds[:, 1])

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """Begin an episode, which depends on the seed alone if there is one."""
        super().reset(seed=seed)
        self.simulator.reset(seed=None if seed is None else seed % 2**32)
        return self._observed(), {"success": False, "instruction": self._instruction}

    def step(self, action: np.ndarray) -> tuple[dict[str, np.ndarray], float, bool, bool, dict[str, Any]]:
        """Act for 0.02 s: `action` float (14,)."""
        from dm_control.rl.control import PhysicsError

        try:
            _, reward, solved, _, _ = self.simulator.step(np.asarray(action, np.float64))
        except PhysicsError:
            return self._last, 0.0, True, False, {"success": False}
        return self._observed(), float(reward), bool(solved), False, {"success": bool(solved)}

    def close(self) -> None:
        """Free the OpenGL contexts."""
        if self._cameras is not None:
            self._cameras.close()

    def _observed(self) -> dict[str, np.ndarray]:
        self._last = {name: self._value(name, shape) for name, shape in self._shown.items()}
        return self._last

    def _value(self, name: str, shape: tuple[int, ...]) -> np.ndarray:
        if self._cameras is not None and name in _CAMERAS:
            return self._cameras.frame(self._physics.data.ptr, _CAMERAS[name], *shape[:2])
        if name == "environment_state":
            return self._task.get_env_state(self._physics)
        return self._task.get_qvel(self._physics) if name == "qvel" else self._task.get_qpos(self._physics)


ALOHA = Simulator("aloha", make, packages=("gym-aloha", "dm_control", "mujoco"))
