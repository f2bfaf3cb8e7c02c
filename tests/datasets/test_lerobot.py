import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from refusals import assert_same, entry, open_here, refused
from samples import (
    DATA,
    EPISODES,
    FPS,
    FRONT,
    INFO,
    LEROBOT_ENDS,
    LEROBOT_ROWS,
    TOP,
    VIDEO,
    Copied,
    brightness,
    lerobot_contents,
)
from stores import make_store

from gtp_vision.core.errors import GtpVisionError
from gtp_vision.datasets import demo_path
from gtp_vision.datasets.differences import differences
from gtp_vision.datasets.formats import detect, lerobot_writer, native
from gtp_vision.datasets.scaling import scaled
from gtp_vision.datasets.store import Store
from gtp_vision.datasets.validation import problems

pytestmark = pytest.mark.usefixtures("cache")


def test_a_published_data_set_is_read(published: Path) -> None:
    store, contents = open_here(published), lerobot_contents()
    assert detect(published) == "lerobot"
    assert problems(*scaled([store])) == []
    assert {name: array.shape[1:] for name, array in store.observations.items()} == {
        "state": (6,), "gripper": (1,), "grid": (4,), "front": (32, 48, 3), "top": (24, 24, 3), "wrist": (10, 8, 3),
    }  # fmt: skip
    np.testing.assert_array_equal(store.observations["state"], contents["observation.state"])
    np.testing.assert_array_equal(store.observations["gripper"][:, 0], contents["observation.gripper"])
    np.testing.assert_array_equal(store.observations["grid"], contents["observation.grid"].reshape(-1, 4))
    np.testing.assert_array_equal(store.observations["wrist"][:, 4, 4, 1], np.arange(LEROBOT_ROWS))
    for camera in ("front", "top"):
        frames = np.asarray(store.observations[camera]).reshape(LEROBOT_ROWS, -1).astype(float)
        assert np.abs(frames - [[brightness(row)] for row in range(LEROBOT_ROWS)]).max() <= 4, "of 16 between frames"
    np.testing.assert_array_equal(store.rewards, contents["next.reward"])
    assert store.episode_ends.tolist() == LEROBOT_ENDS.tolist()
    assert store.terminals.nonzero()[0].tolist() == [6], "success, not done"
    assert store.timeouts.nonzero()[0].tolist() == [3, 11]
    assert dict(store.attributes) == {
        "source": "pick",
        "suite": "lerobot",
        "fps": FPS,
        "robot_type": "so101",
        "tasks": ["pick it", "place it"],
        "episode_tasks": [1, 0, 1],
        "left_out": ["observation.language"],
        "time_stamps": [f"{VIDEO.format(TOP, 0)}: 2 of 14 frames belong to no row"],
        "episode_success": [False, True, False],
        "success_marks": "episodes (next.success)",
        "filters": {"success": [1], "failed": [0, 2]},
    }
    np.testing.assert_array_equal(store.actions, contents["action"])


@pytest.mark.parametrize(
    ("splits", "filters"),
    [
        ({"train": "0:3"}, {}),
        ({"train": "0:2", "val": "2:3"}, {"train": [0, 1], "val": [2]}),
        ({"train": "0:2", "test": "2:9999999"}, {"train": [0, 1], "test": [2]}),
        ({"train": "0:1", "val": "3:3", "x": "9:1", "y": "all", "z": None}, {"train": [0]}),
        (["train"], {}),
    ],
    ids=str,
)
def test_splits_are_filters(copied: Copied, splits: Any, filters: dict[str, list[int]]) -> None:
    entry(INFO, "splits", value=splits)(folder := copied("published"))
    store = open_here(folder)
    assert store.attributes["filters"] == {"success": [1], "failed": [0, 2]} | filters
    for name, episodes in filters.items():
        assert store.filtered(name).episodes == len(episodes)


@pytest.mark.parametrize(("factor", "is_large"), [(1e-3, False), (100.0, True)])
def test_actions_without_statistics(copied: Copied, factor: float, is_large: bool) -> None:
    folder = copied("published")
    (folder / "meta/stats.json").unlink()
    actions = lerobot_contents()["action"] * np.float32(factor)
    for place, rows in enumerate((slice(0, 7), slice(7, 12))):
        data = pq.read_table(folder / DATA.format(place))
        data = data.set_column(data.column_names.index("action"), "action", pa.array(list(actions[rows])))
        pq.write_table(data, folder / DATA.format(place))
    store = open_here(folder)
    np.testing.assert_array_equal(store.actions, actions)
    low = store.attributes.get("action_low")
    assert low == (None if is_large else [-1] * 6), "they are the robot's as they are"


def test_clutter_is_passed_over(copied: Copied) -> None:
    folder = copied("published")
    before = open_here(folder)
    for file in list(folder.rglob("*.*")):
        for name in (f"._{file.name}", f"{file.name}~", f".{file.name}.swp", f".ipynb_checkpoints/{file.name}"):
            (file.parent / name).parent.mkdir(exist_ok=True)
            (file.parent / name).write_bytes(b"\0\5\x16\7")
    shutil.copytree(folder / "meta/episodes/chunk-000", folder / "meta/episodes/.ipynb_checkpoints")
    assert_same(open_here(folder), before)


def test_a_relative_folder_may_look_like_an_address(copied: Copied, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = copied("published")
    before = open_here(folder)
    monkeypatch.chdir(folder.parent)
    folder.rename("s3:x")
    np.testing.assert_array_equal(open_here(Path("s3:x")).actions, before.actions)


def test_missing_flags(copied: Copied) -> None:
    folder = copied("published")
    entry(INFO, "features", "next.success", value=...)(folder)
    store = open_here(folder)
    assert store.terminals.nonzero()[0].tolist() == [3, 6, 11], "done"
    assert not store.timeouts.any()
    for key in ("next.reward", "next.done", "task_index"):
        entry(INFO, "features", key, value=...)(folder)
    store = open_here(folder)
    assert not store.terminals.any()
    assert not store.rewards.any()
    assert store.timeouts.nonzero()[0].tolist() == [3, 6, 11]
    assert "tasks" not in store.attributes


@pytest.mark.parametrize("shape", [(64, 48, 3), (33, 31, 3), (16, 16, 1)], ids=["even", "odd", "gray"])
def test_cameras_keep_size_and_image(tmp_path: Path, shape: tuple[int, int, int]) -> None:
    store = make_store((3, 4), cameras={"front": shape, "wrist": (16, 16, 3)})
    y, x = np.mgrid[: shape[0], : shape[1]]
    for row in range(7):
        store.observations["front"][row] = np.clip(brightness(row) + x + y, 0, 255)[..., None]
    found = open_here(lerobot_writer.write(tmp_path / "a", store))
    assert found.observations["front"].shape == store.observations["front"].shape
    assert np.abs(found.observations["front"].astype(int) - store.observations["front"]).mean() < 2


def test_the_error_of_video_is_as_documented(tmp_path: Path) -> None:
    part = native.read(demo_path()).subset(range(8))
    part.attributes = {}
    found = open_here(lerobot_writer.write(tmp_path / "a", part))
    kept = part.without_final_observations()
    error = np.abs(np.asarray(found.observations["camera"]).astype(int) - np.asarray(kept.observations["camera"]))
    assert 1 < error.mean() < 2.5
    assert error.max() < 130
    assert f"{error.mean():.3g} of 255 on average, by {error.max()} at most" in differences(kept, found)[0]


def test_large_data_sets_are_split(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lerobot_writer, "_FILES", 2)
    store = make_store((300, 20, 300, 20, 300), cameras={"front": (32, 32, 3)})  # noise, for the size
    levels = 5 * (np.arange(len(store)) % 50)
    store.observations["front"][:, 16:] = levels[:, None, None, None]
    lerobot_writer.write(tmp_path / "a", store, data_files_size_in_mb=0.001, video_files_size_in_mb=0.02)
    written = {str(path.relative_to(tmp_path / "a")) for path in (tmp_path / "a").rglob("*") if path.is_file()}
    for kind, end in (("data", "parquet"), (f"videos/{FRONT}", "mp4"), ("meta/episodes", "parquet")):
        assert {f"{kind}/chunk-000/file-001.{end}", f"{kind}/chunk-001/file-000.{end}"} <= written
    for file in (tmp_path / "a/data").rglob("*.parquet"):
        rows = pq.read_table(file)
        assert rows.nbytes <= 0.001 * (1 << 20) or len(set(rows["episode_index"].to_pylist())) == 1
    found = open_here(tmp_path / "a")
    assert_same(found, store, cameras=False)
    assert np.abs(found.observations["front"][:, 22:].mean((1, 2, 3)) - levels).max() < 2, "of 5 between frames"


def test_the_written_folder_follows_the_published_schema(tmp_path: Path) -> None:
    store = make_store(cameras={"front": (16, 16, 3)}, terminals={4})
    root = lerobot_writer.write(tmp_path / "a", store)
    info = json.loads((root / INFO).read_text())
    data = pq.read_table(root / DATA.format(0))
    assert info["features"].keys() - {FRONT} == set(data.column_names)
    types = [str(data.schema.field(name).type) for name in ("action", "next.reward", "next.done", "index")]
    assert types == ["fixed_size_list<element: float>[2]", "float", "bool", "int64"]
    episodes = pq.read_table(root / EPISODES).to_pydict()
    assert episodes["dataset_to_index"] == [5, 12]
    assert episodes[f"videos/{FRONT}/from_timestamp"] == [0, 0.5]
    assert episodes["tasks"] == [["no task was recorded"]] * 2
    assert np.shape(episodes[f"stats/{FRONT}/mean"]) == (2, 3, 1, 1)
    stats = json.loads((root / "meta/stats.json").read_text())
    assert stats.keys() == info["features"].keys()
    for kind in ("min", "max", "mean", "std"):
        np.testing.assert_allclose(stats["action"][kind], getattr(store.actions, kind)(0), rtol=1e-5, atol=1e-6)
    for q in (1, 10, 50, 90, 99):
        key, wanted = f"q{q:02d}", np.quantile(store.actions, q / 100, axis=0)
        np.testing.assert_allclose(stats["action"][key], wanted, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(
            episodes[f"stats/action/{key}"][0], np.quantile(store.actions[:5], q / 100, axis=0), rtol=1e-5
        )
        pixels = np.quantile(store.observations["front"].reshape(-1, 3), q / 100, axis=0) / 255
        np.testing.assert_allclose(np.ravel(stats[FRONT][key]), pixels, atol=0.02)
    assert all(found.keys() == stats["action"].keys() for found in stats.values())
    tasks = pq.read_table(root / "meta/tasks.parquet")
    assert json.loads(tasks.schema.metadata[b"pandas"])["index_columns"] == ["task"]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({"cameras": {"depth": (8, 8, 2)}}, "2 channels"),
        ({"observations": {"a/b": np.zeros((12, 2), np.float32)}}, "a/b"),
        ({"cameras": {"a": (8, 8, 3)}, "observations": {"a": np.zeros((12, 8, 8, 3), np.uint8),
                                                          "images.a": np.zeros((12, 2), np.float32)}}, "the name"),
        ({"attributes": {"fps": "fast"}}, "'fps'"),
        ({"attributes": {"tasks": ["a"], "episode_tasks": [0]}}, "each of 2 episodes"),
        ({"attributes": {"tasks": ["a"], "episode_tasks": [0, 1]}}, "not among the 1"),
    ],
)  # fmt: skip
def test_unfit_stores_are_refused(tmp_path: Path, content: dict[str, Any], words: str) -> None:
    with pytest.raises(GtpVisionError, match=words):
        lerobot_writer.write(tmp_path / "a", make_store(**content))
    assert [path.name for path in tmp_path.iterdir() if "cache" not in path.name] == []


def rows_of(folder: Path) -> dict[str, list[Any]]:
    return dict(pq.read_table(folder / DATA.format(0)).to_pydict())


def with_final_rows(**options: Any) -> Store:
    """Two episodes whose last rows hold nothing but the observation after the last action, as readers append them."""
    store = make_store((5, 7), **options)
    store.actions[[4, 11]], store.rewards[[4, 11]] = 0, 0
    return store


def test_no_action_is_made_up_for_the_last_observation(tmp_path: Path) -> None:
    """LeRobot's policies would learn `go to 0` at the end of every episode."""
    store = with_final_rows(cameras={"front": (16, 16, 3)}, terminals={3})
    folder = lerobot_writer.write(tmp_path / "a", store)
    kept = np.setdiff1d(np.arange(12), [4, 11])
    rows = rows_of(folder)
    np.testing.assert_array_equal(rows["action"], store.actions[kept])
    np.testing.assert_array_equal(rows["observation.state"], store.observations["state"][kept])
    assert rows["next.done"] == [False] * 3 + [True] + [False] * 6
    assert rows["next.truncated"] == [False] * 9 + [True]
    assert json.loads((folder / "meta/stats.json").read_text())["action"]["count"] == [10]
    found = open_here(folder)
    assert problems(found) == []
    assert found.episode_ends.tolist() == [4, 10]
    assert found.transitions.tolist() == [0, 1, 2, 3, 4, 5, 6, 7, 8]


@pytest.mark.parametrize(("marks", "rows"), [([True, False], [4]), ([False, True], [11]), ([True, None], None),
                                             (None, None), ([True], None)])  # fmt: skip
def test_known_success_is_written(tmp_path: Path, marks: list[bool] | None, rows: list[int] | None) -> None:
    store = make_store((5, 7), attributes={"episode_success": marks}, terminals={2})
    folder = lerobot_writer.write(tmp_path / "a", store)
    written = rows_of(folder).get("next.success")
    assert (written and np.flatnonzero(written).tolist()) == rows
    found = open_here(folder)
    assert found.terminals.nonzero()[0].tolist() == [2], "those of the data, not of success"
    assert found.attributes["episode_success"] == marks


def test_version_2_1_has_files_of_each_episode(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lerobot_writer, "_FILES", 2)
    store = make_store((3, 4, 2), cameras={"front": (16, 16, 3), "gray": (16, 16, 1)}, attributes={"tasks": ["a"]})
    root = lerobot_writer.write(tmp_path / "a", store, version="v2.1")
    files = {str(path.relative_to(root)) for path in root.rglob("*") if path.is_file()}
    episodes = [("000", "000000"), ("000", "000001"), ("001", "000002")]
    videos = {
        f"videos/chunk-{c}/observation.images.{n}/episode_{e}.mp4" for c, e in episodes for n in ("front", "gray")
    }
    meta = {f"meta/{name}" for name in ("info.json", "stats.json", "gtp_vision.json")}
    meta |= {f"meta/{name}.jsonl" for name in ("episodes", "tasks", "episodes_stats")}
    assert files == videos | meta | {f"data/chunk-{c}/episode_{e}.parquet" for c, e in episodes}
    info = json.loads((root / INFO).read_text())
    assert (info["codebase_version"], info["total_videos"], info["total_chunks"], info["chunks_size"]) == (
        "v2.1",
        6,
        2,
        2,
    )
    listed = [json.loads(line) for line in (root / "meta/episodes.jsonl").read_text().splitlines()]
    assert listed == [{"episode_index": e, "tasks": ["a"], "length": n} for e, n in enumerate((3, 4, 2))]
    stats = [json.loads(line)["stats"] for line in (root / "meta/episodes_stats.jsonl").read_text().splitlines()]
    np.testing.assert_allclose(stats[1]["action"]["mean"], store.actions[3:7].mean(0), rtol=1e-5)
    assert np.shape(stats[1]["observation.images.gray"]["mean"]) == (3, 1, 1), "as LeRobot decodes it"
    assert_same(open_here(root), store, cameras=False)


def test_a_recorded_last_action_is_kept(tmp_path: Path) -> None:
    store = make_store((5, 7))
    store.rewards[[4, 11]] = 0
    assert rows_of(lerobot_writer.write(tmp_path / "a", store))["action"] == store.actions.tolist()


@pytest.mark.parametrize(
    ("attributes", "fps", "is_known"),
    [
        ({"fps": 29.97}, 29.97, True),
        ({"env_args": {"env_name": "Lift", "env_kwargs": {"control_freq": 20}}}, 20, True),
        ({"fps": 50, "env_args": {"env_kwargs": {"control_freq": 20}}}, 50, True),
        ({"env_args": {"env_kwargs": {"sim_config": {"control_freq": 20}}}}, 20, True),
        ({"env_args": {"type": 2, "sim_args": {"dt": 0.01, "decimation": 2}}}, 50, True),
        ({"env_args": {"type": 2, "sim_args": {"dt": 1 / 120, "decimation": 4}}}, 30, True),
        ({"env_args": {"sim_args": {"dt": 0.0, "decimation": 2}}}, 10, False),
        ({"env_args": {"sim_args": {"dt": "fast"}}}, 10, False),
        ({"env_args": {"env_name": "Lift"}}, 10, False),
        ({"env_args": "?"}, 10, False),
        ({}, 10, False),
    ],
)
def test_the_rate_is_that_of_the_data(tmp_path: Path, attributes: dict[str, Any], fps: float, is_known: bool) -> None:
    store = make_store(attributes=attributes)
    folder = lerobot_writer.write(tmp_path / "a", store)
    assert json.loads((folder / INFO).read_text())["fps"] == fps
    np.testing.assert_allclose(rows_of(folder)["timestamp"][:5], np.arange(5) / fps, rtol=1e-6)
    assert any("fps is 10" in note for note in lerobot_writer.notes(store)) is not is_known


def test_actions_are_written_in_the_units_of_the_robot(tmp_path: Path) -> None:
    """A constant dimension, whose limits are equal, has its constant; other readers know no action_low."""
    bounds = {"action_low": [-3.0, 0.25, -1.0], "action_high": [5.0, 0.25, 1.0]}
    store = make_store(actions=3, attributes=bounds)
    store.actions[:, 1] = 0
    folder = lerobot_writer.write(tmp_path / "a", store)
    written = np.array(rows_of(folder)["action"])
    np.testing.assert_allclose(written[:, 0], -3 + (store.actions[:, 0] + 1) * 4, rtol=1e-6)
    np.testing.assert_array_equal(written[:, 1:], np.stack([np.full(12, 0.25), store.actions[:, 2]], 1))
    found = open_here(folder)
    np.testing.assert_allclose(found.actions, store.actions, atol=1e-6)
    assert {name: found.attributes[name] for name in bounds} == bounds
    entry("meta/gtp_vision.json", "attributes", "action_low", value=[1, 2])(folder)
    refused(folder, "action_low and action_high do not fit 3 actions")


def test_data_sets_of_earlier_versions_hold_actions_in_minus_1_to_1(tmp_path: Path) -> None:
    store = make_store(attributes={})
    folder = lerobot_writer.write(tmp_path / "a", store)
    bounds = {"action_low": [-3.0, 0.0], "action_high": [5.0, 9.0]}
    (folder / "meta/gtp_vision.json").write_text(json.dumps({"attributes": bounds}))
    found = open_here(folder)
    np.testing.assert_array_equal(found.actions, store.actions)
    assert dict(found.attributes) == bounds
