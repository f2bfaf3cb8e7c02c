"""Simulators behind one factory."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import threading
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from typing import Any, SupportsFloat

import gymnasium
from gymnasium.vector import AsyncVectorEnv, AutoresetMode

from gtp_vision.core.processes import end_with_parent
from gtp_vision.envs import d4rl, ogbench, own, robosuite
from gtp_vision.envs.rendering import Rendering, choose_backend

_SIMULATORS = ("gymnasium", "gymnasium-robotics", "mujoco", "ogbench", "robosuite")


@dataclass(frozen=True)
class EnvSpec:
    """What it takes to make an environment, in this process or another.

    Attributes:
        name: environment name: D4RL's, Gymnasium's (`Hopper-v4`, `gymnasium/MODULE:ID`), OGBench's, or
            `robosuite`, with or without a name.
        rendering: quality of the frames.
        pixels: False makes the task with state observations (nothing is rendered).
        max_episode_steps: time limit; None takes the environment's own.
        collecting: the environment as OGBench's data were collected in (see `ogbench.make`).
        goals: what is to be reached is shown (see `ogbench.GoalTasks`).
        env_args: what a robomimic file says of its environment; robosuite's is made of it.
        shown: names and shapes of what robosuite's shows (see `RobosuiteEnv`), or the user's own (see `own.make`).
    """

    name: str
    rendering: Rendering = field(default_factory=Rendering)
    pixels: bool = True
    max_episode_steps: int | None = None
    collecting: bool = False
    goals: bool = False
    env_args: Mapping[str, Any] | None = None
    shown: Mapping[str, tuple[int, ...]] | None = None

    def make(self) -> gymnasium.Env:
        """One environment in this process."""
        if own.knows(self.name):
            return own.make(self.name, self.shown, max_episode_steps=self.max_episode_steps, goals=self.goals)
        if d4rl.knows(self.name):
            return d4rl.make(self.name, max_episode_steps=self.max_episode_steps, goals=self.goals)
        if robosuite.knows(self.name):
            return robosuite.make(
                self.name, self.env_args, self.shown, max_episode_steps=self.max_episode_steps, goals=self.goals
            )
        return ogbench.make(
            self.name,
            self.rendering,
            pixels=self.pixels,
            max_episode_steps=self.max_episode_steps,
            collecting=self.collecting,
            goals=self.goals,
        )


class _Vector(AsyncVectorEnv):
    """Gives up on environments that do not start, for whose first answer Gymnasium waits for ever."""

    patience: float | None = None

    def _check_spaces(self) -> None:
        late = threading.Event()

        def give_up() -> None:
            late.set()
            for process in self.processes:
                process.kill()

        timer = threading.Timer(self.patience or threading.TIMEOUT_MAX, give_up)
        timer.daemon = True
        timer.start()
        try:
            super()._check_spaces()
        except (EOFError, ConnectionError) as error:
            if late.is_set():
                raise multiprocessing.TimeoutError from error
            raise
        finally:
            timer.cancel()


def make_vector(spec: EnvSpec, count: int, patience: float | None = None) -> AsyncVectorEnv:
    """`count` environments, a process each, reset only when asked (with a seed for each episode).

    Their observations, and the goal of a reset's info, are dicts (see `by_name`).

    Args:
        spec: the environment.
        count: how many.
        patience: seconds in which they must have started; None waits for ever.

    Raises:
        multiprocessing.TimeoutError: they have not.
        EOFError: one ended while it started.
    """
    if spec.pixels and spec.name.startswith("visual-"):
        choose_backend()  # here, so that a missing library is one sentence and not a dead worker
    main = os.getpid()
    kind = type("_Vector", (_Vector,), {"patience": patience})  # Gymnasium asks before it has been told
    return kind(
        [lambda: _make_in_worker(spec, main)] * count,
        context="spawn",  # a fork would inherit this process's threads and, on a GPU, its CUDA context
        autoreset_mode=AutoresetMode.DISABLED,
    )


def by_name(shown: Any) -> dict[str, Any]:
    """What an environment shows, or the space of it, by name: a single array is `camera` if a picture, else `state`."""
    if isinstance(shown, Mapping):
        return dict(shown)
    return {"camera" if len(shown.shape) == 3 else "state": shown}


def close(env: gymnasium.Env) -> None:
    """Close an environment and first its renderer: left to the interpreter's exit it complains that EGL is gone."""
    renderer = getattr(env.unwrapped, "_renderer", None)
    if renderer is not None:
        renderer.close()
    env.close()


class _Worker(gymnasium.Wrapper):
    """What crosses the process boundary; and the renderer is closed in order.

    Args:
        env: one environment.
        goals: whether the info of a reset tells `task` and `goal`; that of a step tells `success`.
    """

    def __init__(self, env: gymnasium.Env, goals: bool) -> None:
        super().__init__(env)
        self._goals = goals
        self.observation_space = gymnasium.spaces.Dict(list(by_name(env.observation_space).items()))

    def reset(self, **arguments: Any) -> tuple[Any, dict[str, Any]]:
        observation, info = self.env.reset(**arguments)
        told = {"task": info["task"], "goal": by_name(info["goal"])} if self._goals else {}
        return by_name(observation), told

    def step(self, action: Any) -> tuple[Any, SupportsFloat, bool, bool, dict[str, Any]]:
        observation, reward, terminated, truncated, info = self.env.step(action)
        return by_name(observation), reward, terminated, truncated, {"success": bool(info.get("success", False))}

    def close(self) -> None:
        close(self.env)


def versions() -> dict[str, str]:
    """What simulates here: the distributions that are installed, and their versions."""
    found = {}
    for name in _SIMULATORS:
        with contextlib.suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


def quiet_worker() -> None:
    """Settings of a process that runs one environment beside others."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the main process's to handle
    os.environ["LP_NUM_THREADS"] = "1"  # software OpenGL: one thread each, the processes use the cores
    warnings.filterwarnings("ignore", category=UserWarning, module="gymnasium")


def _make_in_worker(spec: EnvSpec, main: int) -> gymnasium.Env:
    if os.getpid() != main:  # Gymnasium makes one in the main process, too, to look at its spaces
        quiet_worker()
        end_with_parent(main)  # a simulator that hangs would stay
    return _Worker(spec.make(), spec.goals)


__all__ = ["EnvSpec", "Rendering", "by_name", "choose_backend", "close", "make_vector", "quiet_worker", "versions"]
