from typing import Any

import numpy as np
import pytest

from gtp_vision.core.errors import GtpVisionError
from gtp_vision.envs import EnvSpec
from gtp_vision.envs import pusht as simulator

pytest.importorskip("gym_pusht", reason="gym-pusht is an extra")
pytestmark = pytest.mark.simulates


def covered(pose: tuple[float, float, float]) -> tuple[Any, Any]:
    """The environment, and what its step returns, with the block at a place, the agent far away."""
    env = EnvSpec("pusht", pixels=False).make()
    env.reset(seed=0)
    block, agent = env.unwrapped.simulator.block, env.unwrapped.simulator.agent
    agent.position = [20, 20]
    block.angle = pose[2]
    block.position = list(pose[:2])
    return env, env.step(np.float32([20 / 256 - 1, 20 / 256 - 1]))


def test_more_than_95_percent_of_the_goal_is_success_and_ends_the_episode() -> None:
    _, (_, reward, ended, _, info) = covered((256, 256, np.pi / 4))
    assert (ended, info["success"], reward) == (True, True, 1)
    assert info["coverage"] > 0.99
    _, (_, reward, ended, _, info) = covered((262, 256, np.pi / 4))
    assert (ended, info["success"]) == (False, False)
    assert 0.7 < info["coverage"] < 0.95
    assert reward == pytest.approx(info["coverage"] / 0.95)


def test_actions_are_places_in_the_field_of_512() -> None:
    env = EnvSpec("pusht", pixels=False).make()
    env.reset(seed=0)
    for _ in range(30):
        state = env.step(np.float32([-0.75, -0.5]))[0]["state"]
    np.testing.assert_allclose(state[:2], [64, 128], atol=1)


def test_frames_and_states_are_those_of_gym_pusht() -> None:
    shown = {"image": (96, 96, 3), "state": (2,), "environment_state": (16,), "img": (48, 64, 3)}
    env = EnvSpec("pusht/PushT-v0", shown=shown).make()
    observed, _ = env.reset(seed=4)
    theirs = type(env.unwrapped.simulator)(obs_type="pixels_agent_pos")
    wanted, _ = theirs.reset(seed=4)
    np.testing.assert_array_equal(observed["image"], wanted["pixels"])
    np.testing.assert_array_equal(observed["state"], wanted["agent_pos"])
    assert {name: array.shape for name, array in observed.items()} == shown
    green = np.argwhere((observed["image"] == [144, 238, 144]).all(-1))
    assert np.abs(green.mean(0) - 48).max() < 8, "the goal is in the middle"


def test_pymunk_7_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(simulator, "version", lambda name: "7.3.1" if name == "pymunk" else "0.1.6")
    with pytest.raises(GtpVisionError, match=r"needs pymunk 6, and pymunk 7.3.1 is installed; pip install 'gtp-v"):
        EnvSpec("pusht").make()
