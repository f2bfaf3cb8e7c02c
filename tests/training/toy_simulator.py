"""A simulator for tests of online fine-tuning: a point is pushed to the origin. TOY_FAULT makes it raise or hang."""

import os
import time
from typing import Any

import gymnasium
import numpy as np
from gymnasium.spaces import Box, Dict

LIMIT = 6


class Toy(gymnasium.Env):
    """The state moves by a fifth of the action; an episode ends within 0.3 of the origin, or after `LIMIT` steps."""

    observation_space = Dict(front=Box(0, 255, (12, 12, 3), np.uint8), state=Box(-2, 2, (2,), np.float32))
    action_space = Box(-1, 1, (2,), np.float32)

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.place, self.steps = self.np_random.uniform(-0.6, 0.6, 2), 0
        return self.shown(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.steps += 1
        if self.steps == 3 and os.environ.get("TOY_FAULT") == "raises":
            raise RuntimeError("a joint is stuck")
        if self.steps == 3 and os.environ.get("TOY_FAULT") == "hangs":
            time.sleep(100)
        self.place = np.clip(self.place + 0.2 * np.asarray(action, np.float64), -1, 1)
        is_there = bool(np.linalg.norm(self.place) < 0.3)
        return self.shown(), float(is_there) - 1, is_there, self.steps == LIMIT, {"success": is_there}

    def shown(self) -> dict[str, np.ndarray]:
        frame = np.full((12, 12, 3), 30, np.uint8)
        row, column = (np.floor(5.9 * (1 + self.place))).astype(int)
        frame[row, column] = 200
        return {"front": frame, "state": self.place.astype(np.float32)}


gymnasium.register("Toy-v0", entry_point=Toy, max_episode_steps=100)
