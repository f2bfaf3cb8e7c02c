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


@pytest.mark.parametrize(
    ("name", "has_goals", "message"),
    [
        ("puzzle-3x3-singletask-task11", False, "did you mean 'puzzle-3x3-singletask-task1-v0'"),
        ("powderworld-easy-play-v0", False, r"powderworld-easy-play-v0 takes Discrete\(8\), and only bounded"),
        ("pointmaze-medium-navigate-singletask-task1-v0", True, "no observation of a goal; set task.goals=null"),
    ],
)
def test_unknown_and_unfit_environments_are_refused(name: str, has_goals: bool, message: str) -> None:
    with pytest.raises(GtpVisionError, match=message):
        EnvSpec(name, goals=has_goals).make()


@pytest.mark.parametrize("name", ["pointmaze-medium-singletask-task1", "cube-single-singletask-task1"])
def test_an_episode_depends_on_its_seed_alone(name: str) -> None:
    episodes = []
    for state_of_process in (1, 2):
        np.random.seed(state_of_process)
        env = EnvSpec(name).make()
        first, _ = env.reset(seed=7)
        later = env.step(np.zeros(env.action_space.shape, np.float32))[0]  # type: ignore[arg-type]
        episodes.append(np.concatenate([first, later]))
    np.testing.assert_array_equal(*episodes)


def test_skipping_goal_frames_changes_no_episode() -> None:
    frames, states = (EnvSpec("visual-puzzle-3x3-singletask-task1", pixels=pixels).make() for pixels in (True, False))
    frame, _ = frames.reset(seed=5)
    states.reset(seed=5)
    assert frame.shape == (64, 64, 3)
    assert frame.max() > 200
    for _ in range(2):
        np.testing.assert_array_equal(frames.unwrapped._data.qpos, states.unwrapped._data.qpos)
        frames.step(np.full(5, 0.5, np.float32))
        states.step(np.full(5, 0.5, np.float32))
    np.testing.assert_array_equal(frames.unwrapped._data.qpos, states.unwrapped._data.qpos)
    close(frames)


def test_the_solution_is_the_shortest_one() -> None:
    goal = np.array([[1, 1, 0], [1, 0, 1], [0, 1, 1]]).ravel()
    assert solution(np.zeros(9, int), goal, 3, 3) == [0, 8]
    assert solution(goal, goal, 3, 3) == []


def test_oracle_visits_are_seeded_and_experts_solve() -> None:
    env = EnvSpec("puzzle-3x3-singletask-task1", max_episode_steps=101).make()
    settings = {"seed": 1, "noise": 0.3, "wander": 0.0, "limit": 100}
    (expert,), (again,), (distracted,) = (puzzle_episodes(env, expert_share=x, **settings) for x in (1.0, 1.0, 0.0))  # type: ignore[arg-type]
    np.testing.assert_array_equal(expert.actions, again.actions)
    assert (expert.success, expert.terminal) == (True, True)
    assert (expert.rewards[0], expert.rewards[-1]) == (-6, 0)
    assert (distracted.success, distracted.terminal) == (False, False)
    assert len(distracted.observations) == len(distracted.actions) == len(distracted.rewards)
    assert np.abs(distracted.actions).max() <= 1


def test_wandering_is_not_recorded_but_cuts_the_recording() -> None:
    env = EnvSpec("puzzle-3x3-singletask-task1", max_episode_steps=101).make()
    first, second = puzzle_episodes(env, seed=2, expert_share=1.0, noise=0.0, wander=1.0, limit=100)
    assert (first.terminal, second.terminal) == (False, True)  # it wanders before each of the two buttons
    assert not np.array_equal(first.observations[0], env.reset(seed=2)[0])
    assert not np.allclose(first.observations[-1], second.observations[0])


@pytest.mark.parametrize("name", ["pointmaze-medium-navigate-v0", "visual-cube-single-play-v0"])
def test_episodes_take_the_tasks_in_turn_and_depend_on_their_seeds_alone(name: str) -> None:
    env = EnvSpec(name, Rendering(512, 0), goals=True).make()
    (first, info), (_, other_info), (again, same_info) = (env.reset(seed=seed) for seed in (11, 14, 11))
    assert (info["task"], other_info["task"]) == (2, 5)
    assert info["goal"].shape == first.shape
    assert not np.array_equal(info["goal"], first)
    np.testing.assert_array_equal(again, first)
    np.testing.assert_array_equal(same_info["goal"], info["goal"])
    close(env)
