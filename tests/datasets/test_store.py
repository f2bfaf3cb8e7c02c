from collections.abc import Callable

import numpy as np

from gtp_vision.datasets.store import Store

MakeStore = Callable[..., Store]


def test_the_last_frame_has_an_outcome_only_if_the_mdp_ended_there(make_store: MakeStore) -> None:
    store = make_store((2, 2, 2, 2), terminals={3, 7}, timeouts={1, 7})
    # episode 0 timed out, 1 ended, 2 says nothing, 3 claims both: its action's outcome was not recorded
    assert store.has_outcome.tolist() == [True, False, True, True, True, False, True, False]
    assert store.transitions.tolist() == [0, 2, 3, 4, 6]


def test_episodes_of_one_frame_have_no_transition(make_store: MakeStore) -> None:
    assert make_store((1, 1, 1)).transitions.tolist() == []
    assert make_store((1, 1, 1), terminals={1}).transitions.tolist() == [1]


def test_a_terminal_inside_an_episode_does_not_end_it(make_store: MakeStore) -> None:
    store = make_store((6,), terminals={2})
    assert store.transitions.tolist() == [0, 1, 2, 3, 4]
    assert store.episodes == 1


def test_rows_know_their_episode(make_store: MakeStore) -> None:
    store = make_store((2, 1, 3))
    assert store.episode_of(np.arange(6)).tolist() == [0, 0, 1, 2, 2, 2]
    assert store.episode_starts.tolist() == [0, 2, 3]
    assert len(store) == 6


def test_sizes_are_those_of_the_arrays(make_store: MakeStore) -> None:
    store = make_store((2, 3), cameras={"front": (4, 6, 3)}, state=2, actions=7)
    assert store.action_dim == 7
    assert store.nbytes() == 5 * (4 * 6 * 3 + 2 * 4)
