from typing import Any

import numpy as np
import pytest
from stores import make_store

from gtp_vision.core.errors import GtpVisionError
from gtp_vision.datasets.arrays import Segmented
from gtp_vision.datasets.sampler import Sampler
from gtp_vision.datasets.store import mix
from gtp_vision.datasets.validation import problems


def test_observations_are_chosen_by_name() -> None:
    store = make_store((2, 3), cameras={"front": (4, 4, 3), "wrist": (4, 4, 3)})
    assert list(store.select(["wrist", "state"]).observations) == ["wrist", "state"]
    assert len(store.observations) == 3, "the store itself is as it was"
    with pytest.raises(GtpVisionError, match="no observation 'frnt': did you mean 'front'"):
        store.select(["frnt"])


def test_a_subset_is_its_episodes_and_copies_no_frames() -> None:
    store = make_store((2, 3, 4, 1), cameras={"front": (4, 4, 3)}, terminals={4})
    some = store.subset([2, 0, 1])
    rows = [5, 6, 7, 8, 0, 1, 2, 3, 4]
    assert some.episode_ends.tolist() == [4, 6, 9]
    for name in ("actions", "rewards", "terminals", "timeouts"):
        np.testing.assert_array_equal(getattr(some, name), getattr(store, name)[rows])
    front = some.observations["front"]
    assert isinstance(front, Segmented)
    np.testing.assert_array_equal(np.asarray(front), store.observations["front"][rows])
    assert len(front.segments) == 2, "neighbouring episodes stay in one piece"
    assert all(np.shares_memory(part, store.observations["front"]) for part in front.segments)
    assert problems(some) == []


def test_groups_of_episodes_are_found_by_name() -> None:
    store = make_store((2, 3, 4), attributes={"filters": {"train": [2, 0], "empty": []}, "env": "lift"})
    train = store.filtered("train")
    assert train.episode_ends.tolist() == [2, 6]
    assert train.attributes == {"env": "lift"}
    for name in ("trian", "empty"):
        with pytest.raises(GtpVisionError, match=f"no group of episodes '{name}'.*train"):
            store.filtered(name)


def test_a_mixture_holds_the_shares_asked_for() -> None:
    stores = [make_store((50, 51), seed=1), make_store((7,), seed=2), make_store((30, 4), seed=3)]
    mixed = mix(stores, [1, 2, 5])
    assert problems(mixed) == []
    assert mixed.episode_ends.tolist() == [50, 101, 108, 138, 142]
    np.testing.assert_array_equal(
        np.asarray(mixed.observations["state"]), np.concatenate([store.observations["state"] for store in stores])
    )
    rows = np.concatenate([Sampler(mixed, 2000, 0).rows(step) for step in range(5)])
    source = np.searchsorted([101, 108], rows, side="right")
    assert np.bincount(source) / len(rows) == pytest.approx(np.array([1, 2, 5]) / 8, abs=0.015)
    inside = np.bincount(rows[source == 1] - 101, minlength=7)
    assert inside[-1] == 0, "its last row has no outcome"
    assert inside[:-1] == pytest.approx(np.full(6, inside.sum() / 6), rel=0.15)


def test_mixtures_can_be_mixed_and_keep_their_weights() -> None:
    inner = mix([make_store((11,)), make_store((11,), seed=1)], [3, 1])
    mixed = mix([inner, make_store((11,), seed=2)], [1, 1])
    rows = Sampler(mixed, 20_000, 0).rows(0)
    assert np.bincount(rows // 11) / len(rows) == pytest.approx([3 / 8, 1 / 8, 4 / 8], abs=0.015)


@pytest.mark.parametrize(
    ("other", "words"),
    [
        ({"cameras": {"front": (4, 4, 3)}}, "front 4x4x3 uint8, state 3 float32 and actions of 2"),
        ({"state": 4}, "state 4"),
        ({"actions": 3}, "actions of 3"),
        ({"observations": {"state": np.zeros((12, 3))}}, "state 3 float64 and actions of 2, but"),
    ],
)
def test_what_does_not_fit_is_not_mixed(other: dict[str, Any], words: str) -> None:
    with pytest.raises(GtpVisionError, match=words):
        mix([make_store(), make_store(**other)], [1, 1])


def test_actions_of_other_units_are_not_mixed() -> None:
    low, other = ({"action_low": [0.0, bound], "action_high": [1.0, 1.0]} for bound in (-1.0, -2.0))
    mix([make_store(attributes=low), make_store(attributes=dict(low))], [1, 1])
    for attributes in (other, {}):
        with pytest.raises(GtpVisionError, match="different bounds"):
            mix([make_store(attributes=low), make_store(attributes=attributes)], [1, 1])


@pytest.mark.parametrize("share", [0, -1, float("nan"), float("inf")])
def test_a_share_must_be_above_0(share: float) -> None:
    with pytest.raises(GtpVisionError, match="share"):
        mix([make_store(), make_store()], [1, share])


def test_episodes_keep_their_tasks() -> None:
    attributes = {"tasks": ["pick", "place"], "episode_tasks": [0, 1, 1], "filters": {"train": [1]}, "fps": 10}
    store = make_store((2, 3, 4), attributes=attributes)
    assert store.subset([2, 0]).attributes == {"tasks": ["pick", "place"], "episode_tasks": [1, 0], "fps": 10}
    assert mix([store, store], [1, 1]).attributes.keys() == {"fps", "mixed"}, "one set's tasks are not the other's"
