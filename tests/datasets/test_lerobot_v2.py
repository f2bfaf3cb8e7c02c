"""LeRobot v2.0 and v2.1, written as lerobot 0.1 and 0.3 write them: lines of JSON, a table and a video an episode."""

import json
import shutil
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from refusals import Edit, entry, open_here, refused, text, truncated
from samples import FRONT, INFO, WRIST, brightness, encoded, gray_frames, mp4

from gtp_vision.datasets.formats import detect
from gtp_vision.datasets.scaling import scaled
from gtp_vision.datasets.validation import problems

pytestmark = pytest.mark.usefixtures("cache")
TABLE, MOVIE = "data/chunk-{:03d}/episode_{:06d}.parquet", f"videos/chunk-{{:03d}}/{FRONT}/episode_{{:06d}}.mp4"
EPISODES, TASKS = "meta/episodes.jsonl", "meta/tasks.jsonl"


def lines(rows: Sequence[Any]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def write(
    root: Path, lengths: Sequence[int], *, version: str = "v2.1", fps: float = 10, chunk: int = 1000, state: int = 2,
    has_images: bool = True, has_video: bool = True,
) -> dict[str, np.ndarray]:  # fmt: skip
    """Write a data set; returns the columns of numbers of all its rows."""
    random, total = np.random.default_rng(0), sum(lengths)
    frame = np.concatenate([np.arange(length) for length in lengths])
    episode = np.repeat(np.arange(len(lengths)), lengths)
    columns = {
        "observation.state": random.normal(size=(total, state)).astype(np.float32),
        "action": random.uniform(-90, 90, (total, 3)).astype(np.float32),
        "timestamp": (frame / fps).astype(np.float32),
        "frame_index": frame,
        "episode_index": episode,
        "index": np.arange(total),
        "task_index": episode % 2,
    }
    features: dict[str, Any] = {
        key: {"dtype": str(column.dtype), "shape": list(column.shape[1:] or [1]), "names": None}
        for key, column in columns.items()
    }
    if has_images:
        features[WRIST] = {"dtype": "image", "shape": [6, 8, 3], "names": ["height", "width", "channel"]}
    if has_video:
        features[FRONT] = {"dtype": "video", "shape": [32, 48, 3], "names": ["height", "width", "channel"]}
        features[FRONT]["video_info"] = {"video.fps": fps, "video.codec": "av1", "has_audio": False}
    for e, (start, stop) in enumerate(pairwise(np.cumsum([0, *lengths]).tolist())):
        rows = {key: pa.array(list(column[start:stop])) for key, column in columns.items()}
        if has_images:
            images = [encoded(np.full((6, 8, 3), row % 256, np.uint8)) for row in range(start, stop)]
            rows[WRIST] = pa.array([{"bytes": image, "path": f"frame_{n:06d}.png"} for n, image in enumerate(images)])
        path = root / TABLE.format(e // chunk, e)
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.table(rows), path)
        if has_video:
            shown = [row % 14 for row in range(start, stop)]
            mp4(root / MOVIE.format(e // chunk, e), gray_frames(shown, (32, 48)), fps=fps)
    (root / "meta").mkdir()
    listed = [{"episode_index": e, "tasks": [f"task {e % 2}"], "length": k} for e, k in enumerate(lengths)]
    (root / EPISODES).write_text(lines(listed))
    (root / TASKS).write_text(lines([{"task_index": n, "task": f"task {n}"} for n in range(2)]))
    low_high = {"action": {"min": columns["action"].min(0).tolist(), "max": columns["action"].max(0).tolist()}}
    if version == "v2.0":
        (root / "meta/stats.json").write_text(json.dumps(low_high))
    else:
        (root / "meta/episodes_stats.jsonl").write_text(lines([{"episode_index": 0, "stats": low_high}]))
    info = {
        "codebase_version": version, "robot_type": "aloha", "total_episodes": len(lengths), "total_frames": total,
        "total_tasks": 2, "total_videos": len(lengths), "total_chunks": 1, "chunks_size": chunk, "fps": fps,
        "splits": {"train": f"0:{len(lengths)}"}, "features": features,
        "data_path": "data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet",
        "video_path": "videos/chunk-{episode_chunk:03d}/{video_key}/episode_{episode_index:06d}.mp4",
    }  # fmt: skip
    (root / INFO).write_text(json.dumps(info, indent=4))
    return columns


@pytest.mark.parametrize("version", ["v2.0", "v2.1"])
def test_episodes_are_read_from_files_of_their_own(tmp_path: Path, version: str) -> None:
    columns = write(tmp_path / "pick", (4, 3, 5), version=version, chunk=2)
    assert detect(tmp_path / "pick") == "lerobot"
    store = open_here(tmp_path / "pick")
    assert problems(*scaled([store])) == []
    assert store.episode_ends.tolist() == [4, 7, 12]
    assert store.timeouts.nonzero()[0].tolist() == [3, 6, 11]
    np.testing.assert_array_equal(store.observations["state"], columns["observation.state"])
    np.testing.assert_array_equal(store.actions, columns["action"])
    np.testing.assert_array_equal(np.asarray(store.observations["wrist"])[:, 3, 3, 1], np.arange(12))
    front = np.asarray(store.observations["front"]).reshape(12, -1).astype(float)
    assert np.abs(front - [[brightness(row)] for row in range(12)]).max() <= 4, "of 16 between frames"
    assert store.attributes["tasks"] == ["task 0", "task 1"]
    assert store.attributes["episode_tasks"] == [0, 1, 0]
    assert store.attributes["fps"] == 10
    assert "time_stamps" not in store.attributes


@settings(max_examples=12, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 9), min_size=1, max_size=5),
    fps=st.sampled_from([5, 29.97, 50]),
    chunk=st.integers(1, 3),
    state=st.integers(1, 4),
    version=st.sampled_from(["v2.0", "v2.1"]),
    has_images=st.booleans(),
)
def test_numbers_are_those_of_the_tables(tmp_path_factory: pytest.TempPathFactory, **options: Any) -> None:
    folder = tmp_path_factory.mktemp("any") / "set"
    lengths = options.pop("lengths")
    columns = write(folder, lengths, has_video=False, **options)
    store = open_here(folder)
    assert store.episode_ends.tolist() == np.cumsum(lengths).tolist()
    np.testing.assert_array_equal(store.observations["state"], columns["observation.state"])
    np.testing.assert_array_equal(store.actions, columns["action"])
    assert store.attributes["episode_tasks"] == columns["task_index"][np.cumsum(lengths) - 1].tolist()


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data set that is not changed."""
    folder = tmp_path_factory.mktemp("written") / "pick"
    write(folder, (4, 3))
    return folder


def removed(member: str) -> Edit:
    return lambda path: (path / member).unlink()


@pytest.mark.parametrize(
    ("edit", "words"),
    [
        (removed(TABLE.format(0, 1)), ["no file", "episode_000001.parquet"]),
        (removed(MOVIE.format(0, 1)), ["no file", "episode_000001.mp4"]),
        (truncated(0.5, MOVIE.format(0, 1)), ["episode_000001.mp4", "again"]),
        (truncated(0.5, TABLE.format(0, 1)), ["episode_000001.parquet", "truncated"]),
        (
            lambda path: shutil.copy(path / TABLE.format(0, 1), path / TABLE.format(0, 0)),
            ["row 0 is episode 1", "by meta/episodes.jsonl it is episode 0"],
        ),
        (
            lambda path: shutil.copy(path / MOVIE.format(0, 1), path / MOVIE.format(0, 0)),
            ["3 frames for 4 rows", FRONT],
        ),
        (removed(EPISODES), ["no file 'meta/episodes.jsonl'"]),
        (removed(TASKS), ["no file 'meta/tasks.jsonl'"]),
        (text(TASKS, '{"task_index": 0, "task": "a"}\n'), ["no text of task 1", "episode 1"]),
        (text(EPISODES, ""), ["lists no episode"]),
        (text(EPISODES, "[1]\n"), ["lines of JSON", "not an object"]),
        (text(EPISODES, "{\n"), ["lines of JSON"]),
        (text(EPISODES, lines([{"episode_index": 0, "length": 4}])), ["total_episodes 2", "lists 1"]),
        (text(EPISODES, lines([{"episode_index": 1, "length": 4}])), ["episode 0 is missing"]),
        (text(EPISODES, lines([{"episode_index": 0, "length": 4}] * 2)), ["missing or listed twice"]),
        (text(EPISODES, lines([{"episode_index": e, "length": k} for e, k in enumerate((4, 4))])), ["total_frames 7"]),
        (
            text(EPISODES, lines([{"episode_index": e, "length": k} for e, k in enumerate((3, 4))])),
            ["more than 3 rows"],
        ),
        (text(EPISODES, lines([{"episode_index": e, "length": k} for e, k in enumerate((7, 0))])), ["length 0"]),
        (text(EPISODES, lines([{"episode_index": "0", "length": 1 << 60}])), ["'episode_index' is", "an integer"]),
        (text(EPISODES, lines([{"episode_index": 0, "length": 1 << 60}])), ["'length' is"]),
        (entry(INFO, "chunks_size", value=0), ["chunks_size is 0"]),
        (entry(INFO, "chunks_size", value=None), ["'chunks_size' is"]),
        (entry(INFO, "data_path", value=TABLE.format(0, 0)), ["not consecutive"]),
        (entry(INFO, "data_path", value="../x/{episode_index}.parquet"), ["leads out"]),
        (entry(INFO, "video_path", value=None), ["no file"]),
        (entry(INFO, "codebase_version", value="v1.6"), ["'v1.6'", "v2.0, v2.1 and v3.0"]),
        (entry(INFO, "codebase_version", value="v2.2"), ["'v2.2'", "update gtp-vision"]),
    ],
)
def test_damage_is_named(written: Path, tmp_path: Path, edit: Edit, words: list[str]) -> None:
    shutil.copytree(written, tmp_path / "pick")
    edit(tmp_path / "pick")
    refused(tmp_path / "pick", *words)
