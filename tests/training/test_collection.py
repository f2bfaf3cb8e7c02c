import json
from pathlib import Path

import h5py
import numpy as np
import pytest

from gtp_vision.cli import main
from gtp_vision.datasets import demo_path
from gtp_vision.datasets.formats import open_store
from gtp_vision.envs import EnvSpec, Rendering
from gtp_vision.envs.oracles import puzzle_episodes

COLLECT = ["data", "collect", "ogbench/puzzle-3x3-play-singletask-task1", "--episodes", "3", "--seed", "4"]


def test_collected_episodes_do_not_depend_on_the_number_of_processes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for processes in (1, 2):
        status = main([*COLLECT, "--out", str(tmp_path / f"{processes}.h5"), "--processes", str(processes)])
        assert status == 0
    assert "of 3 visits solved" in capsys.readouterr().out
    one, two = (open_store(tmp_path / f"{n}.h5") for n in (1, 2))
    np.testing.assert_array_equal(one.actions, two.actions)
    np.testing.assert_array_equal(one.observations["state"], two.observations["state"])
    assert one.attributes["seed"] == 4
    assert one.attributes["command"].startswith("gtp-vision data collect ogbench/puzzle-3x3")


@pytest.mark.parametrize("env", ["scene-play-singletask-task1", "puzzle-3x3-play", "cube-double-play-singletask-task1"])
def test_what_nobody_demonstrates_cannot_be_collected(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], env: str
) -> None:
    assert main(["data", "collect", env, "--out", str(tmp_path / "x.h5")]) == 2
    told = capsys.readouterr().err
    assert "visual-puzzle-3x3-play-singletask-task1" in told
    assert "cube-single" in told
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("episodes", "0"),
        ("limit", "0"),
        ("processes", "0"),
        ("seed", "-1"),
        ("noise", "-1"),
        ("expert", "2"),
        ("wander", "-1"),
    ],
)
def test_settings_out_of_range_are_told_by_their_option(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], option: str, value: str
) -> None:
    assert main([*COLLECT, "--out", str(tmp_path / "x.h5"), f"--{option}", value]) == 2
    assert f"--{option} {value}" in capsys.readouterr().err


@pytest.mark.parametrize("expert", [0, 1])
def test_experts_bring_the_cube_to_the_goal_and_others_elsewhere(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], expert: int
) -> None:
    out = tmp_path / "cube.h5"
    words = ["data", "collect", "cube-single-play-singletask-task1", "--out", str(out), "--episodes", "3"]
    assert main([*words, "--expert", str(expert), "--limit", "150", "--processes", "1"]) == 0
    assert f"{3 * expert} of 3 visits solved" in capsys.readouterr().out
    store = open_store(out)
    assert int(np.sum(store.terminals)) == 3 * expert
    assert np.asarray(store.rewards)[np.flatnonzero(store.terminals)] == pytest.approx(0)
    assert np.abs(store.actions).max() <= 1


def test_the_carried_data_set_can_be_made_again_from_its_record() -> None:
    path = demo_path()
    assert path.stat().st_size <= 8_000_000
    with h5py.File(path) as file:
        made = json.loads(file.attrs["metadata"])
    words = made["command"].split()
    assert words[:3] == ["gtp-vision", "data", "collect"]
    option = {word: words[k + 1] for k, word in enumerate(words[:-1]) if word.startswith("--")}
    assert option["--seed"] == str(made["seed"])
    env = EnvSpec(made["env"], Rendering.of(made), max_episode_steps=int(option["--limit"]) + 1).make()
    first, *_ = puzzle_episodes(
        env,
        int(np.random.SeedSequence((made["seed"], 0)).generate_state(1)[0]),
        float(option["--expert"]),
        float(option["--noise"]),
        float(option["--wander"]),
        int(option["--limit"]),
    )
    env.unwrapped._renderer.close()
    store = open_store(path)
    few = slice(0, 8)  # another machine's rounding may grow over an episode
    np.testing.assert_allclose(store.actions[few], first.actions[few], atol=0.02)
    difference = np.abs(first.observations[few].astype(int) - store.observations["camera"][few])
    assert difference.mean() < 1, "another OpenGL may round differently, but not more"
