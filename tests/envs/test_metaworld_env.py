import numpy as np
import pytest

from gtp_vision.core.errors import GtpVisionError
from gtp_vision.envs import EnvSpec, close
from gtp_vision.envs import metaworld as simulator

metaworld = pytest.importorskip("metaworld", reason="metaworld is an extra")
pytestmark = pytest.mark.simulates


def test_instructions_are_of_all_tasks_and_benchmarks_name_their_tasks() -> None:
    assert list(simulator.INSTRUCTIONS) == list(metaworld.ALL_V3_ENVIRONMENTS)
    counts = {suite: len(simulator.tasks(f"metaworld/{suite}")) for suite in simulator.SUITES}
    assert counts == {"MT10": 10, "MT25": 25, "MT50": 50, "ML10": 10, "ML45": 45, "ML45-test": 5}
    assert simulator.tasks("metaworld/MT10")[0] == "metaworld/reach-v3"
    assert not simulator.tasks("metaworld/reach-v3")


def test_the_tasks_of_a_benchmark_take_turns_by_the_seed() -> None:
    env = EnvSpec("metaworld/MT10", pixels=False).make()
    seen = [env.reset(seed=seed) for seed in (0, 1, 11)]
    assert [info["task"] for _, info in seen] == ["metaworld/reach-v3", "metaworld/push-v3", "metaworld/push-v3"]
    assert seen[0][1]["instruction"] == "Reach a goal position"
    assert not np.array_equal(seen[1][0]["state"], seen[2][0]["state"])
    close(env)


def test_the_observation_is_meta_worlds_with_the_goal_and_its_first_numbers() -> None:
    env = EnvSpec("metaworld/push-v3", shown={"environment_state": (39,), "state": (4,)}).make()
    observed, _ = env.reset(seed=5)
    inner = env.unwrapped.simulator
    np.testing.assert_array_equal(observed["environment_state"][-3:], inner._target_pos)
    np.testing.assert_array_equal(observed["environment_state"][:18], observed["environment_state"][18:36])
    np.testing.assert_array_equal(observed["state"], observed["environment_state"][:4])
    low, high = inner._random_reset_space.low, inner._random_reset_space.high
    drawn = np.stack([(env.reset(seed=seed), inner._last_rand_vec)[1] for seed in range(20)])
    assert ((drawn >= low) & (drawn <= high)).all()
    assert (np.ptp(drawn, 0)[high > low] > 0.3 * (high - low)[high > low]).all()


def test_success_is_the_tasks_own_and_ends_the_episode() -> None:
    env = EnvSpec("metaworld/reach-v3", pixels=False).make()
    state = env.reset(seed=0)[0]["state"]
    for _ in range(500):
        state, reward, ended, _, info = env.step(np.append(np.clip(10 * (state[-3:] - state[:3]), -1, 1), 0))
        state = state["state"]
        if ended:
            break
    assert info["success"]
    assert np.linalg.norm(env.unwrapped.simulator.tcp_center - state[-3:]) <= 0.05
    assert 0 < reward <= 10


def test_frames_are_meta_worlds_turned_upright() -> None:
    env = EnvSpec(
        "metaworld/push-v3", shown={"corner": (48, 64, 3), "image": (48, 48, 3), "topview": (48, 64, 3)}
    ).make()
    observed, _ = env.reset(seed=0)
    inner = metaworld.ALL_V3_ENVIRONMENTS["push-v3"](render_mode="rgb_array", camera_name="corner", width=64, height=48)
    inner.set_state(env.unwrapped.simulator.data.qpos, env.unwrapped.simulator.data.qvel)
    # The goal's mark is elsewhere in the other environment.
    differs = np.abs(inner.render()[::-1, ::-1].astype(int) - observed["corner"]).max(-1) > 8
    inner.mujoco_renderer.close()
    assert differs.mean() < 0.02
    gray = observed["image"].astype(int)
    wood = (gray[..., 0] > gray[..., 2] + 30) & (gray[..., 0] < 200) & (gray[..., 1] > 60)
    assert np.argwhere(wood)[:, 0].mean() > 24, "the table is below"
    close(env)


@pytest.mark.parametrize("task", ["door-open-v3", "peg-insert-side-v3"])
def test_recorded_states_continue_as_recorded(task: str) -> None:
    spec = EnvSpec(f"metaworld/{task}", pixels=False)
    env, other = spec.make(), spec.make()
    actions = np.random.default_rng(0).uniform(-1, 1, (40, 4)).astype(np.float32)
    env.reset(seed=11)
    states, seen = [], []
    for action in actions:
        states.append(simulator.state(env))
        seen.append(env.step(action)[0]["state"])
    env.reset(seed=12)
    other.reset(seed=13)
    for again, start in ((env, 0), (other, 17)):
        simulator.restore(again, states[start])
        for action, wanted in zip(actions[start:], seen[start:], strict=True):
            np.testing.assert_array_equal(again.step(action)[0]["state"], wanted)
    with pytest.raises(GtpVisionError, match=f"is of the task {task}, not of reach-v3"):
        simulator.restore(EnvSpec("metaworld/reach-v3", pixels=False).make(), states[0])
