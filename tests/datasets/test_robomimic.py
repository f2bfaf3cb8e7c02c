import json
import tracemalloc
from pathlib import Path
from typing import Any

import h5py
import hypothesis.extra.numpy as arrays_of
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from refusals import attribute, hdf5, open_here, put, refused
from samples import ENV_ARGS, LIBERO_TASK, isaac_lab, libero, robomimic_file
from stores import make_store

from gtp_vision.core import depth
from gtp_vision.core.errors import GtpVisionError
from gtp_vision.datasets import layout
from gtp_vision.datasets.formats import check_writable, detect, robomimic
from gtp_vision.datasets.sampler import Sampler
from gtp_vision.datasets.store import Store
from gtp_vision.datasets.validation import validate

pytestmark = pytest.mark.usefixtures("cache")
LENGTHS = (6, 9, 5)


def episode(store: Store, number: int) -> slice:
    return slice(int(store.episode_starts[number]), int(store.episode_ends[number]))


@pytest.mark.parametrize("compressed", [False, True])
def test_every_frame_and_flag_is_in_its_place(tmp_path: Path, compressed: bool) -> None:
    path, contents = robomimic_file(tmp_path / "lift.hdf5", LENGTHS, compressed=compressed)
    assert detect(path) == "robomimic"
    store = validate(open_here(path))
    assert store.episode_ends.tolist() == np.cumsum([length + 1 for length in LENGTHS]).tolist()
    for number, demo in enumerate(contents):
        here = episode(store, number)
        assert store.observations["agentview_image"].dtype == np.uint8
        np.testing.assert_array_equal(store.observations["agentview_image"][here], demo["agentview_image"])
        state = demo["robot0_eef_pos"].astype(np.float32)
        np.testing.assert_array_equal(store.observations["robot0_eef_pos"][here], state)
        np.testing.assert_array_equal(store.observations["phase"][here], demo["phase"][:, None].astype(np.float32))
        np.testing.assert_array_equal(store.actions[here][:-1], demo["actions"].astype(np.float32))
        np.testing.assert_array_equal(store.rewards[here][:-1], demo["rewards"])
        np.testing.assert_array_equal(store.terminals[here][:-1], demo["dones"])
        last = store.actions[here][-1], store.rewards[here][-1], store.terminals[here][-1]
        assert not any(np.any(value) for value in last)
        assert store.timeouts[here].tolist() == [0] * len(demo["actions"]) + [1]
    assert store.attributes == {
        "suite": "robomimic",
        "source": "lift.hdf5",
        "env": "Lift",
        "env_args": ENV_ARGS,
        "rendering": {},
        "filters": {"train": [1]},
    }


@pytest.mark.parametrize("missing", ["next_obs", "next_obs/agentview_image"])
def test_without_next_obs_the_last_action_has_an_outcome_only_if_it_is_done(tmp_path: Path, missing: str) -> None:
    path, contents = robomimic_file(tmp_path / "lift.hdf5", LENGTHS)
    for number in (0, 1):
        put(f"data/demo_{number}/{missing}", None)(path)
    store = validate(open_here(path))
    assert np.diff(store.episode_ends, prepend=0).tolist() == [6, 9, 6]
    assert store.timeouts[store.episode_ends - 1].tolist() == [0, 1, 1]
    assert store.has_outcome[store.episode_ends - 1].tolist() == [True, False, False]
    frames = store.observations["agentview_image"][episode(store, 1)]
    np.testing.assert_array_equal(frames, contents[1]["agentview_image"][:-1])


def test_missing_rewards_and_dones_are_zero_and_columns_are_accepted(tmp_path: Path) -> None:
    path, contents = robomimic_file(tmp_path / "lift.hdf5", LENGTHS)
    for name in ("rewards", "dones"):
        put(f"data/demo_0/{name}", None)(path)
    put("data/demo_2/rewards", contents[2]["rewards"][:, None])(path)
    put("data/demo_2/dones", contents[2]["dones"].astype(bool)[:, None])(path)
    store = validate(open_here(path))
    assert not store.rewards[episode(store, 0)].any()
    assert not store.terminals[episode(store, 0)].any()
    np.testing.assert_array_equal(store.rewards[episode(store, 2)][:-1], contents[2]["rewards"])
    np.testing.assert_array_equal(store.terminals[episode(store, 2)][:-1], contents[2]["dones"])


def test_demonstrations_are_ordered_by_their_numbers(tmp_path: Path) -> None:
    path, contents = robomimic_file(tmp_path / "lift.hdf5", LENGTHS)

    @hdf5
    def renamed(file: h5py.File) -> None:
        for old, new in ((0, 10), (1, 9), (2, 100)):
            file.move(f"data/demo_{old}", f"data/demo_{new}")
        del file["mask/train"]
        file["mask/train"] = np.array(["demo_100", "demo_9"], dtype="S")
        file["mask/text"] = ["demo_10"]  # as h5py writes lists of str
        file["mask/none"] = np.array([], dtype="S")

    renamed(path)
    store = open_here(path)
    assert np.diff(store.episode_ends, prepend=0).tolist() == [10, 7, 6]
    np.testing.assert_array_equal(
        store.observations["agentview_image"][episode(store, 1)], contents[0]["agentview_image"]
    )
    assert store.attributes["filters"] == {"train": [2, 0], "text": [1], "none": []}


def test_images_of_other_layouts(tmp_path: Path) -> None:
    path, _ = robomimic_file(tmp_path / "lift.hdf5", (4,), later=False)
    random = np.random.default_rng(1)
    first, gray = random.integers(0, 256, (4, 3, 16, 12), np.uint8), random.integers(0, 256, (4, 32, 40), np.uint8)
    mask = np.zeros((4, 8, 8, 1), np.float32)
    for name, array in (("first", first), ("gray", gray), ("table", gray[:, :2, :3]), ("mask", mask)):
        put(f"data/demo_0/obs/{name}", array)(path)
    hdf5(lambda file: file.__delitem__("mask"))(path)
    store = open_here(path)
    np.testing.assert_array_equal(store.observations["first"], first.transpose(0, 2, 3, 1))
    np.testing.assert_array_equal(store.observations["gray"], gray[..., None])
    np.testing.assert_array_equal(store.observations["table"], gray[:, :2, :3].reshape(4, 6).astype(np.float32))
    assert "mask" not in store.observations
    assert store.attributes["left_out"] == ["mask"]


def test_frames_are_written_in_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = make_store((600,), terminals={599}, cameras={"front": (100, 100, 3)})
    monkeypatch.setattr(layout, "COPY_BYTES", 1 << 20)
    tracemalloc.start()
    robomimic.write(tmp_path / "data.hdf5", store)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert store.nbytes() > 17e6
    assert peak < 3e6


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({"lengths": (4, 1, 3)}, "episode 1 has one frame and no outcome"),
        ({"attributes": {"filters": {"train": [2]}}}, "'train'.*episode 2 of 2"),
        ({"attributes": {"filters": {"train": ["demo_0"]}}}, "'train'.*demo_0"),
        ({"attributes": {"filters": {"a/b": [0]}}}, "a/b"),
        ({"attributes": {"filters": [0, 1]}}, "filters"),
    ],
)
def test_unfit_stores_are_refused(tmp_path: Path, content: dict[str, Any], words: str) -> None:
    with pytest.raises(GtpVisionError, match=words):
        robomimic.write(tmp_path / "data.hdf5", make_store(**content))
    assert not list(tmp_path.glob("*data*"))


def test_written_demonstrations_keep_states_and_model(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    frames, states = random.integers(0, 256, (5, 4, 4, 3), np.uint8), random.normal(size=(4, 9))
    arrays = {"actions": np.zeros((4, 2)), "rewards": np.arange(4), "dones": np.arange(4) == 3, "states": states}
    views = {"obs": {"front": frames[:-1]}, "next_obs": {"front": frames[1:]}}
    options = {"model_file": "<mujoco/>" * 20_000, "attributes": {"seed": 7}}
    with h5py.File(tmp_path / "one.hdf5", "w") as file:
        demo = robomimic.write_demo(file.create_group("data"), 3, **views, **arrays, **options)
        assert demo.name == "/data/demo_3"
        assert demo["states"].dtype == np.float64
        np.testing.assert_array_equal(demo["states"], states)
        assert dict(demo.attrs) == {"num_samples": 4, "model_file": "<mujoco/>" * 20_000, "seed": 7}
    store = validate(open_here(tmp_path / "one.hdf5"))
    np.testing.assert_array_equal(store.observations["front"], frames)
    assert store.terminals.tolist() == [0, 0, 0, 1, 0]


def sequences(path: Path, cameras: tuple[str, ...], states: tuple[str, ...], **options: Any) -> Any:
    from robomimic.utils import obs_utils
    from robomimic.utils.dataset import SequenceDataset

    obs_utils.initialize_obs_utils_with_obs_specs({"obs": {"low_dim": list(states), "rgb": list(cameras)}})
    keys = {"obs_keys": (*cameras, *states), "dataset_keys": ("actions", "rewards", "dones")}
    return SequenceDataset(hdf5_path=str(path), **keys, **options)


def test_robomimic_reads_what_is_written(tmp_path: Path) -> None:
    stack, chunk = 3, 2
    store = make_store((5, 7, 4), terminals={2, 15}, cameras={"front": (8, 6, 3)})
    path = robomimic.write(tmp_path / "data.hdf5", store)
    theirs = sequences(path, ("front",), ("state",), frame_stack=stack, seq_length=chunk, load_next_obs=True)
    ours = Sampler(open_here(path), 1, 0, frame_stack=stack, action_chunk=chunk)
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


@pytest.mark.simulates
def test_filters_are_exchanged_with_robomimic(tmp_path: Path) -> None:
    from robomimic.utils.file_utils import create_hdf5_filter_key

    store = make_store((5, 7, 4), attributes={"filters": {"train": [2, 0], "valid": [1]}})
    path = robomimic.write(tmp_path / "data.hdf5", store)
    create_hdf5_filter_key(str(path), ["demo_2", "demo_1"], "new")
    assert open_here(path).attributes["filters"]["new"] == [2, 1]
    assert sequences(path, (), ("state",), filter_by_attribute="train").demos == ["demo_0", "demo_2"]
    valid = sequences(path, (), ("state",), filter_by_attribute="valid")
    assert [valid[index]["obs"]["state"][0, 0] for index in range(len(valid))] == list(range(5, 11))


def test_names_of_demonstrations_survive_every_format(tmp_path: Path) -> None:
    """Numbers with gaps, as a filtered file has them: masks and names are those of the source again."""
    path, _ = robomimic_file(tmp_path / "a.hdf5", LENGTHS)
    with h5py.File(path, "r+") as file:
        for old, new in (("demo_2", "demo_10"), ("demo_1", "demo_7")):
            file["data"].move(old, new)
        del file["mask/train"]
        file["mask/train"] = np.array(["demo_10"], dtype="S")
    store = open_here(path)
    assert store.attributes["demonstrations"] == ["demo_0", "demo_7", "demo_10"]
    assert store.attributes["filters"] == {"train": [2]}
    assert "demonstrations" not in store.subset([0, 2]).attributes
    for to in ("native", "lerobot", "robomimic"):
        other = open_here(check_writable(to)(tmp_path / to, store))
        again = check_writable("robomimic")(tmp_path / f"{to}.hdf5", other)
        with h5py.File(again) as file:
            assert set(file["data"]) == {"demo_0", "demo_7", "demo_10"}
            assert file["mask/train"][:].tolist() == [b"demo_10"]
        assert open_here(again).attributes["demonstrations"] == store.attributes["demonstrations"]


# Other programs with the same layout --------------------------------------------------------------------------------


def test_nested_observations_of_isaac_lab(tmp_path: Path) -> None:
    store = validate(open_here(isaac_lab(tmp_path / "isaac.hdf5")))
    rows = np.concatenate([np.arange(6), np.arange(5)]).astype(np.float32)
    read = {name: np.asarray(array) for name, array in store.observations.items()}
    assert set(read) == {"eef_pos", "info_object_pose_cube", "info_signals_grasp", "rgb_table_cam"}
    np.testing.assert_array_equal(read["info_object_pose_cube"], np.eye(4).reshape(16) * rows[:, None])
    np.testing.assert_array_equal(read["info_signals_grasp"][:, 0], rows >= 3)
    np.testing.assert_array_equal(read["rgb_table_cam"][:, 0, 0, 0], rows)
    assert store.attributes["left_out"] == ["datagen_info"]
    assert store.attributes["episode_success"] == [True, False]
    assert store.timeouts.nonzero()[0].tolist() == [5, 10]


def test_nested_next_obs_has_the_final_observation(tmp_path: Path) -> None:
    path = isaac_lab(tmp_path / "isaac.hdf5", (3,))

    def later(file: h5py.File) -> None:
        file["data/demo_0"].copy("obs", "next_obs")
        file["data/demo_0/next_obs/eef_pos"][-1] = 7

    hdf5(later)(path)
    assert open_here(path).observations["eef_pos"][:, 0].tolist() == [0, 1, 2, 7]


def test_what_mimicgen_records_beside_observations_is_ignored(tmp_path: Path) -> None:
    path, contents = robomimic_file(tmp_path / "demo.hdf5", (4, 3))
    for number in range(2):
        put(f"data/demo_{number}/src_demo_inds", np.zeros(2, np.int64))(path)
        put(f"data/demo_{number}/src_demo_labels", np.zeros((4, 1), np.int64))(path)
        put(f"data/demo_{number}/datagen_info/eef_pose", np.zeros((9, 4, 4)))(path)
    attribute("data", "mg_config", "{}")(path)
    store = validate(open_here(path))
    assert set(store.observations) == {"agentview_image", "robot0_eef_pos", "phase"}
    np.testing.assert_array_equal(store.actions[:4], np.float32(contents[0]["actions"]))


def test_groups_that_cannot_be_flattened_are_refused(tmp_path: Path) -> None:
    path = isaac_lab(tmp_path / "a.hdf5", (3,))
    put("data/demo_0/obs/info_signals_grasp", np.zeros(3))(path)
    refused(path, "two observations get the joined name 'info_signals_grasp'")
    loop = isaac_lab(tmp_path / "b.hdf5", (3,))
    hdf5(lambda file: file["data/demo_0/obs/info"].__setitem__("more", file["data/demo_0/obs"]))(loop)
    refused(loop, "flatten its groups")


def frames(*shape: int, dtype: type = np.uint8) -> np.ndarray:
    return (np.arange(5 * np.prod(shape, dtype=int)).reshape(5, *shape) % 251).astype(dtype)


NUMBERS, TEXT = frames(3, dtype=np.float64), np.array([b"pick"] * 5)
NESTED_OBS: dict[str, tuple[np.ndarray, str | None]] = {
    "policy/joint_pos": (NUMBERS, "policy_joint_pos"),
    "subtask_terms/grasp_1": (np.arange(5) > 2, "subtask_terms_grasp_1"),
    "object/pose/cube": (frames(4, 4, dtype=np.float32), "object_pose_cube"),
    "proprio/gripper": (frames(dtype=np.int64), "proprio_gripper"),
    "a/b/c/d/e": (frames(2, dtype=np.uint16), "a_b_c_d_e"),
    "rgb/table_cam": (frames(8, 6, 3), "rgb_table_cam"),
    "rgb/first": (frames(3, 40, 36), "rgb_first"),
    "gray/wrist": (frames(40, 36), "gray_wrist"),
    "distance/depth/wrist": (frames(40, 36, 1, dtype=np.uint16), "distance_depth_wrist"),
    "rgb/normalized": (frames(8, 6, 3, dtype=np.float32), None),
    "segmentation/depth_cam": (frames(40, 36, 1, dtype=np.uint16), None),
    "language/instruction": (TEXT, None),
    "instruction": (TEXT.astype(h5py.string_dtype()), None),
}


@pytest.mark.parametrize("path", NESTED_OBS)
@pytest.mark.parametrize("has_next", [False, True])
def test_nested_observations_of_any_kind(tmp_path: Path, path: str, has_next: bool) -> None:
    """Values are in the order of the file under joined names, or left out and listed."""
    values, name = NESTED_OBS[path]
    with h5py.File(tmp_path / "a.hdf5", "w") as file:
        for demo in ("demo_0", "demo_1"):
            file[f"data/{demo}/actions"] = np.full((5, 2), 0.5)
            file.create_group(f"data/{demo}/obs/empty")
            for group in ("obs", "next_obs")[: 1 + has_next]:
                file.create_dataset(f"data/{demo}/{group}/{path}", data=values, compression="gzip")
                file[f"data/{demo}/{group}/eef_pos"] = NUMBERS
    store = open_here(tmp_path / "a.hdf5")
    rows = [0, 1, 2, 3, 4, 4] if has_next else [0, 1, 2, 3, 4]
    np.testing.assert_array_equal(store.observations["eef_pos"], np.float32(NUMBERS[rows * 2]))
    if name is None:
        assert set(store.observations) == {"eef_pos"}
        assert store.attributes["left_out"] == [path.replace("/", "_")]
        return
    found, wanted = np.asarray(store.observations[name]), values[rows * 2]
    if store.attributes.get("depth"):
        np.testing.assert_array_equal(depth.millimeters(found), wanted[..., 0])
    elif found.ndim == 2:
        np.testing.assert_array_equal(found, np.float32(wanted).reshape(len(found), -1))
    else:
        wanted = wanted.transpose(0, 2, 3, 1) if wanted.shape[1] == 3 else wanted
        np.testing.assert_array_equal(found, wanted.reshape(found.shape))
    assert "left_out" not in store.attributes


@pytest.mark.parametrize("samples", [5, 5.0, "5", np.int64(5)], ids=repr)
def test_num_samples_of_any_type(tmp_path: Path, samples: Any) -> None:
    path, _ = robomimic_file(tmp_path / "a.hdf5", (5,))
    put("mask/train", None)(path)
    attribute("data/demo_0", "num_samples", samples)(path)
    assert open_here(path).episodes == 1
    attribute("data/demo_0", "num_samples", 6.0)(path)
    refused(path, "5 actions, but num_samples says '6.0'")


@pytest.mark.parametrize("convention", ["opengl", "opencv"])
def test_images_of_libero_are_upright(tmp_path: Path, convention: str) -> None:
    path, upright = libero(tmp_path / "a.hdf5", convention)
    store = validate(open_here(path))
    np.testing.assert_array_equal(store.observations["agentview_rgb"], upright)
    assert store.attributes.get("turned_upright") == (["agentview_rgb"] if convention == "opengl" else None)
    assert store.has_outcome.tolist() == [True] * 8
    again = open_here(robomimic.write(tmp_path / "again.hdf5", store))  # not turned twice
    np.testing.assert_array_equal(again.observations["agentview_rgb"][:4], upright[:4])


def test_large_images_of_libero_are_not_mapped_upside_down(tmp_path: Path) -> None:
    path, _ = libero(tmp_path / "a.hdf5")
    tall = np.repeat(np.arange(256, dtype=np.uint8), 256 * 3).reshape(1, 256, 256, 3).repeat(4, 0)
    for number in range(2):
        put(f"data/demo_{number}/obs/agentview_rgb", tall)(path)
    np.testing.assert_array_equal(open_here(path).observations["agentview_rgb"][5], tall[0, ::-1])


@pytest.mark.parametrize(
    ("edit", "tasks"),
    [
        (lambda path: None, ([LIBERO_TASK], [0, 0])),
        (attribute("data", "problem_info", json.dumps({"language_instruction": list(LIBERO_TASK)})),
         ([LIBERO_TASK], [0, 0])),
        (attribute("data/demo_1", "ep_meta", json.dumps({"lang": "close it"})), ([LIBERO_TASK, "close it"], [0, 1])),
        (attribute("data", "problem_info", "{}"), (None, None)),
    ],
    ids=["LIBERO", "a list of characters", "RoboCasa", "none"],
)  # fmt: skip
def test_instructions_are_kept(tmp_path: Path, edit: Any, tasks: Any) -> None:
    path, _ = libero(tmp_path / "a.hdf5")
    edit(path)
    held = open_here(path).attributes
    assert (held.get("tasks"), held.get("episode_tasks")) == tasks


DTYPES = st.sampled_from([np.float32, np.float64, np.int64, np.uint8, bool])
NESTED = st.dictionaries(
    st.sampled_from(["arm", "a/b", "a/c", "deep/er/x"]),
    st.tuples(DTYPES, arrays_of.array_shapes(max_dims=2, max_side=4)),
    min_size=1,
)


@settings(max_examples=25, deadline=None)
@given(NESTED, st.lists(st.integers(1, 4), min_size=1, max_size=3), st.booleans(), st.sampled_from([None, "gzip"]))
def test_any_small_file_is_read_as_h5py_reads_it(
    tmp_path_factory: pytest.TempPathFactory, kinds: dict, lengths: list[int], has_next: bool, compression: str | None
) -> None:
    path, random = tmp_path_factory.mktemp("robomimic") / "a.hdf5", np.random.default_rng(0)
    with h5py.File(path, "w") as file:
        for number, steps in enumerate(lengths):
            file[f"data/demo_{number}/actions"] = random.uniform(-1, 1, (steps, 2))
            for name, (dtype, shape) in kinds.items():
                for group in ("obs", "next_obs")[: 1 + has_next]:
                    values = random.uniform(-9, 9, (steps, *shape)).astype(dtype)
                    file.create_dataset(f"data/demo_{number}/{group}/{name}", data=values, compression=compression)
    store = open_here(path)
    with h5py.File(path) as file:
        for number, (start, stop) in enumerate(zip(store.episode_starts, store.episode_ends, strict=True)):
            demo = file[f"data/demo_{number}"]
            np.testing.assert_array_equal(store.actions[start : start + lengths[number]], np.float32(demo["actions"]))
            for name in kinds:
                rows = np.concatenate(
                    [demo[f"obs/{name}"], demo[f"next_obs/{name}"][-1:]] if has_next else [demo[f"obs/{name}"]]
                )
                found = np.asarray(store.observations[name.replace("/", "_")])[start:stop]
                np.testing.assert_array_equal(found, np.float32(rows).reshape(len(rows), -1))
