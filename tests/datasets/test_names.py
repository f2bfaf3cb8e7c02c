"""Names that the user chooses, in files of every format; and openpi's, which are known."""

import json
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from refusals import put
from samples import DATA, EPISODES, INFO, MAIN, Copied, encoded, lerobot_contents

from gtp_vision.cli.main import main
from gtp_vision.config.compose import from_command_line
from gtp_vision.core.errors import GtpVisionError
from gtp_vision.datasets import formats
from gtp_vision.datasets.layout import to_store
from gtp_vision.datasets.store import Store
from gtp_vision.training.data import open_data

pytestmark = pytest.mark.usefixtures("cache")


def opened(path: Path, **features: str) -> Store:
    return to_store(formats._layout(path, None, features), path)


def lerobot_set(root: Path, columns: dict[str, np.ndarray], cameras: dict[str, int]) -> dict[str, np.ndarray]:
    """Two episodes of three frames; the frames of a camera are as bright as its number plus the row."""
    columns = columns | {
        "timestamp": np.tile(np.arange(3), 2).astype(np.float32) / 10,
        "frame_index": np.tile(np.arange(3), 2),
        "episode_index": np.repeat([0, 1], 3),
        "index": np.arange(6),
        "task_index": np.zeros(6, np.int64),
    }
    features: dict[str, Any] = {
        key: {"dtype": str(x.dtype), "shape": list(x.shape[1:] or [1])} for key, x in columns.items()
    }
    table = {key: pa.array(column.tolist()) for key, column in columns.items()}
    for name, first in cameras.items():
        features[name] = {"dtype": "image", "shape": [8, 9, 3], "names": ["height", "width", "channel"]}
        pixels = [encoded(np.full((8, 9, 3), first + row, np.uint8)) for row in range(6)]
        table[name] = pa.array([{"bytes": image, "path": "x"} for image in pixels])
    for member in (DATA.format(0), EPISODES):
        (root / member).parent.mkdir(parents=True)
    pq.write_table(pa.table(table), root / DATA.format(0))
    pq.write_table(pa.table({"task_index": [0], "task": ["do it"]}), root / "meta/tasks.parquet")
    listed = {"episode_index": [0, 1], "length": [3, 3], "dataset_from_index": [0, 3], "dataset_to_index": [3, 6]}
    listed |= {"data/chunk_index": [0, 0], "data/file_index": [0, 0]}
    pq.write_table(pa.table(listed), root / EPISODES)
    info = {"codebase_version": "v3.0", "fps": 10, "features": features}
    (root / INFO).write_text(
        json.dumps(info | {"data_path": "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"})
    )
    return columns


def openpi(root: Path, **others: Any) -> dict[str, np.ndarray]:
    """A set with the features of openpi's LIBERO converter; returns the numbers."""
    columns = {
        "state": np.arange(48, dtype=np.float32).reshape(6, 8),
        "actions": np.linspace(-1, 1, 42, dtype=np.float32).reshape(6, 7),
    }
    return lerobot_set(root, columns | others, {"image": 0, "wrist_image": 100})


def test_openpis_names_are_known(tmp_path: Path) -> None:
    columns = openpi(tmp_path / "libero")
    store = opened(tmp_path / "libero")
    assert set(store.observations) == {"state", "image", "wrist_image"}
    np.testing.assert_array_equal(store.observations["state"], columns["state"])
    np.testing.assert_array_equal(store.actions, columns["actions"])
    for first, name in ((0, "image"), (100, "wrist_image")):
        assert np.asarray(store.observations[name])[:, 4, 4, 1].tolist() == [first + row for row in range(6)]


def numbers(*shape: int, dtype: type = np.float32) -> np.ndarray:
    return (np.arange(6 * np.prod(shape, dtype=int)).reshape(6, *shape) % 97).astype(dtype)


FLAG, STATE, ACTION = numbers(dtype=bool), numbers(8), numbers(7)
RECORDERS: dict[str, tuple[dict[str, np.ndarray], tuple[str, ...], dict[str, str], list[str]]] = {
    "LIBERO": ({"state": STATE, "actions": ACTION}, ("image", "wrist_image"), {"state": "state"}, []),
    "DROID": (
        {"joint_position": numbers(7), "gripper_position": numbers(1), "actions": STATE},
        ("exterior_image_1_left", "exterior_image_2_left", "wrist_image_left"),
        {"joint_position": "joint_position", "gripper_position": "gripper_position"}, []),
    "UR5": ({"joints": numbers(6), "gripper": numbers(), "actions": ACTION}, ("base_rgb", "wrist_rgb"),
            {"joints": "joints", "gripper": "gripper"}, []),
    "LeRobot": ({"observation.state": STATE, "action": ACTION}, ("observation.images.top",),
                {"state": "observation.state"}, []),
    "action": ({"state": STATE, "action": ACTION}, ("image",), {"state": "state"}, []),
    "a camera of LeRobot's name": ({"state": STATE, "action": ACTION}, ("observation.image",), {"state": "state"}, []),
    "states of both names": ({"observation.state": STATE, "extra": numbers(2), "actions": ACTION}, (),
                             {"state": "observation.state", "extra": "extra"}, []),
    "a number beside states": ({"observation.state": STATE, "env": numbers(2), "action": ACTION}, (),
                               {"state": "observation.state"}, ["env"]),
    "rewards and flags": (
        {"state": STATE, "actions": ACTION, "reward": numbers(), "done": FLAG, "is_terminal": FLAG, "is_first": FLAG},
        (), {"state": "state"}, ["done", "is_first", "is_terminal", "reward"]),
    "a mark of success": ({"state": STATE, "actions": ACTION, "success": FLAG}, (), {"state": "state"}, []),
    "two actions": ({"observation.state": STATE, "action": ACTION, "actions": numbers(2)}, (),
                    {"state": "observation.state"}, ["actions"]),
    "other numbers": ({"state": numbers(3, dtype=np.float64), "pose": numbers(4, 4), "mode": numbers(dtype=np.int64),
                       "actions": ACTION}, (), {"state": "state", "pose": "pose", "mode": "mode"}, []),
}  # fmt: skip


@pytest.mark.parametrize(("columns", "cameras", "states", "left_out"), RECORDERS.values(), ids=RECORDERS)
def test_names_of_other_recorders(
    tmp_path: Path, columns: dict[str, np.ndarray], cameras: tuple[str, ...], states: dict[str, str], left_out: list
) -> None:
    lerobot_set(tmp_path / "set", columns, {name: 50 * n for n, name in enumerate(cameras)})
    store = opened(tmp_path / "set")
    shown = {name.rpartition(".")[2]: 50 * n for n, name in enumerate(cameras)}
    assert store.observations.keys() == states.keys() | shown.keys()
    for name, key in states.items():
        np.testing.assert_array_equal(store.observations[name], np.float32(columns[key]).reshape(6, -1))
    for name, first in shown.items():
        assert np.asarray(store.observations[name])[:, 4, 4, 1].tolist() == [first + row for row in range(6)]
    np.testing.assert_array_equal(store.actions, columns.get("action", columns.get("actions")))
    assert sorted(store.attributes.get("left_out", [])) == left_out
    assert ("episode_success" in store.attributes) == ("success" in columns)
    for name in left_out:
        assert name.upper() in opened(tmp_path / "set", **{name.upper(): name}).observations


def test_features_of_lerobot_are_chosen(tmp_path: Path) -> None:
    others = {"delta": np.full((6, 2), 0.5, np.float32), "reached": np.arange(6) == 5, "force": np.ones((6, 3))}
    openpi(tmp_path / "mine", **others)
    chosen = {"action": "delta", "next.success": "reached", "front": "image", "touch": "force"}
    store = opened(tmp_path / "mine", **chosen)
    assert set(store.observations) == {"state", "touch", "front", "wrist_image"}
    np.testing.assert_array_equal(store.actions, others["delta"])
    assert store.terminals.nonzero()[0].tolist() == [5]
    np.testing.assert_array_equal(store.observations["touch"], others["force"])
    assert "front" not in opened(tmp_path / "mine").observations, "other names are another entry of the cache"


def test_names_with_lerobots_prefixes(published: Path) -> None:
    store = opened(
        published, eye="observation.images.front", arm="observation.state", grip="gripper", reward="next.reward"
    )
    assert set(store.observations) == {"eye", "arm", "grip", "grid", "top", "wrist"}
    np.testing.assert_array_equal(store.observations["arm"], lerobot_contents()["observation.state"])


@pytest.mark.parametrize("name", ["d4rl", "d4rl_npz", "native", "native_gzip"])
def test_arrays_of_other_names_are_recognized_and_read(samples: dict[str, Path], copied: Copied, name: str) -> None:
    before = opened(samples[name])
    path = copied(name)
    with h5py.File(samples[name]) if path.suffix != ".npz" else np.load(samples[name]) as file:
        actions, rewards = file["actions"][:], file["rewards"][:]
    for old, new, array in (("actions", "acts", actions), ("rewards", "rews", rewards)):
        put(old, None)(path)
        put(new, array)(path)
    observation = next(iter(before.observations))
    store = opened(path, actions="acts", rewards="rews", seen=observation)
    np.testing.assert_array_equal(store.actions, before.actions)
    np.testing.assert_array_equal(store.rewards, before.rewards)
    np.testing.assert_array_equal(np.asarray(store.observations["seen"]), np.asarray(before.observations[observation]))


def test_another_action_of_robomimic(copied: Copied) -> None:
    """As robomimic's own conversion to absolute actions leaves them beside the others."""
    path, wanted = copied("robomimic"), []
    with h5py.File(path, "r+") as file:
        for demo in ("demo_0", "demo_1"):
            steps = len(file[f"data/{demo}/actions"])
            file[f"data/{demo}/action_dict/abs_pos"] = np.full((steps, 3), 0.25 * steps / 10)
            wanted += [0.25 * steps / 10] * steps + [0]
    store = opened(path, actions="action_dict/abs_pos", eye="obs/agentview_image")
    np.testing.assert_allclose(store.actions, np.repeat(np.array(wanted)[:, None], 3, 1), rtol=1e-6)
    assert opened(path).action_dim == 7
    assert "eye" in store.observations
    assert "agentview_image" not in store.observations


def test_another_name_of_minaris_observations(copied: Copied) -> None:
    before = opened(copied("minari"))
    path = copied("minari")
    with h5py.File(path / MAIN, "r+") as file:
        for episode in file.values():
            episode.move("observations", "seen")
            episode["observations"] = 0 * episode["seen"][:]
    np.testing.assert_array_equal(opened(path, observations="seen").observations["state"], before.observations["state"])
    assert not np.asarray(opened(path).observations["state"]).any()


@pytest.mark.parametrize(
    ("name", "features", "words"),
    [
        (
            "robomimic",
            {"front": "agentvew_image"},
            "'agentvew_image', which task.features reads as 'front': did you mean",
        ),
        (
            "robomimic",
            {"actions": "action_absolute"},
            "'action_absolute', which task.features reads as 'actions': did you",
        ),
        ("d4rl", {"rewards": "rewrds"}, "reads as 'rewards': did you mean 'rewards'"),
        ("d4rl_npz", {"actions": "action"}, "'action', which task.features reads as 'actions': did you mean"),
        ("native", {"arm": "qpos"}, "no 'qpos'"),
        ("native", {"a/b": "state"}, "as 'a/b', which cannot be a name"),
        ("minari", {"front": "frnt"}, "no 'frnt'"),
        ("ogbench", {"front": "frnt"}, "no 'frnt'"),
        ("published", {"action": "actoin"}, "'actoin', which task.features reads as 'action': did you mean 'action'?"),
        ("published", {"state": "observation.stat"}, "no 'observation.stat'"),
    ],
)
def test_names_that_do_not_exist(copied: Copied, name: str, features: dict[str, str], words: str) -> None:
    path = copied(name)
    for _ in range(2):  # the second time with an entry of the cache
        with pytest.raises(GtpVisionError, match=words.replace("?", r"\?")):
            opened(path, **features)


def test_the_commands_take_names(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    openpi(tmp_path / "mine", delta=np.full((6, 2), 0.5, np.float32))
    source = str(tmp_path / "mine")
    main(["data", "inspect", source, "--features", "action=delta,front=image"])
    assert "front 8x9x3" in capsys.readouterr().out
    target = tmp_path / "out.h5"
    assert (
        main(["data", "convert", source, str(target), "--to", "native", "--features", "action=delta,front=image"]) == 0
    )
    assert opened(target).action_dim == 2
    options = ["task=own", "task.name=mine", f"task.dataset={source}", "task.features={action: delta, front: image}"]
    store = open_data(from_command_line([*options, "task.observations=[front]", "training=demo"]))
    assert store.action_dim == 2
    assert list(store.observations) == ["front"]
    assert main(["data", "inspect", source, "--features", "action"]) == 2
    assert "--features 'action' must be NAME=NAME_IN_FILE" in capsys.readouterr().err
