"""Replay buffers written by zarr itself, and compared with what was written."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from imagecodecs import jpegxl_decode
from imagecodecs.numcodecs import Jpegxl
from numcodecs import LZ4, Blosc, Delta
from refusals import Edit, entry, open_here, refused, text
from samples import Copied, replay_buffer, replay_contents

from gtp_vision.datasets import inspection
from gtp_vision.datasets.formats import detect, open_store
from gtp_vision.datasets.pitfalls import pitfalls

pytestmark = pytest.mark.usefixtures("cache")
LENGTHS = (6, 9)


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_every_value_is_in_its_place(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    """Lengths, versions, folders and zips, chunks, codecs, dtypes and cameras of all kinds."""
    draw = data.draw
    lengths = draw(st.lists(st.integers(1, 6), min_size=1, max_size=4))
    random, rows, ends = np.random.default_rng(draw(st.integers(0, 99))), sum(lengths), np.cumsum(lengths)
    shape, version = draw(st.sampled_from([(7, 6, 3), (5, 4, 1), (3, 9, 8), (40, 33)])), draw(st.sampled_from([2, 3]))
    contents = {
        "front": random.integers(0, 256, (rows, *shape)).astype(draw(st.sampled_from(["u1", "f4", "f8"]))),
        "pose": random.normal(size=(rows, 3)).astype(draw(st.sampled_from(["f2", "f4", "f8", ">f4"]))),
        "grid": random.integers(-9, 9, (rows, 2, 2)).astype(draw(st.sampled_from(["i2", "i8"]))),
        draw(st.sampled_from(["action", "actions"])): random.uniform(-1, 1, (rows, 2)),
        draw(st.sampled_from(["reward", "rewards"])): random.normal(size=(rows, 1)).astype("f4"),
        "done": random.random(rows) < 0.3,
    }
    codecs = {"pose": None} | ({"front": [Blosc("zstd", 3)], "grid": [LZ4()]} if version == 2 else {})
    path = tmp_path_factory.mktemp("x") / draw(st.sampled_from(["buffer.zarr", "buffer.zarr.zip"]))
    replay_buffer(path, contents, lengths, version=version, chunk=draw(st.integers(1, 9)), **codecs)
    store = open_here(path)
    frames = contents["front"].astype(np.uint8)
    frames = frames[..., None] if len(shape) == 2 else frames.transpose(0, 2, 3, 1) if shape[0] == 3 else frames
    np.testing.assert_array_equal(store.observations["front"], frames)
    np.testing.assert_array_equal(store.observations["pose"], contents["pose"].astype(np.float32))
    np.testing.assert_array_equal(store.observations["grid"], contents["grid"].reshape(rows, 4))
    assert store.observations.keys() == {"front", "pose", "grid"}
    last, done = np.isin(np.arange(rows), ends - 1), contents["done"]
    for name, wanted in (
        ("actions", contents.get("action", contents.get("actions")).astype(np.float32)),
        ("rewards", contents.get("reward", contents.get("rewards"))[:, 0]),
        ("terminals", done),
        ("timeouts", last & ~done),
        ("episode_ends", ends),
    ):
        np.testing.assert_array_equal(getattr(store, name), wanted, err_msg=name)


def umi(path: Path, **replaced: Any) -> tuple[Path, dict[str, np.ndarray]]:
    """A buffer of two arms as UMI's 07_generate_replay_buffer.py writes it: poses, no actions, JPEG XL frames."""
    random, rows = np.random.default_rng(0), sum(LENGTHS)
    contents = {"camera0_rgb": np.repeat(random.integers(0, 256, (rows, 4, 4, 3), np.uint8), 8, 1).repeat(8, 2)}
    for robot in ("robot0", "robot1"):
        for name, width in (("eef_pos", 3), ("eef_rot_axis_angle", 3), ("gripper_width", 1)):
            contents[f"{robot}_{name}"] = random.uniform(-1, 1, (rows, width)).astype(np.float32)
        for name in ("demo_start_pose", "demo_end_pose"):
            contents[f"{robot}_{name}"] = random.normal(size=(rows, 6))
    contents |= replaced
    return replay_buffer(path, contents, LENGTHS, chunk=1, camera0_rgb=[Jpegxl(level=3, lossless=False)]), contents


def test_poses_of_umi_become_actions(tmp_path: Path) -> None:
    path, contents = umi(tmp_path / "dataset.zarr.zip")
    store = open_store(path)
    pose = np.concatenate(
        [contents[f"robot{n}_{name}"] for n in (0, 1) for name in ("eef_pos", "eef_rot_axis_angle", "gripper_width")], 1
    )
    following = np.r_[1:6, 5, 7:15, 14]
    np.testing.assert_array_equal(store.actions, pose[following])
    np.testing.assert_array_equal(store.observations["robot1_eef_pos"], contents["robot1_eef_pos"])
    assert not [name for name in store.observations if "demo" in name]
    with np.load(path) as archive:  # a zip
        frames = [jpegxl_decode(archive[f"data/camera0_rgb/{row}.0.0.0"]) for row in range(sum(LENGTHS))]
    np.testing.assert_array_equal(store.observations["camera0_rgb"], frames)


def test_actions_of_umi_count_before_its_poses(tmp_path: Path) -> None:
    actions = np.random.default_rng(1).uniform(-1, 1, (15, 7)).astype(np.float32)
    store = open_here(umi(tmp_path / "dataset.zarr", action=actions)[0])
    np.testing.assert_array_equal(store.actions, actions)


@pytest.mark.parametrize(
    ("name", "marks"),
    [("data/success", np.arange(15) == 8), ("meta/is_success", np.array([0.0, 1.0])), ("meta/success", [False, True])],
)
def test_marks_of_success_are_read(copied: Copied, name: str, marks: Any) -> None:
    path = copied("zarr")
    zarr.open_group(path, mode="a").create_array(name, data=np.asarray(marks))
    store = open_here(path)
    assert store.attributes["episode_success"] == [False, True]
    assert inspection.success(store)["because"] == f"episodes ({name})"
    assert store.observations.keys() == {"img", "state", "keypoint"}


def array(name: str, values: Any, **options: Any) -> Edit:
    """Another array of a name; None removes it."""

    def edit(path: Path) -> None:
        group = zarr.open_group(path, mode="a")
        if name in group:
            del group[name]
        if values is not None:
            group.create_array(name, data=np.asarray(values), **options)

    return edit


def removed(pattern: str) -> Edit:
    return lambda path: [file.unlink() for file in path.glob(pattern)]


def linked(path: Path) -> None:
    (path / "data/state/0.0").rename(path.parent / "elsewhere")
    (path / "data/state/0.0").symlink_to(path.parent / "elsewhere")


PICKLE = {"id": "pickle", "protocol": 5}
IMAGE, STATE = "data/img/.zarray", "data/state/.zarray"


@pytest.mark.parametrize(
    ("edit", "words"),
    [
        (entry(STATE, "filters", value=[PICKLE]), ("'data/state'", "codec 'pickle'")),
        (entry("meta/episode_ends/.zarray", "compressor", value=PICKLE), ("'meta/episode_ends'", "codec 'pickle'")),
        (entry(STATE, "compressor", value={"id": "zlib", "x": [PICKLE]}), ("codec 'pickle'",)),
        (entry(STATE, "compressor", value={"id": "zlib"}), ("'data/state' cannot be read", "copy it again")),
        (entry("data/action/.zarray", "dtype", value="|O"), ("'data/action' holds text or objects",)),
        (entry("data/action/.zarray", "dtype", value=[["x", "<f4"]]), ("'data/action' holds text or objects",)),
        (entry(STATE, "shape", value=[1 << 50, 5]), ("'data/state' has 1125899906842624 rows",)),
        (entry(STATE, "chunks", value=[1 << 40, 5]), ("'data/state' declares", "copy the whole data set again")),
        (entry(STATE, "chunks", value=[0, 5]), ("'data/state'",)),
        (entry(STATE, "shape", value=[14, 5]), ("'data/state' has 14 rows", "ends at 15")),
        (entry(STATE, "order", value=...), ("'data/state' cannot be read",)),
        (text(STATE, "{"), (".zarray", "JSON")),
        (text(STATE, " " * (2 << 20)), (".zarray", "2097152 bytes")),
        (text("data/state/0.0", b"\0" * 40), ("'data/state' cannot be read",)),
        (text("data/img/3.0.0.0", b""), ("'data/img' cannot be read",)),
        (removed("data/action/.zarray"), ("no 'data/action'", "write the action of each row")),
        (array("data/action", np.zeros((15, 2, 2))), ("'data/action' is float64 (15, 2, 2)", "2 dimensions")),
        (array("data/action", np.zeros((14, 2))), ("(14, 2)", "15 rows")),
        (array("data/reward", np.zeros(14)), ("'data/reward' has shape (14,)",)),
        (array("data/state", np.zeros((15, 0))), ("'data/state'",)),
        (array("meta/episode_ends", [6, 6, 15]), ("does not increase at episode 1 (6)",)),
        (array("meta/episode_ends", [-1, 15]), ("does not increase at episode 0 (-1)",)),
        (array("meta/episode_ends", [6, 16]), ("(15, 2)", "16 rows")),
        (array("meta/episode_ends", [6.0, 15.0]), ("'meta/episode_ends' is float64", "wanted integers")),
        (array("meta/episode_ends", np.zeros(0, int)), ("no episode",)),
        (array("data/img", np.arange(15.0)[:, None, None, None] * np.ones((8, 8, 3)) / 2),
         ("'data/img' holds whole numbers", "write it as uint8")),
        (linked, ("leads out of the folder", "cp -rL")),
        (lambda path: path.joinpath("data/more").symlink_to(path.parent), ("leads out of the folder",)),
    ],
    ids=lambda value: value[0] if isinstance(value, tuple) else "",
)  # fmt: skip
def test_damage_is_refused_in_a_sentence(copied: Copied, edit: Edit, words: tuple[str, ...], cache: Path) -> None:
    path = copied("zarr")
    edit(path)
    refused(path, *words)
    assert not list(cache.glob(".*"))


def test_codecs_inside_shards_are_refused(tmp_path: Path) -> None:
    path = replay_buffer(tmp_path / "buffer.zarr", replay_contents(), LENGTHS, version=3)
    array("data/state", np.ones((15, 5)), chunks=(3, 5), shards=(6, 5))(path)
    assert open_here(path).episodes == 2
    document = path / "data/state/zarr.json"
    held = json.loads(document.read_text())
    held["codecs"][0]["configuration"]["codecs"].append({"name": "numcodecs.pickle", "configuration": {}})
    document.write_text(json.dumps(held))
    refused(path, "codec 'numcodecs.pickle'")


def test_filters_of_numbers_are_read(copied: Copied) -> None:
    path, steps = copied("zarr"), np.arange(30).reshape(15, 2)
    array("data/step", steps, filters=[Delta("i8")], chunks=(4, 2))(path)
    np.testing.assert_array_equal(open_here(path).observations["step"], steps)


def test_text_is_left_out(copied: Copied) -> None:
    path = copied("zarr")
    array("data/instruction", np.array(["pick"] * 15))(path)
    store = open_here(path)
    assert (store.attributes["left_out"], len(store.observations)) == (["instruction"], 3)


def test_chunks_that_are_not_stored_are_counted(copied: Copied) -> None:
    path = copied("zarr")
    (path / "data/img/1.0.0.0").unlink()
    store = open_here(path)
    assert not np.asarray(store.observations["img"][4:8]).any()
    (said,) = (said for said in pitfalls(store, inspection.statistics(store)) if "chunk" in said)
    assert said.startswith("data/img: 1 of 4 chunks are not stored and read as one value; ")


@pytest.mark.parametrize("sample", ["zarr", "zarr_zip", "rlds", "minari_arrow"])
def test_names_are_chosen(sample: str, copied: Callable[[str], Path]) -> None:
    """Also of the other formats that are not HDF5: another column for the actions or rewards."""
    member, name = {"rlds": ("is_last", "reward"), "minari_arrow": ("terminations", "rewards")}.get(
        sample, ("state", "action")
    )
    path = copied(sample)
    before, store = open_store(path), open_store(path, features={name: member})
    if sample == "rlds":
        np.testing.assert_array_equal(store.rewards, before.rewards)  # `reward` is 1 in the last step, as `is_last`
    elif name == "rewards":
        np.testing.assert_array_equal(store.rewards, before.terminals)
    else:
        np.testing.assert_array_equal(store.actions, before.observations["state"])


@pytest.mark.parametrize("sample", ["zarr", "zarr_zip"])
def test_a_buffer_is_recognized_by_its_content(sample: str, copied: Callable[[str], Path]) -> None:
    path = copied(sample)
    assert detect(path.rename(path.with_name("buffer"))) == "zarr"
