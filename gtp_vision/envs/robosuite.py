"""robosuite's environments, made from the `env_args` of a robomimic file."""

from __future__ import annotations

import importlib.util
import logging
import os
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import gymnasium
import numpy as np

from gtp_vision.core import depth
from gtp_vision.core.errors import GtpVisionError, propose
from gtp_vision.envs._models import recorded_model
from gtp_vision.envs.rendering import choose_backend
from gtp_vision.envs.simulator import EnvSpec, Simulator

ROBOSUITE_TYPE = 1
"""robomimic's number of the environment type."""
LIFT_CAMERAS = ("frontview", "birdview", "agentview", "sideview", "robot0_robotview", "robot0_eye_in_hand")
_PROPRIO = ("eef_pos", "eef_quat", "gripper_qpos")
_IMAGE, _DEPTH, _OBJECT = "_image", "_depth", "object"
NAMES = {"Can": "PickPlaceCan", "Square": "NutAssemblySquare", "Transport": "TwoArmTransport"}
"""What robomimic calls tasks, and robosuite's names of them."""
# The limits of robomimic's rollouts for data of proficient humans.
_STEPS = {"ToolHang": 700, "TwoArmTransport": 700}
_OTHER_STEPS = 400


def make(spec: EnvSpec) -> gymnasium.Env:
    """Make the environment that a file was recorded in; an episode ends at success or at the time limit.

    Args:
        spec: `env_args` must be of robosuite, and of the environment NAME if `name` is `robosuite/NAME`; data without
            `env_args` get that environment with a Panda, OSC_POSE, 20 Hz and sparse rewards. Without
            `max_episode_steps`, the limit is robomimic's: 700 for ToolHang and TwoArmTransport, 400 for others.

    Raises:
        GtpVisionError: other `env_args`, or see `RobosuiteEnv`.
    """
    env_args, wanted = spec.env_args, spec.name.partition("/")[2]
    wanted = NAMES.get(wanted, wanted)
    if wanted and not env_args:
        env_args = task_env_args(wanted)
    if not isinstance(env_args, Mapping) or env_args.get("type") != ROBOSUITE_TYPE:
        raise GtpVisionError(
            f"task.env={spec.name} needs a robomimic file with env_args of robosuite, and the data set has none; set "
            f"task.env to the data set's simulator, e.g. robosuite/Can, or to null if there is none"
        )
    recorded = str(env_args.get("env_name", ""))
    if wanted not in ("", recorded):
        raise GtpVisionError(
            f"task.env={spec.name}, but the data set was recorded in '{recorded}'; set task.env=robosuite"
        )
    limit = spec.max_episode_steps or _STEPS.get(recorded, _OTHER_STEPS)
    return gymnasium.wrappers.TimeLimit(RobosuiteEnv(env_args, spec.shown), limit)


class RobosuiteEnv(gymnasium.Env):
    """A robosuite environment with Gymnasium's interface.

    An observation is a dict: `<camera>_image` uint8 (H, W, 3), upright; `robot<i>_eef_pos`, `robot<i>_eef_quat`
    (x, y, z, w) and `robot<i>_gripper_qpos`; `object`, the state of the objects. Lengths in metres. If it is shown,
    also `<camera>_depth` uint8 (H, W, 2), millimeters as `core.depth` has them.
    The reward is the environment's own, `info["success"]` says whether the task is solved, and it terminates then;
    time is not limited.

    Args:
        env_args: `env_name` and `env_kwargs`, as in the attribute of that name of a robomimic file.
        shown: other observations, by name and shape, in this order: any state of robosuite, and images of cameras;
            without images nothing is rendered.

    Attributes:
        notice: a sentence if the data are of a version with other dynamics; else empty.

    Raises:
        GtpVisionError: robosuite is not installed, does not know the environment or an observation, or refuses the
            settings; no OpenGL library for the cameras.
    """

    def __init__(self, env_args: Mapping[str, Any], shown: Mapping[str, tuple[int, ...]] | None = None) -> None:
        name, given = str(env_args.get("env_name", "")), env_args.get("env_kwargs") or {}
        if not isinstance(given, Mapping):
            raise GtpVisionError(
                f"env_args of '{name}' has env_kwargs that are not an object; correct the file's env_args"
            )
        settings: dict[str, Any] = dict(given)
        settings |= {"has_renderer": False, "ignore_done": True, "use_object_obs": True}
        settings["render_gpu_device_id"] = -1  # the recorder's may not exist here
        if shown is not None:
            settings |= _camera_settings(shown)
        self._cameras = bool(settings.get("use_camera_obs"))
        settings["has_offscreen_renderer"] = self._cameras
        robosuite = _robosuite(draws=self._cameras)
        if name not in robosuite.ALL_ENVIRONMENTS:
            known = [*robosuite.ALL_ENVIRONMENTS, *NAMES]
            raise GtpVisionError(f"unknown robosuite environment '{name}': {propose(name, known)}")
        self._version = str(env_args.get("env_version") or "")
        self.notice = _notice(self._version, robosuite.__version__)
        try:
            settings = _of_parts(settings)
            self.simulator: Any = robosuite.make(name, **settings)
        except Exception as error:  # a controller, a robot or a camera may fail in any way
            what = f"{type(error).__name__}: {' '.join(str(error).split())}"
            raise GtpVisionError(
                f"robosuite {robosuite.__version__} cannot make '{name}' ({what}); install the version of the file"
            ) from error
        self._name, self._shown = name, None if shown is None else list(shown)
        low, high = self.simulator.action_spec
        self.action_space = gymnasium.spaces.Box(low.astype(np.float32), high.astype(np.float32))
        observed = self._observed(self.simulator.observation_spec())
        self.observation_space = gymnasium.spaces.Dict([(key, _space(value)) for key, value in observed.items()])

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """Begin an episode, which depends on the seed alone if there is one."""
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
        self._free_context()
        return self._observed(self.simulator.reset()), {"success": False}

    def step(self, action: np.ndarray) -> tuple[dict[str, np.ndarray], float, bool, bool, dict[str, Any]]:
        """Act for one control step: `action` float (A,) in [-1, 1]."""
        self._make_current()
        observed, reward, _, _ = self.simulator.step(np.asarray(action, np.float64))
        success = bool(self.simulator._check_success())
        return self._observed(observed), float(reward), success, False, {"success": success}

    def state(self) -> np.ndarray:
        """The simulator's state as robomimic keeps it: time, positions and velocities, float64 (D,)."""
        return np.asarray(self.simulator.sim.get_state().flatten())

    def model_file(self) -> str:
        """The simulator's model as XML, which differs between episodes; robosuite's own text, which loses no digit."""
        return str(self.simulator.model.get_xml())

    def restore(self, state: np.ndarray, model: str = "") -> None:
        """Begin an episode in a recorded state, float64 (D,), and with the recorded model if it is not empty.

        As after a reset, the controllers hold the arm's pose. Raises GtpVisionError: another model than this version's.
        """
        simulator, state = self.simulator, np.asarray(state, np.float64)
        if state.shape != self.state().shape:
            raise self._other_model(f"states of {len(state)} numbers", f"{len(self.state())}")
        self._free_context()
        if model:
            own = (simulator.model.get_xml(), simulator.sim.model.get_xml())
            found = recorded_model(model, own)
            if found is None:
                raise self._other_model("a model of other parts", "its own")
            simulator._initialize_sim(xml_string=found)
        poses = [robot.init_qpos for robot in simulator.robots]
        simulator.deterministic_reset = True
        try:
            for robot in simulator.robots:
                robot.init_qpos = state[1 + np.asarray(robot._ref_joint_pos_indexes)]
            simulator.reset()
        finally:
            simulator.deterministic_reset = False
            for robot, pose in zip(simulator.robots, poses, strict=True):
                robot.init_qpos = pose
        simulator.sim.set_state_from_flattened(state)
        simulator.sim.forward()

    def _other_model(self, recorded: str, own: str) -> GtpVisionError:
        robosuite = _robosuite(draws=False)
        return GtpVisionError(
            f"the data were recorded by robosuite {self._version or 'of an unknown version'} with {recorded}, and "
            f"'{self._name}' of robosuite {robosuite.__version__} has {own}: the dynamics differ; install the version "
            f"of the data, or record them again"
        )

    def close(self) -> None:
        """Free the simulator and its OpenGL context."""
        self._free_context()
        self.simulator.close()

    def _make_current(self) -> Any:
        """Make its OpenGL context current and return it; robosuite does so once, and another's may be current."""
        context = getattr(self.simulator.sim, "_render_context_offscreen", None) if self._cameras else None
        if context is not None:
            context.gl_ctx.make_current()
        return context

    def _free_context(self) -> None:
        """Free its OpenGL context now, while it is current.

        robosuite leaves it to the garbage collector (numba's compiler calls it), which would free the framebuffer and
        the textures of the context that is current by then, the next episode's: all have the same numbers.
        """
        if self._make_current() is not None:
            self.simulator.sim._render_context_offscreen = None  # the only reference to it

    def _observed(self, found: Mapping[str, Any]) -> dict[str, np.ndarray]:
        named = {_OBJECT if key == f"{_OBJECT}-state" else key: value for key, value in found.items()}
        shown = self._shown
        if shown is None:
            robot = [key for key in named if key.startswith("robot") and key.split("_", 1)[1] in _PROPRIO]
            shown = [*(key for key in named if key.endswith(_IMAGE)), *robot, _OBJECT]
        for key in shown:
            if key not in named:
                raise GtpVisionError(
                    f"robosuite's '{self._name}' has no observation '{key}'; set task.observations to those that it "
                    f"has: {propose(key, named)}"
                )
        return {key: self._upright(key, np.asarray(named[key])) for key in shown}

    def _upright(self, key: str, value: np.ndarray) -> np.ndarray:
        """Return an observation, images with their highest row first: OpenGL's first row is the lowest."""
        if key.endswith(_DEPTH) and value.ndim == 3:
            from robosuite.utils.camera_utils import get_real_depth_map

            return depth.to_bytes(get_real_depth_map(self.simulator.sim, value)[::-1, :, 0])
        return np.ascontiguousarray(value.astype(np.uint8)[::-1]) if key.endswith(_IMAGE) else value


def lift_env_args(cameras: Sequence[str] = (), size: int = 84) -> dict[str, Any]:
    """The `env_args` of Lift, see `task_env_args`. Raises GtpVisionError: also an unknown camera."""
    for camera in cameras:
        if camera not in LIFT_CAMERAS:
            raise GtpVisionError(f"Lift has no camera '{camera}': {propose(camera, LIFT_CAMERAS)}")
    return task_env_args("Lift", cameras, size)


def task_env_args(name: str, cameras: Sequence[str] = (), size: int = 84) -> dict[str, Any]:
    """The `env_args` of a task with a Panda, the default OSC_POSE controller, at 20 Hz, sparse rewards.

    Without `cameras` it has states only. Raises GtpVisionError: robosuite is not installed.
    """
    robosuite = _robosuite(draws=bool(cameras))
    return {
        "env_name": name,
        "env_version": robosuite.__version__,
        "type": ROBOSUITE_TYPE,
        "env_kwargs": {
            "robots": ["Panda"] * (2 if name.startswith("TwoArm") else 1),
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


def _of_parts(settings: dict[str, Any]) -> dict[str, Any]:
    """Settings of robosuite 1.4 and older, one controller for an arm, as those of 1.5, one for each part of a robot.

    Physics are stepped as these versions did (`lite_physics` false).
    """
    given, robots = settings.get("controller_configs"), settings.get("robots")
    robots = [robots] if isinstance(robots, str) else list(robots or ())
    old = [each for each in (given if isinstance(given, list) else [given]) if isinstance(each, Mapping)]
    if not old or any("body_parts" in each or "type" not in each for each in old):
        return settings
    from robosuite.controllers.composite.composite_controller_factory import refactor_composite_controller_config

    found = []
    for robot, config in zip(robots, old if len(old) == len(robots) else old[:1] * len(robots), strict=True):
        kind = {"input_type": "delta" if config.get("control_delta", True) else "absolute", "input_ref_frame": "world"}
        arms = ["right", "left"] if str(robot) == "Baxter" else ["right"]
        found.append(refactor_composite_controller_config(kind | dict(config), str(robot), arms))
    return {"lite_physics": False} | settings | {"controller_configs": found[0] if len(found) == 1 else found}


def _notice(recorded: str, installed: str) -> str:
    """Say that data are of a version with another simulation, by the first two numbers of both."""
    if not recorded or recorded.split(".")[:2] == installed.split(".")[:2]:
        return ""
    return (
        f"the data were recorded by robosuite {recorded}, and robosuite {installed} is installed, whose controllers "
        f"and contacts differ: compare success rates with care"
    )


def _camera_settings(shown: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
    """The settings that render these images and distances, and no others."""
    images = {key: shape for key, shape in shown.items() if key.endswith((_IMAGE, _DEPTH)) and len(shape) == 3}
    sizes = {key.removesuffix(_IMAGE).removesuffix(_DEPTH): shape for key, shape in images.items()}
    none: dict[str, Any] = {"use_camera_obs": False, "camera_depths": False, "camera_segmentations": None}
    if not sizes:
        return none
    return none | {
        "use_camera_obs": True,
        "camera_names": list(sizes),
        "camera_depths": [f"{camera}{_DEPTH}" in images for camera in sizes],
        "camera_heights": [height for height, _, _ in sizes.values()],
        "camera_widths": [width for _, width, _ in sizes.values()],
    }


def _space(value: np.ndarray) -> gymnasium.spaces.Box:
    if value.dtype == np.uint8:
        return gymnasium.spaces.Box(0, 255, value.shape, np.uint8)
    return gymnasium.spaces.Box(-np.inf, np.inf, value.shape, value.dtype.type)


def _robosuite(*, draws: bool) -> Any:
    """Import the package without its notices, for simulators that draw frames or do not."""
    if importlib.util.find_spec("robosuite") is None:
        raise GtpVisionError("robosuite is not installed; pip install 'gtp-vision[robosuite]'")
    choose_backend(required=draws)
    logging.getLogger("robosuite_logs").addFilter(_only_errors)
    numbers = os.environ.pop("CUDA_VISIBLE_DEVICES", None)  # robosuite takes them for numbers of EGL's devices
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import robosuite
    except ImportError as error:
        raise GtpVisionError(
            f"robosuite cannot be imported ({' '.join(str(error).split())}); pip install 'gtp-vision[robosuite]'"
        ) from error
    finally:
        if numbers is not None:
            os.environ["CUDA_VISIBLE_DEVICES"] = numbers
    if draws and choose_backend() == "egl":  # which robosuite's import may have set
        import mujoco.egl
        from robosuite.renderers.context import egl_context

        egl_context.EGL_DISPLAY = mujoco.egl.EGL_DISPLAY  # robosuite's own choice follows CUDA_VISIBLE_DEVICES
    return robosuite


def _only_errors(record: logging.LogRecord) -> bool:
    return record.levelno >= logging.ERROR


ROBOSUITE = Simulator(
    "robosuite",
    make,
    packages=("robosuite", "mujoco"),
    state=lambda env: {"states": env.unwrapped.state()},  # type: ignore[attr-defined]
    restore=lambda env, recorded: env.unwrapped.restore(recorded["states"], recorded.get("model", "")),  # type: ignore[attr-defined]
)
