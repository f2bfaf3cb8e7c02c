"""Environments that take turns, and instructions as observations."""

import gymnasium
import numpy as np
import pytest

from gtp_vision.core.errors import GtpVisionError
from gtp_vision.envs.tasks import Instructed, InTurns, time_limit


class Counting(gymnasium.Env):
    """Shows the seed of its last reset."""

    action_space = gymnasium.spaces.Box(-1, 1, (1,))

    def __init__(self, width: int = 1) -> None:
        self.observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (width,), np.float32)

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[np.ndarray, dict]:
        return np.full(self.observation_space.shape or (), -1 if seed is None else seed, np.float32), {}


def test_the_episode_of_seed_s_is_of_environment_s_mod_n_with_that_seed() -> None:
    env = InTurns({"a": Counting(), "b": Counting(), "c": Counting()})
    found = [env.reset(seed=seed) for seed in (0, 1, 5, 7)]
    assert [(int(seen[0]), info["task"]) for seen, info in found] == [(0, "a"), (1, "b"), (5, "c"), (7, "b")]
    assert env.reset()[1] == {"task": "b"}


def test_environments_of_other_observations_cannot_take_turns() -> None:
    with pytest.raises(GtpVisionError, match=r"b and a cannot take turns, as their observations .*; evaluate each"):
        InTurns({"a": Counting(1), "b": Counting(2)})


def test_a_task_that_the_policy_does_not_know_is_refused_with_near_names() -> None:
    env = Instructed(Counting(), "metaworld/push-v3", {"push-v2": np.zeros(2, np.float32)})
    with pytest.raises(GtpVisionError, match=r"'metaworld/push-v3' is not an instruction of the policy: .*'push-v2'"):
        env.reset(seed=0)
    env = Instructed(Counting(), "metaworld/push-v3", {"push-v3": np.ones(2, np.float32)})
    seen, info = env.reset(seed=0)
    assert (seen["instruction"].tolist(), info["instruction"]) == ([1, 1], "push-v3")


def test_the_time_limit_is_found_below_other_wrappers_and_is_the_longest_of_a_turn() -> None:
    short, long = (gymnasium.wrappers.TimeLimit(Counting(), steps) for steps in (3, 7))
    assert time_limit(Counting()) is None
    assert time_limit(gymnasium.wrappers.OrderEnforcing(short)) == 3
    assert time_limit(gymnasium.wrappers.OrderEnforcing(InTurns({"a": short, "b": long}))) == 7
