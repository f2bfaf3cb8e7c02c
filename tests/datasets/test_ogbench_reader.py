import io
import shutil
import zipfile
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
from loopback import Server, file, running

from gtp_vision.core.errors import GtpVisionError
from gtp_vision.datasets import layout
from gtp_vision.datasets.download import sources
from gtp_vision.datasets.formats import ogbench as reader
from gtp_vision.datasets.formats import open_states, open_store
from gtp_vision.datasets.sampler import Sampler
from gtp_vision.datasets.store import Store
from gtp_vision.datasets.validation import problems
from gtp_vision.envs import choose_backend

LENGTHS = (9, 6)  # recorded states of each trajectory
FRAMES = sum(LENGTHS)
LAST = np.isin(np.arange(FRAMES), np.cumsum(LENGTHS) - 1)
GOAL_CONDITIONED = "cube-single-play-v0"


@pytest.fixture(scope="module", autouse=True)
def _backend() -> None:
    """OpenGL as the program chooses it, before OGBench is imported; nothing here renders."""
    choose_backend(required=False)


@pytest.fixture
def contents() -> dict[str, np.ndarray]:
    """Arrays such as OGBench's files hold them."""
    random = np.random.default_rng(0)
    return {
        "observations": random.normal(size=(FRAMES, 28)),
        "actions": random.uniform(-1, 1, (FRAMES, 5)).astype(np.float32),
        "terminals": LAST.copy(),
        "qpos": random.normal(size=(FRAMES, 21)),
        "qvel": random.normal(size=(FRAMES, 20)),
    }


def saved(path: Path, arrays: dict[str, np.ndarray]) -> Path:
    np.savez_compressed(path, **arrays)
    return path


def simulated(env: str) -> tuple[Any, dict[str, np.ndarray]]:
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
                rows["button_states"][-1] = [goal, np.where(np.arange(len(goal)) < 4, goal, 1 - goal), 1 - goal][
                    frame % 3
                ]
            elif frame % 4 == 2:
                rows["qpos"][-1][14:17] = simulator.unwrapped._data.mocap_pos[0] + [0.01, -0.02, 0]
            observation, _, _, _, info = simulator.step(rows["actions"][-1])
    return simulator, {name: np.array(values) for name, values in rows.items()} | {"terminals": LAST}


@pytest.mark.parametrize("env", ["puzzle-3x3-play-singletask-task1-v0", "cube-single-play-singletask-task2-v0"])
def test_single_tasks_are_read_as_ogbench_reads_them(env: str, tmp_path: Path, cache: Path) -> None:
    import ogbench

    simulator, arrays = simulated(env)
    path = saved(tmp_path / "data.npz", arrays)
    shutil.copy(path, tmp_path / "data-val.npz")
    theirs, _ = ogbench.make_env_and_datasets(env, dataset_path=str(path), dataset_only=True, cur_env=simulator)
    simulator.close()
    store = reader.read(path, env)
    assert problems(store) == []
    assert store.path == path
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
    alive = theirs["masks"] == 1  # after a terminal the next observation counts for nothing
    np.testing.assert_array_equal(
        batch.next_observation["state"][:, 0][alive], theirs["next_observations"][alive].astype(np.float32)
    )


def test_a_goal_conditioned_file_has_no_rewards_of_its_own(
    contents: dict[str, np.ndarray], tmp_path: Path, cache: Path
) -> None:
    store = reader.read(saved(tmp_path / "cube-single-play-v0.npz", contents), GOAL_CONDITIONED)
    assert not store.rewards.any()
    assert not store.terminals.any()
    assert store.timeouts.tolist() == LAST.tolist()
    assert store.observations["state"].dtype == np.float32
    np.testing.assert_allclose(store.observations["state"], contents["observations"], rtol=1e-6)


def test_cameras_stay_bytes(contents: dict[str, np.ndarray], tmp_path: Path, cache: Path) -> None:
    images = np.random.default_rng(1).integers(0, 256, (FRAMES, 16, 16, 3), np.uint8)
    store = reader.read(saved(tmp_path / "v.npz", contents | {"observations": images}), f"visual-{GOAL_CONDITIONED}")
    assert list(store.observations) == ["camera"]
    np.testing.assert_array_equal(store.observations["camera"], images)


def test_large_observations_are_unpacked_in_pieces(
    contents: dict[str, np.ndarray], tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(layout, "COPY_BYTES", 4 * 28 * 4)  # four rows, which do not divide the 15
    store = reader.read(saved(tmp_path / "a.npz", contents), GOAL_CONDITIONED)
    np.testing.assert_allclose(store.observations["state"], contents["observations"], rtol=1e-6)


def test_a_file_is_unpacked_once_for_all_tasks(contents: dict[str, np.ndarray], tmp_path: Path, cache: Path) -> None:
    path = saved(tmp_path / "a.npz", contents)
    for env, files in ((GOAL_CONDITIONED, 1), ("cube-single-play-singletask-task1-v0", 2), (GOAL_CONDITIONED, 2)):
        store = reader.read(path, env)
        assert store.attributes["env"] == env
        assert bool(store.rewards.any()) == ("singletask" in env)
        assert len(list(cache.iterdir())) == files
    made = {file: file.stat().st_ino for file in cache.iterdir()}
    assert isinstance(reader.read(path, GOAL_CONDITIONED).observations["state"], np.memmap)
    assert {file: file.stat().st_ino for file in cache.iterdir()} == made


# What is refused ------------------------------------------------------------------------------------------------


def refused(path: Path, env: str, *words: str) -> None:
    with pytest.raises(GtpVisionError) as told:
        reader.read(path, env)
    assert all(word in str(told.value) for word in (path.name, *words)), str(told.value)
    assert "\n" not in str(told.value)


@pytest.mark.parametrize("share", [0.0, 0.01, 0.3, 0.7, 0.99])
def test_a_truncated_file_is_refused(
    contents: dict[str, np.ndarray], tmp_path: Path, cache: Path, share: float
) -> None:
    path = saved(tmp_path / "cut.npz", contents)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(share * len(whole))])
    refused(path, GOAL_CONDITIONED, "truncated", "again")
    assert not cache.exists() or not list(cache.iterdir())


@pytest.mark.parametrize("member", ["observations", "actions", "terminals"])
def test_damaged_compressed_bytes_are_refused(
    contents: dict[str, np.ndarray], tmp_path: Path, cache: Path, member: str
) -> None:
    path = saved(tmp_path / "damaged.npz", contents)
    with zipfile.ZipFile(path) as archive:
        at = archive.getinfo(f"{member}.npy").header_offset
    content = bytearray(path.read_bytes())
    at += (
        30 + int.from_bytes(content[at + 26 : at + 28], "little") + int.from_bytes(content[at + 28 : at + 30], "little")
    )
    content[at] = 0x07  # a deflate block of a type that does not exist
    path.write_bytes(content)
    refused(path, GOAL_CONDITIONED)
    assert not cache.exists() or not list(cache.iterdir())


@pytest.mark.parametrize(
    ("local", "central", "value"),
    [(8, 10, 99), (6, 8, 1), (4, 6, 0xFF)],
    ids=["unknown compression", "encrypted", "of a later version of zip"],
)
def test_an_archive_that_cannot_be_unpacked_is_refused(
    contents: dict[str, np.ndarray], tmp_path: Path, cache: Path, local: int, central: int, value: int
) -> None:
    path = saved(tmp_path / "odd.npz", contents)
    content = bytearray(path.read_bytes())
    for signature, field in ((b"PK\x03\x04", local), (b"PK\x01\x02", central)):
        at = content.find(signature)
        while at >= 0:
            content[at + field] = value
            at = content.find(signature, at + 4)
    path.write_bytes(content)
    refused(path, GOAL_CONDITIONED)


@pytest.mark.parametrize("member", ["observations", "actions", "terminals"])
def test_a_missing_member_is_named(contents: dict[str, np.ndarray], tmp_path: Path, cache: Path, member: str) -> None:
    del contents[member]
    refused(saved(tmp_path / "a.npz", contents), GOAL_CONDITIONED, member)


def test_discrete_actions_are_refused(contents: dict[str, np.ndarray], tmp_path: Path, cache: Path) -> None:
    rows = len(contents["actions"])
    for actions in (np.zeros(rows, np.int64), np.zeros((rows, 2), np.uint8)):
        path = saved(tmp_path / "powderworld-easy-play-v0.npz", contents | {"actions": actions})
        refused(
            path,
            "powderworld-easy-play-v0",
            "powderworld-easy-play-v0.npz",
            "discrete actions are not supported",
            "continuous",
        )


@pytest.mark.parametrize(
    "changed",
    [
        {"terminals": np.zeros(FRAMES, bool)},
        {"terminals": np.roll(LAST, 1)},
        {"terminals": LAST[:-1]},
        {"actions": np.zeros((FRAMES - 1, 5), np.float32)},
        {"observations": np.zeros((FRAMES + 1, 28))},
    ],
    ids=["no end", "no last end", "short terminals", "short actions", "long observations"],
)
def test_lengths_that_disagree_are_refused(
    contents: dict[str, np.ndarray], tmp_path: Path, cache: Path, changed: dict[str, np.ndarray]
) -> None:
    refused(saved(tmp_path / "a.npz", contents | changed), GOAL_CONDITIONED, "trajectories")


@pytest.mark.parametrize("member", ["observations", "actions"])
def test_pickled_objects_are_never_loaded(
    contents: dict[str, np.ndarray], tmp_path: Path, cache: Path, member: str
) -> None:
    contents[member] = np.array([{"a": 1}] * FRAMES, dtype=object)
    refused(saved(tmp_path / "a.npz", contents), GOAL_CONDITIONED)


@pytest.mark.parametrize("member", ["observations", "actions"])
def test_an_array_that_boasts_of_its_size_is_refused_before_it_is_allocated(
    contents: dict[str, np.ndarray], tmp_path: Path, cache: Path, member: str
) -> None:
    path = tmp_path / "boast.npz"
    with zipfile.ZipFile(path, "w") as archive:
        for name, array in contents.items():
            content = io.BytesIO()
            if name == member:
                header = {"descr": "<f4", "fortran_order": False, "shape": (1 << 45, 5)}
                np.lib.format.write_array_header_1_0(content, header)
            else:
                np.lib.format.write_array(content, array)
            archive.writestr(f"{name}.npy", content.getvalue())
    refused(path, GOAL_CONDITIONED)


def test_a_single_task_without_states_to_reward_is_refused(
    contents: dict[str, np.ndarray], tmp_path: Path, cache: Path
) -> None:
    env = "cube-single-play-singletask-task2-v0"
    without = {name: array for name, array in contents.items() if name != "qpos"}
    refused(saved(tmp_path / "a.npz", without), env, "qpos")


@pytest.mark.parametrize("rows", [1, FRAMES - 2])
def test_states_of_another_length_are_refused(
    contents: dict[str, np.ndarray], tmp_path: Path, cache: Path, rows: int
) -> None:
    contents["qpos"] = contents["qpos"][:rows]
    refused(saved(tmp_path / "a.npz", contents), "cube-single-play-singletask-task2-v0", "qpos")


@pytest.mark.parametrize("env", ["cube-double-play-singletask-v0", "pointmaze-medium-navigate-singletask-v0"])
def test_states_of_another_environment_are_not_relabelled(
    contents: dict[str, np.ndarray], tmp_path: Path, cache: Path, env: str
) -> None:
    refused(saved(tmp_path / "a.npz", contents), env, "'qpos' has 21 numbers a frame", env)


def test_an_unknown_environment_is_refused_by_name(
    contents: dict[str, np.ndarray], tmp_path: Path, cache: Path
) -> None:
    env = "cube-singel-play-singletask-task2-v0"
    with pytest.raises(GtpVisionError, match="cube-singel"):
        reader.read(saved(tmp_path / "a.npz", contents), env)


# Where the files are --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("env", "name"),
    [
        ("visual-cube-single-play-singletask-task1-v0", "visual-cube-single-play-v0"),
        ("puzzle-4x4-noisy-singletask-v0", "puzzle-4x4-noisy-v0"),
        ("antmaze-large-navigate-v0", "antmaze-large-navigate-v0"),
    ],
)
def test_single_tasks_share_their_environments_file(env: str, name: str) -> None:
    assert reader.dataset_name(env) == name


def test_a_file_that_is_there_is_not_downloaded(tmp_path: Path, contents: dict[str, np.ndarray]) -> None:
    path = saved(tmp_path / "cube-single-play-v0.npz", contents)
    assert reader.locate("cube-single-play-singletask-task2-v0", tmp_path, download=False) == path


def test_a_file_that_is_not_there_is_told_with_its_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(GtpVisionError, match=r"cube-single-play-v0\.npz") as told:
        reader.locate("cube-single-play-singletask-task2-v0", tmp_path, download=False)
    assert str(tmp_path) in str(told.value)

    monkeypatch.setenv("NO_PROXY", "*")
    monkeypatch.setitem(sources.BASES, "ogbench", ("http://127.0.0.1:1",))  # nothing listens there
    both = r"put cube-single-play-v0\.npz and cube-single-play-v0-val\.npz into .* or set task\.dataset"
    with pytest.raises(GtpVisionError, match=both) as told:
        reader.locate("cube-single-play-singletask-task2-v0", tmp_path)
    assert str(tmp_path) in str(told.value)
    assert "refused" in str(told.value)


def test_a_file_that_is_not_there_is_downloaded(
    contents: dict[str, np.ndarray], tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    published = saved(tmp_path / "published.npz", contents).read_bytes()
    monkeypatch.setenv("NO_PROXY", "*")
    with running(Server()) as server:
        monkeypatch.setitem(sources.BASES, "ogbench", (server.url,))
        names = ["cube-single-play-v0.npz", "cube-single-play-v0-val.npz"]
        server.answers = {f"/{name}": [file(published)] for name in names}
        path = reader.locate("cube-single-play-singletask-task2-v0", tmp_path / "data")
        assert reader.locate("cube-single-play-v0", tmp_path / "data") == path
        assert len(server.requests) == 2
    assert path == tmp_path / "data" / names[0]
    assert path.with_name(names[1]).read_bytes() == published
    assert len(reader.read(path, GOAL_CONDITIONED)) == FRAMES


def test_a_read_store_is_a_store(contents: dict[str, np.ndarray], tmp_path: Path, cache: Path) -> None:
    store = reader.read(saved(tmp_path / "a.npz", contents), GOAL_CONDITIONED)
    assert isinstance(store, Store)
    assert store.attributes["env"] == GOAL_CONDITIONED
    assert store.attributes["source"] == "a.npz"


@pytest.mark.parametrize("env", ["nonsense-v0", "cube-single-play-singeltask-task1-v0", "hopper-medium-v2", ""])
def test_a_name_that_ogbench_does_not_have_is_refused(
    contents: dict[str, np.ndarray], tmp_path: Path, cache: Path, env: str
) -> None:
    with pytest.raises(GtpVisionError, match=f"'{env}' is no name of an OGBench environment.*singletask"):
        reader.read(saved(tmp_path / "a.npz", contents), env)


def test_every_name_of_ogbench_is_known_as_one() -> None:
    import ogbench  # noqa: F401

    names = [name for name in gymnasium.registry if "maze" in name or "cube" in name or "puzzle" in name]
    names = [name for name in names if gymnasium.registry[name].entry_point.startswith("ogbench")]
    assert len(names) > 50
    assert [name for name in names if not reader._NAME.fullmatch(name)] == []


def test_states_that_no_policy_sees_can_be_asked_for(
    contents: dict[str, np.ndarray], tmp_path: Path, cache: Path
) -> None:
    contents["observations"] = np.zeros((FRAMES, 8, 8, 3), np.uint8)
    path = saved(tmp_path / "visual-cube-single-play-v0.npz", contents | {"button_states": np.ones((FRAMES, 9), int)})
    shown, states = open_store(path), open_states(path)
    assert list(shown.observations) == ["camera"]
    assert sorted(states.observations) == ["button_states", "qpos", "qvel"]
    assert len(states) == len(shown)
    np.testing.assert_array_equal(states.episode_ends, shown.episode_ends)
    for name in ("qpos", "qvel"):
        assert states.observations[name].dtype == np.float32
        np.testing.assert_allclose(states.observations[name], contents[name], rtol=1e-6)
    del contents["qpos"], contents["qvel"]
    assert not open_states(saved(tmp_path / "bare.npz", contents)).observations
