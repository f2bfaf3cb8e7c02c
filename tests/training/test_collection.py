import json
from pathlib import Path

import h5py
import numpy as np
import pytest

from gtp_vision.cli import main
from gtp_vision.datasets import demo_path
from gtp_vision.datasets.formats import open_store
from gtp_vision.envs import EnvSpec, Rendering

COLLECT = ["data", "collect", "ogbench/puzzle-3x3-play-singletask-task1", "--episodes", "3", "--seed", "4"]


def test_collected_episodes_do_not_depend_on_the_number_of_processes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for processes in (1, 2):
        status = main([*COLLECT, "--out", str(tmp_path / f"{processes}.h5"), "--processes", str(processes)])
        assert status == 0
    assert "3 episodes" in capsys.readouterr().out
    one, two = (open_store(tmp_path / f"{n}.h5") for n in (1, 2))
    np.testing.assert_array_equal(one.actions, two.actions)
    np.testing.assert_array_equal(one.observations["state"], two.observations["state"])
    assert one.attributes["seed"] == 4
    assert one.attributes["command"].startswith("gtp-vision data collect ogbench/puzzle-3x3")


def test_only_puzzles_can_be_collected(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status = main(["data", "collect", "cube-single-play-singletask-task1", "--out", str(tmp_path / "x.h5")])
    assert status == 2
    assert "visual-puzzle-3x3-play-singletask-task1" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_the_carried_data_set_records_its_making_and_renders_again_the_same() -> None:
    path = demo_path()
    assert path.stat().st_size <= 8_000_000
    with h5py.File(path) as file:
        made = json.loads(file.attrs["metadata"])
    assert made["command"].startswith("gtp-vision data collect ")
    assert f"--seed {made['seed']}" in made["command"]
    store = open_store(path)
    assert store.observations["camera"].shape[1:] == (64, 64, 3)
    # The first frame of the first episode, rendered now with the recorded settings.
    env = EnvSpec(made["env"], Rendering.of(made)).make()
    seed = int(np.random.SeedSequence((made["seed"], 0)).generate_state(1)[0])
    frame, _ = env.reset(seed=seed)
    env.unwrapped._renderer.close()
    difference = np.abs(frame.astype(int) - store.observations["camera"][0])
    assert difference.mean() < 0.5, "another OpenGL may round differently, but not more"
