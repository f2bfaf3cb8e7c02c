"""Faults that are planted change what they are named for, and nothing else."""

import numpy as np
from stores import make_store

from gtp_vision.bench.rehearsal import _CAMERA, _acted, _changed, _exchange, _late, _linear, _negating, _swapped
from gtp_vision.datasets.scaling import in_file_units
from gtp_vision.datasets.store import Store

CAMERAS = {"front": (12, 10, 3), "wrist": (12, 10, 3)}


def made(**fields: object) -> Store:
    return make_store((6, 9), cameras=CAMERAS, **fields)  # type: ignore[arg-type]


def test_a_cameras_fault_leaves_the_rest_as_it_was() -> None:
    store = made()
    for _, _, change in _CAMERA:
        planted = _changed("front", change)(store)
        front = planted.observations["front"]
        assert front.shape == store.observations["front"].shape
        assert front.dtype == np.uint8
        assert not np.array_equal(front, store.observations["front"])
        assert planted.observations["wrist"] is store.observations["wrist"]
        assert planted.actions is store.actions


def test_exchanges_and_signs_are_undone_by_themselves() -> None:
    store = made()
    for plant in (
        _swapped("front", "wrist"),
        _changed("state", _linear(order=_exchange(3, 0, 2))),
        _acted(_linear(_negating(2, 1))),
    ):
        twice = plant(plant(store))
        np.testing.assert_array_equal(twice.actions, store.actions)
        for name, array in store.observations.items():
            np.testing.assert_array_equal(twice.observations[name], array)


def test_late_actions_are_those_of_the_step_before_in_the_same_episode() -> None:
    store = made(attributes={"action_low": [-3.0, 0.0], "action_high": [1.0, 250.0]})
    late, units = _late(store), in_file_units(store)
    np.testing.assert_array_equal(late.actions[1:6], units[:5])
    np.testing.assert_array_equal(late.actions[7:], units[6:-1])
    np.testing.assert_array_equal(late.actions[[0, 6]], units[[0, 6]])
    np.testing.assert_array_equal(in_file_units(late), late.actions)
