import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from refusals import refusal, refused

from gtp_vision.core.errors import GtpVisionError
from gtp_vision.datasets.formats import convert, d4rl, detect, native, open_store
from gtp_vision.datasets.sampler import Sampler
from gtp_vision.datasets.store import Store
from gtp_vision.datasets.validation import problems

MakeStore = Callable[..., Store]
Contents = dict[str, Any]
ARRAYS = ("actions", "rewards", "terminals", "timeouts", "episode_ends")


def written(path: Path, contents: Contents) -> Path:
    """A file as D4RL's own scripts write it: gzip, flags as bool."""
    with h5py.File(path, "w") as file:
        for name, array in contents.items():
            file.create_dataset(name, data=array, compression="gzip")
    return path


def hopper(lengths: tuple[int, ...] = (6, 4, 5, 3), falls: tuple[int, ...] = (1,), width: int = 11) -> Contents:
    """Episodes of a robot that falls (terminal) in some of them and is stopped (timeout) in the others."""
    random = np.random.default_rng(0)
    rows, last = sum(lengths), np.cumsum(lengths) - 1
    after = random.normal(size=(rows, width)).astype(np.float32)
    before = np.roll(after, 1, axis=0)
    before[[0, *(last[:-1] + 1)]] = random.normal(size=(len(lengths), width))
    terminals, timeouts = np.zeros((2, rows), bool)
    terminals[last[list(falls)]] = True
    timeouts[np.setdiff1d(last, last[list(falls)])] = True
    return {
        "observations": before,
        "next_observations": after,
        "actions": random.uniform(-1, 1, (rows, 3)).astype(np.float32),
        "rewards": random.normal(size=rows).astype(np.float32),
        "terminals": terminals,
        "timeouts": timeouts,
        "infos/qvel": random.normal(size=(rows, 6)),
        "metadata/algorithm": np.array([1.0]),
    }


def ant(steps: tuple[int, ...] = (40, 30, 50), goal_at: int = 25) -> Contents:
    """An ant's walks through a maze from its start, each at the goal from some step on and walking there.

    Speeds are those of a running ant (up to 4 m/s at 0.1 s a step), heading and joints wander; nothing marks the ends.
    """
    random = np.random.default_rng(0)
    parts = []
    for length in steps:
        speed = random.uniform(1, 4, length)
        heading = 0.6 + np.cumsum(random.normal(scale=0.1, size=length))
        velocity = speed[:, None] * np.stack([np.cos(heading), np.sin(heading)], 1)
        place = np.cumsum(np.concatenate([random.normal(scale=0.1, size=(1, 2)), 0.1 * velocity[:-1]]), 0)
        joints = np.sin(np.arange(length)[:, None] / 3 + np.arange(25)) + random.normal(scale=0.05, size=(length, 25))
        parts.append(np.concatenate([place, joints[:, :13], velocity, joints[:, 13:]], 1))
    rows = sum(steps)
    at_goal = np.concatenate([np.arange(length) >= goal_at for length in steps])
    return {
        "observations": np.concatenate(parts).astype(np.float32),
        "actions": random.uniform(-1, 1, (rows, 8)).astype(np.float32),
        "rewards": at_goal.astype(np.float32),
        "terminals": at_goal,
        "timeouts": np.zeros(rows, bool),
        "infos/goal": np.zeros((rows, 2)),
    }


def qlearning(path: Path, limit: int | None = None) -> dict[str, np.ndarray]:
    """What D4RL's `qlearning_dataset` (terminate_on_end=False) makes of a file."""
    with h5py.File(path) as file:
        data = {name: file[name][:] for name in ("observations", "actions", "rewards", "terminals")}
        stopped = file["timeouts"][:] if "timeouts" in file else None
    kept, step = [], 0
    for i in range(len(data["rewards"]) - 1):
        final = bool(stopped[i]) if stopped is not None else step == (limit or 0) - 1
        if final:
            step = 0
            continue
        step = 0 if data["terminals"][i] else step + 1
        kept.append(i)
    rows = np.array(kept)
    return {name: array[rows] for name, array in data.items()} | {
        "next_observations": data["observations"][rows + 1], "rows": rows
    }  # fmt: skip


def assert_same_transitions(store: Store, theirs: dict[str, np.ndarray]) -> None:
    """Our sampler's transitions are D4RL's, but for the file's last row, which D4RL always drops."""
    rows = store.transitions[store.transitions < len(store) - 1]
    np.testing.assert_array_equal(rows, theirs["rows"])
    batch = Sampler(store, 1, 0, discount=1.0).gather(rows)
    (name,) = store.observations
    frames = batch.frames[name].numpy()
    np.testing.assert_array_equal(frames[batch.window[:, 0]], theirs["observations"])
    np.testing.assert_array_equal(batch.action, theirs["actions"])
    np.testing.assert_array_equal(batch.reward, theirs["rewards"])
    np.testing.assert_array_equal(batch.discount, 1.0 - theirs["terminals"])
    on = ~theirs["terminals"]  # after a terminal the next observation counts for nothing
    np.testing.assert_array_equal(frames[batch.next_window[:, 0]][on], theirs["next_observations"][on])


def assert_same(found: Store, store: Store) -> None:
    assert list(found.observations) == list(store.observations)
    for name, array in store.observations.items():
        assert found.observations[name].dtype == array.dtype
        np.testing.assert_array_equal(found.observations[name], array)
    for name in ARRAYS:
        np.testing.assert_array_equal(getattr(found, name), getattr(store, name), err_msg=name)
    assert dict(found.attributes) == dict(store.attributes)


# What a file means ----------------------------------------------------------------------------------------------


def test_a_gym_file_gives_d4rls_transitions(tmp_path: Path, cache: Path) -> None:
    contents = hopper()
    path = written(tmp_path / "hopper.hdf5", contents)
    store = open_store(path)
    assert detect(path) == "d4rl"
    assert problems(store) == []
    assert store.episode_ends.tolist() == [6, 10, 15, 18]
    assert store.terminals.tolist() == contents["terminals"].tolist()
    assert store.timeouts.tolist() == contents["timeouts"].tolist()
    assert store.attributes == {"source": path.name, "suite": "d4rl", "episode_ends": "terminals and timeouts"}
    np.testing.assert_array_equal(store.observations["state"], contents["observations"])
    assert_same_transitions(store, qlearning(path))


def test_a_row_that_is_both_has_no_outcome_as_in_d4rl(tmp_path: Path, cache: Path) -> None:
    contents = hopper()
    contents["timeouts"][9] = True  # where the robot falls
    path = written(tmp_path / "hopper.hdf5", contents)
    store = open_store(path)
    assert 9 not in store.transitions
    assert_same_transitions(store, qlearning(path))


@pytest.mark.parametrize(("falls", "known"), [((), False), ((3,), True)])
def test_the_last_row_has_an_outcome_only_as_a_terminal(
    tmp_path: Path, cache: Path, falls: tuple[int, ...], known: bool
) -> None:
    contents = hopper(falls=falls)
    contents["timeouts"][-1] = False  # cut off without a mark
    store = open_store(written(tmp_path / "hopper.hdf5", contents))
    assert problems(store) == []
    assert (17 in store.transitions) is known
    assert bool(store.timeouts[-1]) is not known


def test_without_timeouts_the_announced_observations_show_the_ends(tmp_path: Path, cache: Path) -> None:
    contents = hopper()
    del contents["timeouts"]
    store = open_store(written(tmp_path / "v0.hdf5", contents))
    assert store.episode_ends.tolist() == [6, 10, 15, 18]
    assert store.timeouts.nonzero()[0].tolist() == [5, 14, 17]
    assert store.attributes["episode_ends"] == "terminals and next_observations"


def test_without_either_the_environments_time_limit_ends_episodes(tmp_path: Path, cache: Path) -> None:
    contents = hopper((1000, 300, 1000, 1000, 200), falls=(1,), width=2)
    del contents["timeouts"], contents["next_observations"]
    path = written(tmp_path / "v0.hdf5", contents)
    store = open_store(path, "hopper-medium-v0")
    assert store.episode_ends.tolist() == [1000, 1300, 2300, 3300, 3500]
    assert store.attributes["episode_ends"] == "terminals and every 1000 steps"
    assert store.attributes["env"] == "hopper-medium-v0"
    assert_same_transitions(store, qlearning(path, 1000))
    unnamed = open_store(path)
    assert unnamed.episode_ends.tolist() == [1300, 3500]
    assert unnamed.attributes["episode_ends"] == "terminals"


def test_columns_and_number_types_of_old_files_are_read(tmp_path: Path, cache: Path) -> None:
    contents = hopper()
    changed = contents | {
        "observations": contents["observations"].astype(np.float64),
        "rewards": contents["rewards"][:, None],
        "terminals": contents["terminals"].astype(np.float32)[:, None],
        "timeouts": contents["timeouts"].astype(np.uint8),
    }
    old = open_store(written(tmp_path / "old.hdf5", changed))
    new = open_store(written(tmp_path / "new.hdf5", contents))
    old.attributes = new.attributes
    assert_same(old, new)


def test_frames_are_a_camera(tmp_path: Path, cache: Path) -> None:
    frames = np.random.default_rng(0).integers(0, 256, (18, 8, 6, 3), np.uint8)
    contents = hopper() | {"observations": frames}
    del contents["next_observations"]
    store = open_store(written(tmp_path / "atari.hdf5", contents))
    np.testing.assert_array_equal(store.observations["camera"], frames)


# Mazes ----------------------------------------------------------------------------------------------------------


def test_an_ant_at_the_goal_walks_on_until_it_is_thrown_back(tmp_path: Path, cache: Path) -> None:
    contents = ant()
    store = open_store(written(tmp_path / "maze.hdf5", contents))
    assert store.episode_ends.tolist() == [40, 70, 120]
    assert store.terminals.tolist() == contents["terminals"].tolist()
    assert not store.timeouts.any(), "the last rows are at the goal"
    assert store.attributes["episode_ends"] == "timeouts and leaps"
    assert problems(store) == []


def test_an_ant_that_never_arrives_is_stopped_where_it_leaps(tmp_path: Path, cache: Path) -> None:
    store = open_store(written(tmp_path / "maze.hdf5", ant(goal_at=100)))
    assert store.episode_ends.tolist() == [40, 70, 120]
    assert store.timeouts.nonzero()[0].tolist() == [39, 69, 119]


def test_a_mazes_timeouts_end_episodes_and_give_d4rls_transitions(tmp_path: Path, cache: Path) -> None:
    contents = ant()
    contents["timeouts"][[39, 69, 119]] = True
    path = written(tmp_path / "maze.hdf5", contents)
    store = open_store(path)
    assert store.episode_ends.tolist() == [40, 70, 120]
    assert_same_transitions(store, qlearning(path))


def test_the_simulators_position_is_used_where_it_is_recorded(tmp_path: Path, cache: Path) -> None:
    contents = ant()
    contents["infos/qpos"] = contents["observations"][:, :15].astype(np.float64)
    contents["observations"] = contents["observations"][:, 2:]  # without the position
    assert open_store(written(tmp_path / "maze.hdf5", contents)).episode_ends.tolist() == [40, 70, 120]


@pytest.mark.parametrize("goal", [True, False])
def test_announced_observations_show_a_mazes_ends_exactly(tmp_path: Path, cache: Path, goal: bool) -> None:
    contents = ant()
    contents["observations"][70:, :2] += contents["observations"][69, :2]  # thrown back by nothing: no leap
    contents["next_observations"] = np.roll(contents["observations"], -1, 0)
    contents["next_observations"][[39, 69, 119]] += 0.01
    if not goal:
        del contents["infos/goal"]  # known by terminals that go on
    store = open_store(written(tmp_path / "maze.hdf5", contents))
    assert store.episode_ends.tolist() == [40, 70, 120]
    assert store.attributes["episode_ends"] == "timeouts and next_observations"


def test_terminals_of_other_robots_end_episodes_however_they_move(tmp_path: Path, cache: Path) -> None:
    contents = ant()
    del contents["infos/goal"]
    store = open_store(written(tmp_path / "kitchen.hdf5", contents))
    assert store.episodes == int(contents["terminals"].sum()), "every row at the goal ends one, the last one too"


# Round trips ----------------------------------------------------------------------------------------------------

STORES: dict[str, Contents] = {
    "states": {"lengths": (5, 7, 1, 2), "terminals": {11}},
    "camera": {"cameras": {"front": (8, 6, 3)}, "state": None, "terminals": {4}},
    "terminals inside": {"lengths": (6, 6), "terminals": {2, 3, 8, 11}},
    "both flags": {"lengths": (4, 4), "terminals": {3, 7}, "timeouts": {3}},
    "long attributes": {"attributes": {"env": "ö", "seeds": list(range(30_000)), "none": None}},
}


@pytest.mark.parametrize("content", STORES.values(), ids=STORES)
def test_what_is_converted_reads_back_the_same(
    make_store: MakeStore, tmp_path: Path, cache: Path, content: Contents
) -> None:
    store = make_store(**content)
    source = native.write(tmp_path / "native.h5", store)
    found = convert(source, tmp_path / "theirs.hdf5", "d4rl")
    assert detect(tmp_path / "theirs.hdf5") == "d4rl"
    assert problems(found) == []
    assert_same(found, store)
    assert_same_transitions(found, qlearning(tmp_path / "theirs.hdf5"))


def test_any_tool_finds_d4rls_arrays(make_store: MakeStore, tmp_path: Path) -> None:
    with h5py.File(d4rl.write(tmp_path / "a.hdf5", make_store())) as file:
        dtypes = {name: file[name].dtype for name in ("observations", "actions", "rewards", "terminals", "timeouts")}
        assert {file[name].shape[0] for name in dtypes} == {12}
    assert [str(dtype) for dtype in dtypes.values()] == ["float32", "float32", "float32", "bool", "bool"]


def test_large_contiguous_observations_are_mapped_in_place(make_store: MakeStore, tmp_path: Path, cache: Path) -> None:
    store = make_store((3000, 3000), state=8)
    path = d4rl.write(tmp_path / "a.hdf5", store)
    found = open_store(path)
    assert isinstance(found.observations["state"], np.memmap)
    assert Path(str(found.observations["state"].filename)) == path
    assert_same(found, store)


def test_a_store_of_several_observations_is_refused_with_them(make_store: MakeStore, tmp_path: Path) -> None:
    with pytest.raises(GtpVisionError, match=r"2 \(front, state\).*robomimic"):
        d4rl.write(tmp_path / "a.hdf5", make_store(cameras={"front": (8, 8, 3)}))
    assert list(tmp_path.iterdir()) == []


# What is refused ------------------------------------------------------------------------------------------------


@pytest.fixture
def small(tmp_path: Path) -> Path:
    """A small file as D4RL writes it."""
    return written(tmp_path / "small.hdf5", hopper())


@pytest.mark.parametrize("share", [0.001, 0.1, 0.5, 0.9, 0.999])
def test_a_truncated_file_is_refused(small: Path, cache: Path, share: float) -> None:
    whole = small.read_bytes()
    small.write_bytes(whole[: int(share * len(whole))])
    refused(small)


def test_damaged_compressed_bytes_are_refused_by_name(small: Path, cache: Path) -> None:
    with h5py.File(small) as file:
        chunk = file["observations"].id.get_chunk_info(0)
    content = bytearray(small.read_bytes())
    content[chunk.byte_offset : chunk.byte_offset + chunk.size] = bytes(chunk.size)
    small.write_bytes(content)
    refused(small, "'observations' is damaged", "copy the file again")


@pytest.mark.parametrize("name", ["rewards", "terminals"])
def test_a_missing_array_is_named(small: Path, cache: Path, name: str) -> None:
    with h5py.File(small, "r+") as file:
        del file[name]
    refused(small, f"no '{name}'")


@pytest.mark.parametrize(
    ("name", "array", "words"),
    [
        ("actions", np.zeros((17, 3), np.float32), ("17 rows", "18")),
        ("actions", np.zeros((18, 3), np.int64), ("dtype int64",)),
        ("actions", np.zeros(18, np.float32), ("shape",)),
        ("rewards", np.zeros((18, 2), np.float32), ("shape (18, 2)",)),
        ("timeouts", np.zeros(3, bool), ("3 rows",)),
        ("next_observations", np.zeros((18, 4), np.float32), ("(18, 4)", "(18, 11)")),
        ("observations", np.zeros((18, 2, 2), np.float32), ("(18, 2, 2)", "(N, D)")),
        ("observations", np.zeros((18, 3), np.int32), ("int32",)),
        ("observations", np.zeros((0, 3), np.float32), ("no rows",)),
        ("observations", np.array([b"a"] * 18), ("dtype",)),
        ("metadata/episode_ends", np.array([18, 9]), ("increase up to the 18",)),
        ("metadata/episode_ends", np.array([0, 18]), ("increase up to the 18",)),
        ("metadata/episode_ends", np.zeros(0, np.int64), ("0 entries",)),
    ],
)
def test_an_array_that_does_not_fit_is_named(
    small: Path, cache: Path, name: str, array: np.ndarray, words: tuple[str, ...]
) -> None:
    with h5py.File(small, "r+") as file:
        if name in file:
            del file[name]
        file[name] = array
    refused(small, f"'{name}'", *words)


@pytest.mark.parametrize("name", ["observations", "actions", "timeouts", "infos", "metadata"])
def test_a_link_is_not_followed(small: Path, cache: Path, name: str) -> None:
    with h5py.File(small, "r+") as file:
        file.move(name, "elsewhere")
        file[name] = h5py.SoftLink("/elsewhere")
    refused(small, f"'{name}'", "link")


@pytest.mark.parametrize("name", ["observations", "next_observations", "actions", "rewards"])
def test_an_array_that_boasts_of_its_size_is_refused(small: Path, cache: Path, name: str) -> None:
    with h5py.File(small, "r+") as file:
        shape = (1 << 45, *file[name].shape[1:])
        del file[name]
        file.create_dataset(name, shape, np.float32)  # never written, so it takes no room in the file
    refused(small, f"'{name}'")


@pytest.mark.parametrize("value", ["{", "[1]", "[" * 100_000, json.dumps({"observation": "a\nb"})])
def test_a_bad_attribute_of_ours_is_refused(small: Path, cache: Path, value: str) -> None:
    with h5py.File(small, "r+") as file:
        file.attrs["gtp_vision"] = value
    refused(small)


def test_a_value_that_is_not_finite_is_told_by_episode_and_frame(tmp_path: Path, cache: Path) -> None:
    contents = hopper()
    contents["observations"][7, 3] = np.nan
    (told,) = problems(open_store(written(tmp_path / "a.hdf5", contents)))
    assert "episode 1, frame 1" in told


def test_files_damaged_at_random_are_read_or_refused_by_a_sentence(small: Path, cache: Path) -> None:
    whole, random = small.read_bytes(), np.random.default_rng(0)
    refusals = 0
    for _ in range(40):
        content = bytearray(whole)
        for at in random.integers(0, len(whole), 4):
            content[at] = random.integers(256)
        small.write_bytes(content)
        refusals += bool(refusal(small))
    assert refusals
