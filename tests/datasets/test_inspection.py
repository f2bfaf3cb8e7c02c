import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest

from gtp_vision.cli.main import main
from gtp_vision.core.errors import GtpVisionError
from gtp_vision.datasets.formats import native
from gtp_vision.datasets.inspection import facts, inspect, inspection_text, success
from gtp_vision.datasets.statistics import array_statistics
from gtp_vision.datasets.store import Store

MakeStore = Callable[..., Store]


@pytest.fixture
def store(make_store: MakeStore) -> Store:
    return make_store(
        (5, 7, 4),
        terminals={1, 2, 15},
        cameras={"front": (8, 6, 3)},
        rewards=np.linspace(-1, 1, 16, dtype=np.float32),
        attributes={"env": "a-task-v0"},
    )


def test_the_facts_are_those_of_the_store(store: Store, tmp_path: Path) -> None:
    found, opened = inspect(native.write(tmp_path / "data.h5", store))
    assert (found["format"], found["title"]) == ("native", "gtp-vision HDF5")
    assert (found["problems"], found["warnings"]) == ([], [])
    assert (found["episodes"], found["frames"], found["transitions"]) == (3, 16, 14)
    assert (found["cameras"], found["states"]) == ({"front": [8, 6, 3]}, {"state": [3]})
    assert found["episode_length"] == {"min": 4, "max": 7, "median": 5, "mean": pytest.approx(16 / 3)}
    sampled = np.delete(np.arange(16), [4, 11])
    rewards = store.rewards[sampled]
    assert found["reward"] == {"min": -1, "max": 1, "mean": pytest.approx(rewards.mean(), abs=1e-6), "nonzero": 1}
    assert (found["terminals"], found["timeouts"]) == (3, 2)
    assert (found["episodes_with_terminal"], found["episodes_that_end_in_terminal"]) == (2, 1)
    numbers = array_statistics(store.actions[sampled])
    assert found["actions"] == {key: getattr(numbers, key) for key in ("min", "max", "mean", "std", "constant")}
    assert found["attributes"] == {"env": "a-task-v0"}
    np.testing.assert_array_equal(opened.observations["front"], store.observations["front"])


def test_the_text_tells_the_facts(store: Store, tmp_path: Path) -> None:
    path = native.write(tmp_path / "data.h5", store)
    text = inspection_text(inspect(path)[0])
    assert f"{path}: native (gtp-vision HDF5), 3 episodes, 16 frames" in text
    assert "cameras        front 8x6x3\n" in text
    assert "states         state 3\n" in text
    assert "4 to 7, median 5 frames" in text
    assert "3 in 2 episodes, 1 of which end in one" in text
    assert "success        not known" in text
    assert "14 can be sampled" in text
    assert "a-task-v0" in text
    assert "nothing wrong was found" in text
    assert "PROBLEM" not in text
    assert "WARNING" not in text


def test_zero_rewards_are_a_share(store: Store) -> None:
    store.rewards[7:] = 0  # of the 14 rows with an outcome 6 are left
    assert facts(store)["reward"]["nonzero"] == pytest.approx(6 / 14)
    assert "other than 0 in 42.9% of the rows" in inspection_text(_named(facts(store)))


def test_faults_inside_a_readable_file_are_listed_beside_the_facts(store: Store, tmp_path: Path) -> None:
    store.actions[6] = 3
    store.rewards[1] = np.nan
    found, _ = inspect(native.write(tmp_path / "data.h5", store))
    assert len(found["problems"]) == 1
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    assert max(found["actions"]["max"]) == 3
    text = inspection_text(found)
    assert "PROBLEM        rewards holds a value that is not finite at episode 0, frame 1" in text
    assert "rewards        not finite to not finite" in text
    assert "nothing wrong" not in text


def test_padding_after_the_last_action_counts_for_nothing(make_store: MakeStore) -> None:
    """As Minari's and robomimic's readers make it: a terminal, then the final observation."""
    store = make_store([4, 4], terminals={2}, timeouts={3, 7})
    store.actions += 2 * (store.actions >= 0) - 1  # none is 0
    store.rewards[:] = 1
    store.actions[[3, 7]], store.rewards[[3, 7]] = 0, 0
    found = facts(store)
    assert found["reward"]["min"] == found["reward"]["nonzero"] == 1
    assert found["actions"]["mean"] == pytest.approx(store.actions[[0, 1, 2, 4, 5, 6]].mean(0).tolist())
    assert found["episodes_that_end_in_terminal"] == 1


def test_without_a_transition_only_shapes_are_told(make_store: MakeStore) -> None:
    found = facts(make_store([1, 1]))
    assert "reward" not in found
    assert "PROBLEM        no transition" in inspection_text(_named(found))


def test_where_lengths_disagree_only_shapes_are_told(store: Store) -> None:
    store.rewards = store.rewards[:-1]
    found = facts(store)
    assert "reward" not in found
    assert "PROBLEM        rewards has 15 rows and actions 16" in inspection_text(_named(found))


def test_a_file_that_cannot_be_read_is_raised(tmp_path: Path) -> None:
    with pytest.raises(GtpVisionError, match="no data set at"):
        inspect(tmp_path / "gone.h5")


def test_warnings_are_told_and_are_no_faults(make_store: MakeStore) -> None:
    found = facts(make_store(rewards=np.zeros(12, np.float32)))
    assert found["problems"] == []
    text = inspection_text(_named(found))
    assert "WARNING        rewards are 0 everywhere" in text
    assert "nothing wrong was found, but see the warnings" in text


def test_filters_and_tasks_are_counted(make_store: MakeStore) -> None:
    attributes = {
        "filters": {"train": [0, 2], "valid": [1]},
        "tasks": ["pick", "place", "wait"],
        "episode_tasks": [1, 0, 1],
    }
    found = facts(make_store([3, 3, 3], attributes=attributes))
    assert found["filters"] == {"train": 2, "valid": 1}
    assert found["tasks"] == {"pick": 1, "place": 2, "wait": 0}
    text = inspection_text(_named(found))
    assert "filters        train 2, valid 1 (episodes)" in text
    assert "tasks          pick (1 episodes); place (2 episodes); wait (0 episodes)" in text


@pytest.mark.parametrize(
    "attributes",
    [
        {"filters": ["train"], "tasks": 3, "episode_tasks": {"a": 1}},
        {"filters": {"train": 3}, "tasks": ["a"], "episode_tasks": [-1, 1 << 40, "x", None, True, 2.5]},
        {"suite": 3, "env": ["x"], "visits": "many", "solved_visits": 4},
        {"visits": 0, "solved_visits": 0},
        {"visits": 1, "solved_visits": 5},
    ],
)
def test_attributes_of_strangers_may_be_anything(make_store: MakeStore, attributes: dict) -> None:
    found = facts(make_store(attributes=attributes))
    assert found["success"]["rate"] is None
    assert f"{found['frames']} frames" in inspection_text(_named(found))


def test_long_and_wild_attributes_are_short_in_the_text_and_whole_in_the_facts(make_store: MakeStore) -> None:
    attributes = {"env_args": {"model": "<x>" * 1000}, "note": "\x1b[31mred\nline"}
    found = facts(make_store(attributes=attributes))
    assert found["attributes"] == attributes
    text = inspection_text(_named(found))
    assert "(3013 characters; --json prints them)" in text
    assert "?[31mred line" in text
    assert all(len(line) <= 120 and (line.isprintable() or not line) for line in text.split("\n"))


def test_attributes_nested_beyond_reason_are_cut(make_store: MakeStore) -> None:
    nested: list = []
    for _ in range(900):
        nested = [nested]
    found = facts(make_store(attributes={"nested": nested}))
    assert json.dumps(found["attributes"]["nested"]).strip("[]") == "null"
    assert json.dumps(found["attributes"]["nested"]).count("[") == 99


def test_many_arrays_and_dimensions_are_wrapped(make_store: MakeStore) -> None:
    store = make_store(actions=40)
    store.observations |= {f"a_rather_long_name_of_a_sensor_{i}": store.observations["state"] for i in range(20)}
    lines = inspection_text(_named(facts(store))).split("\n")
    assert max(map(len, lines)) <= 120
    assert sum("a_rather_long_name" in line for line in lines) > 4


@pytest.mark.parametrize(
    ("attributes", "rewards", "rate"),
    [
        ({"suite": "ogbench", "env": "cube-single-play-singletask-task1-v0"}, None, 2 / 3),
        ({"suite": "ogbench", "env": "cube-single-play-v0"}, None, None),
        ({"suite": "ogbench", "env": "x-singletask-v0", "visits": 10, "solved_visits": 9}, None, 0.9),
        ({"suite": "robomimic"}, [0, 0, 0, 1, 1, 0, 0, 0, 0], 1 / 3),
        ({"suite": "robomimic"}, [0, 0, 0, 0.5, 1, 0, 0, 0, 0], None),
        ({"suite": "robomimic"}, [0] * 9, None),
        ({"suite": "d4rl", "episode_ends": "timeouts and leaps"}, None, 2 / 3),
        ({"suite": "d4rl", "episode_ends": "terminals and timeouts"}, None, None),
        ({"suite": "minari"}, None, None),
        ({}, None, None),
    ],
)
def test_success_is_told_only_where_it_is_known(
    make_store: MakeStore, attributes: dict, rewards: list | None, rate: float | None
) -> None:
    store = make_store([3, 3, 3], terminals={0, 1, 8}, attributes=attributes)
    if rewards:
        store.rewards[:] = rewards
    found = success(store)
    assert found["rate"] == (rate if rate is None else pytest.approx(rate))
    assert found["because"]


def test_the_command_needs_no_torch_and_draws(store: Store, tmp_path: Path) -> None:
    path = native.write(tmp_path / "data.h5", store)
    program = (
        "import sys; from gtp_vision.cli.main import main; status = main(sys.argv[1:]); "
        "sys.exit(status or 99 * ('torch' in sys.modules))"
    )
    drawn = [tmp_path / "pictures" / "frames.png", tmp_path / "pictures" / "actions.png"]
    command = ["data", "inspect", path, "--json", "--sheet", drawn[0], "--actions", drawn[1]]
    done = subprocess.run([sys.executable, "-P", "-c", program, *command], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["frames"] == 16
    assert all(picture.read_bytes().startswith(b"\x89PNG") for picture in drawn)


def test_robomimic_without_rewards_is_told_so(make_store: MakeStore) -> None:
    because = success(make_store(rewards=np.zeros(12, np.float32), attributes={"suite": "robomimic"}))["because"]
    assert "there are no rewards" in because
    assert "not 0 and 1" not in because


def test_a_picture_never_replaces_the_data(
    store: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = native.write(tmp_path / "data.h5", store)
    before = path.read_bytes()
    monkeypatch.chdir(tmp_path)
    for option in ("--sheet", "--actions"):
        assert main(["data", "inspect", "data.h5", option, "data.h5"]) == 2
        assert "ends in .png" in capsys.readouterr().err
    assert main(["data", "inspect", "data.h5", "--sheet", "a.png", "--actions", "./a.png"]) == 2
    output = capsys.readouterr()
    assert "name two files" in output.err
    assert not output.out, "refused before anything is read"
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["data.h5"]


def test_a_missing_camera_is_said_and_no_fault(
    make_store: MakeStore, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = native.write(tmp_path / "data.h5", make_store())
    sheet, actions = tmp_path / "sheet.png", tmp_path / "actions.png"
    assert main(["data", "inspect", str(path), "--json", "--sheet", str(sheet), "--actions", str(actions)]) == 0
    output = capsys.readouterr()
    assert json.loads(output.out)["problems"] == []
    assert "holds no camera" in output.err
    assert (sheet.exists(), actions.exists()) == (False, True)


def test_what_has_faults_is_drawn_as_far_as_it_can_be(
    store: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store.actions[3] = np.nan
    path = native.write(tmp_path / "data.h5", store)
    sheet, actions = tmp_path / "sheet.png", tmp_path / "actions.png"
    command = ["data", "inspect", str(path), "--sheet", str(sheet), "--actions", str(actions)]
    assert main(command) == 2
    assert (sheet.exists(), actions.exists()) == (True, True)
    assert not capsys.readouterr().err
    with h5py.File(path, "r+") as file:
        frames = file["observations/front"][:] / np.float32(255)
        del file["observations/front"]
        file["observations/front"] = frames
    sheet.unlink()
    assert main(command) == 2
    assert "multiply by 255 and write uint8; no camera can be drawn before" in capsys.readouterr().err
    assert not sheet.exists()


def _named(found: dict) -> dict:
    return found | {"path": "data.h5", "format": "native", "title": "a title"}


def test_a_camera_without_pixels_is_a_fault(make_store: MakeStore) -> None:
    found = facts(make_store(cameras={"front": (0, 4, 3)}))
    assert "PROBLEM        observations/front is uint8 (12, 0, 4, 3)" in inspection_text(_named(found))
