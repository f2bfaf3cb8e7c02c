import os
import signal
import sys
import time
from dataclasses import dataclass
from typing import Any

import cloudpickle
import gymnasium
import numpy as np
import psutil
import pytest

from gtp_vision.envs import EnvSpec
from gtp_vision.evaluation.evaluator import Evaluator, SimulatorError, random_actor

cloudpickle.register_pickle_by_value(sys.modules[__name__])  # simulators' processes need not import the tests

pytestmark = [pytest.mark.simulates, pytest.mark.processes]


class Breaks(gymnasium.Env):
    """Fails in the third step of every episode, or in reset."""

    observation_space = gymnasium.spaces.Box(-1, 1, (3,), np.float32)
    action_space = gymnasium.spaces.Box(-1, 1, (2,), np.float32)

    def __init__(self, how: str) -> None:
        self.how, self.steps = how, 0

    def reset(self, **_: Any) -> tuple[np.ndarray, dict[str, Any]]:
        self.steps = 0
        if self.how == "in reset":
            raise ValueError("a drawer is missing\nsecond line")
        return np.zeros(3, np.float32), {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        self.steps += 1
        if self.steps == 3 and self.how == "hangs":
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            time.sleep(1000)
        if self.steps == 3 and self.how == "raises":
            raise ZeroDivisionError("mass is 0")
        if self.steps == 3 and self.how == "dies":
            os.kill(os.getpid(), signal.SIGKILL)
        return np.zeros(3, np.float32), 0.0, False, self.steps == 5, {}


@dataclass(frozen=True)
class Broken(EnvSpec):
    how: str = ""

    def make(self) -> gymnasium.Env:
        return Breaks(self.how)


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("hangs", r"drawer gave no answer for 2 s in episode 0 \(seed 7, step 2\); raise training\.eval_timeout"),
        ("raises", r"raised ZeroDivisionError \(mass is 0\) in episode 0 \(seed 7, step 2\); fix"),
        ("dies", r"drawer has ended in episode 0 \(seed 7, step 2\)"),
        ("in reset", r"raised ValueError \(a drawer is missing\) in episode 0 \(seed 7, step 0\)"),
    ],
)
def test_a_simulator_that_fails_is_named_with_its_episode(how: str, message: str) -> None:
    before = set(psutil.Process().children(recursive=True))
    spec, patience = Broken("drawer", how=how), 2 if how == "hangs" else 60
    evaluator = Evaluator(spec, frame_stack=1, envs=1, seed=7, progress=False, patience=patience)
    with evaluator, pytest.raises(SimulatorError, match=message):
        evaluator.run(random_actor(2), 2)
    left = set(psutil.Process().children(recursive=True)) - before
    assert not [process for process in left if "spawn_main" in " ".join(process.cmdline())]


def test_of_two_simulators_the_one_that_hangs_is_named() -> None:
    with Evaluator(Broken("drawer"), frame_stack=1, envs=2, seed=7, progress=False, patience=30) as evaluator:
        evaluator.run(random_actor(2), 2)
        assert evaluator._simulators is not None
        stopped = evaluator._simulators._vector.processes[1].pid
        evaluator._simulators._patience = 2
        os.kill(stopped, signal.SIGSTOP)
        with pytest.raises(SimulatorError, match=r"episode 1 \(seed 8, step 0\);"):
            evaluator.run(random_actor(2), 2)
    assert not psutil.pid_exists(stopped)
