import os
import signal
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cloudpickle
import gymnasium
import imageio.v3 as iio
import numpy as np
import pytest
import torch
from gymnasium.spaces import Box, Dict

from gtp_vision.agents import ActingConfig
from gtp_vision.agents.acting import Executor
from gtp_vision.core.random import EpisodeNoise
from gtp_vision.envs import EnvSpec, Rendering, _Worker
from gtp_vision.envs.units import with_policy_actions
from gtp_vision.evaluation.evaluator import Actor, Episode, Evaluator, random_actor, summary, write_videos
from gtp_vision.evaluation.metrics.success import success_text

cloudpickle.register_pickle_by_value(sys.modules[__name__])  # simulators' processes need not import the tests

SHAPES = {"wrist": (4, 6, 3), "arm": (3,), "front": (2, 2, 3), "cube": (2,)}
LENGTH = 4


def number(name: str, seed: int, step: int) -> int:
    return 50 * list(SHAPES).index(name) + 10 * seed + step


class Rig(gymnasium.Env):
    """Each observation is one number, a function of its name, the episode's seed and the step."""

    observation_space = Dict(
        [
            (name, Box(0, 255, shape, np.uint8) if len(shape) == 3 else Box(-np.inf, np.inf, shape, np.float64))
            for name, shape in SHAPES.items()
        ]
    )
    action_space = Box(-1, 1, (2,))

    def observation(self, step: int) -> dict[str, np.ndarray]:
        spaces = self.observation_space.spaces.items()
        return {n: np.full(space.shape, number(n, self.seed, step), space.dtype) for n, space in spaces}

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        self.seed, self.steps = seed or 0, 0
        return self.observation(0), {"task": 1, "goal": self.observation(9)}

    def step(self, action: np.ndarray) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.steps += 1
        success = self.steps == LENGTH
        return self.observation(self.steps), float(action.sum()), success, False, {"success": success}


@dataclass(frozen=True)
class RigSpec(EnvSpec):
    name: str = "rig"

    def make(self) -> gymnasium.Env:
        return Rig()


def evaluate(spec: EnvSpec, actor: Actor, envs: int, episodes: int = 3, film: int = 0) -> list[Episode]:
    with Evaluator(spec, frame_stack=3, envs=envs, seed=2, progress=False) as evaluator:
        return evaluator.run(actor, episodes, film=film)[1]


def outcomes(episodes: list[Episode]) -> list[tuple[int, bool, int, float]]:
    return [(e.number, e.success, e.length, round(e.total_reward, 4)) for e in episodes]


@pytest.mark.simulates
@pytest.mark.parametrize("goals", [False, True])
def test_every_observation_is_stacked_under_its_own_name(goals: bool) -> None:
    def actor(observation: Mapping[str, torch.Tensor], noise: EpisodeNoise) -> torch.Tensor:
        assert list(observation) == [*SHAPES, *(f"goal/{name}" for name in SHAPES if goals)]
        for name, x in observation.items():
            plain = name.removeprefix("goal/")
            shape = SHAPES[plain]
            assert x.shape[1:] == (3, *(shape[2:] + shape[:2] if len(shape) == 3 else shape))
            assert x.dtype == (torch.uint8 if len(shape) == 3 else torch.float32)
            for row, (episode, step) in enumerate(zip(noise.episodes, noise.steps, strict=True)):
                steps = [max(0, step - back) for back in (2, 1, 0)] if name == plain else [9, 9, 9]
                assert x[row].flatten(1).T.unique(dim=0).tolist() == [[number(plain, 2 + episode, s) for s in steps]]
        return torch.tensor([[0.1 * episode, 0.5] for episode in noise.episodes])

    alone, beside = (evaluate(RigSpec(goals=goals), actor, envs, film=1) for envs in (1, 2))
    assert outcomes(alone) == outcomes(beside) == [(0, True, 4, 2.0), (1, True, 4, 2.4), (2, True, 4, 2.8)]
    filmed, _, other = beside
    assert filmed.camera == "wrist", "the environment's order, not the alphabet's"
    assert [int(frame[3, 5, 2]) for frame in filmed.frames] == [number("wrist", 2, step) for step in range(5)]
    assert [float(shown["cube"][0]) for shown in filmed.film] == [number("cube", 2, step) for step in range(5)]
    assert other.frames == other.film == []
    assert (filmed.goal is not None, filmed.task) == (goals, 1 if goals else None)
    if filmed.goal is not None:
        assert {name: array.shape for name, array in filmed.goal.items()} == SHAPES
        assert set(filmed.goal["arm"]) == {number("arm", 2, 9)}


@pytest.mark.simulates
@pytest.mark.parametrize(("delay", "switches"), [(0, [2]), (1, [3])])
def test_plans_that_arrive_late_are_executed_late(delay: int, switches: list[int]) -> None:
    def plan(_: object, noise: EpisodeNoise) -> torch.Tensor:
        return torch.tensor([[[0.1 * step, 0.5]] * 3 for step in noise.steps])

    acting = ActingConfig(execute=2, delay=delay)
    with Evaluator(RigSpec(), frame_stack=3, envs=2, progress=False, grippers=[1]) as evaluator:
        found, episodes = evaluator.run(Executor(plan, acting, 3), 3)
    for episode in episodes:
        assert list(episode.switches) == switches
        assert np.ravel(list(episode.switches.values())).tolist() == pytest.approx([0.0] * (1 - delay))
        assert np.ravel(episode.actions).tolist() == pytest.approx([0.0] * switches[0] + [0.2] * (LENGTH - switches[0]))
    assert found["jerk_dimensions"] == 1, "grippers are left out"


class Reporting(Rig):
    """Success in the second of four steps, in the info that `report` makes of it; the reward is the action's sum."""

    observation_space = Dict(arm=Box(-np.inf, np.inf, (3,), np.float64))
    action_space = Box(-3, 5, (2,), np.float64)

    def __init__(self, report: Callable[[bool], dict[str, Any]]) -> None:
        self.report = report

    def observation(self, step: int) -> dict[str, np.ndarray]:
        return {"arm": np.zeros(3)}

    def step(self, action: np.ndarray) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        observation, reward, ended, *_ = super().step(action)
        return observation, reward, False, ended, self.report(self.steps == 2 and self.seed != 3)


@dataclass(frozen=True)
class ReportingSpec(EnvSpec):
    name: str = "reporting"
    report: Callable[[bool], dict[str, Any]] = lambda solved: {}

    def make(self) -> gymnasium.Env:
        return with_policy_actions(Reporting(self.report), self.units, self.name)


@pytest.mark.parametrize(
    ("report", "more", "expected"),
    [
        (lambda solved: {"success": solved}, {}, [0, 1, 0]),
        (lambda solved: {"success": np.bool_(solved)}, {}, [0, 1, 0]),
        (lambda solved: {"is_success": int(solved)}, {}, [0, 1, 0]),
        (lambda solved: {"is_success": np.array([float(solved)])}, {}, [0, 1, 0]),
        (lambda solved: {"final_info": {"success": np.float32(solved)}}, {}, [0, 1, 0]),
        (lambda solved: {"success": True} if solved else {}, {}, [np.nan, 1, np.nan]),
        (lambda solved: {"success": None, "is_success": solved}, {}, [0, 1, 0]),
        (lambda solved: {"success": "soon", "solved": solved}, {}, [np.nan] * 3),
        (lambda solved: {}, {"success_reward": 4.0}, [1, 1, 1]),
        (lambda solved: {"success": solved}, {"success_reward": 4.5}, [0, 0, 0]),
    ],
    ids=[
        *("bool", "numpy", "integer", "array", "final_info", "only successes", "None beside", "words"),
        *("reward", "reward instead"),
    ],
)
def test_a_step_is_a_success_a_failure_or_unknown(
    report: Callable[[bool], dict[str, Any]], more: dict[str, Any], expected: list[float]
) -> None:
    spec = ReportingSpec(report=report, **more)
    worker = _Worker(spec.make(), spec)
    worker.reset(seed=2)
    found = [worker.step(np.array([1.0, -0.5], np.float32))[4]["success"] for _ in range(3)]
    np.testing.assert_array_equal(found, expected)
    assert {type(mark) for mark in found} == {float}, "a vector of environments gives all of them one dtype"


@pytest.mark.simulates
@pytest.mark.parametrize(
    ("report", "expected"),
    [
        (lambda solved: {"success": solved}, [True, False, True]),
        (lambda solved: {"success": True} if solved else {}, [True, False, True]),
        (lambda solved: {}, [None, None, None]),
    ],
    ids=["said", "only successes", "never said"],
)
def test_success_is_what_the_environment_says_or_unknown(
    report: Callable[[bool], dict[str, Any]], expected: list[bool | None]
) -> None:
    with Evaluator(ReportingSpec(report=report), frame_stack=1, envs=2, seed=2, progress=False) as evaluator:
        found, episodes = evaluator.run(lambda seen, noise: torch.tensor([[1.0, -0.5]] * len(noise.steps)), 3)
    assert [episode.success for episode in episodes] == expected
    assert [episode.total_reward for episode in episodes] == [4 * (5 - 1)] * 3, "in the environment's units"
    if None in expected:
        assert (found["success"], found["success_interval"]) == (None, None)
        assert success_text(found).startswith("success unknown (the environment reported none in 3 episodes")
    else:
        assert found["success"] == pytest.approx(2 / 3)
        assert success_text(found).startswith("success 67% of 3 episodes (95 % interval")


@pytest.mark.simulates
def test_episodes_of_a_simulator_do_not_depend_on_those_beside_them_and_leave_ctrl_c_alone() -> None:
    interrupts: list[int] = []
    before = signal.signal(signal.SIGINT, lambda number, _: interrupts.append(number))
    try:
        spec = EnvSpec("puzzle-3x3-play-singletask-task1", max_episode_steps=3)
        alone, beside = (evaluate(spec, random_actor(5), envs, episodes=2) for envs in (1, 2))
        signal.raise_signal(signal.SIGINT)
    finally:
        signal.signal(signal.SIGINT, before)
    assert outcomes(alone) == outcomes(beside)
    assert [episode.length for episode in alone] == [3, 3]
    assert interrupts == [signal.SIGINT]
    assert "LP_NUM_THREADS" not in os.environ


@pytest.mark.simulates
def test_images_are_rendered_with_the_specs_quality_and_filmed(tmp_path: Path) -> None:
    name = "visual-puzzle-3x3-singletask-task1"
    coarse, fine = EnvSpec(name, Rendering(512, 0), max_episode_steps=2), EnvSpec(name, max_episode_steps=2)
    (episode,) = evaluate(coarse, random_actor(5), 1, episodes=1, film=1)
    assert len(episode.frames) == 3
    env, other = coarse.make(), fine.make()
    first, finer = env.reset(seed=2)[0], other.reset(seed=2)[0]
    assert env.unwrapped.model.vis.quality.shadowsize == 512
    assert env.unwrapped.model.vis.quality.offsamples == 0
    for simulator in (env, other):
        simulator.unwrapped._renderer.close()
    np.testing.assert_array_equal(episode.frames[0], first)
    assert not np.array_equal(first, finer)
    (video,) = write_videos(tmp_path, [episode])
    assert video.name == "episode_000_failure.mp4"
    assert iio.imread(video).shape == (3, 256, 256, 3)


def test_the_summary_has_wilson_intervals_and_successes_by_task() -> None:
    found = summary([Episode(k, k < 3, -1.0 * k, 10 + k, []) for k in range(4)], 2.0)
    assert (found["success"], found["return"], found["length"]) == (0.75, -1.5, 11.5)
    # Wilson (1927) for 3 of 4 at z = 1.959964
    np.testing.assert_allclose(found["success_interval"], [0.30064, 0.95441], atol=1e-4)
    assert "tasks" not in found
    tasks = summary([Episode(k, k in (0, 3, 5), 0.0, 9, [], task=1 + k % 3) for k in range(6)], 1.0)["tasks"]
    assert tasks == {"1": 1.0, "2": 0.0, "3": 0.5}
    unknown = summary([Episode(k, None, 1.0, 9, [], task=1) for k in range(4)], 1.0)
    assert (unknown["success"], unknown["success_interval"], "tasks" in unknown) == (None, None, False)
