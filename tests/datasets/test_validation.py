from typing import Any

import numpy as np
import pytest
from stores import make_store

from gtp_vision.core.errors import GtpVisionError
from gtp_vision.datasets.store import Store
from gtp_vision.datasets.validation import location, problems, validate


def with_value(array: np.ndarray, row: int, value: float) -> np.ndarray:
    changed = array.copy()
    changed[row] = value
    return changed


def changed(store: Store, name: str, array: Any) -> Store:
    if name.startswith("observations/"):
        store.observations = {**store.observations, name.removeprefix("observations/"): array}
    else:
        setattr(store, name, array)
    return store


def test_a_valid_store_is_returned() -> None:
    store = make_store((5, 7), cameras={"front": (4, 4, 3)}, terminals={3})
    assert problems(store) == []
    assert validate(store) is store
    store.actions = with_value(store.actions, 2, np.nextafter(np.float32(1), np.float32(2)))
    assert problems(store) == [], "rounding may leave [-1, 1]"


ODD = "observations/odd"
WANTED = "uint8 (N, H, W, C)"
FAULTS = [
    *((name, np.zeros(11, np.uint8), (name, "11", "12")) for name in ("rewards", "terminals", "timeouts")),
    ("observations/front", np.zeros((11, 4, 4, 3), np.uint8), ("observations/front", "11", "12")),
    *(("episode_ends", np.array(ends), ("episode_ends", "12"))
      for ends in ([5, 11], [5, 13], [7, 5, 12], [5, 5, 12], [0, 12], [-1, 12])),
    ("episode_ends", np.zeros(0, np.int64), ("empty",)),
    ("episode_ends", np.array([[5, 12]]), ("episode_ends",)),
    ("episode_ends", np.array(12), ("episode_ends",)),
    ("episode_ends", np.arange(12) + 1, ("no transition",)),
    ("actions", np.zeros(12), ("actions",)),
    ("actions", np.zeros((12, 0)), ("actions",)),
    ("actions", np.zeros((12, 2, 2)), ("actions",)),
    *((name, np.zeros((12, 1)), (name,)) for name in ("rewards", "terminals", "timeouts")),
    ("timeouts", np.arange(12) == 8, ("timeouts", "episode 1, frame 3")),
    *((ODD, np.zeros((12, *shape), np.uint8), (ODD, "channels first", "transpose(0, 2, 3, 1)"))
      for shape in ((3, 8, 8), (1, 20, 30), (4, 64, 64))),
    (ODD, np.zeros((12, 8, 8, 3), np.float32), (ODD, "multiply by 255 and write uint8")),
    (ODD, np.zeros((12, 4), np.uint8), (ODD, WANTED)),
    (ODD, np.zeros((12, 4, 4), np.uint8), (ODD, WANTED)),
    (ODD, np.zeros((12, 3), np.int64), (ODD, WANTED, "float32")),
    (ODD, np.zeros((12, 0), np.float32), (ODD, WANTED)),
    (ODD, np.zeros(12, np.float32), (ODD, WANTED)),
]  # fmt: skip


@pytest.mark.parametrize(("name", "array", "words"), FAULTS)
def test_a_fault_is_named(name: str, array: np.ndarray, words: tuple[str, ...]) -> None:
    store = make_store((5, 7), timeouts={11} if name == "episode_ends" and len(np.shape(array)) == 1 else None)
    found = problems(changed(store, name, array))
    assert len(found) == 1
    assert all(word in found[0] for word in words), found


@pytest.mark.parametrize("shape", [(8, 8, 3), (3, 4, 3), (64, 64, 9), (8, 6, 1)])
def test_channels_last_are_valid(shape: tuple[int, int, int]) -> None:
    assert problems(make_store(observations={"front": np.zeros((12, *shape), np.uint8)})) == []


def test_the_first_fault_is_raised_and_the_others_counted() -> None:
    store = make_store()
    store.rewards, store.actions = with_value(store.rewards, 0, np.nan), with_value(store.actions, 1, np.nan)
    with pytest.raises(GtpVisionError, match=r"rewards .*\(1 more: see gtp-vision data inspect\)"):
        validate(store)


def test_a_row_is_located_by_episode_and_frame_as_numbered_in_the_file() -> None:
    store = make_store((2, 1, 3))
    rows = {0: (0, 0), 1: (0, 1), 2: (1, 0), 5: (2, 2)}
    assert all(location(store, row) == f"episode {e}, frame {f}" for row, (e, f) in rows.items())
    store = make_store((2, 3, 4, 5))
    store.actions[11, 1] = np.nan
    for some in (store.subset([0, 3]), store.subset([1, 2, 3]).subset([2])):
        assert problems(some)[0].startswith("actions holds a value that is not finite at episode 3, frame 2")
