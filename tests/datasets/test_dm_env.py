"""Rows of dm_env; the environment is a counter, see counter.py."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from counter import EPISODES, PICTURES, STEPS, Arrays, assert_right, dm_env, flat, marked, save
from hypothesis import given, settings
from hypothesis import strategies as st
from refusals import Edit, open_here, put, refused
from samples import dm_env_episodes, dm_env_folder, joined

from gtp_vision.datasets.formats import detect
from gtp_vision.datasets.validation import problems, validate

pytestmark = pytest.mark.usefixtures("cache")


def columns(e: int) -> Arrays:
    """DrQ-v2's episode: without step_type."""
    return {name: array for name, array in dm_env(e).items() if name != "step_type"}


def images(e: int) -> Arrays:
    """V-D4RL's and DreamerV2's episode."""
    held = marked(e, "dreamer2")
    return {"image": held.pop("observation")} | held


@pytest.mark.parametrize("suffix", [".hdf5", ".npz"])
@pytest.mark.parametrize("make", [dm_env, lambda e: marked(e, "dreamer2"), images], ids=["dm_env", "is_first", "image"])
def test_flat_rows_are_paired_with_what_followed(tmp_path: Path, make: Callable[[int], Arrays], suffix: str) -> None:
    path = save(tmp_path / f"a{suffix}", flat(make))
    assert detect(path) == "dm_env"
    assert_right(open_here(path), has_final=True)


@pytest.mark.parametrize(
    ("make", "suffix"),
    [(dm_env, ".hdf5"), (dm_env, ".npz"), (columns, ".npz"), (images, ".npz")],
    ids=["V-D4RL", "dm_env", "DrQ-v2", "DreamerV2"],
)
def test_folders_of_files(tmp_path: Path, make: Callable[[int], Arrays], suffix: str) -> None:
    for e in range(EPISODES):
        save(tmp_path / f"20221104T083921_{e}_{STEPS}{suffix}", make(e))
    (tmp_path / "notes.txt").write_text("of mine")
    assert detect(tmp_path) == "dm_env"
    assert_right(open_here(tmp_path), has_final=True)


def test_frames_with_their_channels_first(tmp_path: Path) -> None:
    store = open_here(save(tmp_path / "walker.hdf5", flat(lambda e: dm_env(e) | {"observation": PICTURES[e]})))
    assert problems(store) == []
    np.testing.assert_array_equal(store.observations["camera"], np.concatenate(PICTURES).transpose(0, 2, 3, 1))


def test_stacked_frames_and_other_arrays(tmp_path: Path) -> None:
    """DrQ-v2 stacks three frames; ExORL records the simulator's state."""
    stacked = np.random.default_rng(0).integers(0, 256, (STEPS + 1, 9, 84, 84), np.uint8)
    physics = np.zeros((STEPS + 1, 18))
    store = open_here(save(tmp_path / "a.npz", columns(0) | {"observation": stacked, "physics": physics}))
    np.testing.assert_array_equal(store.observations["camera"], stacked.transpose(0, 2, 3, 1))
    assert store.attributes["left_out"] == ["physics"]


@pytest.mark.parametrize("names", [("reward", "discount"), ("reward", "discount", "action"), ("action",)])
def test_a_dummy_without_content(tmp_path: Path, names: tuple[str, ...]) -> None:
    """dm_env has None in the first row, which becomes NaN."""
    arrays = flat(dm_env)
    first = arrays["step_type"] == 0
    for name in names:
        arrays[name] = np.where(first.reshape(-1, *[1] * (arrays[name].ndim - 1)), np.nan, arrays[name])
    assert_right(open_here(save(tmp_path / "a.npz", arrays)), has_final=True)


def with_first(name: str, value: Any) -> Edit:
    def edit(path: Path) -> None:
        with np.load(path) as archive:
            array = archive[name].copy()
        array[STEPS + 1] = value
        put(name, array)(path)

    return edit


@pytest.mark.parametrize(
    ("edit", "words"),
    [
        (with_first("action", 0.5), ("the first rows of its episodes hold actions",)),
        (with_first("step_type", 1), ()),
        (put("step_type", np.ones(EPISODES * (STEPS + 1))), ("its first row does not begin an episode",)),
        (put("step_type", np.zeros(4)), ("'step_type' has shape (4,), wanted (18,)",)),
        (put("discount", np.full(EPISODES * (STEPS + 1), np.nan)), ("'discount' is not finite in row 1",)),
        (put("action", np.zeros(18, np.float32)), ("'action' is float32 (18,); wanted floats (rows, dimensions)",)),
        (put("reward", np.array(["a"] * 18)), ("'reward' holds text",)),
        (put("observation", np.zeros((17, 2), np.float32)), ("'observation' has shape (17, 2) and 'action' 18 rows",)),
        (put("observation", np.array(["a"] * 18)), ("no observation that a policy can read",)),
        (put("next_step_type", np.zeros(18)), ("the action of a row is taken in it",)),
    ],
    ids=lambda value: (value[0] if value else "joined") if isinstance(value, tuple) else "",
)
def test_rows_that_contradict_each_other_are_named(tmp_path: Path, edit: Edit, words: tuple[str, ...]) -> None:
    path = save(tmp_path / "a.npz", flat(dm_env))
    edit(path)
    if words:
        refused(path, *words)
    else:  # two episodes without a mark between them are one
        assert validate(open_here(path)).episodes == EPISODES - 1


def test_hdf5_without_marks_is_refused(tmp_path: Path) -> None:
    refused(save(tmp_path / "a.hdf5", flat(columns)), "needs 'step_type', 0 in the first row of each episode")


@pytest.mark.parametrize(
    "arrays",
    [flat(marked, "rlds"), flat(marked, "dreamer3"), flat(marked, "dreamer2") | {"action": np.zeros((18, 1))}],
    ids=["rlds", "dreamer3", "zeros"],
)
def test_rows_that_may_be_of_others_are_refused(tmp_path: Path, arrays: Arrays) -> None:
    refused(save(tmp_path / "a.npz", arrays), "its rows are those of RLDS or DreamerV3")


@pytest.mark.parametrize(
    ("edit", "words"),
    [
        (put("action", np.zeros((STEPS + 1, 2), np.float32)), "differ in their dimensions"),
        (put("position", np.zeros((STEPS + 1, 2), np.float32)), "other files"),
        (put("reward", None), "does not hold the arrays of the other files"),
        (lambda path: path.write_bytes(path.read_bytes()[:300]), "cannot be read as an npz"),
    ],
    ids=["action", "observation", "reward", "truncated"],
)
def test_files_of_a_folder_that_differ_are_named(tmp_path: Path, edit: Edit, words: str) -> None:
    folder = dm_env_folder(tmp_path / "buffer", [columns(e) for e in range(EPISODES)])
    edit(sorted(folder.iterdir())[1])
    refused(folder, words)


@settings(max_examples=20, deadline=None)
@given(
    st.lists(st.integers(2, 5), min_size=1, max_size=4),
    st.sampled_from([".npz", ".hdf5", "folder"]),
    st.sampled_from([np.float32, np.float64, np.int64, np.uint8]),
)
def test_any_small_recording_is_moved_up_by_one_row(
    tmp_path_factory: pytest.TempPathFactory, lengths: list[int], kind: str, dtype: type
) -> None:
    folder, parts = tmp_path_factory.mktemp("dm_env"), dm_env_episodes(lengths)
    for part in parts:
        part["arm"] = np.random.default_rng(0).uniform(0, 9, (len(part["action"]), 2, 2)).astype(dtype)
    path = dm_env_folder(folder / "buffer", parts) if kind == "folder" else save(folder / f"a{kind}", joined(parts))
    store = open_here(path)
    assert store.episode_ends.tolist() == np.cumsum(lengths).tolist()
    for start, stop, part in zip(store.episode_starts, store.episode_ends, parts, strict=True):
        rows = slice(start, stop - 1)
        np.testing.assert_array_equal(store.actions[rows], part["action"][1:])
        np.testing.assert_array_equal(store.rewards[rows], part["reward"][1:])
        np.testing.assert_array_equal(store.terminals[rows], part["discount"][1:] == 0)
        frames = part["observation"].transpose(0, 2, 3, 1)
        np.testing.assert_array_equal(store.observations["camera"][start:stop], frames)
        np.testing.assert_array_equal(store.observations["arm"][start:stop], np.float32(part["arm"].reshape(-1, 4)))
        last = store.actions[stop - 1], store.rewards[stop - 1], store.terminals[stop - 1]
        assert not any(np.any(value) for value in last)
        assert store.timeouts[start:stop].tolist() == [0] * (stop - start - 1) + [1]
