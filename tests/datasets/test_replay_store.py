"""The replay store: what is appended is read back, as one data set, and another task is refused."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gtp_vision.core.errors import GtpVisionError
from gtp_vision.datasets.formats import open_store
from gtp_vision.datasets.inspection import inspect
from gtp_vision.datasets.replay_store import RecordedEpisode, ReplayStore, store_of
from gtp_vision.datasets.store import mix

BOUNDS = {"action_low": [-0.5, -0.5], "action_high": [0.5, 0.5]}


def episode(actions: int, *, terminal: bool, success: bool | None = None, dim: int = 2, **cameras: Any) -> Any:
    random = np.random.default_rng(actions)
    observations: dict[str, np.ndarray] = {"state": random.normal(size=(actions + 1, 3)).astype(np.float32)}
    for name, shape in cameras.items():
        observations[name] = random.integers(0, 256, (actions + 1, *shape), np.uint8)
    moves = random.uniform(-1, 1, (actions, dim)).astype(np.float32)
    return RecordedEpisode(observations, moves, random.normal(size=actions), terminal, success)


def test_an_episode_that_times_out_keeps_the_observation_after_its_last_action() -> None:
    ended, cut = episode(3, terminal=True), episode(2, terminal=False)
    store = store_of([ended, cut], {})
    assert store.episode_ends.tolist() == [3, 6]
    assert store.terminals.tolist() == [0, 0, 1, 0, 0, 0]
    assert store.timeouts.tolist() == [0, 0, 0, 0, 0, 1]
    assert store.transitions.tolist() == [0, 1, 2, 3, 4]  # as many as actions
    np.testing.assert_array_equal(store.observations["state"][3:], cut.observations["state"])
    assert np.flatnonzero(store.final_observations).tolist() == [5]


@pytest.mark.parametrize("cameras", [{}, {"front": (40, 40, 3)}])
def test_the_folder_is_one_data_set(tmp_path: Path, cameras: Mapping[str, Any]) -> None:
    replay = ReplayStore(tmp_path / "replay")
    made = [episode(20, terminal=True, success=True, **cameras), episode(30, terminal=False, success=False, **cameras)]
    for each in made:
        replay.append([each], BOUNDS)
    assert replay.numbers() == [0, 1]
    whole, expected = open_store(replay.folder), store_of(made, BOUNDS)
    for name, array in expected.observations.items():
        np.testing.assert_array_equal(whole.observations[name], array)
    for name in ("actions", "rewards", "terminals", "timeouts", "episode_ends"):
        np.testing.assert_array_equal(getattr(whole, name), getattr(expected, name))
    assert whole.attributes == expected.attributes
    joined = mix([replay.open(number) for number in replay.numbers()], [1.0, 1.0])
    np.testing.assert_array_equal(joined.actions, whole.actions)
    replay.append(made[:1], BOUNDS)  # the cache's entry is of the files before
    assert open_store(replay.folder).episodes == 3
    replay.forget_from(1)
    assert replay.numbers() == [0]


def test_an_unfinished_file_is_not_part_of_it(tmp_path: Path) -> None:
    replay = ReplayStore(tmp_path)
    replay.append([episode(4, terminal=True)], BOUNDS)
    (tmp_path / ".000001.h5.123.part").write_bytes(b"half a file")
    assert replay.numbers() == [0]
    assert open_store(tmp_path).episodes == 1


@pytest.mark.parametrize(
    ("other", "bounds", "named"),
    [
        (episode(4, terminal=True, dim=3), {}, "actions of 3"),
        (episode(4, terminal=True, front=(8, 8, 3)), BOUNDS, "front 8x8x3"),
        (episode(4, terminal=True), {"action_low": [-2, -2], "action_high": [2, 2]}, "different bounds"),
    ],
)
def test_another_task_is_refused(tmp_path: Path, other: Any, bounds: Mapping[str, Any], named: str) -> None:
    replay, stranger = ReplayStore(tmp_path / "one"), ReplayStore(tmp_path / "other")
    replay.append([episode(4, terminal=True)], BOUNDS)
    with pytest.raises(GtpVisionError, match=named):
        replay.append([other], bounds)
    stranger.append([other], bounds)
    stranger.path(0).rename(replay.path(1))
    with pytest.raises(GtpVisionError, match="different tasks"):
        open_store(replay.folder)


def test_numbers_that_are_not_finite_are_refused_and_the_rest_stays(tmp_path: Path) -> None:
    replay = ReplayStore(tmp_path)
    replay.append([episode(4, terminal=True)], BOUNDS)
    bad = episode(4, terminal=True)
    bad.rewards[2] = np.nan
    with pytest.raises(GtpVisionError, match=re.escape("frame 2")):
        replay.append([bad], BOUNDS)
    assert replay.numbers() == [0]
    assert inspect(replay.path(0))
