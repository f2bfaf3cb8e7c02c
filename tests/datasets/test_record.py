"""The record of a data set: what is compared, and what its hashes cover."""

import copy
import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from gtp_vision.core.errors import GtpVisionError
from gtp_vision.datasets import record
from gtp_vision.datasets.record import differences, read_record, record_of
from gtp_vision.datasets.statistics import mean_images, store_statistics
from gtp_vision.datasets.store import Store

MakeStore = Callable[..., Store]


def recorded(store: Store) -> record.DataRecord:
    return record_of(store, store_statistics(store), mean_images(store))


@pytest.fixture(scope="module")
def store(make_store: MakeStore) -> Store:
    return make_store((9, 9), cameras={"front": (4, 4, 3)})


def test_a_record_survives_json_and_forgets_paths_and_numbers_of_episodes(store: Store) -> None:
    full = replace(store, attributes={"filters": {"train": [0]}, "mixed": [], "action_low": [-2, -2], "fps": 10})
    found = recorded(full)
    again = read_record(json.loads(json.dumps(found.record())))
    assert again == found
    assert not differences(found, again)
    assert set(found.attributes) == {"action_low", "fps"}
    assert found.action_bounds == ([-2, -2], [1, 1])


def test_the_order_of_observations_is_no_difference(store: Store) -> None:
    assert not differences(recorded(store), recorded(store.select(["state", "front"])))


def test_rounding_is_no_difference_and_a_moved_statistic_is(store: Store) -> None:
    one = recorded(store)
    nudged = copy.deepcopy(one.record())
    nudged["statistics"]["actions"]["mean"][0] += 1e-9
    assert not differences(one, read_record(nudged))
    nudged["statistics"]["actions"]["mean"][1] += 1e-2
    (sentence,) = differences(one, read_record(nudged))
    assert sentence.startswith("mean of actions[1]: ")


def test_of_large_arrays_rows_that_are_spread_evenly_are_hashed(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(record, "_WHOLE", 100)
    monkeypatch.setattr(record, "_ROWS", 3)
    before = recorded(store)
    frames = np.array(store.observations["front"])
    for row, is_seen in ((0, True), (17, True), (5, False)):
        changed = frames.copy()
        changed[row] = 255 - changed[row]
        other = replace(store, observations=dict(store.observations) | {"front": changed})
        assert (record.content_of(other, {}) != record.content_of(store, {})) == is_seen
        assert differences(before, recorded(other)), "the mean frame covers it"


@pytest.mark.parametrize(
    "change",
    [
        {"observations": {"front": [4, 4]}},
        {"observations": {"front": [-1]}},
        {"observations": {"state": ["x"]}},
        {"observations": []},
        {"actions": 3},
        {"actions": True},
        {"attributes": {"action_low": [float("nan"), 0]}},
        {"statistics": {"actions": {"mean": 3}}},
        {"content": None},
        {"frames": "many"},
    ],
    ids=str,
)
def test_a_damaged_record_is_refused(store: Store, change: dict[str, Any]) -> None:
    stored = recorded(replace(store, attributes={"action_low": [-1, -1]})).record() | change
    with pytest.raises(GtpVisionError, match="record of the data set is invalid"):
        read_record(stored)
