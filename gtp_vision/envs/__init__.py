"""Simulators behind one factory."""

from __future__ import annotations

import os
import signal
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, SupportsFloat

import gymnasium
from gymnasium.vector import AsyncVectorEnv, AutoresetMode

from gtp_vision.envs import d4rl, ogbench
from gtp_vision.envs.rendering import Rendering, choose_backend


@dataclass(frozen=True)
class EnvSpec:
    """What it takes to make an environment, in this process or another.

    Attributes:
        name: environment name: D4RL's, Gymnasium's (`Hopper-v4`) or OGBench's.
        rendering: quality of the frames.
        pixels: False makes the task with state observations (nothing is rendered).
        max_episode_steps: time limit; None takes the environment's own.
        collecting: the environment as OGBench's data were collected in (see `ogbench.make`).
        goals: what is to be reached is shown (see `ogbench.GoalTasks`).
    """

    name: str
    rendering: Rendering = field(default_factory=Rendering)
    pixels: bool = True
    max_episode_steps: int | None = None
    collecting: bool = False
    goals: bool = False

    def make(self) -> gymnasium.Env:
        """One environment in this process."""
        if d4rl.knows(self.name):
            return d4rl.make(self.name, max_episode_steps=self.max_episode_steps, goals=self.goals)
        return ogbench.make(
            self.name,
            self.rendering,
            pixels=self.pixels,
            max_episode_steps=self.max_episode_steps,
            collecting=self.collecting,
            goals=self.goals,
        )


def make_vector(spec: EnvSpec, count: int) -> AsyncVectorEnv:
    """`count` environments, a process each, reset only when asked (with a seed for each episode)."""
    if spec.pixels and spec.name.startswith("visual-"):
        choose_backend()  # here, so that a missing library is one sentence and not a dead worker
    main = os.getpid()
    return AsyncVectorEnv(
        [lambda: _make_in_worker(spec, main)] * count,
        context="spawn",  # a fork would inherit this process's threads and, on a GPU, its CUDA context
        autoreset_mode=AutoresetMode.DISABLED,
    )


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
        told: what of the info of a reset; of a step's it is `success`.
    """

    def __init__(self, env: gymnasium.Env, told: Sequence[str]) -> None:
        super().__init__(env)
        self._told = told

    def reset(self, **arguments: Any) -> tuple[Any, dict[str, Any]]:
        observation, info = self.env.reset(**arguments)
        return observation, {name: info[name] for name in self._told}

    def step(self, action: Any) -> tuple[Any, SupportsFloat, bool, bool, dict[str, Any]]:
        observation, reward, terminated, truncated, info = self.env.step(action)
        return observation, reward, terminated, truncated, {"success": bool(info.get("success", False))}

    def close(self) -> None:
        close(self.env)


def quiet_worker() -> None:
    """Settings of a process that runs one environment beside others."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the main process's to handle
    os.environ["LP_NUM_THREADS"] = "1"  # software OpenGL: one thread each, the processes use the cores
    warnings.filterwarnings("ignore", category=UserWarning, module="gymnasium")


def _make_in_worker(spec: EnvSpec, main: int) -> gymnasium.Env:
    if os.getpid() != main:  # Gymnasium makes one in the main process, too, to look at its spaces
        quiet_worker()
    return _Worker(spec.make(), told=("task", "goal") if spec.goals else ())


__all__ = ["EnvSpec", "Rendering", "choose_backend", "close", "make_vector", "quiet_worker"]
