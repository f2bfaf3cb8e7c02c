"""RLDS: a data set that TensorFlow Datasets wrote, and others of its layout."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from refusals import Edit, entry, open_here, refused, text, truncated
from samples import Contents, Copied, encoded, rlds_contents, rlds_folder

from gtp_vision.datasets.formats import detect, open_store
from gtp_vision.datasets.validation import validate

pytestmark = pytest.mark.usefixtures("cache")
TOY = Path(__file__).parent / "toy_rlds"
"""Written by tensorflow_datasets 4.9.10, two shards a split; truth.npz holds the steps as its loader returns them."""
SHARD = "bridge-train.tfrecord-00000-of-00001"


def test_what_tensorflow_datasets_wrote_is_read_as_its_loader_does(tmp_path: Path) -> None:
    path = shutil.copytree(TOY / "1.0.0", tmp_path / "toy" / "1.0.0")
    assert detect(path) == "rlds"
    store, truth = validate(open_store(path)), np.load(TOY / "truth.npz")
    for name in ("image", "wrist_image", "pixels", "state"):  # PNG, JPEG, bytes as integers, floats
        np.testing.assert_array_equal(store.observations[name], truth[name], err_msg=name)
    np.testing.assert_array_equal(store.observations["grip"][:, 0], truth["grip"])
    assert store.attributes["left_out"] == ["depth", "note", "packed"] or store.observations["depth"].shape[1:] == (20,)
    np.testing.assert_array_equal(store.actions, truth["action"])
    starts = np.flatnonzero(truth["is_first"])
    np.testing.assert_array_equal(store.episode_starts, starts)
    last = store.episode_ends - 1
    assert store.timeouts.nonzero()[0].tolist() == last.tolist()
    np.testing.assert_array_equal(store.terminals[last - 1], truth["is_terminal"][last])
    assert store.terminals.sum() == truth["is_terminal"].sum()
    np.testing.assert_array_equal(store.rewards[last - 1], truth["reward"][last - 1] + truth["reward"][last])
    texts = [store.attributes["tasks"][task] for task in store.attributes["episode_tasks"]]
    assert texts == [text.decode() for text in truth["text"][starts]]
    assert store.attributes["filters"] == {"train": [0, 1, 2], "val": [3, 4]}
    columns = ["gripper", *["rotation"] * 3, *["terminate"] * 3, *["world_vector"] * 3]
    assert store.attributes["action_columns"] == columns


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_every_value_is_in_its_place(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    """Lengths, splits, shards, dtypes, cameras and actions of all kinds."""
    draw = data.draw
    lengths = draw(st.lists(st.integers(1, 6), min_size=1, max_size=5))
    random, channels = np.random.default_rng(draw(st.integers(0, 99))), draw(st.sampled_from([1, 3, 4]))
    kind, has_parts = draw(st.sampled_from(["f4", "i8", "u1", "?"])), draw(st.booleans())
    contents: list[Contents] = []
    for length in lengths:
        steps: Contents = {
            "observation/image_0": random.integers(0, 256, (length, 7, 6, channels), np.uint8),
            "observation/robot/pose": random.integers(0, 2, (length, 2, 2)).astype(kind),
            "observation/grip": random.normal(size=length).astype(np.float32),
            "is_terminal": np.arange(length) == draw(st.sampled_from([length - 1, -1])),
        }
        parts = {"action/a": 2, "action/b": 1} if has_parts else {"action": 3}
        steps |= {name: random.uniform(-1, 1, (length, width)).astype("f4") for name, width in parts.items()}
        contents.append(steps | {"reward": random.normal(size=length).astype("f4")})
    splits = draw(st.sampled_from([[("train", 1)], [("train", 2)], [("test", 1), ("train", 3)]]))
    store = open_here(rlds_folder(tmp_path_factory.mktemp("x") / "set" / "1.0.0", contents, splits))
    joined: dict[str, Any] = {name: np.concatenate([steps[name] for steps in contents]) for name in contents[0]}
    np.testing.assert_array_equal(store.observations["image_0"], joined["observation/image_0"])
    rows = sum(lengths)
    np.testing.assert_array_equal(store.observations["robot_pose"], joined["observation/robot/pose"].reshape(rows, 4))
    np.testing.assert_array_equal(store.observations["grip"], joined["observation/grip"][:, None])
    action = np.concatenate([joined[name] for name in ("action", "action/a", "action/b") if name in joined], axis=1)
    np.testing.assert_array_equal(store.actions, action)
    np.testing.assert_array_equal(store.episode_ends, np.cumsum(lengths))
    for steps, start, end in zip(contents, store.episode_starts, store.episode_ends, strict=True):
        assert store.terminals[start:end].tolist() == [*steps["is_terminal"][1:], False]
        rewards = steps["reward"].copy()
        if end - start > 1:
            rewards[-2:] = rewards[-2] + rewards[-1], 0
        np.testing.assert_array_equal(store.rewards[start:end], rewards)


def test_shards_that_are_missing_are_named(tmp_path: Path) -> None:
    path = rlds_folder(tmp_path / "bridge" / "1.0.0", rlds_contents((3, 4, 5)), [("train", 3)])
    (path / "bridge-train.tfrecord-00001-of-00003").unlink()
    store = open_here(path)
    assert (store.episode_ends.tolist(), store.attributes["shards"]) == ([3, 8], {"train": "2 of 3"})


def flipped(at: int) -> Edit:
    def edit(path: Path) -> None:
        content = bytearray((path / SHARD).read_bytes())
        content[at] ^= 1
        (path / SHARD).write_bytes(content)

    return edit


def other(**steps: Any) -> Edit:
    """Another array of the second episode; names with `__` for slashes, None removes it."""

    def edit(path: Path) -> None:
        contents = rlds_contents()
        changed = contents[1] | {name.replace("__", "/"): values for name, values in steps.items()}
        contents[1] = {name: values for name, values in changed.items() if values is not None}
        shutil.rmtree(path)
        rlds_folder(path, contents)

    return edit


def linked(path: Path) -> None:
    (path / SHARD).rename(path.parent / "elsewhere")
    (path / SHARD).symlink_to(path.parent / "elsewhere")


STATE = ("featuresDict", "features", "steps", "sequence", "feature", "featuresDict", "features", "observation")
DTYPE = (*STATE, "featuresDict", "features", "state", "tensor", "dtype")
IMAGE = (*STATE, "featuresDict", "features", "image", "image", "shape", "dimensions")


@pytest.mark.parametrize(
    ("edit", "words"),
    [
        (truncated(0.5, SHARD), (SHARD, "truncated or damaged at byte")),
        (truncated(0.999, SHARD), (SHARD, "truncated or damaged at byte")),
        (truncated(0, SHARD), ("has no episode",)),
        (flipped(3), (SHARD, "damaged at byte 0")),
        (flipped(99), (SHARD, "damaged in the record at byte 0")),
        (flipped(-1), (SHARD, "damaged in the record at byte")),
        (lambda path: (path / SHARD).unlink(), ("has no episode", "tfrecord-00000-of-00001")),
        (linked, ("leads out of the folder", "cp -rL")),
        (text("features.json", "{"), ("features.json", "JSON")),
        (text("features.json", "{}"), ("features.json", "an action of numbers")),
        (text("features.json", '{"featuresDict": 1}'), ("features.json cannot be read",)),
        (text("features.json", '{"featuresDict": {"features": {"a": 1}}}'), ("'a' is not a feature",)),
        (entry("features.json", *STATE, value=...), ("have not an observation",)),
        (entry("features.json", *IMAGE, value=["9", "8", "3"]), ("no image of 9x8x3 in step 0", "RGB 10x8")),
        (entry("features.json", *IMAGE, value=["900000000000", "8", "3"]), ("no image of",)),
        (entry("dataset_info.json", "fileFormat", value="array_record"), ("'array_record'", "file_format='tfrecord'")),
        (other(action=np.zeros((9, 6), np.float32)), ("'steps/action' of episode 1", "54 numbers, not 7 a step")),
        (other(action=None), ("episode 1", "no numbers 'steps/action'")),
        (other(reward=np.zeros(8, np.float32)), ("'steps/reward' of episode 1", "8 steps, and its action 9")),
        (other(observation__state=np.zeros((8, 5), np.float32)), ("'steps/observation/state' of episode 1",)),
        (other(observation__image=np.zeros((8, 10, 8, 3), np.uint8)), ("'steps/observation/image' of episode 1",)),
        (other(observation__image=None), ("'steps/observation/image' of episode 1", "0 steps")),
        (other(observation__image=np.zeros((9, 11, 8, 3), np.uint8)), ("no image of 10x8x3 in step 0",)),
    ],
    ids=lambda value: value[0] if isinstance(value, tuple) else "",
)
def test_damage_is_refused_in_a_sentence(copied: Copied, edit: Edit, words: tuple[str, ...], cache: Path) -> None:
    path = copied("rlds")
    edit(path)
    refused(path, *words)
    assert not list(cache.glob(".*"))


def test_a_later_image_of_another_size_is_refused(copied: Copied, monkeypatch: pytest.MonkeyPatch) -> None:
    path, contents = copied("rlds"), rlds_contents()
    shutil.rmtree(path)
    sizes: Callable[[Any], bytes] = lambda frame: encoded(frame[:9] if frame.max() > 254 else frame)  # noqa: E731
    contents[1]["observation/image"][4, 0, 0] = 255
    monkeypatch.setattr("samples.encoded", sizes)
    rlds_folder(path, contents)
    refused(path, "no image of 10x8x3 in step", "RGB 9x8")
