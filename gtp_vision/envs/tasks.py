"""What an episode is to do: its task in the info of a reset, and the instruction as an observation."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import gymnasium
import numpy as np

from gtp_vision.core.errors import GtpVisionError, propose
from gtp_vision.core.names import INSTRUCTION


class InTurns(gymnasium.Env):
    """Environments by name that take turns: the episode of seed s is of number s mod n, which gets the seed.

    The info of a reset has the name as `task`. Raises GtpVisionError: they differ in observations or actions.
    """

    def __init__(self, envs: Mapping[str, gymnasium.Env]) -> None:
        self._names, self.envs, self._now = list(envs), list(envs.values()), 0
        first = self.envs[0]
        self.observation_space, self.action_space = first.observation_space, first.action_space
        for name, env in envs.items():
            if (env.observation_space, env.action_space) != (self.observation_space, self.action_space):
                raise GtpVisionError(
                    f"{name} and {self._names[0]} cannot take turns, as their observations or actions differ; evaluate "
                    f"each on its own"
                )

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Begin an episode; without a seed, of the same environment as the last one."""
        if seed is not None:
            self._now = seed % len(self.envs)
        observation, info = self.envs[self._now].reset(seed=seed, options=options)
        return observation, info | {"task": self._names[self._now]}

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        """As of any environment."""
        return self.envs[self._now].step(action)

    def close(self) -> None:
        """Close all."""
        for env in self.envs:
            close(env)


class Instructed(gymnasium.Wrapper):
    """Shows the vector of what is to be done: `instruction` in the info of a reset, or else the environment's name.

    Raises GtpVisionError in a reset: a text that is not among `vectors`, text to float32 (D,).
    """

    def __init__(self, env: gymnasium.Env, name: str, vectors: Mapping[str, np.ndarray]) -> None:
        super().__init__(env)
        self._name, self._vectors, self._vector = name, vectors, next(iter(vectors.values()))
        space = gymnasium.spaces.Box(-np.inf, np.inf, self._vector.shape, np.float32)
        self.observation_space = gymnasium.spaces.Dict([*by_name(env.observation_space).items(), (INSTRUCTION, space)])

    def reset(self, **arguments: Any) -> tuple[Any, dict[str, Any]]:
        """As of any environment, with `instruction` in the info."""
        observation, info = super().reset(**arguments)
        name = str(info.get("task", self._name))
        texts = [info[INSTRUCTION].strip()] if INSTRUCTION in info else [name, name.rpartition("/")[2]]
        text = next((text for text in texts if text in self._vectors), None)
        if text is None:
            raise GtpVisionError(
                f"{name}: '{texts[0]}' is not an instruction of the policy: {propose(texts[0], self._vectors)}"
            )
        self._vector = self._vectors[text]
        if "goal" in info:
            info["goal"] = self._shown(info["goal"])
        return self._shown(observation), info | {INSTRUCTION: text}

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        """As of any environment."""
        observation, reward, terminated, truncated, info = super().step(action)
        return self._shown(observation), reward, terminated, truncated, info

    def _shown(self, observation: Any) -> dict[str, Any]:
        return {**by_name(observation), INSTRUCTION: self._vector}


def by_name(shown: Any) -> dict[str, Any]:
    """Observations, or their spaces, by name: a single image is called `camera`, any other single array `state`."""
    if isinstance(shown, Mapping):
        return dict(shown)
    return {"camera" if len(shown.shape) == 3 else "state": shown}


def time_limit(env: gymnasium.Env) -> int | None:
    """The steps after which gymnasium's TimeLimit ends an episode, the longest where environments take turns."""
    while isinstance(env, gymnasium.Wrapper):
        if isinstance(env, gymnasium.wrappers.TimeLimit):
            return env._max_episode_steps
        env = env.env
    limits = [time_limit(each) for each in env.envs] if isinstance(env, InTurns) else []
    return max((limit for limit in limits if limit is not None), default=None)


def close(env: gymnasium.Env) -> None:
    """Close an environment after its renderer, which would fail at the interpreter's exit, when EGL is gone."""
    renderer = getattr(env.unwrapped, "_renderer", None)
    if renderer is not None:
        renderer.close()
    env.close()
