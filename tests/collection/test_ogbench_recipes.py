from functools import cache
from importlib import import_module

import gymnasium
import numpy as np
import pytest

from gtp_vision.collection import ogbench_recipes
from gtp_vision.collection.ogbench_recipes import RECIPES, Episode
from gtp_vision.envs import EnvSpec, ogbench

pytestmark = pytest.mark.simulates


def made(name: str, steps: int) -> gymnasium.Env:
    return EnvSpec(name, pixels=False, max_episode_steps=steps, collecting=True).make()


@cache
def recorded(name: str, steps: int, seed: int = 3) -> Episode:
    return RECIPES[name].record(made(name, steps), seed)


def test_recipes_are_of_environments_that_ogbench_has_and_of_published_sizes() -> None:
    import_module("ogbench")  # registers the environments
    assert not [name for name in RECIPES if ogbench.env_id(name) not in gymnasium.registry]
    assert len(RECIPES) == 9 * 2 * 2 + 4 * 2
    for name, episodes, steps in (("cube-quadruple-noisy", 5000, 1001), ("pointmaze-giant-stitch", 5000, 201)):
        assert (RECIPES[name].episodes, RECIPES[name].steps) == (episodes, steps)


@pytest.mark.parametrize("name", ["scene-play", "puzzle-3x3-noisy", "pointmaze-medium-navigate"])
def test_an_episode_depends_only_on_its_seed(name: str) -> None:
    env = made(name, 30)
    first, other, again = (RECIPES[name].record(env, seed) for seed in (3, 4, 3))
    np.testing.assert_equal(again, first)
    np.testing.assert_equal(recorded(name, 30), first)
    assert not np.array_equal(first["actions"], other["actions"])


def test_the_plan_oracle_reaches_its_targets() -> None:
    episode = recorded("cube-single-play", 400)
    assert episode["targets"] >= 3
    assert episode["reached"] == episode["targets"]


def test_the_noise_of_closed_loop_oracles_has_the_published_scale(monkeypatch: pytest.MonkeyPatch) -> None:
    oracle = "ogbench.manipspace.oracles.markov.cube_markov.CubeMarkovOracle.select_action"
    monkeypatch.setattr(oracle, lambda *_: np.zeros(5))
    env = made("cube-single-noisy", 250)
    actions = ogbench_recipes.manipulation_episode(env, 0, noisy=True, random_actions=0.0)["actions"]
    deviation = np.median(np.abs(actions), axis=0) / 0.6745  # of a normal law; clipped at 1, which medians survive
    assert 0 < deviation[0] < 0.11
    np.testing.assert_allclose(deviation / deviation[:3].mean(), [1, 1, 1, 3, 10], rtol=0.2)


def test_random_actions_come_as_often_as_the_recipe_says(monkeypatch: pytest.MonkeyPatch) -> None:
    env, asked = made("puzzle-3x3-play", 400), []
    select = ogbench_recipes._oracles(env, False)["button"].select_action.__func__

    def counted(*arguments: object) -> np.ndarray:
        asked.append(np.asarray(select(*arguments)))
        return asked[-1]

    monkeypatch.setattr("ogbench.manipspace.oracles.plan.plan_oracle.PlanOracle.select_action", counted)
    ogbench_recipes.manipulation_episode(env, 0, noisy=False, random_actions=0.2)
    assert 400 - len(asked) == pytest.approx(400 * 0.2, abs=24)  # three standard deviations


def test_a_scene_without_a_visible_cube_is_recorded_again(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[np.ndarray] = []
    monkeypatch.setattr(ogbench_recipes, "_is_visible", lambda qpos: seen.append(qpos) or len(seen) == 2)
    kept = RECIPES["scene-noisy"].record(made("scene-noisy", 10), 0)
    assert not np.array_equal(*seen)
    np.testing.assert_array_equal(kept["qpos"], seen[1].astype(np.float32))


def test_distances_are_those_of_ogbench_own_search() -> None:
    maze = made("pointmaze-large-stitch", 5).unwrapped
    start = (1, 1)
    _, own = maze.get_oracle_subgoal(maze.ij_to_xy((3, 3)), maze.ij_to_xy(start))
    found = ogbench_recipes._distances(maze.maze_map, start)
    assert {cell: own[cell] for cell in found} == found
    assert len(found) == (own >= 0).sum()


@pytest.mark.parametrize(("name", "several"), [("pointmaze-medium-navigate", True), ("pointmaze-medium-stitch", False)])
def test_a_point_navigates_from_goal_to_goal_or_stays_at_the_one(name: str, several: bool) -> None:
    episode = recorded(name, 400)
    assert (episode["targets"] > 1) == several
    assert episode["reached"] >= 1
    late = episode["observations"][300:]
    assert (np.ptp(late, axis=0).max() > 4) == several, "a cell is 4 m wide"


def test_single_tasks_still_end_at_their_goal() -> None:
    task = EnvSpec("cube-single-play-singletask-task1", pixels=False).make().unwrapped
    assert (task._terminate_at_goal, task._mode) == (True, "task")
    collecting = made("cube-single-play", 5).unwrapped
    assert (collecting._terminate_at_goal, collecting._mode) == (False, "data_collection")
