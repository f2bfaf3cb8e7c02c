"""D4RL's mazes: an ant's and a point's, with the robots and the walls that D4RL's data were collected with.

Gymnasium-Robotics' AntMaze is another robot (torques of 150 instead of 30, steps of 0.05 s instead of 0.1 s, a centred
and mirrored maze), so D4RL's is built here from OGBench's ant, which is D4RL's.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from importlib import resources
from typing import Any

import gymnasium
import mujoco
import numpy as np
from gymnasium.envs.mujoco.mujoco_env import MujocoEnv

# Walls are '#'. The ant walks and the point rolls through the same mazes.
WALLS = {
    "open": ("#######", "#     #", "#     #", "#     #", "#######"),
    "umaze": ("#####", "#   #", "### #", "#   #", "#####"),
    "medium": (
        "########",
        "#  ##  #",
        "#  #   #",
        "##   ###",
        "#  #   #",
        "# #  # #",
        "#   #  #",
        "########",
    ),
    "large": (
        "############",
        "#    #     #",
        "# ## # # # #",
        "#      #   #",
        "# #### ### #",
        "#  # #     #",
        "## # # # ###",
        "#  #   #   #",
        "############",
    ),
}
ANT_GOALS = {"umaze": (3, 1), "medium": (6, 6), "large": (7, 9)}  # row, column; the ant starts at (1, 1)
POINT_GOALS = {"open": (2, 3), "umaze": (1, 1), "medium": (6, 6), "large": (7, 9)}
RADIUS = 0.5  # within it the goal is reached, in the simulator's units


def cells(size: str, kind: str) -> list[tuple[int, int]]:
    """Row and column of a maze's walls ('#') or free cells (' ')."""
    return [(i, j) for i, row in enumerate(WALLS[size]) for j, found in enumerate(row) if found == kind]


class _Maze(MujocoEnv, ABC):
    """A robot (MJCF) among walls; `frame_skip` simulation steps a step, `observations` numbers an observation."""

    def __init__(self, robot: Any, frame_skip: int, observations: int) -> None:
        space = gymnasium.spaces.Box(-np.inf, np.inf, (observations,), np.float64)
        self.goal = np.zeros(2)
        super().__init__(str(robot), frame_skip, space)

    def _initialize_simulation(self) -> tuple[mujoco.MjModel, mujoco.MjData]:
        spec = mujoco.MjSpec.from_file(self.fullpath)
        self.build(spec)
        model = spec.compile()
        return model, mujoco.MjData(model)

    @abstractmethod
    def build(self, spec: Any) -> None:
        """Put the walls around the robot."""

    def observe(self) -> np.ndarray:
        """Positions and velocities, float64; x and y come first."""
        return np.concatenate([self.data.qpos, self.data.qvel])

    @property
    def reached(self) -> bool:
        """Whether the goal is reached."""
        return bool(np.linalg.norm(self.data.qpos[:2] - self.goal) <= RADIUS)


class AntMaze(_Maze):
    """D4RL's AntMaze as it evaluates: from the cell in the corner to the goal's, reward 1 there, which ends it.

    Observation (29,): x, y, the torso's height and quaternion, 8 joints, 14 velocities. Cells are 4 m wide and the
    origin is the first one's centre. The goal, which is not shown, is drawn for each episode within its cell, as in v2;
    v0 and v1 drew it once a process. `size` is umaze, medium or large.
    """

    _CELL = 4.0  # m

    def __init__(self, size: str) -> None:
        self._size = size
        super().__init__(resources.files("ogbench") / "locomaze" / "assets" / "ant.xml", 5, 29)

    def build(self, spec: Any) -> None:
        """Walls 2 m high."""
        for row, column in cells(self._size, "#"):
            spec.worldbody.add_geom(
                type=mujoco.mjtGeom.mjGEOM_BOX,
                pos=[(column - 1) * self._CELL, (row - 1) * self._CELL, self._CELL / 4],
                size=[self._CELL / 2, self._CELL / 2, self._CELL / 4],
                conaffinity=1,
            )

    def reset_model(self) -> np.ndarray:
        """At the origin, D4RL's noise on pose, velocities and goal."""
        row, column = ANT_GOALS[self._size]
        corner = np.array([column - 1, row - 1]) * self._CELL
        self.goal = corner + self.np_random.uniform(0, self._CELL / 4, 2) + self.np_random.uniform(0, self._CELL / 8, 2)
        self.set_state(
            self.init_qpos + self.np_random.uniform(-0.1, 0.1, self.model.nq),
            self.init_qvel + 0.1 * self.np_random.standard_normal(self.model.nv),
        )
        return self.observe()

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:  # type: ignore[override]
        """0.1 s under an action (8,) in [-1, 1]."""
        self.do_simulation(np.clip(action, -1, 1), self.frame_skip)
        return self.observe(), float(self.reached), self.reached, False, {"success": self.reached}


class PointMaze(_Maze):
    """D4RL's maze2d: a ball from anywhere to one goal, without an end.

    Reward 1 a step at the goal, or exp(-distance) if `dense`. Observation (4,): position and velocity. Cells are 1
    wide; x counts rows and y columns. `size` is open, umaze, medium or large.
    """

    _OFFSET = 0.2  # of D4RL's positions from the centres of the cells they number

    def __init__(self, size: str, *, dense: bool = False) -> None:
        self._size, self._dense = size, dense
        super().__init__(resources.files("gymnasium_robotics") / "envs" / "assets" / "point" / "point.xml", 1, 4)
        self.goal = np.array(POINT_GOALS[size], np.float64)

    def build(self, spec: Any) -> None:
        """Walls, and the ball where D4RL counts from."""
        spec.body("particle").pos = [self._OFFSET, self._OFFSET, 0]
        for row, column in cells(self._size, "#"):
            spec.worldbody.add_geom(type=mujoco.mjtGeom.mjGEOM_BOX, pos=[row, column, 0], size=[0.5, 0.5, 0.2])

    def reset_model(self) -> np.ndarray:
        """In any free cell, nearly at rest."""
        free = np.array(cells(self._size, " "), np.float64)
        position = free[self.np_random.integers(len(free))] + self.np_random.uniform(-0.1, 0.1, 2)
        self.set_state(position, 0.1 * self.np_random.standard_normal(2))
        return self.observe()

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:  # type: ignore[override]
        """0.01 s under an action (2,) in [-1, 1]; speeds are cut at 5 before."""
        self.set_state(self.data.qpos, np.clip(self.data.qvel, -5, 5))
        self.do_simulation(np.clip(action, -1, 1), self.frame_skip)
        distance = np.linalg.norm(self.data.qpos - self.goal)
        reward = float(np.exp(-distance)) if self._dense else float(self.reached)
        return self.observe(), reward, False, False, {"success": self.reached}
