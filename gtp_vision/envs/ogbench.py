"""OGBench's environments, rendered as their data were."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from functools import partial
from typing import Any

import gymnasium
import numpy as np

from gtp_vision.core.errors import GtpVisionError, propose
from gtp_vision.core.extras import require
from gtp_vision.envs.rendering import Rendering, choose_backend
from gtp_vision.envs.simulator import EnvSpec, Simulator

_BUTTONS = "_cur_button_states"


def env_id(name: str) -> str:
    """Gymnasium's name of an OGBench environment: the data set's type is taken out, a version put in.

    `visual-cube-single-play-singletask-task1` is `visual-cube-single-singletask-task1-v0`.
    """
    parts = name.removesuffix("-v0").split("-")
    parts = [part for part in parts if part not in ("play", "noisy", "navigate", "stitch", "explore")]
    return "-".join([*parts, "v0"])


def prepare(spec: EnvSpec) -> None:
    """Check that the simulator is installed, and draws where frames are needed. Raises GtpVisionError."""
    require("ogbench", f"the environment {spec.name}", "ogbench", "mujoco")
    if spec.pixels and spec.name.startswith("visual-"):
        choose_backend()


def make(spec: EnvSpec) -> gymnasium.Env:
    """Make one environment; its name may have the data set's type (play, noisy, ...) and version or not.

    Raises:
        GtpVisionError: unknown name, no OpenGL where frames are needed, or no goals.
    """
    name = spec.name
    wanted = env_id(name)
    is_visual = wanted.startswith("visual-")
    prepare(spec)
    import ogbench  # noqa: F401  (registers the environments)

    warnings.filterwarnings("ignore", message=".*Box (low|high).*")  # Gymnasium's, of OGBench's own spaces

    if wanted not in gymnasium.registry:
        known = [key for key in gymnasium.registry if key.startswith("visual-") == is_visual and "oraclerep" not in key]
        raise GtpVisionError(f"unknown OGBench environment '{wanted}': {propose(wanted, known)}")
    if not spec.pixels:
        wanted = wanted.removeprefix("visual-")
    # The checker would render several frames at once before the quality is set.
    settings: dict[str, Any] = {"terminate_at_goal": False} if spec.collecting else {}
    if spec.collecting and str(gymnasium.spec(wanted).entry_point).startswith("ogbench.manipspace"):
        settings["mode"] = "data_collection"
    env = gymnasium.make(wanted, max_episode_steps=spec.max_episode_steps, disable_env_checker=True, **settings)
    if is_visual and spec.pixels:
        _set_quality(env.unwrapped, spec.rendering)
        _skip_goal_frames(env.unwrapped)
        if spec.camera is not None:
            simulator: Any = env.unwrapped
            simulator.get_pixel_observation = partial(simulator.render, camera=spec.camera)
    if not spec.goals:
        return Seeded(env)
    if "singletask" in wanted:
        raise GtpVisionError(
            f"{wanted} has no observation of a goal; set task.goals=null, or task.env to a goal-conditioned "
            f"environment, e.g. {name.partition('-singletask')[0]}-v0"
        )
    return GoalTasks(env)


class Seeded(gymnasium.Wrapper):
    """An episode depends on its seed alone: OGBench also draws from two generators that a reset does not seed."""

    def __init__(self, env: gymnasium.Env) -> None:
        super().__init__(env)
        simulator: Any = env.unwrapped
        kind = type(simulator)
        # A property makes a new, unseeded space at each access; that of observations resets the simulator for it.
        names = ("action_space", "observation_space")
        spaces = {name: getattr(simulator, name) for name in names if isinstance(getattr(kind, name, None), property)}
        if spaces:
            simulator.__class__ = type(kind.__name__, (kind,), spaces)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Begin an episode."""
        if seed is not None:
            np.random.seed(seed % 2**32)  # mazes draw start and goal from NumPy's global generator
            self.env.unwrapped.action_space.seed(seed)  # the goal's scene settles under random actions
        return self.env.reset(seed=seed, options=options)


class GoalTasks(Seeded):
    """OGBench's goal-conditioned evaluation: tasks 1 to `num_tasks` in turn, each with a goal.

    The episode of seed s is of task 1 + s mod `num_tasks`. The info of a reset has `task` and `goal`: the observation
    when the task is solved.
    """

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Begin an episode, which depends on the seed alone if there is one."""
        simulator: Any = self.env.unwrapped
        if seed is not None:
            options = {"task_id": 1 + seed % simulator.num_tasks} | (options or {})
        observation, info = super().reset(seed=seed, options=options)
        return observation, info | {"task": simulator.cur_task_id}


def _set_quality(simulator: Any, rendering: Rendering) -> None:
    """Set the rendering quality in OGBench's hook that changes the model before it is compiled."""
    if not hasattr(simulator, "modify_mjcf_model"):
        return  # locomotion has no such hook, and renders in 0.2 s

    def modify(model: Any) -> Any:
        if rendering.shadow_size is not None:
            model.visual.quality.shadowsize = rendering.shadow_size
        if rendering.multisamples is not None:
            model.visual.quality.offsamples = rendering.multisamples
        return model

    simulator.modify_mjcf_model = modify


def _skip_goal_frames(simulator: Any) -> None:
    """Skip the frames of the goal scene that every reset renders, of single tasks, which never show them.

    Without a GPU they cost six of a reset's seven frames.
    """
    if getattr(simulator, "_reward_task_id", None) is None or not hasattr(simulator, "initialize_episode"):
        return
    initialize, observe = simulator.initialize_episode, simulator.compute_observation
    blank = np.zeros((simulator._render_height, simulator._render_width, 3), np.uint8)

    def initialize_episode() -> None:
        simulator.compute_observation = lambda: blank
        try:
            initialize()
        finally:
            simulator.compute_observation = observe

    simulator.initialize_episode = initialize_episode


def state(env: gymnasium.Env) -> dict[str, np.ndarray]:
    """The arrays of OGBench's files: qpos, qvel and, where there are buttons, button_states."""
    simulator: Any = env.unwrapped
    found = {"qpos": simulator.data.qpos.copy(), "qvel": simulator.data.qvel.copy()}
    buttons = getattr(simulator, _BUTTONS, None)
    return found if buttons is None else found | {"button_states": buttons.copy()}


def restore(env: gymnasium.Env, recorded: Mapping[str, Any]) -> None:
    """Set the recorded positions, velocities and buttons.

    A step of manipulation leaves the hand's pose, which the controller reads, one physics step (2 ms) behind the
    joints; of environments with buttons it computes it anew.
    """
    simulator: Any = env.unwrapped
    qpos, qvel = (np.asarray(recorded[name], np.float64) for name in ("qpos", "qvel"))
    if hasattr(simulator, _BUTTONS):
        simulator.set_state(qpos, qvel, np.asarray(recorded["button_states"], np.int64))
        return
    import mujoco

    before = qpos.copy()
    mujoco.mj_integratePos(simulator.model, before, qvel, -simulator.model.opt.timestep)
    simulator.set_state(before, qvel)
    simulator.data.qpos[:] = qpos


OGBENCH = Simulator(
    "ogbench",
    make,
    resembles=lambda name: True,  # its names are known only once it is imported
    has_goals=True,
    prepare=prepare,
    packages=("ogbench", "mujoco"),
    state=state,
    restore=restore,
)
