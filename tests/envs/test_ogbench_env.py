import numpy as np
import pytest

from gtp_vision.collection.oracles import puzzle_episodes, solution
from gtp_vision.core.errors import GtpVisionError
from gtp_vision.envs import EnvSpec, Rendering, close
from gtp_vision.envs.ogbench import env_id

pytestmark = pytest.mark.simulates


def test_names_lose_the_data_set_and_gain_a_version() -> None:
    assert env_id("visual-cube-single-play-singletask-task1") == "visual-cube-single-singletask-task1-v0"
    assert env_id("pointmaze-medium-navigate-singletask-v0") == "pointmaze-medium-singletask-v0"


def test_an_unknown_environment_proposes_the_nearest() -> None:
    with pytest.raises(GtpVisionError, match="did you mean 'puzzle-3x3-singletask-task1-v0'"):
        EnvSpec("puzzle-3x3-singletask-task11").make()


def test_a_simulator_of_discrete_actions_is_refused() -> None:
    with pytest.raises(GtpVisionError, match=r"powderworld-easy-v0 takes Discrete\(8\), and discrete actions are not"):
        EnvSpec("powderworld-easy-play-v0").make()


def test_skipping_goal_frames_changes_no_episode() -> None:
    ours = EnvSpec("visual-puzzle-3x3-singletask-task1").make()
    states = EnvSpec("visual-puzzle-3x3-singletask-task1", pixels=False).make()
    frame, _ = ours.reset(seed=5)
    states.reset(seed=5)
    np.testing.assert_array_equal(ours.unwrapped._data.qpos, states.unwrapped._data.qpos)
    assert frame.shape == (64, 64, 3)
    assert frame.max() > 200
    action = np.full(5, 0.5, np.float32)
    for _ in range(2):
        ours.step(action)
        states.step(action)
    np.testing.assert_array_equal(ours.unwrapped._data.qpos, states.unwrapped._data.qpos)
    ours.unwrapped._renderer.close()


def test_the_solution_is_the_shortest_one() -> None:
    goal = np.array([[1, 1, 0], [1, 0, 1], [0, 1, 1]]).ravel()
    assert solution(np.zeros(9, int), goal, 3, 3) == [0, 8]
    assert solution(goal, goal, 3, 3) == []


def test_oracle_visits_are_seeded_and_experts_solve() -> None:
    env = EnvSpec("puzzle-3x3-singletask-task1", max_episode_steps=101).make()
    (expert,) = puzzle_episodes(env, seed=1, expert_share=1.0, noise=0.3, wander=0.0, limit=100)
    (again,) = puzzle_episodes(env, seed=1, expert_share=1.0, noise=0.3, wander=0.0, limit=100)
    np.testing.assert_array_equal(expert.actions, again.actions)
    assert expert.success
    assert expert.terminal
    assert expert.rewards[-1] == 0
    assert expert.rewards[0] == -6
    (distracted,) = puzzle_episodes(env, seed=1, expert_share=0.0, noise=0.3, wander=0.0, limit=100)
    assert not distracted.success
    assert not distracted.terminal
    assert len(distracted.observations) == len(distracted.actions) == len(distracted.rewards)
    assert np.abs(distracted.actions).max() <= 1


def test_wandering_is_not_recorded_but_cuts_the_recording() -> None:
    env = EnvSpec("puzzle-3x3-singletask-task1", max_episode_steps=101).make()
    recordings = puzzle_episodes(env, seed=2, expert_share=1.0, noise=0.0, wander=1.0, limit=100)
    assert len(recordings) == 2  # it wanders before each of the two buttons
    assert not recordings[0].terminal
    assert recordings[1].terminal
    assert not np.array_equal(recordings[0].observations[0], env.reset(seed=2)[0])
    after_press, before_next = recordings[0].observations[-1], recordings[1].observations[0]
    assert not np.allclose(after_press, before_next)


# Goals ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["pointmaze-medium-navigate-v0", "visual-cube-single-play-v0"])
def test_episodes_take_the_tasks_in_turn_and_depend_on_their_seeds_alone(name: str) -> None:
    env = EnvSpec(name, Rendering(512, 0), goals=True).make()
    first, info = env.reset(seed=11)
    assert info["task"] == 2
    assert info["goal"].shape == first.shape
    assert not np.array_equal(info["goal"], first)
    assert env.reset(seed=14)[1]["task"] == 5
    again, told = env.reset(seed=11)
    np.testing.assert_array_equal(again, first)
    np.testing.assert_array_equal(told["goal"], info["goal"])
    close(env)


def test_an_environment_that_shows_no_goal_is_refused_where_one_is_wanted() -> None:
    words = r"has no observation of a goal; set task.goals=null, .* e.g. pointmaze-medium-navigate-v0"
    with pytest.raises(GtpVisionError, match=words):
        EnvSpec("pointmaze-medium-navigate-singletask-task1-v0", goals=True).make()
