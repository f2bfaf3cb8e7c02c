"""D4RL's environments on today's simulators, and Gymnasium's own. docs/environments.md says what differs."""

from __future__ import annotations

import contextlib
import importlib
import io
import re
import warnings
from collections.abc import Iterator, Mapping
from itertools import product
from typing import Any, SupportsFloat

import gymnasium
import numpy as np

from gtp_vision.core.errors import GtpVisionError, propose
from gtp_vision.core.extras import importing
from gtp_vision.envs.simulator import EnvSpec, Simulator

ROBOTS = {"hopper": "Hopper", "halfcheetah": "HalfCheetah", "walker2d": "Walker2d", "ant": "Ant"}
HANDS = {"pen": "Pen", "hammer": "Hammer", "door": "Door", "relocate": "Relocate"}
HAND_HORIZON = {"pen": 100, "hammer": 200, "door": 200, "relocate": 200}
KITCHEN_TASKS = {
    "complete": ("microwave", "kettle", "light switch", "slide cabinet"),
    "partial": ("microwave", "kettle", "light switch", "slide cabinet"),
    "mixed": ("microwave", "kettle", "bottom burner", "light switch"),
}
ANTMAZE_HORIZON = {"umaze": 700, "medium": 1000, "large": 1000}
MAZE2D_HORIZON = {"open": 150, "umaze": 300, "medium": 600, "large": 800}

_ANT_SIZE = 111  # of which D4RL's sets fill 27: MuJoCo 2.0 left the contact forces at 0, see AntObservation
_GYMNASIUM = re.compile(r"(?:gymnasium/(?P<named>[^:]+)|(?P<bare>[A-Z]\w*-v\d+))")


def _names() -> dict[str, tuple[str, ...]]:
    """D4RL's names without version, each with its versions."""
    found: dict[str, tuple[str, ...]] = {}
    kinds = ("random", "medium", "expert", "medium-replay", "full-replay", "medium-expert")
    for robot, kind in product(ROBOTS, kinds):
        found[f"{robot}-{kind}"] = ("v0", "v1", "v2")
    for maze in ("umaze", "umaze-diverse", "medium-play", "medium-diverse", "large-play", "large-diverse"):
        found[f"antmaze-{maze}"] = ("v0", "v1", "v2")
    for hand, kind in product(HANDS, ("human", "cloned", "expert")):
        found[f"{hand}-{kind}"] = ("v0", "v1")
    for kind in KITCHEN_TASKS:
        found[f"kitchen-{kind}"] = ("v0",)
    for maze, reward in product(MAZE2D_HORIZON, ("", "-dense")):
        found[f"maze2d-{maze}{reward}"] = ("v0",) if maze == "open" else ("v1",)
    return found


NAMES = _names()


def find(name: str) -> str | None:
    """A D4RL name without its version (`hopper-medium-replay`), which may be left out; None for any other name."""
    body, _, version = name.rpartition("-") if re.search(r"-v\d+$", name) else (name, "", "")
    return body if body in NAMES and (not version or version in NAMES[body]) else None


def matches(name: str) -> bool:
    """Whether a name is D4RL's, or of the form of Gymnasium's."""
    return find(name) is not None or _GYMNASIUM.fullmatch(name) is not None


def resembles(name: str) -> bool:
    """Whether a name has the form of D4RL's; OGBench's have no version but v0, and share the first word antmaze."""
    first = name.split("-")[0]
    families = {body.split("-")[0] for body in NAMES} - {"antmaze"}
    return re.search(r"-v[1-9]\d*$", name) is not None or first in families or name.startswith("antmaze-umaze")


def make(spec: EnvSpec) -> gymnasium.Env:
    """Make an environment of D4RL's, or one of Gymnasium's with continuous actions. Nothing is rendered.

    An episode depends on the seed of its `reset` alone. The info of each step has `success`, except for robots that
    run.

    Args:
        spec: `name` is D4RL's (`hopper-medium-replay-v2`; the kind of data matters for the tasks of Kitchen only), or
            Gymnasium's (`Hopper-v4` or `gymnasium/Hopper-v4`).

    Raises:
        GtpVisionError: unknown name, or an extra that is not installed.
    """
    name, limit = spec.name, spec.max_episode_steps
    body = find(name)
    chosen = _GYMNASIUM.fullmatch(name)
    if body is None and chosen is None:
        known = [f"{body}-{version}" for body, versions in NAMES.items() for version in versions]
        raise GtpVisionError(f"unknown D4RL environment '{name}': {propose(name, known)}")
    if body is None:
        assert chosen is not None
        return _make_gymnasium(chosen["named"] or chosen["bare"], limit)
    family, kind = body.split("-", 1)
    if family in ROBOTS:
        env = _registered(f"{ROBOTS[family]}-v4", limit or 1000)
        return AntObservation(env) if family == "ant" else env
    if family in HANDS:
        _need_robotics(name)
        return AdroitTask(_registered(f"AdroitHand{HANDS[family]}-v1", limit or HAND_HORIZON[family]), family)
    if family == "kitchen":
        _need_robotics(name)
        return KitchenTask(_kitchen(KITCHEN_TASKS[kind], limit or 280))
    size, *rest = kind.split("-")
    return _make_maze(name, family, size, dense="dense" in rest, limit=limit)


def _make_gymnasium(wanted: str, limit: int | None) -> gymnasium.Env:
    if wanted not in gymnasium.registry:
        raise GtpVisionError(f"unknown Gymnasium environment '{wanted}': {propose(wanted, gymnasium.registry)}")
    try:
        return _registered(wanted, limit)
    except gymnasium.error.Error as error:
        raise GtpVisionError(f"Gymnasium cannot make {wanted}: {error}") from error


def _make_maze(name: str, family: str, size: str, *, dense: bool, limit: int | None) -> gymnasium.Env:
    with importing("d4rl", name):
        from gtp_vision.envs import _mazes  # not above: it imports mujoco, which looks for its OpenGL then

    if family == "antmaze":
        return gymnasium.wrappers.TimeLimit(_mazes.AntMaze(size), limit or ANTMAZE_HORIZON[size])
    _need_robotics(name)
    return gymnasium.wrappers.TimeLimit(_mazes.PointMaze(size, dense=dense), limit or MAZE2D_HORIZON[size])


def _kitchen(tasks: tuple[str, ...], limit: int) -> gymnasium.Env:
    # D4RL's noise. KitchenTask draws that of the objects: the simulator's is off by one joint.
    noise = {"robot_noise_ratio": KitchenTask.NOISE, "object_noise_ratio": 0.0}
    return _registered("FrankaKitchen-v1", limit, tasks_to_complete=list(tasks), **noise)


def _registered(wanted: str, limit: int | None, **settings: Any) -> gymnasium.Env:
    with _quiet():
        return gymnasium.make(wanted, max_episode_steps=limit, disable_env_checker=True, **settings)


def _need_robotics(name: str) -> None:
    with importing("d4rl", name), _quiet():
        importlib.import_module("gymnasium_robotics")  # registers its environments


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Hide the notices of newer versions: D4RL's data fit v4, and v5 is another task."""
    with (
        warnings.catch_warnings(),
        contextlib.redirect_stdout(io.StringIO()),
        contextlib.redirect_stderr(io.StringIO()),
    ):
        warnings.simplefilter("ignore")
        yield


class AntObservation(gymnasium.ObservationWrapper):
    """Ant's 27 numbers and 84 zeros where its contact forces were.

    MuJoCo 2.0 and 2.1 did not compute them by default, so D4RL's v2 sets and its evaluation have zeros there (D4RL
    issue 143).
    """

    def __init__(self, env: gymnasium.Env) -> None:
        super().__init__(env)
        self.observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (_ANT_SIZE,), np.float64)

    def observation(self, observation: Any) -> np.ndarray:
        """(27,) to (111,)."""
        return np.pad(observation, (0, _ANT_SIZE - len(observation)))


class AdroitTask(gymnasium.Wrapper):
    """Gymnasium-Robotics' AdroitHand*-v1 as D4RL has it.

    D4RL's reward subtracts 0.1 times the distance from palm to hammer, handle or ball; v1 adds it by mistake
    (Gymnasium-Robotics pull request 220). D4RL ends an episode when the pen has fallen; v1 does not.
    """

    _FALLEN = 0.075  # height of the pen, m

    def __init__(self, env: gymnasium.Env, hand: str) -> None:
        super().__init__(env)
        self._hand = hand

    def step(self, action: Any) -> tuple[Any, SupportsFloat, bool, bool, dict[str, Any]]:
        """As D4RL's."""
        observation, reward, terminated, truncated, info = self.env.step(action)
        if self._hand == "pen":
            return observation, reward, bool(observation[26] < self._FALLEN), truncated, info
        return observation, float(reward) - 0.2 * self._reach(observation), terminated, truncated, info

    def _reach(self, observation: np.ndarray) -> float:
        """Distance from the palm to what it must grasp, m."""
        if self._hand == "hammer":
            return float(np.linalg.norm(observation[33:36] - observation[36:39]))
        palm_to_object = observation[35:38] if self._hand == "door" else observation[30:33]
        return float(np.linalg.norm(palm_to_object))


class KitchenTask(gymnasium.Wrapper):
    """FrankaKitchen-v1 with D4RL's observation of 60 numbers: 9 joints of the robot, 21 of the objects, 30 of the goal.

    The reward is the number of tasks that this step completed; an episode ends when all four are done.
    """

    NOISE = 0.1  # D4RL's share of the amplitudes that the robot's configuration states

    def __init__(self, env: gymnasium.Env) -> None:
        super().__init__(env)
        simulator: Any = env.unwrapped
        indices = importlib.import_module(type(simulator).__module__).OBS_ELEMENT_INDICES
        self._goal = np.zeros(30)
        for task, goal in simulator.goal.items():
            self._goal[indices[task]] = goal
        amplitudes = simulator.robot_env.robot_pos_noise_amp[9:]
        self._noise = self.NOISE * np.append(amplitudes, [0.005] * (21 - len(amplitudes)))
        self.observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (60,), np.float64)

    def reset(self, **arguments: Any) -> tuple[Any, dict[str, Any]]:
        """Begin an episode."""
        observation, info = self.env.reset(**arguments)
        return self._observe(observation), info

    def step(self, action: Any) -> tuple[Any, SupportsFloat, bool, bool, dict[str, Any]]:
        """As D4RL's; `success` is that all tasks are done."""
        observation, reward, terminated, truncated, info = self.env.step(action)
        return self._observe(observation), reward, terminated, truncated, info | {"success": terminated}

    def _observe(self, observation: dict[str, Any]) -> np.ndarray:
        joints = observation["observation"]  # robot: 9 positions, 9 velocities; objects: 21 positions, 20 velocities
        noise = self._noise * self.env.unwrapped.np_random.uniform(-1, 1, 21)
        return np.concatenate([joints[:9], joints[18:39] + noise, self._goal])


def state(env: gymnasium.Env) -> dict[str, np.ndarray]:
    """Positions and velocities of MuJoCo; of other simulators nothing is known."""
    data = getattr(env.unwrapped, "data", None)
    return {} if data is None else {"qpos": data.qpos.copy(), "qvel": data.qvel.copy()}


def restore(env: gymnasium.Env, recorded: Mapping[str, Any]) -> None:
    """Set the recorded positions and velocities, or those in the observation of a robot whose place does not matter.

    Raises KeyError: neither is recorded, or the observation has less.
    """
    simulator: Any = env.unwrapped
    if not hasattr(simulator, "set_state"):
        raise KeyError("qpos")
    if "qpos" not in recorded:
        positions, numbers = simulator.model.nq, simulator.model.nq + simulator.model.nv
        seen, unseen = np.asarray(recorded["state"], np.float64), 0
        if getattr(simulator, "_exclude_current_positions_from_observation", False):
            unseen = 2 if simulator.model.jnt_type[0] == 0 else 1  # x and y of a free joint, x of planar robots
            seen = seen[: numbers - unseen]  # Ant and Humanoid show more
        if len(seen) + unseen != numbers:
            raise KeyError("qpos")
        found = np.concatenate([np.zeros(unseen), seen])
        recorded = {"qpos": found[:positions], "qvel": found[positions:]}
    simulator.set_state(*(np.asarray(recorded[name], np.float64) for name in ("qpos", "qvel")))


D4RL = Simulator(
    "d4rl",
    make,
    matches,
    resembles,
    packages=("gymnasium", "gymnasium-robotics", "mujoco"),
    state=state,
    restore=restore,
)
