import io
import json
import os
import shutil
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import imageio_ffmpeg
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from refusals import refusal, refused

from gtp_vision.core.errors import GtpVisionError
from gtp_vision.datasets.formats import convert, detect, lerobot, lerobot_writer, native, open_store
from gtp_vision.datasets.store import Store
from gtp_vision.datasets.validation import problems

MakeStore = Callable[..., Store]
DEMO = Path(__file__).resolve().parents[2] / "datasets" / "demo" / "visual-puzzle-3x3.h5"
ARRAYS = ("actions", "rewards", "terminals", "timeouts", "episode_ends")
LENGTHS = (4, 3, 5)  # the first two episodes lie in one file, the third in another
FILES = ((0, 0), (0, 0), (0, 1))
ENDS = np.cumsum(LENGTHS)
ROWS = int(ENDS[-1])
FPS = 5
FRONT, TOP, WRIST = "observation.images.front", "observation.images.top", "observation.images.wrist"
DATA, EPISODES = "data/chunk-000/file-00{}.parquet", "meta/episodes/chunk-000/file-000.parquet"
VIDEO = "videos/{}/chunk-000/file-00{}.mp4"


def grey(row: int) -> int:
    """The brightness by which a test knows a frame again after compression."""
    return 20 + 16 * row


def frames(rows: Sequence[int], size: tuple[int, int]) -> np.ndarray:
    return np.stack([np.full((*size, 3), grey(row), np.uint8) for row in rows])


def mp4(path: Path, pictures: np.ndarray, codec: str = "libx264", rate: int = FPS) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    height, width = pictures.shape[1:3]
    options = f"-y -f rawvideo -pix_fmt rgb24 -s {width}x{height} -r {rate} -i - -c:v {codec} -pix_fmt yuv420p".split()
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-loglevel", "error", *options, str(path)]
    subprocess.run(command, input=pictures.tobytes(), check=True)


def png(pixels: np.ndarray) -> dict[str, Any]:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return {"bytes": buffer.getvalue(), "path": None}


def contents() -> dict[str, Any]:
    """Rows of a robot with joint angles in degrees, as its table holds them."""
    random = np.random.default_rng(0)
    starts = np.repeat(ENDS - LENGTHS, LENGTHS)
    frame = np.arange(ROWS) - starts
    return {
        "observation.state": random.normal(size=(ROWS, 6)).astype(np.float32),
        "observation.gripper": random.normal(size=ROWS).astype(np.float32),
        "observation.grid": np.arange(ROWS * 4, dtype=np.int64).reshape(ROWS, 2, 2),
        "action": (180 * random.uniform(-1, 1, (ROWS, 6)) * (np.arange(6) < 5)).astype(np.float32),
        WRIST: [png(np.full((10, 8, 3), row, np.uint8)) for row in range(ROWS)],
        "next.reward": (np.arange(ROWS) == 6).astype(np.float32),
        "next.done": np.isin(np.arange(ROWS), ENDS - 1),
        "next.success": np.arange(ROWS) == 6,
        "timestamp": (frame / FPS).astype(np.float32),
        "frame_index": frame,
        "episode_index": np.repeat(np.arange(3), LENGTHS),
        "index": np.arange(ROWS),
        "task_index": np.repeat([1, 0, 1], LENGTHS),
    }


def features() -> dict[str, Any]:
    one = {"shape": [1], "names": None}
    camera = {"dtype": "video", "names": ["height", "width", "channels"]}
    return {
        "observation.state": {"dtype": "float32", "shape": [6], "names": {"motors": list("abcdef")}},
        "observation.gripper": {"dtype": "float32", **one},
        "observation.grid": {"dtype": "int64", "shape": [2, 2], "names": None},
        "observation.language": {"dtype": "string", **one},
        "action": {"dtype": "float32", "shape": [6], "names": list("abcdef")},
        FRONT: camera | {"shape": [32, 48, 3]},
        TOP: {"dtype": "video", "shape": [3, 24, 24], "names": ["channels", "height", "width"]},
        WRIST: {"dtype": "image", "shape": [10, 8, 3], "names": ["height", "width", "channel"]},
        "next.reward": {"dtype": "float32", **one},
        "next.done": {"dtype": "bool", **one},
        "next.success": {"dtype": "bool", **one},
        "timestamp": {"dtype": "float32", **one},
        "frame_index": {"dtype": "int64", **one},
        "episode_index": {"dtype": "int64", **one},
        "index": {"dtype": "int64", **one},
        "task_index": {"dtype": "int64", **one},
    }


def table(columns: dict[str, Any], rows: slice) -> pa.Table:
    return pa.table({name: pa.array(list(values[rows])) if isinstance(values, list) or values.ndim == 1
                     else pa.array(values[rows].tolist()) for name, values in columns.items()})  # fmt: skip


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data set by the published schema, written without any code of ours."""
    root = tmp_path_factory.mktemp("published") / "pick"
    columns = contents()
    for place, rows in enumerate((slice(0, 7), slice(7, 12))):
        path = root / DATA.format(place)
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(table(columns, rows), path, row_group_size=4)
        mp4(root / VIDEO.format(FRONT, place), frames(range(ROWS)[rows], (32, 48)))
    # The other camera has one file, whose first two frames belong to nobody.
    mp4(root / VIDEO.format(TOP, 0), frames([0, 0, *range(ROWS)], (24, 24)), codec="libsvtav1")
    episodes = {
        "episode_index": range(3),
        "tasks": [["place it"], ["pick it"], ["place it"]],
        "length": LENGTHS,
        "dataset_from_index": ENDS - LENGTHS,
        "dataset_to_index": ENDS,
        "data/chunk_index": [chunk for chunk, _ in FILES],
        "data/file_index": [file for _, file in FILES],
        f"videos/{FRONT}/chunk_index": [chunk for chunk, _ in FILES],
        f"videos/{FRONT}/file_index": [file for _, file in FILES],
        f"videos/{FRONT}/from_timestamp": [0.0, 4 / FPS, 0.0],
        f"videos/{FRONT}/to_timestamp": [4 / FPS, 7 / FPS, 5 / FPS],
        f"videos/{TOP}/chunk_index": [0, 0, 0],
        f"videos/{TOP}/file_index": [0, 0, 0],
        f"videos/{TOP}/from_timestamp": [2 / FPS, 6 / FPS, 9 / FPS],
        f"videos/{TOP}/to_timestamp": [6 / FPS, 9 / FPS, 14 / FPS],
        "meta/episodes/chunk_index": [0, 0, 0],
        "meta/episodes/file_index": [0, 0, 0],
    }
    (root / EPISODES).parent.mkdir(parents=True)
    pq.write_table(pa.table({name: pa.array(list(column)) for name, column in episodes.items()}), root / EPISODES)
    tasks = {"task_index": [0, 1], "__index_level_0__": ["pick it", "place it"]}
    pq.write_table(pa.table(tasks), root / "meta/tasks.parquet")
    action = columns["action"]
    stats = {"action": {"min": (action.min(0) - 1).tolist(), "max": (action.max(0) + 1).tolist()}}
    stats["action"]["min"][5] = stats["action"]["max"][5] = 0.0
    (root / "meta/stats.json").write_text(json.dumps(stats))
    info = {
        "codebase_version": "v3.0",
        "robot_type": "so101",
        "total_episodes": 3,
        "total_frames": ROWS,
        "total_tasks": 2,
        "chunks_size": 1000,
        "fps": FPS,
        "splits": {"train": "0:3"},
        "data_path": "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet",
        "video_path": "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4",
        "features": features(),
    }
    (root / "meta/info.json").write_text(json.dumps(info))
    return root


@pytest.fixture
def folder(published: Path, tmp_path: Path) -> Path:
    """A copy of it, to be spoiled."""
    return Path(shutil.copytree(published, tmp_path / "pick"))


def edited(path: Path, change: Callable[[Any], Any]) -> None:
    """Change a JSON file or a table in place."""
    if path.suffix == ".json":
        content = json.loads(path.read_text())
        change(content)
        path.write_text(json.dumps(content))
    else:
        pq.write_table(change(pq.read_table(path)), path)


def with_column(name: str, values: Any) -> Callable[[pa.Table], pa.Table]:
    return lambda table: table.set_column(table.schema.get_field_index(name), name, pa.array(values))


def with_entry(*keys: str, value: Any) -> Callable[[Any], None]:
    def change(content: Any) -> None:
        for key in keys[:-1]:
            content = content[key]
        content[keys[-1]] = value

    return change


# What a data set means ------------------------------------------------------------------------------------------


def test_a_published_data_set_is_read(published: Path, cache: Path) -> None:
    store, told = open_store(published), contents()
    assert detect(published) == "lerobot"
    assert problems(store) == []
    assert {name: array.shape[1:] for name, array in store.observations.items()} == {
        "state": (6,), "gripper": (1,), "grid": (4,), "front": (32, 48, 3), "top": (24, 24, 3), "wrist": (10, 8, 3),
    }  # fmt: skip
    np.testing.assert_array_equal(store.observations["state"], told["observation.state"])
    np.testing.assert_array_equal(store.observations["gripper"][:, 0], told["observation.gripper"])
    np.testing.assert_array_equal(store.observations["grid"], told["observation.grid"].reshape(ROWS, 4))
    np.testing.assert_array_equal(store.observations["wrist"][:, 4, 4, 1], np.arange(ROWS))
    np.testing.assert_array_equal(store.rewards, told["next.reward"])
    assert store.episode_ends.tolist() == ENDS.tolist()
    assert store.terminals.nonzero()[0].tolist() == [6], "success, not done"
    assert store.timeouts.nonzero()[0].tolist() == [3, 11]
    attributes = dict(store.attributes)
    assert attributes.pop("action_low")[5] == attributes.pop("action_high")[5] == 0
    assert attributes == {
        "source": "pick",
        "suite": "lerobot",
        "fps": FPS,
        "robot_type": "so101",
        "tasks": ["pick it", "place it"],
        "episode_tasks": [1, 0, 1],
        "left_out": ["observation.language"],
    }


def test_every_row_has_its_own_frame_of_every_video(published: Path, cache: Path) -> None:
    store = open_store(published)
    for camera in ("front", "top"):
        found = np.asarray(store.observations[camera]).reshape(ROWS, -1).astype(float)
        assert np.abs(found - [[grey(row)] for row in range(ROWS)]).max() <= 4, "of 16 between frames"


def test_angles_are_scaled_by_the_statistics(published: Path, cache: Path) -> None:
    store, action = open_store(published), contents()["action"]
    low, high = np.array(store.attributes["action_low"]), np.array(store.attributes["action_high"])
    np.testing.assert_allclose(low[:5], action.min(0)[:5] - 1, rtol=1e-6)
    np.testing.assert_allclose(low + (store.actions + 1) / 2 * (high - low), action, atol=1e-4)
    assert not store.actions[:, 5].any(), "it never moves"
    assert np.abs(store.actions).max() < 1


@pytest.mark.parametrize("stats", [None, {}, {"action": 3}, {"action": {"min": [0], "max": [1]}},
                                   {"action": {"min": [-10.0] * 6, "max": [10.0] * 6}}])  # fmt: skip
def test_angles_are_scaled_by_the_data_where_statistics_do_not_hold(folder: Path, cache: Path, stats: Any) -> None:
    (folder / "meta/stats.json").write_text(json.dumps(stats)) if stats is not None else os.remove(
        folder / "meta/stats.json"
    )
    store = open_store(folder)
    np.testing.assert_allclose(store.attributes["action_low"], contents()["action"].min(0))
    np.testing.assert_array_equal(store.actions[:, :5].max(0), 1)
    np.testing.assert_array_equal(store.actions[:, :5].min(0), -1)


def test_wide_actions_are_scaled_by_the_data_without_statistics(folder: Path, cache: Path) -> None:
    wide = np.linspace(np.zeros(6), np.full(6, 20_000.0), ROWS)
    for place, rows in enumerate((slice(0, 7), slice(7, 12))):
        edited(folder / DATA.format(place), with_column("action", wide[rows].tolist()))
    (folder / "meta/stats.json").write_text("{}")
    assert open_store(folder).attributes["action_low"] == [0.0] * 6


def test_actions_inside_the_bounds_are_left_alone(folder: Path, cache: Path) -> None:
    small = contents()["action"] / 1000
    for place, rows in enumerate((slice(0, 7), slice(7, 12))):
        edited(folder / DATA.format(place), with_column("action", small[rows].tolist()))
    store = open_store(folder)
    np.testing.assert_array_equal(store.actions, small)
    assert "action_low" not in store.attributes


def test_done_is_terminal_where_no_success_is_recorded(folder: Path, cache: Path) -> None:
    edited(folder / "meta/info.json", lambda info: info["features"].pop("next.success"))
    store = open_store(folder)
    assert store.terminals.nonzero()[0].tolist() == [3, 6, 11]
    assert not store.timeouts.any()


def test_a_demonstration_without_flags_and_rewards_ends_by_timeouts(folder: Path, cache: Path) -> None:
    def strip(info: Any) -> None:
        for key in ("next.reward", "next.done", "next.success", "task_index"):
            del info["features"][key]

    edited(folder / "meta/info.json", strip)
    store = open_store(folder)
    assert not store.terminals.any()
    assert not store.rewards.any()
    assert store.timeouts.nonzero()[0].tolist() == [3, 6, 11]
    assert "tasks" not in store.attributes


# Round trips ----------------------------------------------------------------------------------------------------

STORES: dict[str, dict[str, Any]] = {
    "states": {"lengths": (5, 7, 1, 2), "terminals": {11}},
    "terminals inside": {"lengths": (6, 6), "terminals": {2, 3, 8, 11}},
    "both flags": {"lengths": (4, 4), "terminals": {3, 7}, "timeouts": {3}},
    "one number": {"state": 1, "actions": 1},
    "tasks": {"attributes": {"tasks": ["a", "ö"], "episode_tasks": [1, 0], "fps": 29.97, "robot_type": "so101"}},
    "many numbers": {"attributes": {"seeds": list(range(30_000)), "none": None, "line": "a\nb"}},
}


def assert_same(found: Store, store: Store) -> None:
    assert list(found.observations) == list(store.observations)
    for name, array in store.observations.items():
        if array.ndim == 2:
            np.testing.assert_array_equal(np.asarray(found.observations[name]).view(np.uint32), array.view(np.uint32))
    for name in ARRAYS:
        np.testing.assert_array_equal(getattr(found, name), getattr(store, name), err_msg=name)
    assert dict(found.attributes) == dict(store.attributes)


@pytest.mark.parametrize("content", STORES.values(), ids=STORES)
def test_what_is_converted_reads_back_the_same(
    make_store: MakeStore, tmp_path: Path, cache: Path, content: dict[str, Any]
) -> None:
    store = make_store(**content)
    found = convert(native.write(tmp_path / "native.h5", store), tmp_path / "theirs", "lerobot")
    assert detect(tmp_path / "theirs") == "lerobot"
    assert_same(found, store)


def test_every_bit_of_a_number_survives(make_store: MakeStore, tmp_path: Path, cache: Path) -> None:
    store = make_store()
    store.observations["state"][1:5, 1] = np.array([0x7FC00001, 0x80000000, 0xFF800000, 1], np.uint32).view(np.float32)
    lerobot_writer.write(tmp_path / "a", store)
    assert_same(open_store(tmp_path / "a"), store)


@pytest.mark.parametrize("shape", [(64, 48, 3), (33, 31, 3), (16, 16, 1)], ids=["even", "odd", "grey"])
def test_cameras_keep_their_size_and_smooth_pictures(
    make_store: MakeStore, tmp_path: Path, cache: Path, shape: tuple[int, int, int]
) -> None:
    store = make_store((3, 4), cameras={"front": shape, "wrist": (16, 16, 3)})
    y, x = np.mgrid[: shape[0], : shape[1]]
    for row in range(7):
        store.observations["front"][row] = np.clip(grey(row) + x + y, 0, 255)[..., None]
    lerobot_writer.write(tmp_path / "a", store)
    found = open_store(tmp_path / "a")
    assert found.observations["front"].shape == store.observations["front"].shape
    assert np.abs(found.observations["front"].astype(int) - store.observations["front"]).mean() < 2


def test_the_error_of_video_is_what_the_documentation_says(tmp_path: Path, cache: Path) -> None:
    whole = native.read(DEMO)
    ends = whole.episode_ends[:12]
    rows = int(ends[-1])
    part = Store(
        {name: array[:rows] for name, array in whole.observations.items()},
        *(getattr(whole, name)[:rows] for name in ARRAYS[:-1]),
        episode_ends=ends,
        attributes={},
    )
    lerobot_writer.write(tmp_path / "a", part)
    error = np.abs(open_store(tmp_path / "a").observations["camera"].astype(int) - part.observations["camera"])
    assert 1 < error.mean() < 2.5
    assert error.max() < 130


def test_large_data_sets_become_several_files_and_chunks(
    make_store: MakeStore, tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lerobot_writer, "_FILES", 2)
    store = make_store((300, 20, 300, 20, 300), cameras={"front": (32, 32, 3)})  # noise, for the size
    brightness = 5 * (np.arange(len(store)) % 50)
    store.observations["front"][:, 16:] = brightness[:, None, None, None]
    lerobot_writer.write(tmp_path / "a", store, data_files_size_in_mb=0.001, video_files_size_in_mb=0.02)
    made = {str(path.relative_to(tmp_path / "a")) for path in (tmp_path / "a").rglob("*") if path.is_file()}
    for kind, end in (("data", "parquet"), (f"videos/{FRONT}", "mp4"), ("meta/episodes", "parquet")):
        assert {f"{kind}/chunk-000/file-001.{end}", f"{kind}/chunk-001/file-000.{end}"} <= made
    for file in (tmp_path / "a/data").rglob("*.parquet"):
        table = pq.read_table(file)
        assert table.nbytes <= 0.001 * (1 << 20) or len(set(table["episode_index"].to_pylist())) == 1
    found = open_store(tmp_path / "a")
    assert_same(found, store)
    assert np.abs(found.observations["front"][:, 22:].mean((1, 2, 3)) - brightness).max() < 2, "of 5 between frames"


def test_the_written_folder_follows_the_published_schema(make_store: MakeStore, tmp_path: Path) -> None:
    store = make_store(cameras={"front": (16, 16, 3)}, terminals={4})
    root = lerobot_writer.write(tmp_path / "a", store)
    info = json.loads((root / "meta/info.json").read_text())
    data = pq.read_table(root / DATA.format(0))
    assert info["features"].keys() - {FRONT} == set(data.column_names)
    assert [str(data.schema.field(name).type) for name in ("action", "next.reward", "next.done", "index")] == [
        "fixed_size_list<element: float>[2]", "float", "bool", "int64",
    ]  # fmt: skip
    episodes = pq.read_table(root / EPISODES).to_pydict()
    assert episodes["dataset_to_index"] == [5, 12]
    assert episodes[f"videos/{FRONT}/from_timestamp"] == [0, 0.5]
    assert episodes[f"videos/{FRONT}/to_timestamp"] == [0.5, 1.2]
    assert episodes["tasks"] == [["no task was recorded"]] * 2
    assert np.shape(episodes[f"stats/{FRONT}/mean"]) == (2, 3, 1, 1)
    stats = json.loads((root / "meta/stats.json").read_text())
    assert stats.keys() == info["features"].keys()
    for key, rows in (("action", store.actions), ("observation.state", store.observations["state"])):
        for kind, expected in (
            ("min", rows.min(0)),
            ("max", rows.max(0)),
            ("mean", rows.mean(0)),
            ("std", rows.std(0)),
        ):
            np.testing.assert_allclose(stats[key][kind], expected, rtol=1e-5, atol=1e-6)
    assert stats["action"]["count"] == [12]
    tasks = pq.read_table(root / "meta/tasks.parquet")
    assert json.loads(tasks.schema.metadata[b"pandas"])["index_columns"] == ["task"]


def test_a_folder_is_replaced_only_if_it_is_a_data_set_and_the_new_one_is_whole(
    make_store: MakeStore, tmp_path: Path, cache: Path
) -> None:
    store, other = make_store(), make_store(seed=1)
    lerobot_writer.write(tmp_path / "a", store)
    lerobot_writer.write(tmp_path / "a", other)
    assert_same(open_store(tmp_path / "a"), other)
    with pytest.raises(GtpVisionError, match="'fps'"):
        lerobot_writer.write(tmp_path / "a", make_store(attributes={"fps": "fast"}))
    assert_same(open_store(tmp_path / "a"), other)
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "letter.txt").write_text("dear")
    with pytest.raises(GtpVisionError, match="something else"):
        lerobot_writer.write(tmp_path / "home", store)
    (tmp_path / "file").write_text("")
    with pytest.raises(GtpVisionError, match="is a file"):
        lerobot_writer.write(tmp_path / "file", store)
    assert sorted(entry.name for entry in tmp_path.iterdir() if entry != cache) == ["a", "file", "home"]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({"cameras": {"depth": (8, 8, 2)}}, "2 channels"),
        ({"observations": {"a/b": np.zeros((12, 2), np.float32)}}, "a/b"),
        ({"attributes": {"tasks": ["a"], "episode_tasks": [0]}}, "each of 2 episodes"),
        ({"attributes": {"tasks": ["a"], "episode_tasks": [0, 1]}}, "not among the 1"),
    ],
)
def test_what_the_format_cannot_hold_is_refused(
    make_store: MakeStore, tmp_path: Path, content: dict[str, Any], words: str
) -> None:
    with pytest.raises(GtpVisionError, match=words):
        lerobot_writer.write(tmp_path / "a", make_store(**content))
    assert list(tmp_path.iterdir()) == []


# What is refused ------------------------------------------------------------------------------------------------


def test_a_video_that_is_shorter_than_its_table_is_told_by_camera_episode_and_frame(folder: Path, cache: Path) -> None:
    file = folder / VIDEO.format(FRONT, 0)
    mp4(file, frames(range(5), (32, 48)))
    refused(folder, str(file), f"'{FRONT}'", "episode 1, frame 1", "no more frames after 5 frames", "again")


def test_a_video_of_another_size_is_refused(folder: Path, cache: Path) -> None:
    mp4(folder / VIDEO.format(FRONT, 1), frames(range(5), (24, 48)))
    refused(folder, "file-001.mp4", "48x24 pixels and not 48x32", "episode 2, frame 0")


def test_pictures_too_large_for_the_memory_are_refused_with_the_mend(folder: Path, cache: Path) -> None:
    mp4(folder / VIDEO.format(FRONT, 0), np.zeros((1, 4320, 7680, 3), np.uint8))
    edited(folder / "meta/info.json", with_entry("features", FRONT, "shape", value=[4320, 7680, 3]))
    refused(folder, "file-000.mp4", "7680x4320 is too large: scale the video down")


@pytest.mark.parametrize("share", [0.0, 0.1, 0.6, 0.9])
@pytest.mark.parametrize("name", [VIDEO.format(FRONT, 0), VIDEO.format(TOP, 0), DATA.format(1), EPISODES])
def test_a_truncated_file_is_refused_by_name(folder: Path, cache: Path, name: str, share: float) -> None:
    content = (folder / name).read_bytes()
    (folder / name).write_bytes(content[: int(share * len(content))])
    refused(folder, name, "again")


def test_damaged_frames_are_refused(folder: Path, cache: Path) -> None:
    file = folder / VIDEO.format(FRONT, 0)
    content = bytearray(file.read_bytes())
    at = content.index(b"mdat") + 4
    content[at + 700 : at + 760] = b"\xff" * 60
    file.write_bytes(content)
    refused(folder, str(file), "ffmpeg")


def test_a_playlist_that_reads_other_files_is_no_video(folder: Path, cache: Path) -> None:
    other = folder / VIDEO.format(FRONT, 1)
    (folder / VIDEO.format(FRONT, 0)).write_text(f"#EXTM3U\n#EXTINF:1,\nfile://{other}\n#EXT-X-ENDLIST\n")
    refused(folder, "file-000.mp4", "ffmpeg")


def test_ffmpeg_that_hangs_is_killed(
    folder: Path, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sleeper = tmp_path / "ffmpeg"
    sleeper.write_text("#!/bin/sh\nexec sleep 100\n")
    sleeper.chmod(0o755)
    monkeypatch.setattr(imageio_ffmpeg, "get_ffmpeg_exe", lambda: str(sleeper))
    monkeypatch.setenv("GTP_VISION_PATIENCE", "0.4")
    with pytest.raises(GtpVisionError, match=r"ffmpeg gave no frame for 0\.3 s"):
        lerobot.read(folder)
    assert subprocess.run(["pgrep", "-f", "sleep 100", "-P", str(os.getpid())], check=False).returncode == 1


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (with_entry("codebase_version", value="v2.1"), ("v2.1", "convert_dataset_v21_to_v30")),
        (with_entry("codebase_version", value="v4.0"), ("v4.0", "update")),
        (with_entry("codebase_version", value=None), ("codebase_version",)),
        (with_entry("fps", value="30"), ("fps",)),
        (with_entry("fps", value=0), ("fps",)),
        (with_entry("features", value=[]), ("features",)),
        (with_entry("features", "action", value=None), ("'action'", "dtype")),
        (with_entry("features", "action", "shape", value=[5]), ("'action'", "6 numbers a row", "5")),
        (with_entry("features", "action", "shape", value=[1 << 14, 1 << 14]), ("'action'",)),
        (with_entry("features", "action", "dtype", value="image"), ("'action'",)),
        (with_entry("features", "observation.missing", value={"dtype": "float32", "shape": [2]}), ("not one column",)),
        (with_entry("features", "observation.images.state", value={"dtype": "image", "shape": [1, 2, 3]}), ("both",)),
        (with_entry("features", "observation.a/b", value={"dtype": "float32", "shape": [2]}), ("a/b",)),
        (with_entry("features", "observation.a\nb", value={"dtype": "float32", "shape": [2]}), ("rename",)),
        (with_entry("features", FRONT, "shape", value=[1 << 50, 1 << 50, 3]), (FRONT, "sizes")),
        (with_entry("features", FRONT, "shape", value=[30000, 30000, 3]), ("48x32 pixels and not 30000x30000",)),
        (with_entry("features", FRONT, "shape", value=[32, 48, 5]), (FRONT, "channels")),
        (with_entry("features", FRONT, "shape", value="big"), (FRONT, "shape")),
        (with_entry("features", WRIST, "shape", value=[30000, 30000, 3]), (WRIST, "8x10")),
        (with_entry("total_frames", value=1 << 50), ("total_frames", "12", "not complete")),
        (with_entry("total_episodes", value=4), ("total_episodes 4", "3")),
        (with_entry("data_path", value="../elsewhere/file-{file_index:03d}.parquet"), ("leads out",)),
        (with_entry("data_path", value="/etc/passwd"), ("leads out",)),
        (with_entry("data_path", value="data/{file_index:999999999d}"), ("no file",)),
        (with_entry("data_path", value="data/{file_index.__class__}"), ("no file",)),
        (with_entry("data_path", value="a\0b"), ("no name of a file",)),
        (with_entry("data_path", value="a" * 5000), ("no name of a file",)),
        (with_entry("data_path", value=DATA.format(0)), ("again, after others",)),
        (with_entry("video_path", value=None), ("no file 'None'",)),
    ],
)  # fmt: skip
def test_an_info_that_is_wrong_is_told(
    folder: Path, cache: Path, change: Callable[[Any], Any], words: tuple[str, ...]
) -> None:
    edited(folder / "meta/info.json", change)
    refused(folder, *words)


@pytest.mark.parametrize("content", [b"", b"{", b"[1]", b"\xff\xfe", b"[" * 100_000, b'{"fps": ' + b"9" * 10_000])
@pytest.mark.parametrize("name", ["meta/info.json", "meta/stats.json"])
def test_json_that_is_not_json_is_refused(folder: Path, cache: Path, name: str, content: bytes) -> None:
    (folder / name).write_bytes(content)
    refused(folder, name, "JSON")


@pytest.mark.parametrize(
    ("name", "change", "words"),
    [
        (EPISODES, with_column("length", [4, 4, 5]), ("episode 1", "length 4")),
        (EPISODES, with_column("length", [4, 0, 5]), ("episode 1", "length 0")),
        (EPISODES, with_column("length", [4, 1 << 62, 1 << 62]), ("episode 1",)),
        (EPISODES, with_column("length", [4.0, 3.0, float("nan")]), ("'length'", "integers")),
        (EPISODES, with_column("length", [4, None, 5]), ("'length'", "missing")),
        (EPISODES, with_column("episode_index", [0, 1, 1]), ("episode 2 is missing or stands there twice",)),
        (EPISODES, with_column("dataset_from_index", [0, 5, 7]), ("episode 1", "from row 5")),
        (EPISODES, with_column("data/file_index", [0, 0, 7]), ("file-007.parquet", "no file")),
        (EPISODES, with_column("data/file_index", [0, 0, -1]), ("no file",)),
        (EPISODES, with_column(f"videos/{FRONT}/from_timestamp", [0.0, 0.2, 0.0]), ("episode 1, frame 0",)),
        (EPISODES, with_column(f"videos/{FRONT}/from_timestamp", [0.0, 1e8, 0.0]), ("episode 1, frame 0",)),
        (EPISODES, with_column(f"videos/{FRONT}/from_timestamp", [0.0, 0.8, np.nan]), ("episode 2", "second nan")),
        (EPISODES, lambda table: table.drop_columns(["length"]), ("'length'",)),
        (EPISODES, lambda table: table.slice(0, 0), ("no episode",)),
        (DATA.format(0), lambda table: table.slice(0, 6), ("6 rows", "7", "episodes 0 to 1")),
        (DATA.format(0), lambda table: pa.concat_tables([table, table]), ("more than 7", "episodes 0 to 1")),
        (DATA.format(0), with_column("episode_index", [0, 0, 0, 0, 1, 2, 1]), ("episode 2", "episode 1, frame 1")),
        (DATA.format(0), with_column("frame_index", [0, 1, 1, 3, 0, 1, 2]), ("episode 0, frame 1", "frame 2")),
        (DATA.format(0), with_column("timestamp", [0, 0.2, np.nan, 0.6, 0, 0.2, 0.4]), ("episode 0, frame 2",)),
        (DATA.format(0), with_column("action", [[0.0] * 5] * 7), ("'action'", "5 numbers a row")),
        (DATA.format(0), with_column("action", [[0.0] * 5, [0.0] * 7, *[[0.0] * 6] * 5]), ("'action'", "differ")),
        (DATA.format(0), with_column("action", [None, *[[0.0] * 6] * 6]), ("'action'", "missing")),
        (DATA.format(0), with_column("action", [[1.0, None, *[1.0] * 4]] * 7), ("'action'", "missing")),
        (DATA.format(0), with_column("action", ["a"] * 7), ("'action'", "no numbers")),
        (DATA.format(0), with_column("task_index", [7] * 7), ("task 7", "episode 0")),
        (DATA.format(0), lambda table: table.append_column("action", table["action"]), ("not one column 'action'",)),
        (DATA.format(1), with_column(WRIST, [{"bytes": b"GIF89a", "path": None}] * 5), (WRIST, "row 0", "decoded")),
        (DATA.format(1), with_column(WRIST, [{"bytes": None}, *[{"bytes": b""}] * 4]), (WRIST, "not inside the file")),
        (DATA.format(1), with_column(WRIST, [{"bytes": png(np.zeros((9, 8), np.uint8))["bytes"]}] * 5), ("L 8x9",)),
        (DATA.format(1), with_column(WRIST, [1, 2, 3, 4, 5]), (WRIST, "no pictures")),
        ("meta/tasks.parquet", lambda table: table.drop_columns(["__index_level_0__"]), ("tasks.parquet", "text")),
        ("meta/tasks.parquet", lambda table: table.drop_columns(["task_index"]), ("'task_index'",)),
    ],
)  # fmt: skip
def test_a_table_that_is_wrong_is_told(
    folder: Path, cache: Path, name: str, change: Callable[[pa.Table], pa.Table], words: tuple[str, ...]
) -> None:
    edited(folder / name, change)
    refused(folder, *words)


@pytest.mark.parametrize("name", [DATA.format(0), VIDEO.format(FRONT, 1), EPISODES, "meta/tasks.parquet"])
def test_a_missing_file_and_a_link_out_are_refused(folder: Path, cache: Path, tmp_path: Path, name: str) -> None:
    shutil.move(folder / name, tmp_path / "elsewhere")
    refused(folder)
    (folder / name).symlink_to(tmp_path / "elsewhere")
    refused(folder, "leads out")


def test_files_damaged_at_random_are_read_or_refused_by_a_sentence(folder: Path, cache: Path) -> None:
    random, refusals = np.random.default_rng(0), 0
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    for turn in range(30):
        file = files[turn % len(files)]
        whole = file.read_bytes()
        content = bytearray(whole)
        for at in random.integers(0, len(whole), 4):
            content[at] = random.integers(256)
        file.write_bytes(content)
        refusals += bool(refusal(folder))
        file.write_bytes(whole)
    assert refusals
