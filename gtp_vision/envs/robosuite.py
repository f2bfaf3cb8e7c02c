"""robosuite's environments, made from what a robomimic file says of them (`env_args`)."""

from __future__ import annotations

import importlib.util
import logging
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import gymnasium
import numpy as np

from gtp_vision.core.errors import GtpVisionError, propose
from gtp_vision.envs.rendering import choose_backend

ROBOSUITE_TYPE = 1
"""robomimic's number of the environment type."""
LIFT_CAMERAS = ("frontview", "birdview", "agentview", "sideview", "robot0_robotview", "robot0_eye_in_hand")
_PROPRIO = ("eef_pos", "eef_quat", "gripper_qpos")
_IMAGE, _OBJECT = "_image", "object"
# Robomimic's rollouts for data of proficient humans.
_STEPS = {"ToolHang": 700, "TwoArmTransport": 700}
_OTHER_STEPS = 400


def knows(name: str) -> bool:
    """Whether an environment's name is robosuite's: `robosuite` or `robosuite/NAME`."""
    return name.partition("/")[0] == "robosuite"


def make(
    name: str,
    env_args: Mapping[str, Any] | None,
    shown: Mapping[str, tuple[int, ...]] | None,
    *,
    max_episode_steps: int | None = None,
    goals: bool = False,
) -> gymnasium.Env:
    """What a file was recorded in; an episode ends at success or at the time limit.

    Args:
        name: `robosuite`, or `robosuite/Lift` where `env_args` of another environment are to be refused.
        env_args: the file's, see `RobosuiteEnv`.
        shown: see `RobosuiteEnv`.
        max_episode_steps: time limit; None takes robomimic's, 700 for ToolHang and TwoArmTransport and 400 for others.
        goals: refused.

    Raises:
        GtpVisionError: no `env_args` of robosuite, or those of another environment; goals; see `RobosuiteEnv`.
    """
    if goals:
        raise GtpVisionError(f"{name} shows no observation of a goal; set task.goals=null")
    if not isinstance(env_args, Mapping) or env_args.get("type") != ROBOSUITE_TYPE:
        raise GtpVisionError(
            f"task.env={name} takes the environment from a robomimic file's env_args, and the data set has none of "
            f"robosuite; set task.env to the data set's simulator, or to null if there is none"
        )
    recorded, wanted = str(env_args.get("env_name", "")), name.partition("/")[2]
    if wanted not in ("", recorded):
        raise GtpVisionError(f"task.env={name}, but the data set was recorded in '{recorded}'; set task.env=robosuite")
    limit = max_episode_steps or _STEPS.get(recorded, _OTHER_STEPS)
    return gymnasium.wrappers.TimeLimit(RobosuiteEnv(env_args, shown), limit)


class RobosuiteEnv(gymnasium.Env):
    """A robosuite environment as Gymnasium knows them.

    An observation is a dict: `<camera>_image` uint8 (H, W, 3), upright; `robot<i>_eef_pos`, `robot<i>_eef_quat`
    (x, y, z, w) and `robot<i>_gripper_qpos`; `object`, all that the simulator knows of the objects. Lengths in metres.
    The reward is the environment's own, `info["success"]` says whether the task is solved, and it terminates then;
    there is no time limit.

    Args:
        env_args: `env_name` and `env_kwargs`, as in the attribute of that name of a robomimic file.
        shown: instead of these, names and shapes of what is shown, in this order: any state that robosuite knows, and
            pictures of these cameras only, in these sizes; nothing is rendered where there are none.

    Raises:
        GtpVisionError: robosuite is not installed; it has no such environment, or refuses the settings; no OpenGL
            library where cameras are asked for; it cannot show something.
    """

    def __init__(self, env_args: Mapping[str, Any], shown: Mapping[str, tuple[int, ...]] | None = None) -> None:
        name, given = str(env_args.get("env_name", "")), env_args.get("env_kwargs") or {}
        if not isinstance(given, Mapping):
            raise GtpVisionError(f"env_args of '{name}' has env_kwargs that are no object; correct the file's env_args")
        settings: dict[str, Any] = dict(given)
        settings |= {"has_renderer": False, "ignore_done": True, "use_object_obs": True}
        settings["render_gpu_device_id"] = -1  # the recorder's may not be there
        if shown is not None:
            settings |= _camera_settings(shown)
        self._cameras = bool(settings.get("use_camera_obs"))
        settings["has_offscreen_renderer"] = self._cameras
        choose_backend(required=self._cameras)
        robosuite = _robosuite()
        if name not in robosuite.ALL_ENVIRONMENTS:
            raise GtpVisionError(
                f"there is no robosuite environment '{name}': {propose(name, robosuite.ALL_ENVIRONMENTS)}"
            )
        try:
            self.simulator: Any = robosuite.make(name, **settings)
        except Exception as error:  # a controller, a robot or a camera may fail in any way
            what = f"{type(error).__name__}: {' '.join(str(error).split())}"
            raise GtpVisionError(
                f"robosuite {robosuite.__version__} cannot make '{name}' ({what}); take the version of the file"
            ) from error
        self._name, self._shown = name, None if shown is None else list(shown)
        low, high = self.simulator.action_spec
        self.action_space = gymnasium.spaces.Box(low.astype(np.float32), high.astype(np.float32))
        observed = self._observed(self.simulator.observation_spec())
        self.observation_space = gymnasium.spaces.Dict([(key, _space(value)) for key, value in observed.items()])

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """Begin an episode; with a seed, all of it depends on that alone."""
        super().reset(seed=seed)
        if seed is not None:
            # Up to 1.5.1 robosuite draws from NumPy's global generator, later from several of its own.
            np.random.seed(seed % 2**32)
            rng = np.random.default_rng(seed)
            for holder in (
                self.simulator,
                getattr(self.simulator, "placement_initializer", None),
                *self.simulator.robots,
            ):
                if hasattr(holder, "rng"):
                    holder.rng = rng
        return self._observed(self.simulator.reset()), {"success": False}

    def step(self, action: np.ndarray) -> tuple[dict[str, np.ndarray], float, bool, bool, dict[str, Any]]:
        """Act for one control step: `action` float (A,) in [-1, 1]."""
        observed, reward, _, _ = self.simulator.step(np.asarray(action, np.float64))
        success = bool(self.simulator._check_success())
        return self._observed(observed), float(reward), success, False, {"success": success}

    def state(self) -> np.ndarray:
        """The simulator's state as robomimic keeps it: time, positions and velocities, float64 (D,)."""
        return np.asarray(self.simulator.sim.get_state().flatten())

    def model_file(self) -> str:
        """The simulator's model as XML, which differs between episodes."""
        return str(self.simulator.sim.model.get_xml())

    def close(self) -> None:
        """Free the simulator and its OpenGL context."""
        self.simulator.close()

    def _observed(self, found: Mapping[str, Any]) -> dict[str, np.ndarray]:
        named = {_OBJECT if key == f"{_OBJECT}-state" else key: value for key, value in found.items()}
        shown = self._shown
        if shown is None:
            robot = [key for key in named if key.startswith("robot") and key.split("_", 1)[1] in _PROPRIO]
            shown = [*(key for key in named if key.endswith(_IMAGE)), *robot, _OBJECT]
        for key in shown:
            if key not in named:
                raise GtpVisionError(
                    f"robosuite's '{self._name}' shows no observation '{key}', which the task asks for; name in "
                    f"task.observations what it shows, {propose(key, named)}"
                )
        return {key: _upright(key, named[key]) for key in shown}


def lift_env_args(cameras: Sequence[str] = (), size: int = 84) -> dict[str, Any]:
    """What robomimic files say of Lift with a Panda, the default OSC_POSE controller, at 20 Hz, sparse rewards.

    Args:
        cameras: names of cameras; none for states only.
        size: height and width of their frames.

    Raises:
        GtpVisionError: robosuite is not installed; an unknown camera.
    """
    for camera in cameras:
        if camera not in LIFT_CAMERAS:
            raise GtpVisionError(f"Lift has no camera '{camera}': {propose(camera, LIFT_CAMERAS)}")
    robosuite = _robosuite()
    return {
        "env_name": "Lift",
        "env_version": robosuite.__version__,
        "type": ROBOSUITE_TYPE,
        "env_kwargs": {
            "robots": ["Panda"],
            "controller_configs": robosuite.load_composite_controller_config(robot="Panda"),
            "control_freq": 20,
            "reward_shaping": False,
            "has_renderer": False,
            "has_offscreen_renderer": bool(cameras),
            "ignore_done": True,
            "use_object_obs": True,
            "use_camera_obs": bool(cameras),
            **({"camera_names": list(cameras), "camera_heights": size, "camera_widths": size} if cameras else {}),
            "camera_depths": False,
        },
    }


def _camera_settings(shown: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
    """Of the cameras whose pictures are named."""
    sizes = {
        key.removesuffix(_IMAGE): shape for key, shape in shown.items() if key.endswith(_IMAGE) and len(shape) == 3
    }
    none: dict[str, Any] = {"use_camera_obs": False, "camera_depths": False, "camera_segmentations": None}
    if not sizes:
        return none
    return none | {
        "use_camera_obs": True,
        "camera_names": list(sizes),
        "camera_heights": [height for height, _, _ in sizes.values()],
        "camera_widths": [width for _, width, _ in sizes.values()],
    }


def _upright(key: str, value: Any) -> np.ndarray:
    if not key.endswith(_IMAGE):
        return np.asarray(value)
    return np.ascontiguousarray(np.asarray(value, np.uint8)[::-1])  # OpenGL's first row is the lowest


def _space(value: np.ndarray) -> gymnasium.spaces.Box:
    if value.dtype == np.uint8:
        return gymnasium.spaces.Box(0, 255, value.shape, np.uint8)
    return gymnasium.spaces.Box(-np.inf, np.inf, value.shape, value.dtype.type)


def _robosuite() -> Any:
    """The package, without what it says of itself when it is imported and used."""
    if importlib.util.find_spec("robosuite") is None:
        raise GtpVisionError("robosuite is not installed; pip install 'gtp-vision[robosuite]'")
    choose_backend(required=False)  # robosuite imports mujoco, which takes what is chosen by then
    logging.getLogger("robosuite_logs").addFilter(_only_errors)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            import robosuite
        except ImportError as error:
            raise GtpVisionError(
                f"robosuite cannot be imported ({' '.join(str(error).split())}); pip install 'gtp-vision[robosuite]'"
            ) from error
    return robosuite


def _only_errors(record: logging.LogRecord) -> bool:
    return record.levelno >= logging.ERROR
