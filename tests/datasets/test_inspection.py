import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from gtp_vision.datasets.formats import native
from gtp_vision.datasets.inspection import inspect, told
from gtp_vision.datasets.store import Store
from gtp_vision.errors import GtpVisionError

MakeStore = Callable[..., Store]


@pytest.fixture
def store(make_store: MakeStore) -> Store:
    return make_store(
        (5, 7, 4),
        terminals={2, 3, 15},
        cameras={"front": (8, 6, 3)},
        rewards=np.linspace(-1, 1, 16, dtype=np.float32),
        attributes={"env": "a-task-v0"},
    )


def test_the_facts_are_those_of_the_store(store: Store, tmp_path: Path) -> None:
    found, _ = inspect(native.write(tmp_path / "data.h5", store))
    assert found["format"] == "native"
    assert found["problems"] == []
    assert (found["episodes"], found["frames"], found["transitions"]) == (3, 16, 14)
    assert (found["cameras"], found["states"]) == ({"front": [8, 6, 3]}, {"state": [3]})
    assert found["episode_length"] == {"min": 4, "max": 7, "mean": pytest.approx(16 / 3)}
    assert found["reward"] == {"min": -1, "max": 1, "mean": pytest.approx(0, abs=1e-6)}
    assert (found["terminals"], found["timeouts"]) == (3, 2)
    assert (found["episodes_with_terminal"], found["episodes_that_end_in_terminal"]) == (2, 1)
    np.testing.assert_allclose(found["action_min"], store.actions.min(0), atol=1e-4)
    np.testing.assert_allclose(found["action_max"], store.actions.max(0), atol=1e-4)
    assert found["attributes"] == {"env": "a-task-v0"}


def test_the_facts_are_json(store: Store, tmp_path: Path) -> None:
    found, _ = inspect(native.write(tmp_path / "data.h5", store))
    assert json.loads(json.dumps(found)) == found


def test_the_pictures_are_first_middle_and_last_frames_of_episodes(store: Store, tmp_path: Path) -> None:
    _, frames = inspect(native.write(tmp_path / "data.h5", store))
    assert frames is not None
    rows = [[0, 2, 4], [5, 8, 11], [12, 13, 15]]
    np.testing.assert_array_equal(frames, store.observations["front"][rows].transpose(0, 1, 4, 2, 3))


def test_pictures_of_many_episodes_are_a_few_from_first_to_last(make_store: MakeStore, tmp_path: Path) -> None:
    store = make_store([2] * 40, cameras={"front": (4, 4, 3)})
    _, frames = inspect(native.write(tmp_path / "data.h5", store))
    assert frames is not None
    assert len(frames) < 40
    np.testing.assert_array_equal(frames[0, 0], store.observations["front"][0].transpose(2, 0, 1))
    np.testing.assert_array_equal(frames[-1, -1], store.observations["front"][-1].transpose(2, 0, 1))


def test_without_a_camera_there_are_no_pictures(make_store: MakeStore, tmp_path: Path) -> None:
    found, frames = inspect(native.write(tmp_path / "data.h5", make_store()))
    assert frames is None
    assert found["cameras"] == {}


def test_the_text_tells_the_facts(store: Store, tmp_path: Path) -> None:
    path = native.write(tmp_path / "data.h5", store)
    text = told(inspect(path)[0])
    assert f"{path}: native, 3 episodes, 16 frames" in text
    assert "front 8x6x3, state 3" in text
    assert "4 to 7, mean 5.3" in text
    assert "3 in 2 episodes (success rate 67%" in text
    assert "14 can be sampled" in text
    assert "a-task-v0" in text
    assert "nothing wrong was found" in text
    assert "PROBLEM" not in text


def test_faults_inside_a_readable_file_are_listed_not_raised(store: Store, tmp_path: Path) -> None:
    store.actions[6] = 3
    store.rewards[1] = np.nan
    found, frames = inspect(native.write(tmp_path / "data.h5", store))
    assert frames is None
    assert len(found["problems"]) == 1
    text = told(found)
    assert "PROBLEM" in text
    assert "rewards holds a value that is not finite at episode 0, frame 1" in text
    assert "nothing wrong" not in text


def test_a_file_that_cannot_be_read_is_raised(tmp_path: Path) -> None:
    with pytest.raises(GtpVisionError, match="no data set at"):
        inspect(tmp_path / "gone.h5")
