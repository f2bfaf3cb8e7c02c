"""Rewards from labels: what each row gets, and what a critic can bootstrap from."""

import numpy as np
import pytest
from stores import make_store

from gtp_vision.core.errors import GtpVisionError
from gtp_vision.datasets.rewards import check_contrast, returns, rewarded, sentence
from gtp_vision.datasets.sampler import Sampler
from gtp_vision.datasets.store import Store
from gtp_vision.datasets.validation import problems

GAMMA = 0.9


def demonstrations(marks: list[bool | None], frames: list[int | None] | None = None, **more: object) -> Store:
    """Episodes of 5, 6 and 4 frames, the last of which is recorded without an action, and no rewards."""
    store = make_store((5, 6, 4)[: len(marks)], attributes={"episode_success": marks, "success_frame": frames}, **more)
    last = store.episode_ends - 1
    store.rewards[:], store.actions[last] = 0, 0
    return store


def test_sparse_rewards_and_terminals_stand_where_success_is_first_seen() -> None:
    store = rewarded(demonstrations([True, False, True], [None, None, 2]), "sparse", GAMMA)
    # The last action of the first episode leads to its last frame; frame 2 of the third is that after its row 1.
    assert np.flatnonzero(store.rewards).tolist() == [3, 12, 13]
    assert np.flatnonzero(store.terminals).tolist() == [3, 12, 13]
    assert problems(store) == []
    assert returns(store).tolist() == [1, 0, 1]


def test_the_value_of_a_row_is_the_discounted_time_to_success() -> None:
    """Returns to the end of an episode are, in closed form, functions of the rows that are left until success."""
    left = np.arange(4)[::-1]
    for mode, values in (
        ("sparse", GAMMA**left),
        ("steps", -(1 - GAMMA**left) / (1 - GAMMA)),
        ("dense", (1 - GAMMA) * (left + 1) * GAMMA**left),
    ):
        store = rewarded(demonstrations([True]), mode, GAMMA)
        reward, discount, _ = Sampler(store, 1, 0, n_step=9, discount=GAMMA).returns(np.arange(4))
        np.testing.assert_allclose(reward, values, rtol=1e-6, err_msg=mode)
        assert not discount.any(), "nothing follows a success"


def test_dense_rewards_telescope() -> None:
    store = rewarded(demonstrations([True, False]), "dense", GAMMA)
    np.testing.assert_allclose(returns(store), [1 - GAMMA**4, 0], rtol=1e-6)
    assert (np.diff(store.rewards[:4]) > 0).all(), "progress is worth more, the nearer the success"


@pytest.mark.parametrize("mode", ["sparse", "steps", "dense"])
def test_a_failure_has_no_terminal_so_that_ending_it_early_is_worth_nothing(mode: str) -> None:
    store = demonstrations([False, True], terminals={4}, timeouts={10})
    made = rewarded(store, mode, GAMMA)
    assert store.terminals[4]
    assert not made.terminals[:5].any()
    assert made.timeouts[4]
    assert problems(made) == []


def test_the_recorders_rewards_are_left_alone_by_default() -> None:
    store = make_store()
    assert rewarded(store, "file", GAMMA) is store


def test_missing_and_equal_labels_are_one_sentence() -> None:
    with pytest.raises(GtpVisionError, match=r"1 of 3 episodes .* have none.*task.filter=labelled"):
        rewarded(demonstrations([True, None, False]), "sparse", GAMMA)
    with pytest.raises(GtpVisionError, match=r"3 of 3 episodes of the data set have none; label them with gtp-vision"):
        rewarded(demonstrations([None, None, None]), "steps", GAMMA)
    with pytest.raises(GtpVisionError, match=r"succeed, so agent=gtp.* add failed episodes"):
        check_contrast([demonstrations([True, True]), demonstrations([True])], "gtp")
    check_contrast([demonstrations([True, True]), demonstrations([False])], "gtp")


def test_returns_are_described_with_their_labels() -> None:
    store = rewarded(demonstrations([True, False, True]), "sparse", GAMMA)
    assert sentence(store) == "returns of 3 episodes (2 successful, 1 failed): 0 to 1, mean 0.6667"
    assert sentence(demonstrations([True, False])) == ""
