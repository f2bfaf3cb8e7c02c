"""Environments that show several cameras and states."""

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import cloudpickle
import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.spaces import Box, Dict

from gtp_vision.envs import EnvSpec, by_name
from gtp_vision.evaluation.evaluator import Actor, Episode, EpisodeNoise, Evaluator

cloudpickle.register_pickle_by_value(sys.modules[__name__])  # the simulators' processes do not know the tests

SHAPES = {"wrist": (4, 6, 3), "arm": (3,), "front": (2, 2, 3), "cube": (2,)}
LENGTH = 4


def _number(name: str, seed: int, step: int) -> int:
    return 100 * list(SHAPES).index(name) // 2 + 10 * seed + step


class Rig(gymnasium.Env):
    """Everything that it shows at a step is one number, of the name, the episode's seed and the step."""

    def __init__(self) -> None:
        self.observation_space = Dict(
            [
                (n, Box(0, 255, s, np.uint8) if len(s) == 3 else Box(-np.inf, np.inf, s, np.float64))
                for n, s in SHAPES.items()
            ]
        )
        self.action_space = Box(-1, 1, (2,))

    def _shown(self, number: int) -> dict[str, np.ndarray]:
        spaces = self.observation_space.spaces.items()
        return {n: np.full(space.shape, _number(n, self.seed, number), space.dtype) for n, space in spaces}

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        self.seed, self.steps = seed or 0, 0
        return self._shown(0), {"task": 1, "goal": self._shown(9)}

    def step(self, action: np.ndarray) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.steps += 1
        success = self.steps == LENGTH
        return self._shown(self.steps), float(action.sum()), success, False, {"success": success}


@dataclass(frozen=True)
class RigSpec(EnvSpec):
    name: str = "rig"

    def make(self) -> gymnasium.Env:
        return Rig()


def _evaluated(actor: Actor, *, goals: bool = False, envs: int = 1, film: int = 0, stack: int = 3) -> list[Episode]:
    with Evaluator(RigSpec(goals=goals), frame_stack=stack, envs=envs, seed=2, progress=False) as evaluator:
        return evaluator.run(actor, 3, film=film)[1]


def _check(observation: Mapping[str, torch.Tensor], noise: EpisodeNoise, *, goals: bool) -> torch.Tensor:
    names = [*SHAPES, *(f"goal/{name}" for name in SHAPES if goals)]
    assert list(observation) == names
    for name in names:
        plain = name.removeprefix("goal/")
        shape = SHAPES[plain]
        x = observation[name]
        assert x.shape[1:] == (3, *(shape[2:] + shape[:2] if len(shape) == 3 else shape))
        assert x.dtype == (torch.uint8 if len(shape) == 3 else torch.float32)
        for row, (episode, step) in enumerate(zip(noise.episodes, noise.steps, strict=True)):
            steps = [9, 9, 9] if name != plain else [max(0, step - back) for back in (2, 1, 0)]
            assert x[row].flatten(1).T.unique(dim=0).tolist() == [[_number(plain, 2 + episode, s) for s in steps]]
    return torch.tensor([[0.1 * episode, 0.5] for episode in noise.episodes])


@pytest.mark.parametrize("goals", [False, True])
def test_every_observation_is_stacked_under_its_own_name(goals: bool) -> None:
    alone, beside = (
        _evaluated(lambda seen, noise: _check(seen, noise, goals=goals), goals=goals, envs=envs) for envs in (1, 2)
    )
    told = [(e.number, e.success, e.length, round(e.total_reward, 4)) for e in alone]
    assert told == [(0, True, 4, 2.0), (1, True, 4, 2.4), (2, True, 4, 2.8)]
    assert told == [(e.number, e.success, e.length, round(e.total_reward, 4)) for e in beside]


def test_a_film_is_of_the_first_camera_and_keeps_what_was_seen_beside_it() -> None:
    filmed, _, other = _evaluated(lambda seen, noise: torch.zeros(len(noise.episodes), 2), goals=True, film=1)
    assert filmed.camera == "wrist", "the environment's order, not the alphabet's"
    assert [frame.shape for frame in filmed.frames] == [(4, 6, 3)] * (LENGTH + 1)
    assert [int(frame[0, 0, 0]) for frame in filmed.frames] == [_number("wrist", 2, step) for step in range(5)]
    assert [float(shown["cube"][0]) for shown in filmed.film] == [_number("cube", 2, step) for step in range(5)]
    assert filmed.goal is not None
    assert {name: array.shape for name, array in filmed.goal.items()} == SHAPES
    assert set(filmed.goal["arm"]) == {_number("arm", 2, 9)}
    assert other.frames == other.film == []


def test_a_single_array_is_a_camera_or_a_state() -> None:
    picture, numbers = np.zeros((2, 2, 3)), np.zeros(3)
    assert by_name(picture)["camera"] is picture
    assert list(by_name(numbers)) == list(by_name(Box(-1, 1, (3,)))) == ["state"]
    assert list(by_name(Dict({"b": Box(-1, 1, (3,)), "a": Box(-1, 1, (3,))}))) == ["a", "b"]
