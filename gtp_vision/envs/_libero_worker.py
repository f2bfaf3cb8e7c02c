"""LIBERO's environments, in the Python that has hf-libero; run by `_remote_worker.py`, so it imports none of ours."""

import importlib.util
import os
import tempfile

import numpy as np

_HALF_OPEN = 0.02  # m of each finger
WAIT = 10  # steps until the objects lie still
_STILL = [0.0] * 6 + [-1.0]
_CAMERAS = {"agentview": "agentview_image", "eye_in_hand": "robot0_eye_in_hand_image"}


class _UnknownError(ValueError):
    def __init__(self, what, name, known):  # type: ignore[no-untyped-def]
        super().__init__(f"unknown {what} '{name}'")
        self.known = [name, *known]


class _Task:
    """One task, whose episode of seed s begins in the initial state s + s // n mod n of n, `WAIT` steps later.

    So do n episodes of consecutive seeds from a multiple of n, and those of a task that takes turns with nine others.
    """

    def __init__(self, settings):  # type: ignore[no-untyped-def]
        benchmark = importlib.import_module("libero.libero.benchmark").get_benchmark(settings["suite"])()
        names = benchmark.get_task_names()
        wanted = str(settings["task"])
        if not wanted.isdigit() and wanted not in names:
            raise _UnknownError("task", wanted, names)
        number = int(wanted) if wanted.isdigit() else names.index(wanted)
        self._task = benchmark.get_task(number)
        self._states = np.asarray(benchmark.get_task_init_states(number), np.float64)
        self._shown, sizes = settings["shown"], {}
        for kind, size in self._shown.values():
            if kind in _CAMERAS:
                sizes[kind] = size
        cameras = list(sizes)
        wrapper = importlib.import_module("libero.libero.envs.env_wrapper")
        self._env = wrapper.ControlEnv(
            bddl_file_name=benchmark.get_task_bddl_file_path(number),
            use_camera_obs=bool(cameras),
            has_offscreen_renderer=bool(cameras),
            camera_names=[_CAMERAS[kind][: -len("_image")] for kind in cameras] or ["agentview"],
            camera_heights=[sizes[kind][0] for kind in cameras] or 8,
            camera_widths=[sizes[kind][1] for kind in cameras] or 8,
            ignore_done=True,
        )
        texts = [self._task.language, self._env.language_instruction]  # of the file's name, and of the BDDL file
        self._text = next((text for text in texts if text in settings["known"]), texts[0])

    def spaces(self):  # type: ignore[no-untyped-def]
        """An observation, the bounds of actions, and facts."""
        seen, _ = self.reset(0)
        low, high = self._env.env.action_spec
        metadata = importlib.import_module("importlib.metadata")
        versions = {name: metadata.version(name) for name in ("hf-libero", "robosuite", "mujoco")}
        facts = {"instruction": self._text, "states": len(self._states), "versions": versions}
        return seen, low.astype(np.float32), high.astype(np.float32), facts

    def reset(self, seed):  # type: ignore[no-untyped-def]
        """An episode of the benchmark's protocol."""
        self._begin(self._states[(seed + seed // len(self._states)) % len(self._states)])
        for _ in range(WAIT):
            found = self._env.step(_STILL)[0]
        return self._seen(found), {"instruction": self._text, "success": False}

    def step(self, action):  # type: ignore[no-untyped-def]
        """One control step, of 0.05 s."""
        found, reward, _, _ = self._env.step(action)
        success = bool(self._env.check_success())
        return self._seen(found), reward, success, {"success": success}

    def state(self):  # type: ignore[no-untyped-def]
        """As LIBERO's files have it: time, positions, velocities."""
        return {"states": np.asarray(self._env.get_sim_state(), np.float64)}

    def restore(self, arrays):  # type: ignore[no-untyped-def]
        """Begin in a recorded state, without waiting: the controller holds its pose, the fingers their opening."""
        self._begin(arrays["states"])
        for robot in self._env.robots:
            robot.controller.update(force=True)
            opening = np.abs(self._env.sim.data.qpos[robot._ref_gripper_joint_pos_indexes]).mean()
            robot.gripper.current_action = np.array([1.0, -1.0]) * (1 if opening > _HALF_OPEN else -1)

    def _begin(self, state):  # type: ignore[no-untyped-def]
        self._env.seed(7)  # as openpi: places of fixtures, which no state holds
        self._env.reset()
        self._env.set_init_state(state)

    def _seen(self, found):  # type: ignore[no-untyped-def]
        quaternion = np.asarray(found["robot0_eef_quat"])
        values = {
            "ee_pos": found["robot0_eef_pos"],
            "ee_ori": _axis_angle(quaternion),
            "gripper_states": found["robot0_gripper_qpos"],
            "joint_states": found["robot0_joint_pos"],
        }
        values["ee_states"] = np.concatenate([values["ee_pos"], values["ee_ori"]])
        values["state"] = np.concatenate([values["ee_states"], values["gripper_states"]])
        seen = {}
        for name, (kind, _) in self._shown.items():
            if kind in _CAMERAS:
                frame = np.asarray(found[_CAMERAS[kind]], np.uint8)[::-1]  # OpenGL's first row is the lowest
                seen[name] = frame[:, ::-1] if name in ("image", "image2", "wrist_image") else frame
            else:
                seen[name] = np.asarray(values[kind], np.float32)
        return seen


def _axis_angle(quaternion):  # type: ignore[no-untyped-def]
    """(x, y, z, w) to axis times angle, as robosuite and openpi have it: (3,)."""
    w = np.clip(quaternion[3], -1.0, 1.0)
    length = np.sqrt(1.0 - w * w)
    return np.zeros(3) if np.isclose(length, 0.0) else quaternion[:3] * 2.0 * np.arccos(w) / length


def make(settings):  # type: ignore[no-untyped-def]
    """The environment of a suite's task; LIBERO asks on stdin for its settings unless they are in a file."""
    module = importlib.util.find_spec("libero")
    if module is None:
        raise ImportError("hf-libero is not installed in this Python")
    if "LIBERO_CONFIG_PATH" not in os.environ:
        root = os.path.join(next(iter(module.submodule_search_locations or [""])), "libero")
        folder = tempfile.mkdtemp(prefix="libero-")
        os.environ["LIBERO_CONFIG_PATH"] = folder
        paths = {
            "benchmark_root": ".",
            "bddl_files": "bddl_files",
            "init_states": "init_files",
            "datasets": "datasets",
            "assets": "assets",
        }
        with open(os.path.join(folder, "config.yaml"), "w") as file:
            file.writelines(f"{name}: {os.path.join(root, place)}\n" for name, place in paths.items())
    return _Task(settings)
