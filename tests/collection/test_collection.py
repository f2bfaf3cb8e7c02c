import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import ogbench
import psutil
import pytest

from gtp_vision.cli.main import main
from gtp_vision.collection.oracles import puzzle_episodes
from gtp_vision.collection.recording import EpisodeParts, recorded
from gtp_vision.core.errors import GtpVisionError
from gtp_vision.datasets import demo_path
from gtp_vision.datasets.formats import open_store
from gtp_vision.envs import EnvSpec, Rendering, choose_backend

COLLECT = ["data", "collect", "ogbench/puzzle-3x3-play-singletask-task1", "--episodes", "3", "--seed", "4"]
MAZE = [
    "data",
    "collect",
    "ogbench/pointmaze-medium-navigate",
    "--out",
    "sets",
    "--episodes",
    "14",  # so many that an interrupt always comes before the last
    "--limit",
    "2501",
    "--processes",
    "2",
]
LIFT = ["data", "collect", "robosuite/Lift", "--processes", "1"]


@dataclass(frozen=True)
class Recorder:
    """Records its numbers, and fails as it is told to at episode 2."""

    seed: int = 0
    failure: str = ""

    def make(self) -> Any:
        if self.failure == "cannot be made":
            raise GtpVisionError("there is no simulator; install one")
        return open(os.devnull)  # something that can be closed, as environments can

    def record(self, env: Any, episode: int) -> dict[str, np.ndarray]:
        if episode == 2 and self.failure == "dies":
            os._exit(1)
        if episode == 2 and self.failure == "refuses":
            raise GtpVisionError("the simulator is out of order; mend it")
        return {"numbers": np.full(3, self.seed + episode)}


def joined(target: Path, recorder: Recorder = Recorder(), **settings: Any) -> list[int]:
    """Collect four episodes into a text file."""
    how: dict[str, Any] = {"episodes": 4, "settings": {"seed": recorder.seed}, "command": "c", "processes": 2}
    with recorded(target, recorder, **(how | {"progress": False, "overwrite": True} | settings)) as parts:
        numbers = [int(parts.load(episode)["numbers"][0]) for episode in range(4)]
        with parts.whole(target) as aside:
            aside.write_text(parts.command)
    return numbers


# The parts, and what may happen to a collection.


def test_a_collection_leaves_its_file_and_nothing_else(tmp_path: Path) -> None:
    assert joined(tmp_path / "deep" / "out.txt", Recorder(seed=7)) == [7, 8, 9, 10]
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["out.txt"]


@pytest.mark.parametrize(
    ("failure", "told"), [("dies", "a worker process died.* give the same command"), ("refuses", "out of order")]
)
def test_after_a_failure_the_same_command_goes_on(tmp_path: Path, failure: str, told: str) -> None:
    target = tmp_path / "out.txt"
    target.write_text("an earlier collection")
    with pytest.raises(GtpVisionError, match=told):
        joined(target, Recorder(failure=failure), processes=1, command="the first")
    assert target.read_text() == "an earlier collection"
    kept = {path.name for path in (tmp_path / ".out.txt.parts").glob("*.npz")}
    assert {"000000.npz", "000001.npz"} <= kept, "in order, by the one process"
    assert "000002.npz" not in kept
    assert joined(target, command="the second") == [0, 1, 2, 3]
    assert target.read_text() == "the first", "the command that began it is the one on record"
    assert os.listdir(tmp_path) == ["out.txt"]


def test_a_failure_before_anything_is_recorded_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(GtpVisionError, match="no simulator"):
        joined(tmp_path / "out.txt", Recorder(failure="cannot be made"))
    assert not os.listdir(tmp_path)


def test_parts_of_other_settings_are_refused(tmp_path: Path) -> None:
    target = tmp_path / "out.txt"
    with pytest.raises(GtpVisionError):
        joined(target, Recorder(failure="refuses"), processes=1)
    with pytest.raises(GtpVisionError, match=r"with seed 0, not 1; use the same settings .* or remove the folder"):
        joined(target, Recorder(seed=1))
    assert joined(target) == [0, 1, 2, 3]


@pytest.mark.parametrize(("name", "told"), [("000001.npz", "remove it"), ("settings.json", "remove the folder")])
def test_a_damaged_part_is_told(tmp_path: Path, name: str, told: str) -> None:
    with pytest.raises(GtpVisionError):
        joined(tmp_path / "out.txt", Recorder(failure="refuses"), processes=1)
    (tmp_path / ".out.txt.parts" / name).write_bytes(b"PK\x03\x04 and so on")
    with pytest.raises(GtpVisionError, match=f"{name}.*damaged.*{told}"):
        joined(tmp_path / "out.txt")


def test_a_part_that_does_not_fit_the_others_is_told(tmp_path: Path) -> None:
    how: dict[str, Any] = {"settings": {}, "command": "", "processes": 1, "progress": False, "overwrite": False}
    with recorded(tmp_path / "out.npy", Recorder(), episodes=2, **how) as parts, open(os.devnull, "wb") as stream:
        parts.stack("numbers", [0, 1], 6, stream)
        for wrong in (np.arange(2), np.arange(4), np.zeros((3, 1), int), np.zeros(3)):
            np.savez(parts.path(1), numbers=wrong)
            with pytest.raises(GtpVisionError, match=r"000001\.npz does not fit the other parts; remove it"):
                parts.stack("numbers", [0, 1], 6, stream)


def test_two_collections_into_one_file_do_not_mix(tmp_path: Path) -> None:
    def again(parts: EpisodeParts) -> None:
        with pytest.raises(GtpVisionError, match="another process is collecting"):
            joined(tmp_path / "out.txt")

    how: dict[str, Any] = {"settings": {}, "command": "", "processes": 1, "progress": False, "overwrite": False}
    with recorded(tmp_path / "out.txt", Recorder(), episodes=1, **how) as parts:
        again(parts)


def test_what_stands_there_is_replaced_only_when_asked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "x.h5"
    words = [*COLLECT, "--out", str(out), "--limit", "2", "--processes", "1"]
    words[words.index("3")] = "1"
    assert main(words) == 0
    before = out.stat().st_ino
    assert main(words) == 2
    assert "is there already; give --overwrite" in capsys.readouterr().err
    assert out.stat().st_ino == before
    assert main([*words, "--overwrite"]) == 0
    assert out.stat().st_ino != before


def test_an_output_that_cannot_be_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(GtpVisionError, match="choose another --out"):
        joined(tmp_path / "file" / "out.txt")
    with pytest.raises(GtpVisionError, match="is a folder"):
        joined(tmp_path)


def started(folder: Path, words: Sequence[str]) -> subprocess.Popen:
    """The command in a process of its own that has recorded a part or more."""
    folder.mkdir(exist_ok=True)

    def parts() -> int:
        return len(list(folder.glob("*/.*.parts/[0-9]*.npz")))

    before = parts()
    process = subprocess.Popen(
        [sys.executable, "-P", "-m", "gtp_vision", *words],
        cwd=folder,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    until(lambda: parts() > before)
    return process


def until(done: Callable[[], bool]) -> None:
    limit = time.monotonic() + 60
    while not done():
        assert time.monotonic() < limit, "waited in vain"
        time.sleep(0.02)


def test_interrupted_and_killed_collections_go_on_to_the_same_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    broken, whole = tmp_path / "broken", tmp_path / "whole"
    process = started(broken, MAZE)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does
    stderr = process.communicate(timeout=30)[1]
    assert "Traceback" not in stderr
    told = stderr.splitlines()[-1]
    assert process.returncode == 130
    assert told.startswith("gtp-vision: interrupted; ")
    assert told.endswith("give the same command again to go on")

    process = started(broken, MAZE)
    workers = psutil.Process(process.pid).children(recursive=True)
    assert len(workers) >= 2
    process.kill()
    process.wait()
    until(lambda: not any(worker.is_running() and worker.status() != "zombie" for worker in alive(workers)))
    assert not list(broken.glob("sets/*.npz"))

    for folder in (broken, whole):
        folder.mkdir(exist_ok=True)
        monkeypatch.chdir(folder)
        assert main(MAZE) == 0
    names = ["pointmaze-medium-navigate-v0-val.npz", "pointmaze-medium-navigate-v0.npz"]
    for folder in (broken, whole):
        assert sorted(os.listdir(folder / "sets")) == names
    for name in names:
        assert (broken / "sets" / name).read_bytes() == (whole / "sets" / name).read_bytes()
    assert "14 episodes, 35014 frames" in capsys.readouterr().out


def alive(processes: Sequence[psutil.Process]) -> list[psutil.Process]:
    found = []
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            process.status()
            found.append(process)
    return found


# OGBench's own recipes.


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("scenes")
    words = ["data", "collect", "ogbench/scene-play", "--out", str(folder), "--episodes", "3", "--limit", "40"]
    assert main([*words, "--processes", "1"]) == 0
    return folder


def test_ogbench_loads_what_its_recipes_made(scenes: Path) -> None:
    train, validation = ogbench.make_env_and_datasets(
        "scene-play-v0", dataset_dir=str(scenes), dataset_only=True, add_info=True
    )
    assert {name: array.shape for name, array in train.items()} == {
        "observations": (117, 40),
        "next_observations": (117, 40),
        "actions": (117, 5),
        "terminals": (117,),
        "qpos": (117, 25),
        "qvel": (117, 24),
        "button_states": (117, 2),
    }
    assert len(validation["actions"]) == 39
    assert train["terminals"].nonzero()[0].tolist() == [38, 77, 116]


def test_our_reader_agrees_with_ogbench_on_a_single_task(scenes: Path, cache: Path) -> None:
    name = "scene-play-singletask-task2-v0"
    choose_backend()  # before OGBench imports mujoco
    _, train, _ = ogbench.make_env_and_datasets(name, dataset_dir=str(scenes))
    store = open_store(scenes / "scene-play-v0.npz", name)
    rows = store.transitions
    np.testing.assert_array_equal(store.observations["state"][rows], train["observations"])
    np.testing.assert_array_equal(store.actions[rows], train["actions"])
    np.testing.assert_array_equal(store.rewards[rows], train["rewards"])
    np.testing.assert_array_equal(store.terminals[rows], 1 - train["masks"])


def test_a_file_says_how_it_was_made(scenes: Path, cache: Path) -> None:
    attributes = open_store(scenes / "scene-play-v0.npz").attributes
    assert attributes["seed"] == 0
    assert attributes["rendering"] == {"shadow_size": None, "multisamples": None}
    assert attributes["command"].startswith("gtp-vision data collect ogbench/scene-play")
    assert attributes["versions"]["ogbench"]
    with np.load(scenes / "scene-play-v0-val.npz") as file:
        told = json.loads(str(file["gtp_vision"]))
    assert (told["split"], told["env"], told["limit"]) == ("validation", "scene-play", 40)


def test_frames_are_rendered_as_asked_and_that_is_recorded(
    tmp_path: Path, cache: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TQDM_DISABLE", "1")
    words = ["data", "collect", "ogbench/visual-puzzle-3x3-noisy", "--out", str(tmp_path / "puzzle.npz")]
    words += ["--episodes", "1", "--limit", "2", "--shadow-size", "512", "--multisamples", "0"]
    assert main([*words, "--processes", "1"]) == 0
    assert capfd.readouterr().err == "", "the renderer is closed in order"
    assert sorted(os.listdir(tmp_path)) == ["puzzle-val.npz", "puzzle.npz"]
    store = open_store(tmp_path / "puzzle.npz", "visual-puzzle-3x3-noisy-v0")
    assert store.observations["camera"].shape == (2, 64, 64, 3)
    assert np.asarray(store.observations["camera"]).std() > 20
    assert Rendering.of(store.attributes) == Rendering(512, 0)


@pytest.mark.parametrize(
    ("note", "told"),
    [
        (np.array("{"), "not the JSON object"),
        (np.array("[1]"), "not the JSON object"),
        (np.array("[" * 10_000), "not the JSON object"),
        (np.array(json.dumps({"rendering": {"shadow_size": "huge"}})), "no small number"),
        (np.array(json.dumps({"rendering": {"shadow_size": 1 << 40}})), "no small number"),
        (np.array(json.dumps({"rendering": 3})), "not the JSON object"),
        (np.array(" " * 100_000), "longer than"),
        (np.zeros(3), "not the JSON object"),
    ],
)
def test_a_bad_record_of_how_a_file_was_made_is_told(
    scenes: Path, tmp_path: Path, cache: Path, note: np.ndarray, told: str
) -> None:
    with np.load(scenes / "scene-play-v0.npz") as file:
        arrays = {name: file[name] for name in file.files}
    np.savez(tmp_path / "bad.npz", **(arrays | {"gtp_vision": note}))
    with pytest.raises(GtpVisionError, match=told) as raised:
        open_store(tmp_path / "bad.npz")
    assert "\n" not in str(raised.value)


# robosuite.


def test_robomimic_reads_what_was_collected_at_lift(
    tmp_path: Path, cache: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TQDM_DISABLE", "1")
    out = tmp_path / "lift.hdf5"
    assert main([*LIFT, "--out", str(out), "--episodes", "3", "--states-only"]) == 0
    told = capfd.readouterr()
    assert told.err == "", "robosuite is silent"
    assert "3 with success" in told.out
    with h5py.File(out) as file:
        env_args = json.loads(file["data"].attrs["env_args"])
        assert (env_args["env_name"], env_args["type"]) == ("Lift", 1)
        assert file["data"].attrs["total"] == sum(len(file[f"data/demo_{k}/actions"]) for k in range(3))
        assert "<mujoco" in file["data/demo_1"].attrs["model_file"]
        demo = {name: file[f"data/demo_0/{name}"][()] for name in ("actions", "rewards", "dones", "states")}
        cube = file["data/demo_0/next_obs/object"][:, 2]
    assert len({len(array) for array in demo.values()}) == 1
    assert demo["dones"].nonzero()[0].tolist() == demo["rewards"].nonzero()[0].tolist() == [len(demo["dones"]) - 1]
    assert cube[-1] > 0.84

    import robomimic.utils.obs_utils as obs_utils
    from robomimic.utils.dataset import SequenceDataset

    keys = ["object", "robot0_eef_pos", "robot0_eef_quat", "robot0_gripper_qpos"]
    obs_utils.initialize_obs_utils_with_obs_specs([{"obs": {"low_dim": keys}}])
    theirs = SequenceDataset(
        str(out), obs_keys=keys, dataset_keys=["actions", "rewards", "dones"], filter_by_attribute="train"
    )
    store = open_store(out)
    assert store.attributes["filters"] == {"train": [0, 1], "valid": [2]}
    assert len(theirs) == len(store.transitions) - (store.episode_ends[2] - store.episode_starts[2] - 1)
    for row in (0, 5, len(theirs) - 1):
        mine = store.transitions[row]
        np.testing.assert_array_equal(theirs[row]["actions"][0], store.actions[mine])
        np.testing.assert_allclose(theirs[row]["obs"]["object"][0], store.observations["object"][mine], atol=1e-6)
        np.testing.assert_allclose(
            theirs[row]["next_obs"]["object"][0], store.observations["object"][mine + 1], atol=1e-6
        )


def test_frames_of_lift_are_recorded_for_every_step_and_after_the_last(tmp_path: Path, cache: Path) -> None:
    out = tmp_path / "lift.hdf5"
    words = [*LIFT, "--out", str(out), "--episodes", "1", "--limit", "2", "--cameras", "agentview", "--size", "24"]
    assert main(words) == 0
    store = open_store(out)
    frames = np.asarray(store.observations["agentview_image"])
    assert frames.shape == (3, 24, 24, 3)
    assert frames.std() > 10
    assert not np.any(store.terminals), "the cube is not lifted in two steps"


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["robosuite/Stack"], "choose robosuite/Lift"),
        (["robosuite/Lift", "--cameras", "agentvew"], "did you mean 'agentview'"),
        (["robosuite/Lift", "--cameras", "agentview,agentview"], "twice"),
        (["robosuite/Lift", "--states-only", "--size", "84"], "leave out --cameras and --size"),
        (["robosuite/Lift", "--size", "0"], "--size 0"),
        (["robosuite/Lift", "--noise", "nan"], "--noise nan"),
        (["robosuite/Lift", "--shadow-size", "512"], "--shadow-size does not apply to robosuite"),
        (["robosuite/Lift", "--expert", "1"], "--expert does not apply to robosuite"),
        (["ogbench/cube-single-play", "--expert", "1"], "--expert does not apply to OGBench's own recipes"),
        (["ogbench/cube-single-play", "--noise", "0.1"], "--noise does not apply to OGBench's own recipes"),
        (["ogbench/cube-single-play", "--compress"], "--compress does not apply"),
        (["ogbench/cube-single-play", "--cameras", "front"], "--cameras does not apply"),
        (["ogbench/cube-single-play", "--shadow-size", "512"], "--shadow-size does not apply to states"),
        (["ogbench/cube-single-play", "--limit", "1"], "--limit 1"),
        (["ogbench/cube-single-play", "--episodes", "0"], "--episodes 0"),
        (["puzzle-3x3-play-singletask-task1", "--multisamples", "0"], "--multisamples does not apply to states"),
        (["puzzle-3x3-play-singletask-task1", "--states-only"], "--states-only does not apply to single tasks"),
        (["cube-sngle-play"], "did you mean 'cube-single-play'"),
        (["antmaze-large-navigate"], "cannot be collected"),
    ],
)
def test_what_does_not_apply_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], told: str
) -> None:
    assert main(["data", "collect", *words, "--out", str(tmp_path / "x")]) == 2
    error = capsys.readouterr().err
    assert told in error
    assert error.count("\n") == 1
    assert not list(tmp_path.iterdir())


# Single tasks.


def test_collected_episodes_do_not_depend_on_the_number_of_processes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for processes in (1, 2):
        status = main([*COLLECT, "--out", str(tmp_path / f"{processes}.h5"), "--processes", str(processes)])
        assert status == 0
    assert "of 3 visits solved" in capsys.readouterr().out
    assert sorted(os.listdir(tmp_path)) == ["1.h5", "2.h5"]
    one, two = (open_store(tmp_path / f"{n}.h5") for n in (1, 2))
    np.testing.assert_array_equal(one.actions, two.actions)
    np.testing.assert_array_equal(one.observations["state"], two.observations["state"])
    assert one.attributes["seed"] == 4
    assert one.attributes["command"].startswith("gtp-vision data collect ogbench/puzzle-3x3")


@pytest.mark.parametrize("env", ["scene-play-singletask-task1", "cube-double-play-singletask-task1"])
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
