import shutil
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
from loopback import Server, file, running
from refusals import open_here
from samples import LENGTHS, ROWS, Contents, npz, ogbench_contents

from gtp_vision.core.errors import GtpVisionError
from gtp_vision.datasets import formats, unpacking
from gtp_vision.datasets.download import sources
from gtp_vision.datasets.formats import ogbench as reader
from gtp_vision.datasets.layout import to_store
from gtp_vision.datasets.sampler import Sampler
from gtp_vision.datasets.validation import problems
from gtp_vision.envs import choose_backend

LAST = np.isin(np.arange(ROWS), np.cumsum(LENGTHS) - 1)
GOALS, TASK = "cube-single-play-v0", "cube-single-play-singletask-task2-v0"


@pytest.fixture(scope="module", autouse=True)
def _backend() -> None:
    """Choose OpenGL as the program does, before OGBench is imported; nothing here renders."""
    choose_backend(required=False)


@pytest.fixture
def contents() -> Contents:
    return ogbench_contents()


def simulated(env: str) -> tuple[Any, Contents]:
    """Trajectories of random actions in OGBench's simulator, some of whose states are the task's goal."""
    import ogbench

    simulator = ogbench.make_env_and_datasets(env, env_only=True)
    random = np.random.default_rng(0)
    rows: dict[str, list[np.ndarray]] = {"observations": [], "actions": [], "qpos": [], "qvel": []}
    if "puzzle" in env:
        rows["button_states"] = []
    for seed, length in enumerate(LENGTHS):
        observation, info = simulator.reset(seed=seed)
        for frame in range(length):
            rows["observations"].append(observation)
            rows["actions"].append(random.uniform(-1, 1, simulator.action_space.shape).astype(np.float32))
            for name in rows.keys() - {"observations", "actions"}:
                rows[name].append(np.array(info[name]))
            if "puzzle" in env:  # random actions press no button: goal, half of it, or nothing
                goal = simulator.unwrapped._target_button_states
                half = np.where(np.arange(len(goal)) < 4, goal, 1 - goal)
                rows["button_states"][-1] = [goal, half, 1 - goal][frame % 3]
            elif frame % 4 == 2:
                rows["qpos"][-1][14:17] = simulator.unwrapped._data.mocap_pos[0] + [0.01, -0.02, 0]
            observation, _, _, _, info = simulator.step(rows["actions"][-1])
    return simulator, {name: np.array(values) for name, values in rows.items()} | {"terminals": LAST}


@pytest.mark.simulates
@pytest.mark.parametrize("env", ["puzzle-3x3-play-singletask-task1-v0", TASK])
def test_single_tasks_are_read_as_ogbench_reads_them(env: str, tmp_path: Path, cache: Path) -> None:
    import ogbench

    simulator, arrays = simulated(env)
    path = npz(tmp_path / "data.npz", arrays)
    shutil.copy(path, tmp_path / "data-val.npz")
    theirs, _ = ogbench.make_env_and_datasets(env, dataset_path=str(path), dataset_only=True, cur_env=simulator)
    simulator.close()
    store = open_here(path, env)
    assert problems(store) == []
    assert store.episode_ends.tolist() == np.cumsum(LENGTHS).tolist()

    rows = store.transitions
    assert 0 < theirs["masks"].sum() < len(rows), "the test needs states at the goal and others"
    assert len(np.unique(theirs["rewards"])) > 1
    np.testing.assert_array_equal(store.observations["state"][rows], theirs["observations"])
    np.testing.assert_array_equal(store.actions[rows], theirs["actions"])
    np.testing.assert_array_equal(store.rewards[rows], theirs["rewards"])
    np.testing.assert_array_equal(1 - store.terminals[rows].astype(np.float32), theirs["masks"])
    np.testing.assert_array_equal(store.timeouts[rows + 1], theirs["terminals"])

    batch = Sampler(store, 1, 0, discount=0.9).gather(rows)
    np.testing.assert_allclose(batch.discount, 0.9 * theirs["masks"])
    alive = theirs["masks"] == 1  # after a terminal the next observation is not used
    following = batch.next_observation["state"][:, 0]
    np.testing.assert_array_equal(following[alive], theirs["next_observations"][alive].astype(np.float32))


def test_a_goal_conditioned_file_has_no_rewards_of_its_own(
    contents: Contents, tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(unpacking, "COPY_BYTES", 4 * 28 * 4)  # four rows, which do not divide the 15
    store = open_here(npz(tmp_path / f"{GOALS}.npz", contents), GOALS)
    assert not store.rewards.any()
    assert not store.terminals.any()
    assert store.timeouts.tolist() == LAST.tolist()
    assert store.observations["state"].dtype == np.float32
    np.testing.assert_allclose(store.observations["state"], contents["observations"], rtol=1e-6)
    assert (store.attributes["env"], store.attributes["source"]) == (GOALS, f"{GOALS}.npz")


@pytest.mark.simulates
def test_a_file_is_unpacked_once_for_all_tasks(contents: Contents, tmp_path: Path, cache: Path) -> None:
    path = npz(tmp_path / "a.npz", contents)
    for env, files in ((GOALS, 1), ("cube-single-play-singletask-task1-v0", 2), (GOALS, 2)):
        store = open_here(path, env)
        assert store.attributes["env"] == env
        assert bool(store.rewards.any()) == ("singletask" in env)
        assert len(list(cache.iterdir())) == files
    entries = {file: file.stat().st_ino for file in cache.iterdir()}
    assert isinstance(open_here(path, GOALS).observations["state"], np.memmap)
    assert {file: file.stat().st_ino for file in cache.iterdir()} == entries


def test_states_that_no_policy_reads_can_be_opened(contents: Contents, tmp_path: Path, cache: Path) -> None:
    contents["observations"] = np.random.default_rng(1).integers(0, 256, (ROWS, 8, 8, 3), np.uint8)
    path = npz(tmp_path / "visual-cube-single-play-v0.npz", contents | {"button_states": np.ones((ROWS, 9), int)})
    store, states = open_here(path), to_store(formats._states(path), path)
    np.testing.assert_array_equal(store.observations["camera"], contents["observations"])
    assert sorted(states.observations) == ["button_states", "qpos", "qvel"]
    np.testing.assert_array_equal(states.episode_ends, store.episode_ends)
    for name in ("qpos", "qvel"):
        assert states.observations[name].dtype == np.float32
        np.testing.assert_allclose(states.observations[name], contents[name], rtol=1e-6)
    del contents["qpos"], contents["qvel"]
    assert not formats.open_states(npz(tmp_path / "bare.npz", contents)).observations


@pytest.mark.parametrize("env", ["nonsense-v0", "cube-single-play-singeltask-task1-v0", "hopper-medium-v2", ""])
def test_a_name_unknown_to_ogbench_is_refused(contents: Contents, tmp_path: Path, cache: Path, env: str) -> None:
    with pytest.raises(GtpVisionError, match=f"'{env}' is not the name of an OGBench environment.*singletask"):
        open_here(npz(tmp_path / "a.npz", contents), env)


def test_every_name_of_ogbench_is_recognized() -> None:
    import ogbench  # noqa: F401

    names = [name for name, spec in gymnasium.registry.items() if str(spec.entry_point).startswith("ogbench")]
    names = [name for name in names if "maze" in name or "cube" in name or "puzzle" in name]
    assert len(names) > 50
    assert [name for name in names if not reader._NAME.fullmatch(name)] == []
    for env, name in (
        ("visual-cube-single-play-singletask-task1-v0", "visual-cube-single-play-v0"),
        ("puzzle-4x4-noisy-singletask-v0", "puzzle-4x4-noisy-v0"),
        ("antmaze-large-navigate-v0", "antmaze-large-navigate-v0"),
    ):
        assert reader.dataset_name(env) == name


def test_a_file_is_downloaded(contents: Contents, tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "data"
    with pytest.raises(GtpVisionError, match=rf"{folder}/cube-single-play-v0\.npz"):
        reader.locate(TASK, folder, download=False)
    monkeypatch.setenv("NO_PROXY", "*")
    monkeypatch.setitem(sources.BASES, "ogbench", ("http://127.0.0.1:1",))  # nothing listens there
    with pytest.raises(GtpVisionError, match=rf"refused.*-val\.npz into {folder}.* or set task\.dataset"):
        reader.locate(TASK, folder)
    published = npz(tmp_path / "published.npz", contents).read_bytes()
    with running(Server()) as server:
        monkeypatch.setitem(sources.BASES, "ogbench", (server.url,))
        server.answers = {f"/cube-single-play-v0{end}.npz": [file(published)] for end in ("", "-val")}
        path = reader.locate(TASK, folder)
        assert reader.locate(GOALS, folder, download=False) == path == folder / f"{GOALS}.npz"
        assert len(server.requests) == 2
    assert len(open_here(path, GOALS)) == ROWS
