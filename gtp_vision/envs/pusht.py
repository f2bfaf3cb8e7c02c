"""PushT (Chi et al., RSS 2023) of gym-pusht: a disc pushes a T onto its outline."""

from __future__ import annotations

import os
import warnings
from importlib.metadata import version
from typing import Any

import gymnasium
import numpy as np

from gtp_vision.core.errors import GtpVisionError, propose
from gtp_vision.core.extras import require
from gtp_vision.envs.showing import Shown, space_of
from gtp_vision.envs.simulator import EnvSpec, Simulator

INSTRUCTION = "Push the T-shaped block onto the T-shaped target."
"""The task of LeRobot's data set `lerobot/pusht`."""
_TASK, _STEPS, _SIDE = "PushT-v0", 300, 96
_STATES = {"state": (2, 5), "agent_pos": (2,), "environment_state": (16,)}
_CAMERAS = ("image", "img", "pixels", "camera")


def make(spec: EnvSpec) -> gymnasium.Env:
    """Make PushT with a limit of 300 steps, as Diffusion Policy and LeRobot evaluate it.

    Args:
        spec: `name` is `pusht` or `pusht/PushT-v0`; what is shown without a data set are frames and the agent's
            position, or for `pixels=False` the state.

    Raises:
        GtpVisionError: another task, see `PushT`.
    """
    task = spec.name.partition("/")[2] or _TASK
    if task != _TASK:
        raise GtpVisionError(f"pusht has no task '{task}': {propose(task, [_TASK])}")
    frames: Shown = {"image": (_SIDE, _SIDE, 3), "state": (2,)}
    shown = spec.shown or (frames if spec.pixels else {"state": (5,)})
    return gymnasium.wrappers.TimeLimit(PushT(shown), spec.max_episode_steps or _STEPS)


class PushT(gymnasium.Env):
    """PushT with chosen observations.

    `image` (also `img`, `pixels`, `camera`) uint8 (H, W, 3); `state` of 2 numbers or `agent_pos`, the agent's
    position; `state` of 5, those of agent and block, and the block's angle in radians; `environment_state`, x and y of
    the block's 8 corners. Lengths in pixels of a field of 512 x 512. Actions are the position, in these units, to
    which a controller moves the agent for 0.1 s. The reward is the covered share of the goal, divided by 0.95 and at
    most 1; more than 0.95 is success, which ends the episode.

    Args:
        shown: names and shapes of the observations.

    Raises:
        GtpVisionError: gym-pusht is not installed, or pymunk is 7 or later; an unknown observation.
    """

    def __init__(self, shown: Shown) -> None:
        require("pusht", "PushT", "gym_pusht")
        if int(version("pymunk").split(".")[0]) >= 7:
            raise GtpVisionError(
                f"gym-pusht {version('gym-pusht')} needs pymunk 6, and pymunk {version('pymunk')} is installed; "
                f"pip install 'gtp-vision[pusht]'"
            )
        self.observation_space = space_of("pusht", shown, _STATES, _CAMERAS)
        self._shown = shown
        os.environ.setdefault("PYGAME_HIDE_SUPPORT_PROMPT", "1")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            from gym_pusht.envs import PushTEnv

        self.simulator: Any = PushTEnv(obs_type="state")
        self.action_space = self.simulator.action_space

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """Begin an episode, which depends on the seed alone if there is one."""
        super().reset(seed=seed)
        state, _ = self.simulator.reset(seed=seed, options=options)
        return self._observed(state), {"success": False, "instruction": INSTRUCTION}

    def step(self, action: np.ndarray) -> tuple[dict[str, np.ndarray], float, bool, bool, dict[str, Any]]:
        """Move for 0.1 s: `action` float (2,) in [0, 512]."""
        state, reward, solved, _, info = self.simulator.step(action)
        found = {"success": bool(solved), "coverage": float(info["coverage"])}
        return self._observed(state), float(reward), bool(solved), False, found

    def _observed(self, state: np.ndarray) -> dict[str, np.ndarray]:
        return {name: self._value(name, shape, state) for name, shape in self._shown.items()}

    def _value(self, name: str, shape: tuple[int, ...], state: np.ndarray) -> np.ndarray:
        if len(shape) == 3:
            self.simulator.observation_height, self.simulator.observation_width = shape[:2]
            return self.simulator._render()
        if name == "environment_state":
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # np.row_stack
                return self.simulator.get_keypoints(self.simulator._block_shapes).flatten()
        return state[: shape[0]]


PUSHT = Simulator("pusht", make, packages=("gym-pusht", "pymunk"))
