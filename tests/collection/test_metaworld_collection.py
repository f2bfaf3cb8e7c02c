from pathlib import Path

import h5py
import numpy as np
import pytest

from gtp_vision.cli.main import main
from gtp_vision.datasets.formats import open_store
from gtp_vision.envs import EnvSpec, Rendering, close
from gtp_vision.envs.metaworld import restore

pytest.importorskip("metaworld", reason="metaworld is an extra")
pytestmark = pytest.mark.simulates
COLLECT = ["data", "collect", "metaworld/door-open-v3+push-v3", "--episodes", "2", "--states-only"]


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("data") / "two.h5"
    assert main([*COLLECT, "--out", str(out), "--processes", "1"]) == 0
    return out


def test_a_file_has_both_tasks_and_marks_success(path: Path, cache: Path) -> None:
    store = open_store(path)
    assert store.attributes["tasks"] == ["Open a door with a revolving joint", "Push the puck to a goal"]
    assert store.attributes["episode_tasks"] == [0, 0, 1, 1]
    assert store.attributes["episode_success"] == [True] * 4
    assert np.array_equal(np.flatnonzero(store.timeouts), store.episode_ends - 1)
    assert not store.terminals.any()
    assert store.final_observations.sum() == 4
    state = np.asarray(store.observations["state"])
    for start, end in zip(store.episode_starts, store.episode_ends, strict=True):
        np.testing.assert_array_equal(state[start + 1 : end - 1, :18], state[start + 2 : end, 18:36])


def test_recorded_actions_replay_to_the_recorded_observations(path: Path, cache: Path) -> None:
    store = open_store(path)
    with h5py.File(path) as file:
        held = {name: file[f"simulator/{name}"][()] for name in file["simulator"]}
    for task, episodes in (("door-open-v3", (0, 1)), ("push-v3", (2, 3))):
        env = EnvSpec(f"metaworld/{task}", pixels=False).make()
        env.reset(seed=0)
        for episode in episodes:
            rows = range(store.episode_starts[episode], store.episode_ends[episode] - 1)
            restore(env, {name: array[rows[0]] for name, array in held.items()})
            ends = []
            for row in rows:
                observed, reward, ended, *_ = env.step(store.actions[row])
                np.testing.assert_array_equal(np.float32(observed["state"]), store.observations["state"][row + 1])
                assert reward == pytest.approx(store.rewards[row])
                ends.append(ended)
            assert ends.index(True) == len(ends) - 21, "20 steps after the first success"


@pytest.mark.processes
def test_the_number_of_processes_changes_no_byte(path: Path, tmp_path: Path) -> None:
    assert main([*COLLECT, "--out", str(tmp_path / "two.h5"), "--processes", "2"]) == 0
    with h5py.File(path) as first, h5py.File(tmp_path / "two.h5") as second:
        for name in ("actions", "observations/state", "simulator/physics", "simulator/seed"):
            np.testing.assert_array_equal(first[name][()], second[name][()])


def test_cameras_are_recorded_at_their_quality_and_evaluated_alike(tmp_path: Path, cache: Path) -> None:
    words = ["data", "collect", "metaworld/reach-v3", "--out", str(tmp_path / "reach.h5"), "--episodes", "1"]
    words += ["--size", "16", "--noise", "0", "--shadow-size", "256", "--multisamples", "0", "--processes", "1"]
    assert main(words) == 0
    store = open_store(tmp_path / "reach.h5")
    shapes = {name: array.shape[1:] for name, array in store.observations.items()}
    assert shapes == {"image": (16, 16, 3), "state": (4,)}
    assert Rendering.of(store.attributes) == Rendering(256, 0)
    with h5py.File(tmp_path / "reach.h5") as file:
        seed = int(file["simulator/seed"][0])
    env = EnvSpec("metaworld/reach-v3", Rendering.of(store.attributes), shown=shapes).make()
    np.testing.assert_array_equal(env.reset(seed=seed)[0]["image"], store.observations["image"][0])
    close(env)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["metaworld/reech-v3"], "did you mean 'reach-v3'"),
        (["metaworld/reach-v3+MT1"], "no task 'MT1' that can be collected: did you mean 'MT10'"),
        (["metaworld/reach-v3", "--states-only", "--size", "8"], "leave out --cameras and --size, or --states-only"),
        (["metaworld/reach-v3", "--states-only", "--shadow-size", "8"], "--shadow-size does not apply to states"),
        (["metaworld/reach-v3", "--cameras", "front"], "has no observation 'front'"),
        (["metaworld/reach-v3", "--states-only", "--limit", "3"], "50 attempts of Meta-World's script at reach-v3"),
    ],
)
def test_what_cannot_be_collected_is_refused(
    words: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["data", "collect", words[0], "--out", str(tmp_path / "x.h5"), "--processes", "1", *words[1:]]
    assert main(command) == 2
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
