import numpy as np
import pytest

from gtp_vision.envs import EnvSpec, close

pytest.importorskip("gym_aloha", reason="gym-aloha is an extra")
pytestmark = pytest.mark.simulates
CUBE = "aloha/AlohaTransferCube-v0"


def test_actions_have_the_bounds_of_the_actuators_and_are_wanted_positions() -> None:
    env = EnvSpec(CUBE, pixels=False).make()
    space = env.unwrapped.action_space
    np.testing.assert_allclose(space.high[:7], [3.14158, 1.25664, 1.6057, 3.14158, 2.23402, 3.14158, 1])
    np.testing.assert_array_equal(space.low[:7], space.low[7:])
    wanted = np.float32([0.2, -0.8, 1.0, 0.1, -0.2, 0.1, 0.7, -0.2, -0.9, 1.1, 0, -0.3, 0, 0.3])
    env.reset(seed=0)
    for _ in range(100):
        state = env.step(2 * (wanted - space.low) / (space.high - space.low) - 1)[0]["state"]
    np.testing.assert_allclose(state, wanted, atol=0.06)


def test_the_objects_place_follows_the_seed_within_the_tasks_bounds() -> None:
    env = EnvSpec(CUBE, pixels=False).make()
    places = np.stack([env.reset(seed=seed)[0]["environment_state"] for seed in range(20)])
    assert (places[:, :2] >= [0, 0.4]).all()
    assert (places[:, :2] <= [0.2, 0.6]).all()
    assert np.ptp(places[:, :2], 0).min() > 0.1


def test_a_reward_of_4_is_success_and_ends_the_episode() -> None:
    """The cube, put between the fingers of the left gripper in the air, touches them and not the table."""
    env = EnvSpec(CUBE, pixels=False).make()
    env.reset(seed=0)
    physics = env.unwrapped.simulator._env.physics
    finger = physics.named.data.geom_xpos["vx300s_left/10_left_gripper_finger"]
    hold = np.zeros(14, np.float32)
    outcomes = []
    for _ in range(3):
        with physics.reset_context():
            physics.named.data.qpos[-7:-4] = finger
        outcomes.append(env.step(hold)[1:5])
        if outcomes[-1][1]:
            break
    reward, ended, _, info = outcomes[-1]
    assert (reward, ended, info["success"]) == (4, True, True)


def test_unstable_physics_is_a_failure_and_not_an_error() -> None:
    env = EnvSpec(CUBE, pixels=False).make()
    rng, ended = np.random.default_rng(0), False
    env.reset(seed=0)
    for _ in range(400):
        observed, _, ended, _, info = env.step(rng.uniform(-1, 1, 14).astype(np.float32))
        if ended:
            break
    assert (ended, info["success"]) == (True, False)
    assert np.isfinite(observed["state"]).all()
    assert np.isfinite(env.reset(seed=0)[0]["state"]).all()


def test_frames_are_those_of_gym_aloha_and_only_what_is_shown_is_drawn() -> None:
    env = EnvSpec(CUBE, shown={"top": (48, 64, 3), "qpos": (14,), "qvel": (14,)}).make()
    observed, _ = env.reset(seed=2)
    wanted = env.unwrapped.simulator._env.physics.render(48, 64, camera_id="top")
    np.testing.assert_array_equal(observed["top"], wanted)
    red = np.argwhere((observed["top"][..., 0] > 100) & (observed["top"][..., 1] < 60))
    assert len(red), "the cube is seen"
    close(env)
    assert EnvSpec(CUBE, pixels=False).make().unwrapped._cameras is None
