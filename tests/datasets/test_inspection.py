import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from commands import ended
from stores import make_store

from gtp_vision.cli.main import main
from gtp_vision.core.errors import GtpVisionError
from gtp_vision.datasets.formats import native
from gtp_vision.datasets.inspection import facts, inspect, inspection_text, success
from gtp_vision.datasets.statistics import array_statistics
from gtp_vision.datasets.store import Store


@pytest.fixture
def store() -> Store:
    return make_store(
        (5, 7, 4),
        terminals={1, 2, 15},
        cameras={"front": (8, 6, 3)},
        rewards=np.linspace(-1, 1, 16, dtype=np.float32),
        attributes={"env": "a-task-v0"},
    )


def text(store: Store) -> str:
    return inspection_text(facts(store) | {"path": "data.h5", "format": "native", "title": "a title"})


def test_facts_and_their_text(store: Store, tmp_path: Path) -> None:
    path = native.write(tmp_path / "data.h5", store)
    found, opened = inspect(path)
    assert (found["format"], found["title"]) == ("native", "gtp-vision HDF5")
    assert (found["problems"], found["warnings"]) == ([], [])
    assert (found["episodes"], found["frames"], found["transitions"]) == (3, 16, 14)
    assert (found["cameras"], found["states"]) == ({"front": [8, 6, 3]}, {"state": [3]})
    assert found["episode_length"] == {"min": 4, "max": 7, "median": 5, "mean": pytest.approx(16 / 3)}
    sampled = np.delete(np.arange(16), [4, 11])
    mean = pytest.approx(store.rewards[sampled].mean(), abs=1e-6)
    assert found["reward"] == {"min": -1, "max": 1, "mean": mean, "nonzero": 1}
    assert (found["terminals"], found["timeouts"]) == (3, 2)
    assert (found["episodes_with_terminal"], found["episodes_that_end_in_terminal"]) == (2, 1)
    numbers = array_statistics(store.actions[sampled])
    assert found["actions"] == {key: getattr(numbers, key) for key in ("min", "max", "mean", "std", "constant")}
    assert found["attributes"] == {"env": "a-task-v0"}
    np.testing.assert_array_equal(opened.observations["front"], store.observations["front"])
    assert f"{path}: native (gtp-vision HDF5), 3 episodes, 16 frames" in inspection_text(found)
    assert "faults         none were found" in inspection_text(found)
    with pytest.raises(GtpVisionError, match="no data set at"):
        inspect(tmp_path / "gone.h5")


def test_padding_after_the_last_action_is_not_counted() -> None:
    """As Minari's and robomimic's readers write it: a terminal, then the final observation."""
    store = make_store([4, 4], terminals={2}, timeouts={3, 7})
    store.actions += 2 * (store.actions >= 0) - 1  # none is 0
    store.rewards[:] = 1
    store.actions[[3, 7]], store.rewards[[3, 7]] = 0, 0
    found = facts(store)
    assert found["reward"]["min"] == found["reward"]["nonzero"] == 1
    assert found["actions"]["mean"] == pytest.approx(store.actions[[0, 1, 2, 4, 5, 6]].mean(0).tolist())
    assert found["episodes_that_end_in_terminal"] == 1


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({"lengths": [1, 1]}, "PROBLEM        the data set has no transition"),
        ({"rewards": np.full(12, np.nan, np.float32)}, "PROBLEM        rewards holds a value that is not finite"),
        ({"rewards": np.full(12, np.nan, np.float32)}, "rewards        not finite to not finite"),
        ({"rewards": np.zeros(12, np.float32)}, "WARNING        rewards are 0 everywhere"),
        ({"rewards": np.zeros(12, np.float32)}, "none were found, but see the warnings"),
        ({"rewards": np.arange(12) < 4}, "other than 0 in 40.0% of the rows"),
    ],
)
def test_findings_are_lines_of_the_text(content: dict[str, Any], words: str) -> None:
    store = make_store(**content)
    assert words in text(store)
    assert json.dumps(facts(store), allow_nan=False)


def test_filters_and_tasks_are_counted() -> None:
    tasks = {"tasks": ["pick", "place", "wait"], "episode_tasks": [1, 0, 1]}
    store = make_store([3, 3, 3], attributes={"filters": {"train": [0, 2], "valid": [1]}} | tasks)
    found = facts(store)
    assert found["filters"] == {"train": 2, "valid": 1}
    assert found["tasks"] == {"pick": 1, "place": 2, "wait": 0}
    assert "filters        train 2, valid 1 (episodes)" in text(store)
    assert "tasks          pick (1 episodes); place (2 episodes); wait (0 episodes)" in text(store)


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
def test_untrusted_attributes_may_be_anything(attributes: dict) -> None:
    store = make_store(attributes=attributes)
    assert facts(store)["success"]["rate"] is None
    assert "12 frames" in text(store)


def test_long_and_deep_attributes_are_short_in_the_text() -> None:
    attributes = {"env_args": {"model": "<x>" * 1000}, "note": "\x1b[31mred\nline"}
    store = make_store(attributes=attributes, actions=40)
    store.observations |= {f"a_rather_long_name_of_a_sensor_{i}": store.observations["state"] for i in range(20)}
    assert facts(store)["attributes"] == attributes
    lines = text(store).split("\n")
    assert "(3013 characters; --json prints them)" in text(store)
    assert "?[31mred line" in text(store)
    assert all(len(line) <= 120 and (line.isprintable() or not line) for line in lines)
    assert sum("a_rather_long_name" in line for line in lines) > 4
    nested: list = []
    for _ in range(900):
        nested = [nested]
    cut = json.dumps(facts(make_store(attributes={"nested": nested}))["attributes"]["nested"])
    assert cut.strip("[]") == "null"
    assert cut.count("[") == 99


@pytest.mark.parametrize(
    ("attributes", "rewards", "rate", "because"),
    [
        ({"suite": "ogbench", "env": "cube-single-play-singletask-task1-v0"}, None, 2 / 3, "the task's goal"),
        ({"suite": "ogbench", "env": "cube-single-play-v0"}, None, None, "--env"),
        ({"suite": "ogbench", "env": "x-singletask-v0", "visits": 10, "solved_visits": 9}, None, 0.9, "visits"),
        ({"suite": "robomimic"}, [0, 0, 0, 1, 1, 0, 0, 0, 0], 1 / 3, "a reward of 1"),
        ({"suite": "robomimic"}, [0, 0, 0, 0.5, 1, 0, 0, 0, 0], None, "not 0 and 1"),
        ({"suite": "robomimic"}, [0] * 9, None, "has no rewards"),
        ({"suite": "d4rl", "episode_ends": "timeouts and leaps"}, None, 2 / 3, "as at the goal of a maze"),
        ({"suite": "d4rl", "episode_ends": "terminals and timeouts"}, None, None, "falls"),
        ({"suite": "minari"}, None, None, "may be a success or a failure"),
        ({"suite": "lerobot"}, None, None, "no next.success"),
        ({"suite": "a plug-in"}, None, None, "does not say"),
        ({"episode_success": [True, None, False]}, None, 1 / 2, "episodes marked so, 1 more are not marked"),
        ({"suite": "robomimic", "episode_success": [True, True, False]}, [0, 0, 0, 1, 1, 0, 0, 0, 0], 2 / 3, "marked"),
        ({"episode_success": [None, None, None]}, None, None, "does not say"),
        ({"episode_success": [True]}, None, None, "does not say"),
        ({"episode_success": "all"}, None, None, "does not say"),
        ({}, None, None, "does not say"),
    ],
)
def test_success_is_reported_only_if_it_is_known(
    attributes: dict, rewards: list | None, rate: float | None, because: str
) -> None:
    store = make_store([3, 3, 3], terminals={0, 1, 8}, attributes=attributes)
    if rewards:
        store.rewards[:] = rewards
    found = success(store)
    assert found["rate"] == (rate if rate is None else pytest.approx(rate))
    assert because in found["because"]
    assert found["because"] in " ".join(text(store).split())


@pytest.mark.processes
def test_the_command_needs_no_torch_and_draws(store: Store, tmp_path: Path) -> None:
    path = native.write(tmp_path / "data.h5", store)
    program = (
        "import sys; from gtp_vision.cli.main import main; status = main(sys.argv[1:]); "
        "sys.exit(status or 99 * ('torch' in sys.modules))"
    )
    drawn = [tmp_path / "pictures" / "frames.png", tmp_path / "pictures" / "actions.png"]
    command = ["data", "inspect", path, "--json", "--sheet", drawn[0], "--actions", drawn[1]]
    assert json.loads(ended("-c", program, *command)[0])["frames"] == 16
    assert all(picture.read_bytes().startswith(b"\x89PNG") for picture in drawn)


def test_pictures_are_drawn_as_far_as_possible_and_never_replace_the_data(
    store: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    store.actions[3] = np.nan
    path = native.write(tmp_path / "data.h5", store)
    before = path.read_bytes()
    monkeypatch.chdir(tmp_path)
    command = ["data", "inspect", "data.h5"]
    for options, words in (
        (["--sheet", "data.h5"], "ends in .png"),
        (["--actions", "data.h5"], "ends in .png"),
        (["--sheet", "a.png", "--actions", "./a.png"], "name two files"),
    ):
        assert main([*command, *options]) == 2
        output = capsys.readouterr()
        assert words in output.err
        assert not output.out, "refused before anything is read"
    assert os.listdir(tmp_path) == ["data.h5"]
    assert main([*command, "--sheet", "sheet.png", "--actions", "actions.png"]) == 2
    assert sorted(os.listdir(tmp_path)) == ["actions.png", "data.h5", "sheet.png"]
    assert not capsys.readouterr().err
    assert path.read_bytes() == before


def test_a_missing_camera_is_reported(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = native.write(tmp_path / "data.h5", make_store())
    assert main(["data", "inspect", str(path), "--json", "--sheet", str(tmp_path / "sheet.png")]) == 0
    output = capsys.readouterr()
    assert json.loads(output.out)["problems"] == []
    assert "has no camera" in output.err
    assert not (tmp_path / "sheet.png").exists()
