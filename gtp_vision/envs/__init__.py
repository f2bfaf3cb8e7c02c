"""Simulators, one a file, and environments in processes of their own."""

from __future__ import annotations

import contextlib
import math
import multiprocessing
import os
import signal
import threading
import warnings
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from typing import Any, SupportsFloat

import gymnasium
from gymnasium.vector import AsyncVectorEnv, AutoresetMode

from gtp_vision.core import success
from gtp_vision.core.names import INSTRUCTION
from gtp_vision.core.processes import end_with_parent
from gtp_vision.envs.rendering import Rendering, choose_backend, frames_checked
from gtp_vision.envs.simulator import SIMULATORS, EnvSpec, Simulator
from gtp_vision.envs.tasks import by_name, close, time_limit
from gtp_vision.envs.units import ActionUnits, PolicyActions

_ROUNDING = 1e-6  # of rewards that are float32


class _Vector(AsyncVectorEnv):
    """Gymnasium's vector of processes, with a time limit for their start."""

    patience: float | None = None

    def _check_spaces(self) -> None:
        is_late = threading.Event()

        def end() -> None:
            is_late.set()
            for process in self.processes:
                process.kill()

        timer = threading.Timer(self.patience or threading.TIMEOUT_MAX, end)
        timer.daemon = True
        timer.start()
        try:
            super()._check_spaces()
        except (EOFError, ConnectionError) as error:
            if is_late.is_set():
                raise multiprocessing.TimeoutError from error
            raise
        finally:
            timer.cancel()


def make_vector(spec: EnvSpec, count: int, patience: float | None = None) -> AsyncVectorEnv:
    """Make environments in a process each; they do not reset themselves, so that each episode gets its seed.

    Observations, and the goal in the info of a reset, are dicts (see `by_name`). All must start within `patience`
    seconds.

    Raises:
        multiprocessing.TimeoutError: some have not.
        EOFError: a process ended while it started.
    """
    for each in spec.each:
        each.simulator.prepare(each)
    main = os.getpid()
    kind = type("_Vector", (_Vector,), {"patience": patience})  # an attribute of the class: `__init__` needs it
    return kind(
        [lambda: _make_in_worker(spec, main)] * count,
        context="spawn",  # a fork would inherit threads and a CUDA context
        autoreset_mode=AutoresetMode.DISABLED,
    )


def make_named(spec: EnvSpec) -> gymnasium.Env:
    """Make one environment in this process, with the observations and infos of those of `make_vector`."""
    for each in spec.each:
        each.simulator.prepare(each)
    return _Worker(spec.make(), spec)


class _Worker(gymnasium.Wrapper):
    """Named observations, and an info that is reduced to `success`, or after a reset to `task` and `goal`.

    `success` is 1, 0, or NaN in a step of which the environment does not say.
    """

    def __init__(self, env: gymnasium.Env, spec: EnvSpec) -> None:
        super().__init__(env)
        self._has_goals, self._success_reward = spec.goals, spec.success_reward
        self.observation_space = gymnasium.spaces.Dict(list(by_name(env.observation_space).items()))

    def reset(self, **arguments: Any) -> tuple[Any, dict[str, Any]]:
        with frames_checked():  # a simulator may import mujoco here
            observation, info = self.env.reset(**arguments)
        task = info.get("task", info.get(INSTRUCTION))
        found = {"task": task} if self._has_goals or isinstance(task, str) else {}
        return by_name(observation), found | ({"goal": by_name(info["goal"])} if self._has_goals else {})

    def step(self, action: Any) -> tuple[Any, SupportsFloat, bool, bool, dict[str, Any]]:
        observation, reward, terminated, truncated, info = self.env.step(action)
        found = {"success": self._success(float(reward), info)}
        return by_name(observation), reward, terminated, truncated, found

    def _success(self, reward: float, info: Mapping[str, Any]) -> float:
        wanted = self._success_reward
        if wanted is not None:
            return float(reward >= wanted - _ROUNDING * max(1.0, abs(wanted)))
        final = info.get("final_info")  # of environments that reset themselves
        for found in (info, final) if isinstance(final, Mapping) else (info,):
            for key in success.KEYS:
                if (mark := success.marked(found.get(key))) is not None:
                    return float(mark)
        return math.nan

    def close(self) -> None:
        close(self.env)


def versions() -> dict[str, str]:
    """Versions of the simulators' distributions that are installed, also in their own Pythons. Nothing is imported."""
    packages = {package for simulator in SIMULATORS.values() for package in simulator.packages}
    installed = {}
    for name in sorted(packages):
        with contextlib.suppress(PackageNotFoundError):
            installed[name] = version(name)
    for simulator in SIMULATORS.values():
        installed |= simulator.elsewhere()
    return installed


def quiet_worker() -> None:
    """Set up a process that runs one environment beside others."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the main process handles Ctrl-C
    os.environ["LP_NUM_THREADS"] = "1"  # software OpenGL: one thread each, the processes use the cores
    warnings.filterwarnings("ignore", category=UserWarning, module="gymnasium")


def _make_in_worker(spec: EnvSpec, main: int) -> gymnasium.Env:
    if os.getpid() != main:  # Gymnasium makes one in the main process, too, for its spaces
        quiet_worker()
        end_with_parent(main)  # a simulator that hangs would stay
    return make_named(spec)


__all__ = [
    "SIMULATORS",
    "ActionUnits",
    "EnvSpec",
    "PolicyActions",
    "Rendering",
    "Simulator",
    "by_name",
    "choose_backend",
    "close",
    "make_named",
    "make_vector",
    "quiet_worker",
    "time_limit",
    "versions",
]
