"""OGBench's own data sets: its oracles in its environments, by its published recipes.

Only the seeding differs: an episode depends on its own seed, whereas OGBench draws a whole data set from one stream.
The distributions are the same, the episodes are not.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import gymnasium
import numpy as np

Episode = dict[str, np.ndarray]
"""One recorded episode of T steps.

observations (T, ...) uint8 frames or float32 states, actions float32 (T, A), terminals bool (T,) with True at the
last row, qpos and qvel float32 of the state before the action, button_states int64 where there are buttons; and
`targets` and `reached`, int64 (): number of targets, and of those that were reached.
"""

_PLAN = {"noise": 0.1, "noise_smoothing": 0.5}
_MARKOV_NOISE = 0.1  # largest deviation of an episode
_MARKOV_SCALE = np.array([1, 1, 1, 3, 10])  # of that noise in x, y, z, yaw and gripper
_MARKOV = {"min_norm": 0.4}
_STACKING = {"single": (0.0, 0.0), "double": (0.0, 0.25), "triple": (0.05, 0.35), "quadruple": (0.1, 0.5)}
_MAZE_NOISE = 0.5
_STITCH_CELLS = 4  # from the start to the goal


@dataclass(frozen=True)
class Recipe:
    """How one of OGBench's data sets is recorded.

    Attributes:
        episodes: of the published training set; a tenth as many are for validation.
        steps: rows of each episode.
        description: the recipe in words, recorded in the file.
        record: (environment made with `collecting`, seed) to the episode.
    """

    episodes: int
    steps: int
    description: str
    record: Callable[[gymnasium.Env, int], Episode]


def manipulation_episode(env: gymnasium.Env, seed: int, *, noisy: bool, random_actions: float) -> Episode:
    """Record one episode of cube, scene or puzzle: an oracle moves from one random target to the next.

    A scene's episode in which the cube leaves the camera's view (other than into the drawer) is recorded again.
    OGBench's plan oracle has smooth noise; with `noisy` its closed-loop (Markov) oracle has Gaussian noise of a
    standard deviation uniform in [0, 0.1], three times that in yaw and ten times in the gripper. `random_actions` is
    the probability of an action uniform in [-1, 1] instead.
    """
    np.random.seed(seed)  # the oracles draw from NumPy's global generator
    rng = np.random.default_rng(seed)
    oracles = _oracles(env, noisy)
    start: int | None = seed
    while True:
        rows, counts = _manipulate(env, start, rng, oracles, noisy, random_actions)
        if len(oracles) == 1 or _is_visible(np.stack(rows["qpos"])):
            return _stacked(rows) | counts
        start = None  # continue with the environment's own generator


def maze_episode(env: gymnasium.Env, seed: int, *, stitch: bool) -> Episode:
    """Record one episode of a point in a maze: the shortest path with Gaussian noise of deviation 0.5.

    A new goal, at a corner or crossing anywhere, is set whenever one is reached; with `stitch` the episode has one
    goal, four cells from the start, and stays there.
    """
    np.random.seed(seed)  # the maze draws from NumPy's global generator
    rng = np.random.default_rng(seed)
    env.action_space.seed(seed)
    maze: Any = env.unwrapped
    free = [(int(i), int(j)) for i, j in np.argwhere(maze.maze_map == 0)]
    corners = [cell for cell in free if not _is_hallway(maze.maze_map, *cell)]
    start = free[rng.integers(len(free))]
    near = [cell for cell, steps in _distances(maze.maze_map, start).items() if steps == _STITCH_CELLS]
    goals = (near or [start]) if stitch else corners
    task = {"init_ij": start, "goal_ij": goals[rng.integers(len(goals))]}
    observation, _ = env.reset(seed=seed, options={"task_info": task})
    rows: dict[str, list[Any]] = {}
    targets, reached, done = 1, 0, False
    while not done:
        subgoal, _ = maze.get_oracle_subgoal(maze.get_xy(), maze.cur_goal_xy)
        direction = subgoal - maze.get_xy()
        direction = direction / (np.linalg.norm(direction) + 1e-6)
        action = np.clip(direction + rng.normal(0, _MAZE_NOISE, 2), -1, 1)
        before = observation
        observation, _, terminated, truncated, info = env.step(action)
        done = bool(terminated or truncated)
        if info["success"] and not stitch:
            maze.set_goal(corners[rng.integers(len(corners))])
            targets, reached = targets + 1, reached + 1
        _add(rows, before, action, done, info)
    if stitch:
        reached = int(bool(info["success"]))
    return _stacked(rows) | {"targets": np.array(targets), "reached": np.array(reached)}


def _manipulate(
    env: gymnasium.Env,
    seed: int | None,
    rng: np.random.Generator,
    oracles: dict[str, Any],
    noisy: bool,
    random_actions: float,
) -> tuple[dict[str, list[Any]], Episode]:
    observation, info = env.reset(seed=seed)
    simulator: Any = env.unwrapped
    stacking = rng.uniform(*_STACKING.get(getattr(simulator, "_env_type", ""), (0.5, 0.5)))
    deviation = rng.uniform(0, _MARKOV_NOISE)
    oracle = oracles[info["privileged/target_task"]]
    oracle.reset(observation, info)
    rows: dict[str, list[Any]] = {}
    targets, reached, done = 0, 0, False
    while not done:
        if rng.random() < random_actions:
            action = rng.uniform(-1, 1, 5)
        else:
            action = np.array(oracle.select_action(observation, info))
            if noisy:
                action = action + deviation * _MARKOV_SCALE * rng.normal(size=5)
        action = np.clip(action, -1, 1)
        before = observation
        observation, _, terminated, truncated, info = env.step(action)
        done = bool(terminated or truncated)
        if oracle.done:
            targets, reached = targets + 1, reached + int(info["success"])
            # The step's info is kept: OGBench's closed-loop oracle also takes its first action towards the old target.
            simulator.set_new_target(return_info=False, p_stack=stacking)
            aim = simulator.get_reset_info()
            oracle = oracles[aim["privileged/target_task"]]
            oracle.reset(observation, aim)
        _add(rows, before, action, done, info)
    return rows, {"targets": np.array(targets), "reached": np.array(reached)}


def _oracles(env: gymnasium.Env, noisy: bool) -> dict[str, Any]:
    """The oracle of each kind of target that an environment sets."""
    from ogbench.manipspace.envs.cube_env import CubeEnv
    from ogbench.manipspace.envs.puzzle_env import PuzzleEnv
    from ogbench.manipspace.oracles.markov.button_markov import ButtonMarkovOracle
    from ogbench.manipspace.oracles.markov.cube_markov import CubeMarkovOracle
    from ogbench.manipspace.oracles.markov.drawer_markov import DrawerMarkovOracle
    from ogbench.manipspace.oracles.markov.window_markov import WindowMarkovOracle
    from ogbench.manipspace.oracles.plan.button_plan import ButtonPlanOracle
    from ogbench.manipspace.oracles.plan.cube_plan import CubePlanOracle
    from ogbench.manipspace.oracles.plan.drawer_plan import DrawerPlanOracle
    from ogbench.manipspace.oracles.plan.window_plan import WindowPlanOracle

    arguments = _MARKOV if noisy else _PLAN
    cube, button, drawer, window = (
        (CubeMarkovOracle, ButtonMarkovOracle, DrawerMarkovOracle, WindowMarkovOracle)
        if noisy
        else (CubePlanOracle, ButtonPlanOracle, DrawerPlanOracle, WindowPlanOracle)
    )
    if isinstance(env.unwrapped, CubeEnv):
        return {"cube": cube(env=env, **arguments)}
    if isinstance(env.unwrapped, PuzzleEnv):
        return {"button": button(env=env, gripper_always_closed=True, **arguments)}
    kinds = {"cube": cube, "button": button, "drawer": drawer, "window": window}
    return {name: oracle(env=env, **arguments) for name, oracle in kinds.items()}


def _is_visible(qpos: np.ndarray) -> bool:
    """Whether a scene's cube stays in the camera's view or in the drawer; meters."""
    y, z = qpos[:, 15], qpos[:, 16]
    right = y >= 0.29
    left = (y <= -0.3) & ((z < 0.06) | (z > 0.08))
    return not (right | left).any()


def _is_hallway(walls: np.ndarray, i: int, j: int) -> bool:
    """Whether a cell has exactly two opposite exits."""
    along_i, along_j = walls[[i - 1, i + 1], j], walls[i, [j - 1, j + 1]]
    return bool((not along_i.any() and along_j.all()) or (not along_j.any() and along_i.all()))


def _distances(walls: np.ndarray, start: tuple[int, int]) -> dict[tuple[int, int], int]:
    """Steps from a cell to each reachable one."""
    distances, queue = {start: 0}, deque([start])
    while queue:
        i, j = queue.popleft()
        for cell in ((i - 1, j), (i, j - 1), (i + 1, j), (i, j + 1)):
            if walls[cell] == 0 and cell not in distances:
                distances[cell] = distances[i, j] + 1
                queue.append(cell)
    return distances


def _add(rows: dict[str, list[Any]], observation: np.ndarray, action: np.ndarray, done: bool, info: Any) -> None:
    row = {"observations": observation, "actions": action, "terminals": done}
    row |= {"qpos": info["prev_qpos"], "qvel": info["prev_qvel"]}
    if "prev_button_states" in info:
        row["button_states"] = info["prev_button_states"]
    for name, value in row.items():
        rows.setdefault(name, []).append(value)


def _stacked(rows: dict[str, list[Any]]) -> Episode:
    """The rows as arrays, with the dtypes of OGBench's files."""
    types: dict[str, Any] = {"terminals": bool, "button_states": np.int64}
    if rows["observations"][0].dtype == np.uint8:
        types["observations"] = np.uint8
    return {name: np.asarray(values, types.get(name, np.float32)) for name, values in rows.items()}


def _recipes() -> dict[str, Recipe]:
    recipes = {}
    tasks = {
        **dict.fromkeys(("cube-single", "cube-double", "scene", "puzzle-3x3", "puzzle-4x4"), 1000),
        **dict.fromkeys(("cube-triple", "puzzle-4x5"), 3000),
        **dict.fromkeys(("cube-quadruple", "puzzle-4x6"), 5000),
    }
    for task, episodes in tasks.items():
        share = 0.2 if task.startswith("puzzle") else 0.1
        play = "plan oracle, noise 0.1, smoothing 0.5, a new target when it is done"
        noisy = f"Markov oracle, noise up to 0.1 an episode, random actions {share}, a new target when it is done"
        for visual in ("", "visual-"):
            record = partial(manipulation_episode, noisy=False, random_actions=0.0)
            recipes[f"{visual}{task}-play"] = Recipe(episodes, 1001, play, record)
            record = partial(manipulation_episode, noisy=True, random_actions=share)
            recipes[f"{visual}{task}-noisy"] = Recipe(episodes, 1001, noisy, record)
    navigate = "shortest path, noise 0.5, a new goal when it is reached"
    stitch = "shortest path, noise 0.5, one goal 4 cells away"
    for size in ("medium", "large", "giant", "teleport"):
        episodes, steps = (500, 2001) if size == "giant" else (1000, 1001)
        navigating, stitching = (partial(maze_episode, stitch=stitches) for stitches in (False, True))
        recipes[f"pointmaze-{size}-navigate"] = Recipe(episodes, steps, navigate, navigating)
        recipes[f"pointmaze-{size}-stitch"] = Recipe(5000, 201, stitch, stitching)
    return recipes


RECIPES: dict[str, Recipe] = _recipes()
"""OGBench's name of a data set, without its version, to its recipe."""
