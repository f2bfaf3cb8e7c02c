from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from refusals import assert_same, open_here
from samples import Contents, d4rl_file, hopper, npz
from stores import make_store

from gtp_vision.datasets.formats import d4rl, detect
from gtp_vision.datasets.sampler import Sampler
from gtp_vision.datasets.store import Store
from gtp_vision.datasets.validation import problems

pytestmark = pytest.mark.usefixtures("cache")


def ant(steps: tuple[int, ...] = (40, 30, 50), goal_at: int = 25) -> Contents:
    """An ant's walks through a maze from its start, each at the goal from some step on and walking there.

    Speeds are those of a running ant (up to 4 m/s at 0.1 s a step), heading and joints vary; nothing marks the ends.
    """
    random = np.random.default_rng(0)
    walks = []
    for length in steps:
        speed = random.uniform(1, 4, length)
        heading = 0.6 + np.cumsum(random.normal(scale=0.1, size=length))
        velocity = speed[:, None] * np.stack([np.cos(heading), np.sin(heading)], 1)
        place = np.cumsum(np.concatenate([random.normal(scale=0.1, size=(1, 2)), 0.1 * velocity[:-1]]), 0)
        joints = np.sin(np.arange(length)[:, None] / 3 + np.arange(25)) + random.normal(scale=0.05, size=(length, 25))
        walks.append(np.concatenate([place, joints[:, :13], velocity, joints[:, 13:]], 1))
    rows = sum(steps)
    at_goal = np.concatenate([np.arange(length) >= goal_at for length in steps])
    return {
        "observations": np.concatenate(walks).astype(np.float32),
        "actions": random.uniform(-1, 1, (rows, 8)).astype(np.float32),
        "rewards": at_goal.astype(np.float32),
        "terminals": at_goal,
        "timeouts": np.zeros(rows, bool),
        "infos/goal": np.zeros((rows, 2)),
    }


def opened(folder: Path, contents: Contents, env: str | None = None) -> Store:
    store = open_here(d4rl_file(folder / "file.hdf5", contents), env)
    assert problems(store) == []
    return store


def qlearning(path: Path, limit: int | None = None) -> dict[str, np.ndarray]:
    """The transitions that D4RL's `qlearning_dataset` (terminate_on_end=False) finds in a file."""
    with h5py.File(path) as file:
        data = {name: file[name][:] for name in ("observations", "actions", "rewards", "terminals")}
        stopped = file["timeouts"][:] if "timeouts" in file else None
    kept, step = [], 0
    for i in range(len(data["rewards"]) - 1):
        is_final = bool(stopped[i]) if stopped is not None else step == (limit or 0) - 1
        if is_final:
            step = 0
            continue
        step = 0 if data["terminals"][i] else step + 1
        kept.append(i)
    rows = np.array(kept)
    following = {"next_observations": data["observations"][rows + 1], "rows": rows}
    return {name: array[rows] for name, array in data.items()} | following


def assert_same_transitions(store: Store, limit: int | None = None) -> None:
    """The sampler's transitions are D4RL's, except the file's last row, which D4RL always drops."""
    assert store.path
    theirs = qlearning(store.path, limit)
    rows = store.transitions[store.transitions < len(store) - 1]
    np.testing.assert_array_equal(rows, theirs["rows"])
    batch = Sampler(store, 1, 0, discount=1.0).gather(rows)
    (name,) = store.observations
    now, later = (x[name][:, 0].numpy() for x in (batch.observation, batch.next_observation))
    if now.ndim == 4:
        now, later = now.transpose(0, 2, 3, 1), later.transpose(0, 2, 3, 1)
    np.testing.assert_array_equal(now, theirs["observations"])
    np.testing.assert_array_equal(batch.action, theirs["actions"])
    np.testing.assert_array_equal(batch.reward, theirs["rewards"])
    np.testing.assert_array_equal(batch.discount, 1.0 - theirs["terminals"])
    alive = ~theirs["terminals"]  # after a terminal the next observation is not used
    np.testing.assert_array_equal(later[alive], theirs["next_observations"][alive])


@pytest.mark.parametrize("both", [False, True])
def test_a_gym_file_gives_d4rls_transitions(tmp_path: Path, both: bool) -> None:
    contents = hopper()
    contents["timeouts"][9] = both  # where the robot falls
    store = opened(tmp_path, contents)
    assert detect(tmp_path / "file.hdf5") == "d4rl"
    assert store.episode_ends.tolist() == [6, 10, 15, 18]
    assert store.terminals.tolist() == contents["terminals"].tolist()
    assert store.timeouts.tolist() == contents["timeouts"].tolist()
    assert store.attributes == {"source": "file.hdf5", "suite": "d4rl", "episode_ends": "terminals and timeouts"}
    assert (9 in store.transitions) is not both
    assert_same_transitions(store)


@pytest.mark.parametrize(("falls", "known"), [((), False), ((3,), True)])
def test_the_last_row_has_an_outcome_only_as_a_terminal(tmp_path: Path, falls: tuple[int, ...], known: bool) -> None:
    contents = hopper(falls=falls)
    contents["timeouts"][-1] = False  # cut off without a mark
    store = opened(tmp_path, contents)
    assert (17 in store.transitions) is known
    assert bool(store.timeouts[-1]) is not known


def test_without_timeouts_the_next_observations_show_the_ends(tmp_path: Path) -> None:
    contents = hopper()
    del contents["timeouts"]
    store = opened(tmp_path, contents)
    assert store.episode_ends.tolist() == [6, 10, 15, 18]
    assert store.timeouts.nonzero()[0].tolist() == [5, 14, 17]
    assert store.attributes["episode_ends"] == "terminals and next_observations"


def test_without_either_the_environments_time_limit_ends_episodes(tmp_path: Path) -> None:
    contents = hopper((1000, 300, 1000, 1000, 200), falls=(1,), width=2)
    del contents["timeouts"], contents["next_observations"]
    store = opened(tmp_path, contents, "hopper-medium-v0")
    assert store.episode_ends.tolist() == [1000, 1300, 2300, 3300, 3500]
    assert store.attributes["episode_ends"] == "terminals and every 1000 steps"
    assert store.attributes["env"] == "hopper-medium-v0"
    assert_same_transitions(store, 1000)
    assert store.path
    unnamed = open_here(store.path)
    assert unnamed.episode_ends.tolist() == [1300, 3500]
    assert unnamed.attributes["episode_ends"] == "terminals"


def test_columns_and_number_types_of_old_files_are_read(tmp_path: Path) -> None:
    contents = hopper()
    changed = contents | {
        "observations": contents["observations"].astype(np.float64),
        "rewards": contents["rewards"][:, None],
        "terminals": contents["terminals"].astype(np.float32)[:, None],
        "timeouts": contents["timeouts"].astype(np.uint8),
    }
    assert_same(opened(tmp_path, changed), opened(tmp_path, contents))


def test_frames_are_a_camera(tmp_path: Path) -> None:
    frames = np.random.default_rng(0).integers(0, 256, (18, 8, 6, 3), np.uint8)
    contents = hopper() | {"observations": frames}
    del contents["next_observations"]
    store = opened(tmp_path, contents)
    np.testing.assert_array_equal(store.observations["camera"], frames)


@pytest.mark.parametrize("case", ["reaches the goal", "never arrives", "timeouts", "position of the simulator"])
def test_an_ants_walk_ends_where_it_is_reset(tmp_path: Path, case: str) -> None:
    contents = ant(goal_at=100 if case == "never arrives" else 25)
    if case == "timeouts":
        contents["timeouts"][[39, 69, 119]] = True
    if case == "position of the simulator":
        contents["infos/qpos"] = contents["observations"][:, :15].astype(np.float64)
        contents["observations"] = contents["observations"][:, 2:]  # without the position
    store = opened(tmp_path, contents)
    assert store.episode_ends.tolist() == [40, 70, 120]
    assert store.terminals.tolist() == contents["terminals"].tolist()
    if case == "timeouts":
        assert_same_transitions(store)
    else:
        assert store.timeouts.nonzero()[0].tolist() == ([39, 69, 119] if case == "never arrives" else [])
        assert store.attributes["episode_ends"] == "timeouts and leaps"


@pytest.mark.parametrize("has_goal", [True, False])
def test_next_observations_show_a_mazes_ends_exactly(tmp_path: Path, has_goal: bool) -> None:
    contents = ant()
    contents["observations"][70:, :2] += contents["observations"][69, :2]  # reset in place: no jump
    contents["next_observations"] = np.roll(contents["observations"], -1, 0)
    contents["next_observations"][[39, 69, 119]] += 0.01
    if not has_goal:
        del contents["infos/goal"]  # recognized by terminals inside episodes
    store = opened(tmp_path, contents)
    assert store.episode_ends.tolist() == [40, 70, 120]
    assert store.attributes["episode_ends"] == "timeouts and next_observations"


def test_terminals_of_other_robots_end_episodes_however_they_move(tmp_path: Path) -> None:
    contents = ant()
    del contents["infos/goal"]
    assert opened(tmp_path, contents).episodes == int(contents["terminals"].sum())


@pytest.mark.parametrize("camera", [False, True])
def test_other_tools_find_d4rls_arrays_and_transitions(tmp_path: Path, camera: bool) -> None:
    content: Contents = {"cameras": {"front": (8, 6, 3)}, "state": None} if camera else {}
    path = d4rl.write(tmp_path / "a.hdf5", make_store((5, 7, 1, 2), terminals={11}, **content))
    assert_same_transitions(open_here(path))
    with h5py.File(path) as file:
        dtypes = [str(file[name].dtype) for name in ("actions", "rewards", "terminals", "timeouts")]
    assert dtypes == ["float32", "float32", "bool", "bool"]


@settings(max_examples=30, deadline=None)
@given(
    st.lists(st.integers(1, 5), min_size=1, max_size=4),
    st.sets(st.sampled_from(["timeouts", "next_observations", "infos/qvel", "metadata/algorithm"])),
    st.sampled_from([np.float16, np.float32, np.float64]),
    st.sampled_from([bool, np.uint8, np.int64, np.float32]),
    st.sampled_from(["C", "F"]),
    st.sampled_from([(), (1,)]),
    st.sampled_from([np.savez, np.savez_compressed]),
)
def test_an_npz_is_read_as_the_same_arrays_in_hdf5(
    tmp_path_factory: pytest.TempPathFactory, lengths: list[int], more: set, floats: type, flags: type, order: str,
    column: tuple, save: Callable[..., None],
) -> None:  # fmt: skip
    folder, contents = tmp_path_factory.mktemp("npz"), hopper(lengths, falls=(0,))
    optional = {"timeouts", "next_observations", "infos/qvel", "metadata/algorithm"}
    contents = {name: array for name, array in contents.items() if name in more or name not in optional}
    for name, array in contents.items():
        kind = flags if array.dtype == bool else floats
        shape = (len(array), *column) if array.ndim == 1 and name != "metadata/algorithm" else array.shape
        contents[name] = np.asarray(array.reshape(shape), kind, order)  # type: ignore[call-overload]
    store = open_here(npz(folder / "a.npz", contents, save))
    assert_same(store, replace(open_here(d4rl_file(folder / "a.hdf5", contents)), attributes=store.attributes))
    np.testing.assert_array_equal(store.observations["state"], np.float32(contents["observations"]))
    np.testing.assert_array_equal(store.actions, np.float32(contents["actions"]))
    np.testing.assert_array_equal(store.rewards, np.float32(contents["rewards"]).ravel())
    np.testing.assert_array_equal(store.terminals, contents["terminals"].ravel() != 0)
