"""LIBERO's tasks (Liu et al., NeurIPS 2023), in a Python of their own: hf-libero needs robosuite 1.4.

The protocol is the one of OpenVLA and openpi: the benchmark's initial states, ten steps of waiting, success ends an
episode, and so do so many steps as their longest demonstration has.
"""

from __future__ import annotations

import os
from pathlib import Path

import gymnasium

from gtp_vision.core.errors import GtpVisionError, propose
from gtp_vision.envs.remote import RemoteEnv, versions_in
from gtp_vision.envs.rendering import choose_backend
from gtp_vision.envs.simulator import EnvSpec, Simulator

PYTHON = "GTP_VISION_LIBERO_PYTHON"
"""Environment variable: the interpreter of the environment that has hf-libero."""
SUITES = {"spatial": (10, 220), "object": (10, 280), "goal": (10, 300), "10": (10, 520), "90": (90, 400)}
"""Number of tasks and most steps of an episode; github.com/Physical-Intelligence/openpi, examples/libero/main.py."""
_SIZE = (128, 128)
# Names in LIBERO's HDF5 files, and in the data sets of openpi and LeRobot, which turn frames by 180 degrees.
_FRAMES = {
    "agentview_rgb": "agentview",
    "eye_in_hand_rgb": "eye_in_hand",
    "image": "agentview",
    "image2": "eye_in_hand",
    "wrist_image": "eye_in_hand",
}
_STATES = {"ee_states": 6, "ee_pos": 3, "ee_ori": 3, "gripper_states": 2, "joint_states": 7, "state": 8}


def make(spec: EnvSpec) -> gymnasium.Env:
    """Make a task: `libero/SUITE/TASK`, by its number from 0 or by its name.

    The episode of seed s begins in the initial state s + s // 50 mod 50, so 50 from a multiple of 50 begin in all. The
    info of a reset has the task's `instruction`: that of its BDDL file if the policy knows this one, else its name's.

    Raises:
        GtpVisionError: an unknown suite, task or observation; `GTP_VISION_LIBERO_PYTHON` is not set, or has no LIBERO.
    """
    _, _, name = spec.name.partition("/")
    suite, _, task = name.partition("/")
    if suite not in SUITES:
        raise GtpVisionError(f"LIBERO has no suite '{suite}': {propose(suite, SUITES)}; write e.g. libero/goal/0")
    count, limit = SUITES[suite]
    if not task or (task.isdigit() and int(task) >= count):
        raise GtpVisionError(f"LIBERO has no {spec.name}: libero/{suite} has the tasks libero/{suite}/0 to {count - 1}")
    shown = spec.shown or ({"agentview_rgb": (*_SIZE, 3), "eye_in_hand_rgb": (*_SIZE, 3)} if spec.pixels else {})
    wanted = {}
    for key, shape in (shown or {"state": (8,)}).items():
        kind = _FRAMES.get(key) if len(shape) == 3 else key if _STATES.get(key) == shape[0] else None
        if kind is None:
            known = [*_FRAMES, *(f"{state} ({size})" for state, size in _STATES.items())]
            raise GtpVisionError(f"{spec.name} has no observation {key} {tuple(shape)}: {propose(key, known)}")
        wanted[key] = [kind, list(shape[:2])]
    if any(len(shape) == 3 for shape in shown.values()):
        choose_backend()
    settings = {"suite": f"libero_{suite}", "task": task, "shown": wanted, "known": list(spec.instructions or ())}
    env = RemoteEnv(spec.name, _python(), Path(__file__).with_name("_libero_worker.py"), settings, prefix="LIBERO_")
    return gymnasium.wrappers.TimeLimit(env, spec.max_episode_steps or limit)


def _python() -> Path:
    found = os.environ.get(PYTHON, "")
    if not found:
        raise GtpVisionError(
            f"LIBERO runs in a Python of its own, and {PYTHON} does not name it; run python3 -m venv libero-env && "
            f"libero-env/bin/pip install hf-libero, and set {PYTHON}=$PWD/libero-env/bin/python"
        )
    if not Path(found).is_file() or not os.access(found, os.X_OK):
        raise GtpVisionError(f"{PYTHON}={found} is not a program; set it to the python of LIBERO's environment")
    return Path(found)


def tasks(name: str) -> list[str]:
    """The tasks of `libero/SUITE`."""
    count, _ = SUITES.get(name.removeprefix("libero/"), (0, 0))
    return [f"{name}/{number}" for number in range(count)]


def _versions() -> dict[str, str]:
    found = os.environ.get(PYTHON)
    installed = versions_in(found, ("hf-libero", "robosuite", "mujoco")) if found else {}
    return {name if name == "hf-libero" else f"libero/{name}": held for name, held in installed.items()}


LIBERO = Simulator(
    "libero",
    make,
    tasks=tasks,
    elsewhere=_versions,
    prepare=lambda spec: _python(),
    state=lambda env: env.unwrapped.state(),  # type: ignore[attr-defined]
    restore=lambda env, recorded: env.unwrapped.restore({"states": recorded["states"]}),  # type: ignore[attr-defined]
)
