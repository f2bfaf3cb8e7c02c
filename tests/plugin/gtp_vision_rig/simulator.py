"""A simulator of the rig: `rig/reach` moves a point to the middle of the picture."""

import gymnasium
import numpy as np
from gymnasium.spaces import Box, Dict

from gtp_vision.envs.simulator import Simulator


class Reach(gymnasium.Env):
    """Actions (2,) are velocities; an episode ends within 0.2 of the middle."""

    observation_space = Dict(rgb=Box(0, 255, (32, 32, 3), np.uint8), joints=Box(-1, 1, (2,), np.float32))
    action_space = Box(-1, 1, (2,), np.float32)

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[dict, dict]:
        """Begin an episode at a random place."""
        super().reset(seed=seed)
        self.place = self.np_random.uniform(-1, 1, 2)
        return self._observation(), {}

    def step(self, action: np.ndarray) -> tuple[dict, float, bool, bool, dict]:
        """Move for a tenth of a second."""
        self.place = np.clip(self.place + 0.1 * action, -1, 1)
        success = bool(np.linalg.norm(self.place) < 0.2)
        return self._observation(), float(success), success, False, {"success": success}

    def _observation(self) -> dict[str, np.ndarray]:
        rgb = np.zeros((32, 32, 3), np.uint8)
        row, column = (15.5 + 14 * self.place).astype(int)
        rgb[row : row + 3, column : column + 3] = 255
        return {"rgb": rgb, "joints": self.place.astype(np.float32)}


RIG = Simulator(
    "rig",
    lambda spec: gymnasium.wrappers.TimeLimit(Reach(), spec.max_episode_steps or 50),
    packages=("gtp-vision-rig",),
)
