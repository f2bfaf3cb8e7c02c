from collections.abc import Callable

import numpy as np
import pytest

from gtp_vision.datasets import inspection
from gtp_vision.datasets.pitfalls import pitfalls
from gtp_vision.datasets.store import Store

MakeStore = Callable[..., Store]


def warned(store: Store) -> list[str]:
    return pitfalls(store, inspection.statistics(store))


def the_warning(store: Store) -> str:
    (warning,) = warned(store)
    assert "\n" not in warning
    return warning


@pytest.fixture
def store(make_store: MakeStore) -> Store:
    """Nothing is wrong with it."""
    return make_store((20, 30, 25), terminals={19}, cameras={"front": (8, 6, 3), "wrist": (8, 6, 3)})


def test_good_data_have_no_warning(store: Store) -> None:
    assert warned(store) == []


def test_rewards_of_zero(store: Store) -> None:
    store.rewards[:] = 0
    assert "rewards are 0 everywhere" in the_warning(store)
    assert "agent=gtp_bc" in the_warning(store)
    assert "--env" not in the_warning(store)
    store.attributes = {"suite": "ogbench"}
    assert "--env NAME-singletask" in the_warning(store)


def test_rewards_that_are_never_sampled(store: Store) -> None:
    store.rewards[:] = 0
    store.rewards[[49, 74]] = 1
    assert "no outcome, first at episode 1, frame 29" in the_warning(store)
    store.rewards[19] = 1  # a terminal row is sampled
    assert warned(store) == []


def test_the_same_reward_everywhere(store: Store) -> None:
    store.rewards[:] = -1
    assert warned(store) == []  # a step costs, and there is a terminal to reach
    store.terminals[:], store.timeouts[19] = 0, 1
    assert "rewards are -1 everywhere and there is no terminal" in the_warning(store)


def test_masks_taken_for_terminals(store: Store) -> None:
    store.terminals[:] = 1
    store.terminals[[3, 19, 49, 74]] = 0
    store.timeouts[19] = 1
    assert "terminals stand on 95% of the rows, first at episode 0, frame 0" in the_warning(store)


def test_a_time_limit_taken_for_a_terminal(make_store: MakeStore) -> None:
    assert "all 3 episodes end in a terminal after 10 frames" in the_warning(
        make_store([10] * 3, terminals={9, 19, 29})
    )
    assert warned(make_store([10] * 3, terminals={9, 19})) == []


def test_every_end_a_terminal(make_store: MakeStore) -> None:
    store = make_store([10, 12, 9], terminals={9, 21, 30})
    assert "all 3 episodes end in a terminal and none in a timeout" in the_warning(store)
    store.rewards[:] = 0
    store.rewards[[9, 21, 30]] = 1  # every terminal is a success, as the rewards say
    assert warned(store) == []


def test_a_terminal_before_the_final_observation_ends_its_episode(make_store: MakeStore) -> None:
    store = make_store([10, 10], terminals={8, 18}, timeouts={9, 19})
    assert "all 2 episodes end in a terminal after 10 frames" in the_warning(store)


def test_episodes_without_an_outcome_and_short_ones(make_store: MakeStore) -> None:
    first, second = warned(make_store([40, 1, 40, 2, 40]))
    assert "1 of 5 episodes have one frame and no outcome, the first is episode 1" in first
    assert "1 of 5 episodes are shorter than a tenth of the median, the first is episode 3 with 2 frames" in second
    assert warned(make_store([5, 1, 5], terminals={5})) == []


def test_dimensions_that_stand_still(store: Store) -> None:
    store.actions[:, 1] = 0.25
    store.observations["state"][:, 2] = 7
    state, actions = sorted(warned(store), key=lambda told: told.startswith("actions"))
    assert "actions: next to no change in dimension 1 (about 0.25)" in actions
    assert "observations/state: next to no change in dimension 2 (about 7)" in state


def test_many_dimensions_are_counted(make_store: MakeStore) -> None:
    store = make_store(state=30)
    store.observations["state"][:, 5:] = 0
    told = "dimensions 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16 and 13 more (about 0, 0, 0, 0, ...)"
    assert told in the_warning(store)


def test_actions_of_another_scale(store: Store) -> None:
    store.actions[:, 0] *= 0.05
    assert "in dimension 0, where noise of size 1 drowns" in the_warning(store)


def test_clipped_actions_but_not_grippers(store: Store) -> None:
    store.actions[:, 0] = np.clip(9 * store.actions[:, 0], -1, 1)
    store.actions[:, 1] = np.sign(store.actions[:, 1])
    assert "rows in dimension 0; check that they were not clipped" in the_warning(store)


def test_a_picture_kept_as_numbers(store: Store) -> None:
    store.observations["rgb"] = np.random.default_rng(0).random((len(store), 32 * 32 * 3), np.float32)
    assert "observations/rgb is a state of 3072 numbers" in the_warning(store)


def test_episode_ends_that_nobody_recorded(store: Store) -> None:
    store.attributes = {"suite": "d4rl", "episode_ends": "terminals"}
    assert "breaks of the recording cannot be seen" in the_warning(store)
    assert "add 'timeouts'" in the_warning(store)
    for known in ("terminals and timeouts", "terminals and next_observations", "terminals and every 1000 steps"):
        store.attributes = {"suite": "d4rl", "episode_ends": known}
        assert warned(store) == []


@pytest.mark.parametrize(("value", "called"), [(0, "all black"), (200, "all one colour")])
def test_a_camera_that_shows_nothing(store: Store, value: int, called: str) -> None:
    store.observations["wrist"][22:30] = value
    assert "observations/wrist shows nothing in 8 of 75 sampled frames" in the_warning(store)
    assert f"first at episode 1, frame 2 ({called})" in the_warning(store)


def test_a_camera_slower_than_the_actions(store: Store) -> None:
    store.observations["front"][1:20:2] = store.observations["front"][0:20:2]
    assert "observations/front is the same as in the next frame in 10 of 72 sampled" in the_warning(store)
    assert "first at episode 0, frame 0" in the_warning(store)


def test_neighbours_of_two_episodes_are_not_compared(make_store: MakeStore) -> None:
    store = make_store([2] * 20, cameras={"front": (8, 6, 3)})
    frames = store.observations["front"]
    frames[2::2] = frames[1:-1:2]
    assert warned(store) == []


def test_a_camera_stuck_in_one_episode(make_store: MakeStore) -> None:
    store = make_store([20] * 12, cameras={"front": (4, 4, 3)})
    store.observations["front"][100:120] = store.observations["front"][100]
    assert "first, middle and last frame of 1 sampled episodes, the first is episode 5" in the_warning(store)


def test_one_camera_under_two_names(store: Store) -> None:
    store.observations["wrist"] = store.observations["front"].copy()
    assert "observations/wrist shows the same pictures as observations/front" in the_warning(store)


def test_what_the_reader_left_out(store: Store) -> None:
    store.attributes = {"left_out": ["depth", "words"]}
    assert "not read, for being text, sound or pictures not of uint8: depth, words;" in the_warning(store)
    store.attributes = {"left_out": "anything"}
    assert warned(store) == []
