import numpy as np
import pytest
from stores import make_store

from gtp_vision.core.errors import GtpVisionError
from gtp_vision.datasets.goals import ACTOR_GOALS, HindsightGoals, RoleGoals
from gtp_vision.datasets.store import Store, mix


@pytest.fixture
def store() -> Store:
    return make_store((40, 60, 3))


def drawn(law: HindsightGoals, store: Store, row: int, count: int = 20_000) -> np.ndarray:
    return law.draw(store, np.full(count, row), np.random.default_rng(0))


def test_the_shares_are_those_asked_for(store: Store) -> None:
    goals = drawn(HindsightGoals(current=0.2, trajectory=0.5, random=0.3), store, 45)
    inside = (goals >= 40) & (goals < 100)
    # random goals fall into the episode with its share of the rows, 60 of 103
    assert np.mean(~inside) == pytest.approx(0.3 * 43 / 103, abs=0.02)
    assert np.mean(goals == 45) == pytest.approx(0.2 + 0.3 / 103, abs=0.02)


def test_later_goals_stay_in_the_episode_and_after_the_row(store: Store) -> None:
    for law in (ACTOR_GOALS, HindsightGoals(current=0, trajectory=1, random=0)):
        for row in (0, 39, 40, 98, 99, 102):
            goals = drawn(law, store, row, 500)
            last = store.episode_ends[store.episode_of(np.array([row]))][0] - 1
            assert goals.min() >= min(row + 1, last)
            assert goals.max() <= last


def test_uniform_goals_are_uniform_over_what_is_left(store: Store) -> None:
    goals = drawn(ACTOR_GOALS, store, 89)
    counts = np.bincount(goals - 90, minlength=10)
    assert len(counts) == 10
    assert counts == pytest.approx(np.full(10, 2000), rel=0.1)


def test_geometric_goals_follow_their_law_cut_at_the_end(store: Store) -> None:
    law = HindsightGoals(current=0, trajectory=1, random=0, discount=0.8)
    distance = drawn(law, store, 89) - 89
    expected = 0.2 * 0.8 ** np.arange(9)
    expected = np.append(expected, 1 - expected.sum())  # all that lies beyond falls on the last row
    assert np.bincount(distance, minlength=11)[1:] / len(distance) == pytest.approx(expected, abs=0.01)


def test_random_goals_of_a_mixture_come_from_its_shares() -> None:
    mixed = mix([make_store((50,)), make_store((50,), seed=1)], [1, 3])
    goals = drawn(HindsightGoals(current=0, trajectory=0, random=1), mixed, 7)
    assert np.mean(goals >= 50) == pytest.approx(3 / 4, abs=0.02)


def test_critic_and_policy_have_goals_of_their_own_and_way_points_lie_between(store: Store) -> None:
    rows = np.repeat([3, 45, 97, 102], 4000)
    law = RoleGoals(HindsightGoals(), HindsightGoals(current=0.1, trajectory=0.5, random=0.4, geometric=False), ahead=4)
    critic, policy, way_point = law.draw(store, rows, np.random.default_rng(0)).T
    alone = HindsightGoals().draw(store, rows, np.random.default_rng(0))
    np.testing.assert_array_equal(critic, alone, "as if there were no policy's goals")
    assert np.mean(critic == policy) < 0.3
    last = store.episode_ends[store.episode_of(rows)] - 1
    ahead = np.minimum(rows + 4, last)
    near = (policy >= rows) & (policy <= ahead)
    np.testing.assert_array_equal(way_point[near], policy[near])
    np.testing.assert_array_equal(way_point[~near], ahead[~near])
    assert near.any()
    assert law.count == 3
    assert RoleGoals(law.critic, law.policy).draw(store, rows, np.random.default_rng(0)).shape == (len(rows), 2)


@pytest.mark.parametrize("settings", [{"current": 0.5}, {"current": -0.2, "trajectory": 0.9}, {"discount": 1.0}])
def test_laws_that_make_no_sense_are_refused(settings: dict[str, float]) -> None:
    with pytest.raises(GtpVisionError, match=r"add to 1|discount"):
        HindsightGoals(**settings)
