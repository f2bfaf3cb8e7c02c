"""Meta-World's 50 tasks (Yu et al., CoRL 2019) of metaworld 3: a Sawyer arm at a table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import gymnasium
import numpy as np

from gtp_vision.core.errors import GtpVisionError, propose
from gtp_vision.core.extras import require
from gtp_vision.envs.rendering import Rendering, choose_backend
from gtp_vision.envs.showing import Cameras, Shown, has_frames, space_of
from gtp_vision.envs.simulator import EnvSpec, Simulator

INSTRUCTIONS = {
    "assembly-v3": "Pick up a nut and place it onto a peg",
    "basketball-v3": "Dunk the basketball into the basket",
    "bin-picking-v3": "Grasp the puck from one bin and place it into another bin",
    "box-close-v3": "Grasp the cover and close the box with it",
    "button-press-topdown-v3": "Press a button from the top",
    "button-press-topdown-wall-v3": "Bypass a wall and press a button from the top",
    "button-press-v3": "Press a button",
    "button-press-wall-v3": "Bypass a wall and press a button",
    "coffee-button-v3": "Push a button on the coffee machine",
    "coffee-pull-v3": "Pull a mug from a coffee machine",
    "coffee-push-v3": "Push a mug under a coffee machine",
    "dial-turn-v3": "Rotate a dial 180 degrees",
    "disassemble-v3": "Pick a nut out of a peg",
    "door-close-v3": "Close a door with a revolving joint",
    "door-lock-v3": "Lock the door by rotating the lock clockwise",
    "door-open-v3": "Open a door with a revolving joint",
    "door-unlock-v3": "Unlock the door by rotating the lock counter-clockwise",
    "hand-insert-v3": "Insert the gripper into a hole",
    "drawer-close-v3": "Push and close a drawer",
    "drawer-open-v3": "Open a drawer",
    "faucet-open-v3": "Rotate the faucet counter-clockwise",
    "faucet-close-v3": "Rotate the faucet clockwise",
    "hammer-v3": "Hammer a screw on the wall",
    "handle-press-side-v3": "Press a handle down sideways",
    "handle-press-v3": "Press a handle down",
    "handle-pull-side-v3": "Pull a handle up sideways",
    "handle-pull-v3": "Pull a handle up",
    "lever-pull-v3": "Pull a lever down 90 degrees",
    "pick-place-wall-v3": "Pick a puck, bypass a wall and place the puck",
    "pick-out-of-hole-v3": "Pick up a puck from a hole",
    "pick-place-v3": "Pick and place a puck to a goal",
    "plate-slide-v3": "Slide a plate into a cabinet",
    "plate-slide-side-v3": "Slide a plate into a cabinet sideways",
    "plate-slide-back-v3": "Get a plate from the cabinet",
    "plate-slide-back-side-v3": "Get a plate from the cabinet sideways",
    "peg-insert-side-v3": "Insert a peg sideways",
    "peg-unplug-side-v3": "Unplug a peg sideways",
    "soccer-v3": "Kick a soccer into the goal",
    "stick-push-v3": "Grasp a stick and push a box using the stick",
    "stick-pull-v3": "Grasp a stick and pull a box with the stick",
    "push-v3": "Push the puck to a goal",
    "push-wall-v3": "Bypass a wall and push a puck to a goal",
    "push-back-v3": "Push the puck to a goal",
    "reach-v3": "Reach a goal position",
    "reach-wall-v3": "Bypass a wall and reach a goal",
    "shelf-place-v3": "Pick and place a puck onto a shelf",
    "sweep-into-v3": "Sweep a puck into a hole",
    "sweep-v3": "Sweep a puck off the table",
    "window-open-v3": "Push and open a window",
    "window-close-v3": "Push and close a window",
}
"""Tasks, and what each is: Meta-World's documentation, in the words of LeRobot's data set `lerobot/metaworld_mt50`."""
SUITES = {"MT10": "train", "MT25": "train", "MT50": "train", "ML10": "train", "ML45": "train", "ML45-test": "test"}
_STATES = {"state": (39, 4), "environment_state": (39,)}
_CAMERAS = {"image": "corner2"} | {
    name: name for name in ("corner", "corner2", "corner3", "topview", "behindGripper", "gripperPOV")
}
_UPSIDE_DOWN = ("corner", "corner2", "corner3")
_CORNER2 = (0.75, 0.075, 0.7)  # Seo et al., arXiv 2206.14244, and LeRobot; Meta-World's own is far from the table
_SIDE = 480
_PHYSICS = 64  # numbers; the task with most has 63


def make(spec: EnvSpec) -> gymnasium.Env:
    """Make a task with Meta-World's limit of 500 steps; success ends the episode, as in its evaluation.

    Args:
        spec: `name` is `metaworld/TASK`; what is shown without a data set are `image` and `state` of 4 numbers, or
            for `pixels=False` `state` of 39.

    Raises:
        GtpVisionError: another task, see `MetaWorld`.
    """
    task = spec.name.partition("/")[2]
    if task not in INSTRUCTIONS:
        raise GtpVisionError(f"metaworld has no task '{task}': {propose(task, INSTRUCTIONS)}")
    frames: Shown = {"image": (_SIDE, _SIDE, 3), "state": (4,)}
    shown = spec.shown or (frames if spec.pixels else {"state": (39,)})
    env = MetaWorld(task, shown, spec.rendering)
    return gymnasium.wrappers.TimeLimit(env, spec.max_episode_steps or env.simulator.max_path_length)


class MetaWorld(gymnasium.Env):
    """One of Meta-World's tasks with an observed goal, and chosen observations.

    `state` of 39 numbers or `environment_state`: Meta-World's observation, that is the hand's position and the
    gripper's opening, positions and quaternions of two objects, the same of the step before, and the goal's position;
    `state` of 4: the first four. Frames uint8 (H, W, 3), upright: `corner2` or `image`, `corner`, `corner3`, `topview`,
    `behindGripper`, `gripperPOV`. Actions (4,) in [-1, 1] are motions of the hand, at most 1 cm an axis, and the
    gripper's force. The reward is Meta-World's (version 2), 0 to 10.

    Where objects and goal are is drawn anew for each episode, from the distribution from which Meta-World draws the 50
    settings of a benchmark.

    Args:
        task: one of `INSTRUCTIONS`.
        shown: names and shapes of the observations.
        rendering: quality of the frames.

    Raises:
        GtpVisionError: metaworld is not installed; an unknown observation; no OpenGL library for frames.
    """

    def __init__(self, task: str, shown: Shown, rendering: Rendering) -> None:
        self.observation_space = space_of(f"metaworld/{task}", shown, _STATES, _CAMERAS)
        simulator: Any = benchmark(draws=has_frames(shown)).ALL_V3_ENVIRONMENTS[task]()
        simulator._partially_observable = False
        del simulator.sawyer_observation_space  # of a goal that is not observed
        simulator._set_task_called, simulator._freeze_rand_vec, simulator.seeded_rand_vec = True, False, True
        simulator.model.cam("corner2").pos[:] = _CORNER2
        self.simulator, self.task, self._shown = simulator, task, shown
        self.state, self.seed = np.zeros(39), 0  # Meta-World's observation, and the seed of the episode
        self._cameras = Cameras(simulator.model, rendering) if has_frames(shown) else None
        self.action_space = simulator.action_space

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """Begin an episode, which depends on the seed alone if there is one."""
        super().reset(seed=seed)
        self.seed = int(self.np_random.integers(2**32)) if seed is None else seed
        self.simulator.seed(self.seed)
        state, _ = self.simulator.reset()
        return self._observed(state), {"success": False, "instruction": INSTRUCTIONS[self.task]}

    def step(self, action: np.ndarray) -> tuple[dict[str, np.ndarray], float, bool, bool, dict[str, Any]]:
        """Act for a control step: `action` float (4,) in [-1, 1]."""
        state, reward, _, _, info = self.simulator.step(np.asarray(action, np.float32))
        success = bool(info["success"])
        return self._observed(state), float(reward), success, False, {"success": success}

    def close(self) -> None:
        """Free the OpenGL contexts."""
        if self._cameras is not None:
            self._cameras.close()
        self.simulator.close()

    def _observed(self, state: np.ndarray) -> dict[str, np.ndarray]:
        self.state = state
        return {name: self._value(name, shape) for name, shape in self._shown.items()}

    def _value(self, name: str, shape: tuple[int, ...]) -> np.ndarray:
        if self._cameras is None or name not in _CAMERAS:
            return self.state[: shape[0]].copy()
        camera = _CAMERAS[name]
        frame = self._cameras.frame(self.simulator.data, camera, *shape[:2])
        return np.ascontiguousarray(frame[::-1, ::-1]) if camera in _UPSIDE_DOWN else frame


def benchmark(*, draws: bool) -> Any:
    """Import metaworld, for simulators that draw frames or do not; GtpVisionError: it is not installed."""
    require("metaworld", "Meta-World", "metaworld")
    choose_backend(required=draws)
    import metaworld

    return metaworld


def tasks(name: str) -> Sequence[str]:
    """The environments that a name stands for: those of `metaworld/MT10` and others; none for other names."""
    suite = name.partition("/")[2]
    if suite not in SUITES:
        return ()
    part, found = SUITES[suite], getattr(benchmark(draws=False).env_dict, f"{suite.partition('-')[0]}_V3")
    return [f"metaworld/{task}" for task in (found if suite.startswith("MT") else found[part])]


def state(env: gymnasium.Env) -> dict[str, np.ndarray]:
    """What `restore` needs, float64 by name.

    `task` (), its place in `INSTRUCTIONS`; `seed` () of the episode; `physics` (64,), filled up with zeros; `previous`
    (18,), the observation of the step before.
    """
    import mujoco

    task: Any = env.unwrapped
    model, kind, physics = task.simulator.model, _physics(), np.zeros(_PHYSICS)
    mujoco.mj_getState(model, task.simulator.data, physics[: mujoco.mj_stateSize(model, kind)], kind)
    numbers = {"task": float(list(INSTRUCTIONS).index(task.task)), "seed": float(task.seed)}
    arrays = {"physics": physics, "previous": task.simulator._prev_obs.copy()}
    return {name: np.array(number) for name, number in numbers.items()} | arrays


def restore(env: gymnasium.Env, recorded: Mapping[str, np.ndarray]) -> None:
    """Put an environment into a state of `state`; the steps after it are those of the recording, bit for bit.

    Raises:
        GtpVisionError: the state is of another task.
    """
    import mujoco

    of = int(recorded["task"])
    named = list(INSTRUCTIONS)[of] if 0 <= of < len(INSTRUCTIONS) else f"number {of}"
    task: Any = env.unwrapped
    if named != task.task:
        raise GtpVisionError(f"a recorded state is of the task {named}, not of {task.task}; name its environment")
    env.reset(seed=int(recorded["seed"]))  # which moves parts of the model, e.g. a door
    simulator, kind = task.simulator, _physics()
    physics = np.array(recorded["physics"], np.float64)[: mujoco.mj_stateSize(simulator.model, kind)]
    mujoco.mj_setState(simulator.model, simulator.data, physics, kind)
    mujoco.mj_forward(simulator.model, simulator.data)
    mujoco.mj_setState(simulator.model, simulator.data, physics, kind)  # the pass has changed the solver's warm start
    simulator._prev_obs = np.array(recorded["previous"], np.float64)


def _physics() -> int:
    """MuJoCo's number of what a step depends on, but for forces from outside, which are zeros."""
    import mujoco

    names = ("TIME", "QPOS", "QVEL", "ACT", "WARMSTART", "CTRL", "EQ_ACTIVE", "MOCAP_POS", "MOCAP_QUAT")
    return sum(int(getattr(mujoco.mjtState, f"mjSTATE_{name}")) for name in names)


METAWORLD = Simulator("metaworld", make, packages=("metaworld", "mujoco"), tasks=tasks, state=state, restore=restore)
