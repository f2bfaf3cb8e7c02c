"""OGBench's environments, rendered as the data were."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np

from gtp_vision.core.errors import GtpVisionError, propose
from gtp_vision.envs.rendering import Rendering, choose_backend


def env_id(name: str) -> str:
    """Gymnasium's name of an OGBench environment: the data set's type is taken out, a version put in.

    `visual-cube-single-play-singletask-task1` is `visual-cube-single-singletask-task1-v0`.
    """
    parts = name.removesuffix("-v0").split("-")
    parts = [part for part in parts if part not in ("play", "noisy", "navigate", "stitch", "explore")]
    return "-".join([*parts, "v0"])


def make(
    name: str,
    rendering: Rendering,
    *,
    pixels: bool = True,
    max_episode_steps: int | None = None,
    collecting: bool = False,
    goals: bool = False,
) -> gymnasium.Env:
    """One environment.

    Args:
        name: OGBench's environment name, with or without the data set's type (play, noisy, ...) and version.
        rendering: quality of the frames.
        pixels: False makes the same task with state observations, which render nothing.
        max_episode_steps: time limit; None takes OGBench's.
        collecting: the environment as OGBench's data were collected in: it never ends at a goal, and manipulation
            has one target after another.
        goals: show what is to be reached, see `GoalTasks`.

    Raises:
        GtpVisionError: unknown name, discrete actions, no OpenGL where frames are needed, or no goals to show.
    """
    wanted = env_id(name)
    visual = wanted.startswith("visual-")
    choose_backend(required=visual and pixels)
    import ogbench  # noqa: F401  (registers the environments)

    if wanted not in gymnasium.registry:
        known = [key for key in gymnasium.registry if key.startswith("visual-") == visual and "oraclerep" not in key]
        raise GtpVisionError(f"there is no OGBench environment '{wanted}': {propose(wanted, known)}")
    if not pixels:
        wanted = wanted.removeprefix("visual-")
    # The checker would render several frames at once before the quality is set.
    how: dict[str, Any] = {"terminate_at_goal": False} if collecting else {}
    if collecting and str(gymnasium.spec(wanted).entry_point).startswith("ogbench.manipspace"):
        how["mode"] = "data_collection"
    env = gymnasium.make(wanted, max_episode_steps=max_episode_steps, disable_env_checker=True, **how)
    if not isinstance(env.action_space, gymnasium.spaces.Box):
        raise GtpVisionError(
            f"{wanted} takes {env.action_space}, and discrete actions are not supported; choose another environment"
        )
    if visual and pixels:
        _set_quality(env.unwrapped, rendering)
        _skip_goal_frames(env.unwrapped)
    if not goals:
        return env
    if "singletask" in wanted:
        raise GtpVisionError(
            f"{wanted} shows no observation of a goal; set task.goals=null, or task.env to a goal-conditioned "
            f"environment, e.g. {name.partition('-singletask')[0]}-v0"
        )
    return GoalTasks(env)


class GoalTasks(gymnasium.Wrapper):
    """OGBench's goal-conditioned evaluation: the tasks 1 to `num_tasks` in turn, each with a goal that is shown.

    The episode of seed s is of task 1 + s mod `num_tasks`. A reset's info holds `task` and `goal`: what
    is seen when the task is done.
    """

    def __init__(self, env: gymnasium.Env) -> None:
        super().__init__(env)
        simulator: Any = env.unwrapped
        kind = type(simulator)
        if isinstance(getattr(kind, "action_space", None), property):  # an unseeded space each time
            simulator.__class__ = type(kind.__name__, (kind,), {"action_space": simulator.action_space})

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Begin an episode; with a seed, all of it depends on that alone."""
        simulator: Any = self.env.unwrapped
        if seed is not None:
            np.random.seed(seed % 2**32)  # mazes draw start and goal from NumPy's global generator
            simulator.action_space.seed(seed)  # the goal's scene settles under random actions
            options = {"task_id": 1 + seed % simulator.num_tasks} | (options or {})
        observation, info = self.env.reset(seed=seed, options=options)
        return observation, info | {"task": simulator.cur_task_id}


def _set_quality(simulator: Any, rendering: Rendering) -> None:
    """Through OGBench's hook that modifies the model before it is compiled."""
    if not hasattr(simulator, "modify_mjcf_model"):
        return  # locomotion environments have no such hook and render in 0.2 s

    def modify(model: Any) -> Any:
        if rendering.shadow_size is not None:
            model.visual.quality.shadowsize = rendering.shadow_size
        if rendering.multisamples is not None:
            model.visual.quality.offsamples = rendering.multisamples
        return model

    simulator.modify_mjcf_model = modify


def _skip_goal_frames(simulator: Any) -> None:
    """Leave out the frames of the goal scene that every reset renders and a single task never shows.

    Only for single tasks, where the goal is fixed; in software they cost six of a reset's seven frames.
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
