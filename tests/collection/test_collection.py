import json
import os
import signal
import subprocess
from collections.abc import Sequence
from pathlib import Path

import h5py
import numpy as np
import ogbench
import psutil
import pytest
from commands import CLI, started, wait_for

from gtp_vision.cli.main import main
from gtp_vision.collection.oracles import puzzle_episodes
from gtp_vision.datasets import demo_path
from gtp_vision.datasets.formats import open_store
from gtp_vision.envs import EnvSpec, Rendering, choose_backend, close

pytestmark = pytest.mark.simulates
COLLECT = ["data", "collect", "ogbench/puzzle-3x3-play-singletask-task1", "--episodes", "2", "--seed", "4"]
MAZE = ["data", "collect", "ogbench/pointmaze-medium-navigate", "--out", "sets", "--processes", "2"]
MAZE += ["--episodes", "10", "--limit", "2001"]  # long enough to be interrupted before the last episode
LIFT = ["data", "collect", "robosuite/Lift", "--processes", "1"]


def recording(folder: Path, words: Sequence[str]) -> subprocess.Popen[str]:
    """The command in a process of its own that has recorded a part or more."""
    folder.mkdir(exist_ok=True)
    before = set(folder.glob("*/.*.parts/[0-9]*.npz"))
    process = started(*CLI, *words, cwd=folder, start_new_session=True)
    wait_for(lambda: not set(folder.glob("*/.*.parts/[0-9]*.npz")) <= before, process)
    return process


@pytest.mark.processes
def test_interrupted_and_killed_collections_resume_to_the_same_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken, whole = tmp_path / "broken", tmp_path / "whole"
    for send, number in ((os.killpg, signal.SIGINT), (os.kill, signal.SIGTERM)):  # as a terminal does, and `kill`
        process = recording(broken, MAZE)
        send(process.pid, number)
        stderr = process.communicate(timeout=30)[1]
        assert process.returncode == 130
        assert "Traceback" not in stderr
        assert stderr.splitlines()[-1].endswith("give the same command again to resume")

    process = recording(broken, MAZE)
    workers = psutil.Process(process.pid).children(recursive=True)
    assert len(workers) >= 2
    process.kill()
    process.wait()
    assert not psutil.wait_procs(workers, timeout=60)[1], "workers end with their parent"
    assert not list(broken.glob("sets/*.npz"))

    names = ["pointmaze-medium-navigate-v0-val.npz", "pointmaze-medium-navigate-v0.npz"]
    for folder in (broken, whole):
        folder.mkdir(exist_ok=True)
        monkeypatch.chdir(folder)
        assert main(MAZE) == 0
        assert sorted(os.listdir(folder / "sets")) == names
    for name in names:
        assert (broken / "sets" / name).read_bytes() == (whole / "sets" / name).read_bytes()


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("scenes")
    words = ["data", "collect", "ogbench/scene-play", "--out", str(folder), "--episodes", "3", "--limit", "40"]
    assert main([*words, "--processes", "1"]) == 0
    return folder


def test_ogbench_loads_the_files_of_its_recipes(scenes: Path) -> None:
    train, validation = ogbench.make_env_and_datasets(
        "scene-play-v0", dataset_dir=str(scenes), dataset_only=True, add_info=True
    )
    widths = {"observations": 40, "next_observations": 40, "actions": 5, "qpos": 25, "qvel": 24, "button_states": 2}
    assert {name: array.shape for name, array in train.items()} == {
        **{name: (117, width) for name, width in widths.items()},
        "terminals": (117,),
    }
    assert len(validation["actions"]) == 39
    assert train["terminals"].nonzero()[0].tolist() == [38, 77, 116]


def test_our_reader_agrees_with_ogbench_and_knows_how_files_were_collected(scenes: Path, cache: Path) -> None:
    name = "scene-play-singletask-task2-v0"
    choose_backend()  # before OGBench imports mujoco
    _, train, _ = ogbench.make_env_and_datasets(name, dataset_dir=str(scenes))
    store = open_store(scenes / "scene-play-v0.npz", name)
    rows = store.transitions
    np.testing.assert_array_equal(store.observations["state"][rows], train["observations"])
    np.testing.assert_array_equal(store.actions[rows], train["actions"])
    np.testing.assert_array_equal(store.rewards[rows], train["rewards"])
    np.testing.assert_array_equal(store.terminals[rows], 1 - train["masks"])
    attributes = store.attributes
    assert (attributes["seed"], attributes["rendering"]) == (0, {"shadow_size": None, "multisamples": None})
    assert attributes["command"].startswith("gtp-vision data collect ogbench/scene-play")
    assert attributes["versions"]["ogbench"]


def test_rendering_options_are_applied_and_recorded(
    tmp_path: Path, cache: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TQDM_DISABLE", "1")
    words = ["data", "collect", "ogbench/visual-puzzle-3x3-noisy", "--out", str(tmp_path / "puzzle.npz")]
    words += ["--episodes", "1", "--limit", "2", "--shadow-size", "512", "--multisamples", "0"]
    assert main([*words, "--processes", "1"]) == 0
    assert capfd.readouterr().err == "", "the renderer is closed without a message"
    assert sorted(os.listdir(tmp_path)) == ["puzzle-val.npz", "puzzle.npz"]
    store = open_store(tmp_path / "puzzle.npz", "visual-puzzle-3x3-noisy-v0")
    assert store.observations["camera"].shape == (2, 64, 64, 3)
    assert np.asarray(store.observations["camera"]).std() > 20
    assert Rendering.of(store.attributes) == Rendering(512, 0)


def test_robomimic_reads_a_collection_of_lift(
    tmp_path: Path, cache: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TQDM_DISABLE", "1")
    out = tmp_path / "lift.hdf5"
    assert main([*LIFT, "--out", str(out), "--episodes", "3", "--states-only"]) == 0
    output = capfd.readouterr()
    assert output.err == "", "robosuite is silent"
    assert "3 with success" in output.out
    with h5py.File(out) as file:
        env_args = json.loads(file["data"].attrs["env_args"])
        assert (env_args["env_name"], env_args["type"]) == ("Lift", 1)
        assert file["data"].attrs["total"] == sum(len(file[f"data/demo_{k}/actions"]) for k in range(3))
        assert "<mujoco" in file["data/demo_1"].attrs["model_file"]
        demo = {name: file[f"data/demo_0/{name}"][()] for name in ("actions", "rewards", "dones", "states")}
        assert file["data/demo_0/next_obs/object"][-1, 2] > 0.84
    assert len({len(array) for array in demo.values()}) == 1
    assert demo["dones"].nonzero()[0].tolist() == demo["rewards"].nonzero()[0].tolist() == [len(demo["dones"]) - 1]

    import robomimic.utils.obs_utils as obs_utils
    from robomimic.utils.dataset import SequenceDataset

    keys = ["object", "robot0_eef_pos", "robot0_eef_quat", "robot0_gripper_qpos"]
    obs_utils.initialize_obs_utils_with_obs_specs([{"obs": {"low_dim": keys}}])
    theirs = SequenceDataset(str(out), obs_keys=keys, dataset_keys=["actions"], filter_by_attribute="train")
    store = open_store(out)
    assert store.attributes["filters"] == {"train": [0, 1], "valid": [2]}
    assert len(theirs) == len(store.transitions) - (store.episode_ends[2] - store.episode_starts[2] - 1)
    objects = store.observations["object"]
    for row in (0, 5, len(theirs) - 1):
        own = store.transitions[row]
        np.testing.assert_array_equal(theirs[row]["actions"][0], store.actions[own])
        np.testing.assert_allclose(theirs[row]["obs"]["object"][0], objects[own], atol=1e-6)
        np.testing.assert_allclose(theirs[row]["next_obs"]["object"][0], objects[own + 1], atol=1e-6)


OGBENCH, SINGLE, LIFTING = "ogbench/cube-single-play", "puzzle-3x3-play-singletask-task1", "robosuite/Lift"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("robosuite/Stack", "choose robosuite/Lift"),
        (f"{LIFTING} --cameras agentvew", "did you mean 'agentview'"),
        (f"{LIFTING} --cameras agentview,agentview", "twice"),
        (f"{LIFTING} --states-only --size 84", "leave out --cameras and --size"),
        (f"{LIFTING} --size 0", "--size 0"),
        (f"{LIFTING} --noise nan", "--noise nan"),
        (f"{LIFTING} --shadow-size 512", "--shadow-size does not apply to robosuite"),
        (f"{OGBENCH} --expert 1", "--expert does not apply to OGBench's own recipes"),
        (f"{OGBENCH} --shadow-size 512", "--shadow-size does not apply to states"),
        (f"{OGBENCH} --limit 1", "--limit 1"),
        (f"{OGBENCH} --episodes 0", "--episodes 0"),
        ("scene-play-singletask-task1", "cube-single"),
        (f"{SINGLE} --processes 0", "--processes 0"),
        (f"{SINGLE} --seed -1", "--seed -1"),
        (f"{SINGLE} --expert 2", "--expert 2"),
        (f"{SINGLE} --multisamples 0", "--multisamples does not apply to states"),
        (f"{SINGLE} --states-only", "--states-only does not apply to single tasks"),
        ("cube-sngle-play", "did you mean 'cube-single-play'"),
        ("antmaze-large-navigate", "cannot be collected"),
    ],
)
def test_invalid_and_foreign_options_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], words: str, message: str
) -> None:
    assert main(["data", "collect", *words.split(), "--out", str(tmp_path / "x")]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_collected_episodes_do_not_depend_on_the_number_of_processes(tmp_path: Path) -> None:
    for processes in ("1", "2"):
        assert main([*COLLECT, "--out", str(tmp_path / f"{processes}.h5"), "--processes", processes]) == 0
    assert sorted(os.listdir(tmp_path)) == ["1.h5", "2.h5"]
    one, two = (open_store(tmp_path / f"{n}.h5") for n in (1, 2))
    np.testing.assert_array_equal(one.actions, two.actions)
    np.testing.assert_array_equal(one.observations["state"], two.observations["state"])
    assert one.attributes["seed"] == 4


@pytest.mark.parametrize("expert", [0, 1])
def test_only_experts_bring_the_cube_to_the_goal(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], expert: int
) -> None:
    out = tmp_path / "cube.h5"
    words = ["data", "collect", "cube-single-play-singletask-task1", "--out", str(out), "--episodes", "1"]
    assert main([*words, "--expert", str(expert), "--limit", "150", "--processes", "1"]) == 0
    assert f"{expert} of 1 visits solved" in capsys.readouterr().out
    store = open_store(out)
    assert int(np.sum(store.terminals)) == expert
    assert np.asarray(store.rewards)[np.flatnonzero(store.terminals)] == pytest.approx(0)
    assert np.abs(store.actions).max() <= 1


def test_the_demo_data_set_can_be_collected_again_from_its_record() -> None:
    path = demo_path()
    assert path.stat().st_size <= 8_000_000
    with h5py.File(path) as file:
        record = json.loads(file.attrs["metadata"])
    words = record["command"].split()
    assert words[:3] == ["gtp-vision", "data", "collect"]
    option = {word: words[k + 1] for k, word in enumerate(words[:-1]) if word.startswith("--")}
    assert option["--seed"] == str(record["seed"])
    env = EnvSpec(record["env"], Rendering.of(record), max_episode_steps=int(option["--limit"]) + 1).make()
    seed = int(np.random.SeedSequence((record["seed"], 0)).generate_state(1)[0])
    shares = [float(option[name]) for name in ("--expert", "--noise", "--wander")]
    first, *_ = puzzle_episodes(env, seed, *shares, int(option["--limit"]))
    close(env)
    store, few = open_store(path), slice(0, 8)  # another machine's rounding may grow over an episode
    np.testing.assert_allclose(store.actions[few], first.actions[few], atol=0.02)
    difference = np.abs(first.observations[few].astype(int) - store.observations["camera"][few])
    assert difference.mean() < 1, "another OpenGL may round differently, but not more"
