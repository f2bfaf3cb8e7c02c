import json
import os
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from refusals import refused, replaced

from gtp_vision.core.errors import GtpVisionError
from gtp_vision.datasets.arrays import Segmented
from gtp_vision.datasets.formats import convert, detect, open_store, robomimic
from gtp_vision.datasets.sampler import Sampler
from gtp_vision.datasets.store import Store
from gtp_vision.datasets.validation import problems, validate

MakeStore = Callable[..., Store]
Edit = Callable[[h5py.File], Any]
ENV_ARGS = {"env_name": "Lift", "type": 1, "env_kwargs": {"camera_names": ["agentview"], "camera_heights": 84}}
LENGTHS = (6, 9, 5)
FLAT = ("actions", "rewards", "terminals")


def demonstrations(
    path: Path, lengths: tuple[int, ...] = LENGTHS, *, later: bool = True, compressed: bool = False, side: int = 8
) -> tuple[Path, list[dict[str, np.ndarray]]]:
    """A file as robomimic's dataset_states_to_obs.py writes it: image and low-dimensional, done at success."""
    random = np.random.default_rng(0)
    options = {"compression": "gzip"} if compressed else {}
    made = []
    with h5py.File(path, "w") as file:
        data = file.create_group("data")
        for number, length in enumerate(lengths):
            seen = {
                "agentview_image": random.integers(0, 256, (length + 1, side, side, 3), np.uint8),
                "robot0_eye_in_hand_image": random.integers(0, 256, (length + 1, 6, 6, 3), np.uint8),
                "robot0_eef_pos": random.normal(size=(length + 1, 3)),
                "object": random.normal(size=(length + 1, 10)),
                "phase": random.integers(0, 4, length + 1),
            }
            dones = np.zeros(length, np.int64)
            dones[-2:] = number != 1  # demonstration 1 does not succeed
            demo = data.create_group(f"demo_{number}")
            flat = {
                "actions": random.uniform(-1, 1, (length, 7)),
                "states": random.normal(size=(length, 32)),
                "rewards": dones.astype(np.float64),
                "dones": dones,
            }
            for name, array in flat.items():
                demo.create_dataset(name, data=array)
            for name, frames in seen.items():
                demo.create_dataset(f"obs/{name}", data=frames[:-1], **options)
                if later:
                    demo.create_dataset(f"next_obs/{name}", data=frames[1:], **options)
            demo.attrs["num_samples"] = length
            demo.attrs["model_file"] = "<mujoco/>"
            made.append(flat | seen)
        data.attrs["total"] = sum(lengths)
        data.attrs["env_args"] = json.dumps(ENV_ARGS, indent=4)
    return path, made


def edited(path: Path, change: Edit) -> Path:
    with h5py.File(path, "r+") as file:
        change(file)
    return path


def episode(store: Store, number: int) -> slice:
    return slice(int(store.episode_starts[number]), int(store.episode_ends[number]))


# Reading ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("compressed", [False, True])
def test_every_frame_and_flag_stands_where_it_belongs(tmp_path: Path, cache: Path, compressed: bool) -> None:
    path, made = demonstrations(tmp_path / "lift.hdf5", compressed=compressed)
    assert detect(path) == "robomimic"
    store = validate(open_store(path))
    assert store.episode_ends.tolist() == np.cumsum([length + 1 for length in LENGTHS]).tolist()
    for number, demo in enumerate(made):
        here = episode(store, number)
        for name in ("agentview_image", "robot0_eye_in_hand_image"):
            assert store.observations[name].dtype == np.uint8
            np.testing.assert_array_equal(store.observations[name][here], demo[name])
        for name in ("robot0_eef_pos", "object"):
            np.testing.assert_array_equal(store.observations[name][here], demo[name].astype(np.float32))
        np.testing.assert_array_equal(store.observations["phase"][here], demo["phase"][:, None].astype(np.float32))
        np.testing.assert_array_equal(store.actions[here][:-1], demo["actions"].astype(np.float32))
        np.testing.assert_array_equal(store.rewards[here][:-1], demo["rewards"])
        np.testing.assert_array_equal(store.terminals[here][:-1], demo["dones"])
        last = store.actions[here][-1], store.rewards[here][-1], store.terminals[here][-1]
        assert not any(np.any(value) for value in last)
        assert store.timeouts[here].tolist() == [0] * len(demo["actions"]) + [1]
    assert store.transitions.tolist() == np.setdiff1d(np.arange(len(store)), store.episode_ends - 1).tolist()


def test_the_attributes_tell_how_to_make_the_environment(tmp_path: Path, cache: Path) -> None:
    path, _ = demonstrations(tmp_path / "lift.hdf5")
    assert open_store(path).attributes == {
        "suite": "robomimic",
        "source": "lift.hdf5",
        "env": "Lift",
        "env_args": ENV_ARGS,
        "rendering": {},
    }


def test_without_next_obs_the_last_action_has_an_outcome_only_if_it_is_done(tmp_path: Path, cache: Path) -> None:
    path, made = demonstrations(tmp_path / "lift.hdf5", later=False)
    store = validate(open_store(path))
    assert store.episode_ends.tolist() == np.cumsum(LENGTHS).tolist()
    assert store.timeouts[store.episode_ends - 1].tolist() == [0, 1, 0]
    assert store.has_outcome[store.episode_ends - 1].tolist() == [True, False, True]
    for number, demo in enumerate(made):
        np.testing.assert_array_equal(
            store.observations["agentview_image"][episode(store, number)], demo["agentview_image"][:-1]
        )


@pytest.mark.parametrize("gone", ["next_obs", "next_obs/agentview_image"])
def test_a_demonstration_without_all_of_next_obs_has_no_final_row(tmp_path: Path, cache: Path, gone: str) -> None:
    path, _ = demonstrations(tmp_path / "lift.hdf5")
    edited(path, replaced(f"data/demo_1/{gone}", None))
    store = validate(open_store(path))
    assert np.diff(store.episode_ends, prepend=0).tolist() == [7, 9, 6]
    assert store.timeouts[store.episode_ends - 1].all()


def test_missing_rewards_and_dones_are_zero(tmp_path: Path, cache: Path) -> None:
    path, _ = demonstrations(tmp_path / "lift.hdf5")
    for name in ("rewards", "dones"):
        edited(path, replaced(f"data/demo_0/{name}", None))
    store = validate(open_store(path))
    assert not store.rewards[episode(store, 0)].any()
    assert not store.terminals[episode(store, 0)].any()
    assert store.terminals[episode(store, 2)].any()


def test_columns_are_read_as_numbers(tmp_path: Path, cache: Path) -> None:
    path, made = demonstrations(tmp_path / "lift.hdf5")
    edited(path, replaced("data/demo_0/rewards", made[0]["rewards"][:, None]))
    edited(path, replaced("data/demo_0/dones", made[0]["dones"].astype(bool)[:, None]))
    store = open_store(path)
    np.testing.assert_array_equal(store.rewards[:6], made[0]["rewards"])
    np.testing.assert_array_equal(store.terminals[:6], made[0]["dones"])


def test_demonstrations_stand_in_the_order_of_their_numbers_gaps_or_not(tmp_path: Path, cache: Path) -> None:
    path, made = demonstrations(tmp_path / "lift.hdf5")

    def renamed(file: h5py.File) -> None:
        for old, new in ((0, 10), (1, 9), (2, 100)):
            file.move(f"data/demo_{old}", f"data/demo_{new}")
        file["mask/train"] = np.array(["demo_100", "demo_9"], dtype="S")
        file["mask/text"] = ["demo_10"]  # as h5py writes lists of str
        file["mask/none"] = np.array([], dtype="S")

    store = open_store(edited(path, renamed))
    assert np.diff(store.episode_ends, prepend=0).tolist() == [10, 7, 6]
    np.testing.assert_array_equal(store.observations["object"][episode(store, 1)], made[0]["object"].astype(np.float32))
    assert store.attributes["filters"] == {"train": [2, 0], "text": [1], "none": []}


def test_large_cameras_are_read_where_they_lie(tmp_path: Path, cache: Path) -> None:
    path, made = demonstrations(tmp_path / "lift.hdf5", (40, 50), side=84)
    store = open_store(path)
    camera = store.observations["agentview_image"]
    assert isinstance(camera, Segmented)
    assert len(camera.parts) == 4  # frames before each action, and the last frame after it
    np.testing.assert_array_equal(camera[episode(store, 1)], made[1]["agentview_image"])
    unpacked = sum(entry.stat().st_size for entry in cache.iterdir())
    assert unpacked < 0.1 * path.stat().st_size


def test_pictures_that_are_no_bytes_are_left_out_and_named(tmp_path: Path, cache: Path) -> None:
    path, _ = demonstrations(tmp_path / "lift.hdf5")
    for number, length in enumerate(LENGTHS):
        for group in ("obs", "next_obs"):
            edited(path, replaced(f"data/demo_{number}/{group}/depth", np.zeros((length, 8, 8, 1), np.float32)))
    store = open_store(path)
    assert "depth" not in store.observations
    assert store.attributes["left_out"] == ["depth"]


def test_channels_first_and_grey_pictures_become_cameras(tmp_path: Path, cache: Path) -> None:
    path, _ = demonstrations(tmp_path / "lift.hdf5", (4,), later=False)
    random = np.random.default_rng(1)
    first, grey = random.integers(0, 256, (4, 3, 16, 12), np.uint8), random.integers(0, 256, (4, 32, 40), np.uint8)
    edited(path, replaced("data/demo_0/obs/first", first))
    edited(path, replaced("data/demo_0/obs/grey", grey))
    edited(path, replaced("data/demo_0/obs/table", grey[:, :2, :3]))
    store = open_store(path)
    np.testing.assert_array_equal(store.observations["first"], first.transpose(0, 2, 3, 1))
    np.testing.assert_array_equal(store.observations["grey"], grey[..., None])
    np.testing.assert_array_equal(store.observations["table"], grey[:, :2, :3].reshape(4, 6).astype(np.float32))


def test_a_file_that_moved_is_read_where_it_is_now(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    demonstrations(tmp_path / "lift.hdf5", (40, 50), side=84)
    monkeypatch.chdir(tmp_path)
    first = np.asarray(open_store(Path("lift.hdf5")).observations["agentview_image"])
    (tmp_path / "there").mkdir()
    os.rename("lift.hdf5", "there/lift.hdf5")
    monkeypatch.chdir("there")
    np.testing.assert_array_equal(open_store(Path("lift.hdf5")).observations["agentview_image"], first)


# Writing ---------------------------------------------------------------------------------------------------------


def assert_same_transitions(one: Store, other: Store) -> None:
    """All rows with an outcome agree bit for bit, and so do all observations that they lead to."""
    assert one.episodes == other.episodes
    assert one.observations.keys() == other.observations.keys()
    np.testing.assert_array_equal(one.episode_ends, other.episode_ends)
    np.testing.assert_array_equal(one.has_outcome, other.has_outcome)
    for name, array in one.observations.items():
        np.testing.assert_array_equal(np.asarray(array), np.asarray(other.observations[name]), err_msg=name)
    for name in FLAT:
        mine, theirs = getattr(one, name), getattr(other, name)
        np.testing.assert_array_equal(mine[one.transitions], theirs[other.transitions], err_msg=name)


CONTENTS = {
    "ends by timeout": {"lengths": (5, 7), "cameras": {"front": (8, 6, 3), "wrist": (4, 4, 1)}},
    "ends by terminal": {"lengths": (5, 7), "terminals": {4, 11}, "cameras": {"front": (8, 6, 3)}},
    "terminals inside": {"lengths": (5, 7), "terminals": {1, 3, 9}},
    "short": {"lengths": (1, 2, 2), "terminals": {0, 2}},
    "no states": {"lengths": (5, 7), "terminals": {11}, "state": None, "cameras": {"front": (8, 6, 3)}},
    "filters": {"attributes": {"filters": {"train": [1], "valid": [0], "all": [0, 1]}, "env": "cube", "suite": "x"}},
}


@pytest.mark.parametrize("content", CONTENTS.values(), ids=CONTENTS)
def test_what_is_written_is_read(make_store: MakeStore, tmp_path: Path, cache: Path, content: dict[str, Any]) -> None:
    store = make_store(**content)
    path = robomimic.write(tmp_path / "data.hdf5", store)
    found = validate(open_store(path))
    assert_same_transitions(found, store)
    assert store.attributes.items() <= found.attributes.items()
    again = open_store(robomimic.write(tmp_path / "again.hdf5", found))
    assert_same_transitions(again, store)
    assert again.attributes == found.attributes


def test_a_file_of_robomimic_survives_two_conversions(tmp_path: Path, cache: Path) -> None:
    path, _ = demonstrations(tmp_path / "lift.hdf5")
    edited(path, lambda file: file.create_dataset("mask/train", data=np.array(["demo_2", "demo_0"], dtype="S")))
    first = open_store(path)
    convert(path, tmp_path / "native.h5", "native")
    last = convert(tmp_path / "native.h5", tmp_path / "back.hdf5", "robomimic")
    assert_same_transitions(first, last)
    assert first.attributes == last.attributes
    with h5py.File(tmp_path / "back.hdf5", "r") as file:
        assert json.loads(file["data"].attrs["env_args"]) == ENV_ARGS
        assert file["mask/train"][:].tolist() == [b"demo_2", b"demo_0"]


def test_a_file_in_pieces_can_be_written(tmp_path: Path, cache: Path) -> None:
    path, _ = demonstrations(tmp_path / "lift.hdf5", (40, 50), side=84)
    store = open_store(path)
    assert_same_transitions(convert(path, tmp_path / "again.hdf5", "robomimic"), store)


def test_frames_are_written_contiguous(make_store: MakeStore, tmp_path: Path) -> None:
    robomimic.write(tmp_path / "data.hdf5", make_store(cameras={"front": (8, 6, 3)}))
    with h5py.File(tmp_path / "data.hdf5", "r") as file:
        for group in ("obs", "next_obs"):
            assert file[f"data/demo_1/{group}/front"].chunks is None
            assert file[f"data/demo_1/{group}/front"].id.get_offset() is not None


def test_frames_are_written_piece_by_piece(
    make_store: MakeStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = make_store((600,), terminals={599}, cameras={"front": (100, 100, 3)})
    monkeypatch.setattr(robomimic, "COPY_BYTES", 1 << 20)
    tracemalloc.start()
    robomimic.write(tmp_path / "data.hdf5", store)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert store.nbytes() > 17e6
    assert peak < 3e6


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({"lengths": (4, 1, 3)}, ("episode 1", "one frame and no outcome")),
        ({"attributes": {"filters": {"train": [2]}}}, ("'train'", "episode 2 of 2")),
        ({"attributes": {"filters": {"train": ["demo_0"]}}}, ("'train'", "demo_0")),
        ({"attributes": {"filters": {"a/b": [0]}}}, ("a/b",)),
        ({"attributes": {"filters": [0, 1]}}, ("filters",)),
    ],
    ids=["no outcome", "no such episode", "a name", "a path", "a list"],
)
def test_what_the_format_cannot_hold_is_refused(
    make_store: MakeStore, tmp_path: Path, content: dict[str, Any], words: tuple[str, ...]
) -> None:
    path = tmp_path / "data.hdf5"
    with pytest.raises(GtpVisionError) as told:
        robomimic.write(path, make_store(**content))
    assert all(word in str(told.value) for word in words), told.value
    assert not list(tmp_path.iterdir())


# robomimic's own reader ------------------------------------------------------------------------------------------


def sequences(path: Path, cameras: tuple[str, ...], states: tuple[str, ...], **options: Any) -> Any:
    """robomimic's data set over the file."""
    from robomimic.utils import obs_utils
    from robomimic.utils.dataset import SequenceDataset

    obs_utils.initialize_obs_utils_with_obs_specs({"obs": {"low_dim": list(states), "rgb": list(cameras)}})
    return SequenceDataset(
        hdf5_path=str(path),
        obs_keys=(*cameras, *states),
        dataset_keys=("actions", "rewards", "dones"),
        **options,
    )


@pytest.mark.parametrize("cached", [None, "low_dim", "all"])
def test_robomimic_reads_what_is_written(
    make_store: MakeStore, tmp_path: Path, cache: Path, cached: str | None
) -> None:
    stack, chunk = 3, 2
    store = make_store((5, 7, 4), terminals={2, 15}, cameras={"front": (8, 6, 3)})
    path = robomimic.write(tmp_path / "data.hdf5", store)
    theirs = sequences(
        path, ("front",), ("state",), frame_stack=stack, seq_length=chunk, load_next_obs=True, hdf5_cache_mode=cached
    )
    ours = Sampler(open_store(path), 1, 0, frame_stack=stack, action_chunk=chunk)
    rows = ours.store.transitions
    assert len(theirs) == len(rows)
    batch = ours.gather(rows)
    now, later = batch.observation, batch.next_observation
    for index, row in enumerate(rows):
        item = theirs[index]
        for name in ("front", "state"):
            mine, next_mine = now[name][index].numpy(), later[name][index].numpy()
            if name == "front":
                mine, next_mine = mine.transpose(0, 2, 3, 1), next_mine.transpose(0, 2, 3, 1)
            np.testing.assert_array_equal(item["obs"][name][:stack], mine)
            if not store.terminals[row]:
                np.testing.assert_array_equal(item["next_obs"][name][stack - 1], next_mine[-1])
        np.testing.assert_array_equal(item["actions"][stack - 1 :], batch.actions[index].numpy())
        assert item["rewards"][stack - 1] == store.rewards[row]
        assert item["dones"][stack - 1] == store.terminals[row]


def test_robomimic_reads_the_filters_that_are_written(make_store: MakeStore, tmp_path: Path, cache: Path) -> None:
    store = make_store((5, 7, 4), attributes={"filters": {"train": [2, 0], "valid": [1]}})
    path = robomimic.write(tmp_path / "data.hdf5", store)
    assert sequences(path, (), ("state",), filter_by_attribute="train").demos == ["demo_0", "demo_2"]
    valid = sequences(path, (), ("state",), filter_by_attribute="valid")
    assert [valid[index]["obs"]["state"][0, 0] for index in range(len(valid))] == list(range(5, 11))


def test_filters_that_robomimic_writes_are_read(tmp_path: Path, cache: Path) -> None:
    from robomimic.utils.file_utils import create_hdf5_filter_key

    path, _ = demonstrations(tmp_path / "lift.hdf5")
    create_hdf5_filter_key(str(path), ["demo_2", "demo_0"], "train")
    assert open_store(path).attributes["filters"] == {"train": [2, 0]}


def test_both_readers_agree_on_a_file_of_robomimic(tmp_path: Path, cache: Path) -> None:
    path, _ = demonstrations(tmp_path / "lift.hdf5")
    cameras, states = ("agentview_image", "robot0_eye_in_hand_image"), ("robot0_eef_pos", "object")
    theirs = sequences(path, cameras, states)
    store = open_store(path)
    for index, row in enumerate(store.transitions):
        item = theirs[index]
        for name in (*cameras, *states):
            np.testing.assert_array_equal(item["obs"][name][0].astype(np.float32), store.observations[name][row])
            np.testing.assert_array_equal(
                item["next_obs"][name][0].astype(np.float32), store.observations[name][row + 1]
            )
        np.testing.assert_array_equal(item["actions"][0].astype(np.float32), store.actions[row])
        assert (item["rewards"][0], item["dones"][0]) == (store.rewards[row], store.terminals[row])


# Refusals --------------------------------------------------------------------------------------------------------


def attribute(group: str, name: str, value: Any) -> Edit:
    def change(file: h5py.File) -> None:
        file[group].attrs[name] = value

    return change


def linked(name: str, link: Any) -> Edit:
    def change(file: h5py.File) -> None:
        if name in file:
            del file[name]
        file[name] = link

    return change


def enormous(file: h5py.File) -> None:
    del file["data/demo_1/obs/agentview_image"]
    file["data/demo_1/obs"].create_dataset("agentview_image", (9, 1 << 20, 1 << 20, 3), np.uint8, chunks=(1, 64, 64, 3))


def emptied(file: h5py.File) -> None:
    for name in ("actions", "rewards", "dones", "obs/object", "next_obs/object"):
        shape = file[f"data/demo_1/{name}"].shape
        replaced(f"data/demo_1/{name}", np.zeros((0, *shape[1:])))(file)
    file["data/demo_1"].attrs["num_samples"] = 0


DAMAGE: dict[str, tuple[Edit, tuple[str, ...]]] = {
    "a camera too short": (
        replaced("data/demo_1/obs/agentview_image", np.zeros((8, 8, 8, 3), np.uint8)),
        ("data/demo_1/obs/agentview_image", "8 rows", "wanted 9"),
    ),
    "next_obs too long": (
        replaced("data/demo_1/next_obs/object", np.zeros((10, 10))),
        ("data/demo_1/next_obs/object", "10 rows", "wanted 9"),
    ),
    "a camera missing": (
        replaced("data/demo_1/obs/agentview_image", None),
        ("agentview_image", "data/demo_0", "data/demo_1"),
    ),
    "a camera more": (
        replaced("data/demo_1/obs/side", np.zeros((9, 8, 8, 3), np.uint8)),
        ("'side'", "data/demo_0", "data/demo_1"),
    ),
    "pictures of another size": (
        replaced("data/demo_2/obs/agentview_image", np.zeros((5, 9, 8, 3), np.uint8)),
        ("agentview_image", "data/demo_2", "(9, 8, 3)"),
    ),
    "next pictures of another size": (
        replaced("data/demo_0/next_obs/agentview_image", np.zeros((6, 9, 8, 3), np.uint8)),
        ("agentview_image", "data/demo_0", "(9, 8, 3)"),
    ),
    "next pictures of floats": (
        replaced("data/demo_0/next_obs/agentview_image", np.zeros((6, 8, 8, 3))),
        ("agentview_image", "data/demo_0", "6 usable frames"),
    ),
    "actions of another width": (
        replaced("data/demo_1/actions", np.zeros((9, 6))),
        ("6 dimensions", "data/demo_1", "data/demo_0"),
    ),
    "no actions": (replaced("data/demo_1/actions", None), ("data/demo_1/actions",)),
    "actions without width": (replaced("data/demo_1/actions", np.zeros((9, 0))), ("data/demo_1/actions", "(9, 0)")),
    "actions in one row": (replaced("data/demo_1/actions", np.zeros(9)), ("data/demo_1/actions", "(9,)")),
    "actions of text": (replaced("data/demo_1/actions", [["a"]] * 9), ("data/demo_1/actions", "dtype object")),
    "actions out of range": (replaced("data/demo_1/actions", np.full((9, 7), 2.0)), ("episode 1", "[-1, 1]")),
    "an action too large for float32": (
        replaced("data/demo_1/actions", np.full((9, 7), 1e200)),
        ("finite", "episode 1"),
    ),
    "rewards of another length": (replaced("data/demo_1/rewards", np.zeros(4)), ("data/demo_1/rewards", "wanted 9")),
    "two rewards a step": (replaced("data/demo_1/rewards", np.zeros((9, 2))), ("data/demo_1/rewards", "(9, 2)")),
    "dones not finite": (replaced("data/demo_1/dones", np.full(9, np.nan)), ("data/demo_1/dones", "frame 0")),
    "a reward not finite": (replaced("data/demo_1/rewards", np.full(9, np.inf)), ("rewards", "episode 1, frame 0")),
    "no observations": (replaced("data/demo_1/obs", None), ("data/demo_1", "dataset_states_to_obs.py")),
    "observations as an array": (replaced("data/demo_1/obs", np.zeros(3)), ("data/demo_1/obs", "not a group")),
    "an observation as a group": (
        lambda file: file.move("data/demo_1/obs/object", "data/demo_1/obs/deep/object"),
        ("data/demo_1/obs/deep", "not an array"),
    ),
    "an observation of objects": (replaced("data/demo_1/obs/object", ["a"] * 9), ("data/demo_1/obs/object", "object")),
    "an empty observation": (
        replaced("data/demo_1/obs/object", np.zeros((9, 0))),
        ("data/demo_1/obs/object", "(9, 0)"),
    ),
    "a demonstration as an array": (replaced("data/demo_1", np.zeros(3)), ("data/demo_1", "not a group")),
    "two of one number": (lambda file: file.copy("data/demo_1", "data/demo_01"), ("demo_01", "demo_1")),
    "no number": (lambda file: file.move("data/demo_1", "data/demo_last"), ("demo_last",)),
    "a number without end": (lambda file: file.move("data/demo_1", "data/demo_" + "9" * 99), ("no number",)),
    "a name without end": (lambda file: file.move("data/demo_1", "data/demo_" + "9" * 5000), ("name of an array",)),
    "an empty demonstration": (emptied, ("data/demo_1", "no step")),
    "another num_samples": (attribute("data/demo_1", "num_samples", 8), ("data/demo_1", "9 actions", "'8'")),
    "num_samples of text": (attribute("data/demo_1", "num_samples", "a\nb"), ("data/demo_1", "num_samples")),
    "env_args that are no JSON": (attribute("data", "env_args", "{"), ("env_args", "JSON")),
    "env_args nested without end": (attribute("data", "env_args", "[" * 100_000), ("env_args", "JSON")),
    "our attributes as a list": (attribute("data", "gtp_vision", "[1]"), ("gtp_vision", "JSON")),
    "a mask that names nobody": (
        replaced("mask/train", np.array(["demo_0", "demo_7"], dtype="S")),
        ("mask/train", "demo_7"),
    ),
    "a mask of numbers": (replaced("mask/train", np.arange(3)), ("mask/train", "dtype")),
    "a mask of references": (
        lambda file: file.create_dataset("mask/train", data=[file["data"].ref], dtype=h5py.ref_dtype),
        ("mask/train",),
    ),
    "a mask as a group": (replaced("mask/train/deep", np.arange(3)), ("mask/train",)),
    "masks as an array": (replaced("mask", np.arange(3)), ("'mask'", "not a group")),
    "a name with a line break": (replaced("data/demo_1/obs/a\nb", np.zeros((9, 2))), ("name of an array",)),
    "a petabyte": (enormous, ("data/demo_1/obs/agentview_image", "declares")),
    "a soft link": (linked("data/demo_1/obs/object", h5py.SoftLink("/data/demo_0/obs/object")), ("object", "link")),
    "an external link": (linked("data/demo_1", h5py.ExternalLink("other.h5", "/data/demo_1")), ("demo_1", "link")),
    "all of it a link": (linked("data", h5py.ExternalLink("other.h5", "/data")), ("data", "link")),
}


@pytest.mark.parametrize(("change", "words"), DAMAGE.values(), ids=DAMAGE)
def test_damage_is_refused_in_a_sentence(tmp_path: Path, cache: Path, change: Edit, words: tuple[str, ...]) -> None:
    path, _ = demonstrations(tmp_path / "lift.hdf5")
    edited(path, change)
    refused(path, *words)
    assert not [entry for entry in (cache.iterdir() if cache.exists() else ()) if entry.name.startswith(".")]


def test_damaged_chunks_are_refused_with_their_place(tmp_path: Path, cache: Path) -> None:
    path, _ = demonstrations(tmp_path / "lift.hdf5", compressed=True)
    with h5py.File(path, "r") as file:
        chunk = file["data/demo_1/obs/agentview_image"].id.get_chunk_info(0)
    with path.open("r+b") as raw:
        raw.seek(chunk.byte_offset)
        raw.write(b"\x00" * 64)
    refused(path, "data/demo_1/obs/agentview_image", "rows")


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.9, 0.99])
def test_truncated_files_are_refused(tmp_path: Path, cache: Path, share: float) -> None:
    path, _ = demonstrations(tmp_path / "lift.hdf5")
    with path.open("r+b") as raw:
        raw.truncate(int(share * path.stat().st_size))
    refused(path)


def test_only_depth_is_refused_for_lack_of_observations(tmp_path: Path, cache: Path) -> None:
    path, _ = demonstrations(tmp_path / "lift.hdf5", (4,), later=False)

    def change(file: h5py.File) -> None:
        del file["data/demo_0/obs"]
        file["data/demo_0/obs/depth"] = np.zeros((4, 8, 8, 1), np.float32)

    refused(edited(path, change), "data/demo_0", "depth")
    refused(edited(path, lambda file: file.__delitem__("data/demo_0/obs/depth")), "data/demo_0", "there is none")


def test_written_demonstrations_keep_states_and_model(tmp_path: Path, cache: Path) -> None:
    random = np.random.default_rng(0)
    frames, states = random.integers(0, 256, (5, 4, 4, 3), np.uint8), random.normal(size=(4, 9))
    with h5py.File(tmp_path / "one.hdf5", "w") as file:
        data = file.create_group("data")
        demo = robomimic.write_demo(
            data,
            3,
            obs={"front": frames[:-1]},
            next_obs={"front": frames[1:]},
            actions=np.zeros((4, 2)),
            rewards=np.arange(4),
            dones=np.array([0, 0, 0, 1]),
            states=states,
            model_file="<mujoco/>" * 20_000,
            attributes={"seed": 7},
        )
        assert demo.name == "/data/demo_3"
        np.testing.assert_array_equal(demo["states"], states)
        assert demo["states"].dtype == np.float64
        assert dict(demo.attrs) == {"num_samples": 4, "model_file": "<mujoco/>" * 20_000, "seed": 7}
    store = open_store(tmp_path / "one.hdf5")
    assert problems(store) == []
    np.testing.assert_array_equal(store.observations["front"], frames)
    assert store.terminals.tolist() == [0, 0, 0, 1, 0]
