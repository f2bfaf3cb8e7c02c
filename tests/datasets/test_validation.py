from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from gtp_vision.core.errors import GtpVisionError
from gtp_vision.datasets.store import Store
from gtp_vision.datasets.validation import location, problems, validate

MakeStore = Callable[..., Store]


def with_value(array: np.ndarray, row: int, value: float) -> np.ndarray:
    changed = array.copy()
    changed[row] = value
    return changed


def test_a_sound_store_passes_as_it_is(make_store: MakeStore) -> None:
    store = make_store((5, 7), cameras={"front": (4, 4, 3)}, terminals={3})
    assert problems(store) == []
    assert validate(store) is store


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("name", ["rewards", "actions", "observations/state"])
def test_a_value_that_is_not_finite_is_named_by_array_episode_and_frame(
    make_store: MakeStore, name: str, value: float
) -> None:
    store = make_store((5, 7), path=Path("somewhere.h5"))
    if name == "observations/state":
        store.observations = {"state": with_value(store.observations["state"], 8, value)}
    else:
        setattr(store, name, with_value(getattr(store, name), 8, value))
    with pytest.raises(GtpVisionError) as told:
        validate(store)
    assert all(word in str(told.value) for word in ("somewhere.h5", name, "episode 1", "frame 3"))


def test_an_action_out_of_range_is_named_by_episode_frame_and_size(make_store: MakeStore) -> None:
    store = make_store((5, 7))
    store.actions = with_value(with_value(store.actions, 6, 1.5), 9, -2.5)
    (told,) = problems(store)
    assert all(word in told for word in ("actions", "[-1, 1]", "2.5", "episode 1", "frame 1"))


def test_actions_that_rounding_moved_out_of_range_are_let_pass(make_store: MakeStore) -> None:
    store = make_store()
    store.actions = with_value(store.actions, 2, np.nextafter(np.float32(1), np.float32(2)))
    assert problems(store) == []


@pytest.mark.parametrize("name", ["rewards", "terminals", "timeouts", "observations/front"])
def test_an_array_of_another_length_is_named_with_both_lengths(make_store: MakeStore, name: str) -> None:
    store = make_store((5, 7), cameras={"front": (4, 4, 3)})
    if name == "observations/front":
        store.observations = {**store.observations, "front": store.observations["front"][:-1]}
    else:
        setattr(store, name, getattr(store, name)[:-1])
    (told,) = problems(store)
    assert all(word in told for word in (name, "11", "12"))


@pytest.mark.parametrize("ends", [[5, 11], [5, 13], [7, 5, 12], [5, 5, 12], [0, 12], [-1, 12]])
def test_episode_ends_that_do_not_increase_to_the_last_frame_are_refused(make_store: MakeStore, ends: list) -> None:
    (told,) = problems(make_store((5, 7), episode_ends=np.array(ends)))
    assert "episode_ends" in told
    assert "12" in told


def test_no_episodes_are_a_fault(make_store: MakeStore) -> None:
    (told,) = problems(make_store(episode_ends=np.zeros(0, np.int64)))
    assert "empty" in told


def test_a_store_without_transitions_is_a_fault(make_store: MakeStore) -> None:
    (told,) = problems(make_store((1, 1)))
    assert "no transition" in told


@pytest.mark.parametrize("shape", [(3, 8, 8), (1, 20, 30), (4, 64, 64)])
def test_channels_first_are_a_fault(make_store: MakeStore, shape: tuple[int, int, int]) -> None:
    (told,) = problems(make_store(observations={"front": np.zeros((12, *shape), np.uint8)}))
    assert all(word in told for word in ("observations/front", "channels first", "transpose(0, 2, 3, 1)"))


@pytest.mark.parametrize("shape", [(8, 8, 3), (3, 4, 3), (64, 64, 9), (8, 6, 1)])
def test_channels_last_are_none(make_store: MakeStore, shape: tuple[int, int, int]) -> None:
    assert problems(make_store(observations={"front": np.zeros((12, *shape), np.uint8)})) == []


def test_float_frames_are_told_what_to_do(make_store: MakeStore) -> None:
    (told,) = problems(make_store(observations={"front": np.zeros((12, 8, 8, 3), np.float32)}))
    assert "multiply by 255 and write uint8" in told


@pytest.mark.parametrize(
    "array",
    [
        np.zeros((12, 4), np.uint8),
        np.zeros((12, 4, 4, 3), np.float32),
        np.zeros((12, 4, 4), np.uint8),
        np.zeros((12, 3), np.int64),
        np.zeros(12, np.float32),
    ],
    ids=["uint8 state", "float image", "image without channels", "integer state", "state without width"],
)
def test_an_observation_that_is_neither_camera_nor_state_is_refused(make_store: MakeStore, array: np.ndarray) -> None:
    (told,) = problems(make_store(observations={"odd": array}))
    assert "observations/odd" in told
    assert "uint8 (N, H, W, C)" in told


@pytest.mark.parametrize(
    ("name", "array"),
    [
        ("actions", np.zeros(12, np.float32)),
        ("actions", np.zeros((12, 0), np.float32)),
        ("actions", np.zeros((12, 2, 2), np.float32)),
        ("rewards", np.zeros((12, 1), np.float32)),
        ("terminals", np.zeros((12, 1), np.uint8)),
        ("timeouts", np.zeros((12, 1), np.uint8)),
        ("episode_ends", np.array([[5, 12]])),
        ("episode_ends", np.array(12)),
        ("observations/state", np.zeros((12, 0), np.float32)),
    ],
    ids=lambda value: value if isinstance(value, str) else str(value.shape),
)
def test_an_array_of_another_shape_is_a_named_fault(make_store: MakeStore, name: str, array: np.ndarray) -> None:
    store = make_store((5, 7))
    if name == "observations/state":
        store.observations = {"state": array}
    else:
        setattr(store, name, array)
    found = problems(store)
    assert found
    assert name in found[0]


def test_a_timeout_inside_an_episode_is_a_fault(make_store: MakeStore) -> None:
    (told,) = problems(make_store((5, 7), timeouts={8}))
    assert all(word in told for word in ("timeouts", "episode 1", "frame 3"))


def test_the_first_fault_is_raised_and_the_others_counted(make_store: MakeStore) -> None:
    store = make_store()
    store.rewards, store.actions = with_value(store.rewards, 0, np.nan), with_value(store.actions, 1, np.nan)
    assert len(problems(store)) == 2
    with pytest.raises(GtpVisionError, match=r"rewards .*\(1 more: see gtp-vision data inspect\)"):
        validate(store)


def test_a_row_is_told_as_episode_and_frame(make_store: MakeStore) -> None:
    store = make_store((2, 1, 3))
    assert [location(store, row) for row in (0, 1, 2, 5)] == [
        "episode 0, frame 0",
        "episode 0, frame 1",
        "episode 1, frame 0",
        "episode 2, frame 2",
    ]


def test_a_fault_in_chosen_episodes_is_named_as_the_file_counts(make_store: MakeStore) -> None:
    store = make_store((2, 3, 4, 5))
    store.actions[11, 1] = np.nan
    for some in (store.subset([0, 3]), store.subset([1, 2, 3]).subset([2])):
        assert problems(some)[0].startswith("actions holds a value that is not finite at episode 3, frame 2")
