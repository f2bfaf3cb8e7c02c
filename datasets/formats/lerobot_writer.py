"""Writing LeRobot's data sets, version 3 or 2.1; `lerobot` describes and reads them.

Rows map one to one, but those that hold nothing but the observation after the last action are left out: LeRobot's
policies would learn their action 0. `action` is in the robot's units (`action_low`, `action_high`), the observations,
`next.reward`, `next.done` (terminals) and `next.truncated` (timeouts) are exact; `next.success` is written if it is
known of every episode, true in the last row of those that succeeded; what LeRobot cannot hold is in
meta/gtp_vision.json. The rate is the attribute `fps`, else that of the simulator in `env_args`, else 10. Cameras are
H.264 video (x264, quality 18), which is not exact: of 255, the absolute error on the demo data set's 64x64 frames is
2.0 in the mean and 105 at most, at edges between colors, because four pixels share one color; it is less for larger,
smoother images and more for noise. Depth cameras are H.265 without loss, of codes of 1 mm up to 4.095 m, as LeRobot 0.6
writes and reads them; of n mm if they reach farther, n times that.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from gtp_vision.core import depth
from gtp_vision.core.errors import GtpVisionError
from gtp_vision.core.extras import optional
from gtp_vision.core.files import require_space
from gtp_vision.core.progress import Progress
from gtp_vision.datasets.arrays import Array
from gtp_vision.datasets.formats import lerobot, video
from gtp_vision.datasets.formats import lerobot_statistics as statistics
from gtp_vision.datasets.formats.format import Format
from gtp_vision.datasets.formats.lerobot_meta import (
    CAMERA,
    DEPTH_BITS,
    EPISODE_LINES,
    EPISODE_STATS,
    EPISODES,
    INFO,
    OURS,
    STATE,
    STATS,
    TASK_LINES,
    TASKS,
)
from gtp_vision.datasets.layout import COPY_BYTES, PROGRESS_BYTES, row_ranges
from gtp_vision.datasets.rate import known_rate
from gtp_vision.datasets.scaling import in_file_units
from gtp_vision.datasets.store import Store
from gtp_vision.datasets.success import MARKS, unknown

pa = optional("pyarrow", "lerobot", "LeRobot's format")
pq = optional("pyarrow.parquet", "lerobot", "LeRobot's format")

_CHUNK = "chunk-{chunk_index:03d}/file-{file_index:03d}"
_PATHS = {
    "v3.0": (f"data/{_CHUNK}.parquet", f"videos/{{video_key}}/{_CHUNK}.mp4"),
    "v2.1": (
        "data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet",
        "videos/chunk-{episode_chunk:03d}/{video_key}/episode_{episode_index:06d}.mp4",
    ),
}  # of tables and videos
_EACH = -1.0  # megabytes: no two episodes share a file
_FILES = 1000  # per chunk
_FPS = 10  # of stores without `fps`
_MB = 1 << 20
_LAST_CODE = (1 << DEPTH_BITS) - 1  # of depth

Place = tuple[int, int]


def write(
    path: Path,
    store: Store,
    *,
    version: str = "v3.0",
    data_files_size_in_mb: float = 100,
    video_files_size_in_mb: float = 200,
) -> Path:
    """Write a store as a LeRobot folder, whose attributes `fps`, `tasks`, `episode_tasks` and `robot_type` are used.

    The limits are those of version 3: of a table, unless its only episode is larger, and of a video, exact to about a
    hundred frames, which ffmpeg writes later. Version 2.1 has files of each episode. Raises GtpVisionError: cameras
    that cannot be a video, invalid names, another folder.
    """
    keys, fps = _keys(store), _fps(store)[0]
    tasks, episode_tasks = _tasks(store)
    store = store.without_final_observations()
    bounds = list(zip(store.episode_starts.tolist(), store.episode_ends.tolist(), strict=True))
    data_path, video_path = _PATHS[version]
    limits = {"data_files_size_in_mb": data_files_size_in_mb, "video_files_size_in_mb": video_files_size_in_mb}
    data_limit, video_limit = limits.values() if version == "v3.0" else (_EACH, _EACH)
    with _atomic_folder(path) as root:
        columns = _columns(store, keys, fps, episode_tasks)
        require_space(root, sum(int(array.nbytes) for array in columns.values()), f"writing {path}")
        rows: dict[str, Any] = {
            "episode_index": list(range(len(bounds))),
            "tasks": [[tasks[task]] for task in episode_tasks],
            "length": [end - start for start, end in bounds],
            "dataset_from_index": [start for start, _ in bounds],
            "dataset_to_index": [end for _, end in bounds],
        }
        places = _write_tables(root, data_path, columns, bounds, int(data_limit * _MB))
        rows |= _indices("data", places)
        stats = {key: [statistics.of_rows(array[start:end]) for start, end in bounds] for key, array in columns.items()}
        total = {key: statistics.of_rows(array) for key, array in columns.items()}
        features = {key: _feature(array) for key, array in columns.items()}
        cameras = {name: array for name, array in store.observations.items() if array.ndim == 4}
        size = sum(int(array.nbytes) for array in cameras.values())
        with Progress(
            total=size, desc=f"writing {path.name}", unit="B", unit_scale=True, disable=size < PROGRESS_BYTES
        ) as bar:
            for name, array in cameras.items():
                key, step = keys[name], _depth_step(array)
                template = video_path.replace("{video_key}", key.replace("{", "{{").replace("}", "}}"))
                limit = int(video_limit * _MB)
                places, seconds = _write_videos(root, template, array, bounds, fps, limit, bar, step)
                rows |= _indices(f"videos/{key}", places)
                rows[f"videos/{key}/from_timestamp"] = seconds
                rows[f"videos/{key}/to_timestamp"] = [
                    second + (end - start) / fps for second, (start, end) in zip(seconds, bounds, strict=True)
                ]
                counted, unit = [statistics.levels(array, *bound, step) for bound in bounds], step or 1 / 255
                stats[key] = [statistics.of_levels([one], unit) for one in counted]
                total[key], features[key] = statistics.of_levels(counted, unit), _camera_feature(array, fps, step)
        order = [keys[name] for name in store.observations]  # the store's, before all others
        features = {key: features[key] for key in (*order, *(key for key in features if key not in order))}
        info: dict[str, Any] = {
            "codebase_version": version,
            "robot_type": store.attributes.get("robot_type"),
            "total_episodes": len(bounds),
            "total_frames": len(store),
            "total_tasks": len(tasks),
            "chunks_size": _FILES,
            "fps": fps,
            "splits": {"train": f"0:{len(bounds)}"},
            "data_path": data_path,
            "video_path": video_path if cameras else None,
            "features": features,
        }
        if version == "v3.0":
            info |= limits
            _write_episode_table(root, rows, stats, int(data_limit * _MB))
            _write_tasks(root, tasks)
        else:
            info |= {"total_videos": len(cameras) * len(bounds), "total_chunks": -(-len(bounds) // _FILES)}
            _write_lines(root, rows, stats, tasks)
        _write_json(root / STATS, {key: _listed(found) for key, found in total.items()})
        _write_json(root / OURS, {"attributes": dict(store.attributes), "units": "robot"})
        _write_json(root / INFO, info)
    return path


def _keys(store: Store) -> dict[str, str]:
    """Return LeRobot's key of each observation."""
    keys: dict[str, str] = {}
    for name, array in store.observations.items():
        if "/" in name or not name:
            raise GtpVisionError(f"LeRobot cannot hold an observation named '{name}'; rename it")
        if array.ndim == 4 and array.shape[3] not in video.CHANNELS and name not in depth.cameras(store.attributes):
            raise GtpVisionError(
                f"the camera '{name}' has {array.shape[3]} channels, a video has 1 or 3; convert "
                f"it to native or robomimic instead"
            )
        key = (CAMERA if array.ndim == 4 else STATE) + name
        if key in keys.values():
            raise GtpVisionError(f"two observations would get the name '{key}' in LeRobot; rename '{name}'")
        keys[name] = key
    return keys


def notes(store: Store) -> list[str]:
    """Return what is made up for LeRobot, in sentences."""
    fps, is_known = _fps(store)
    made_up = [] if is_known else [f"fps is {fps:g}, since the data set does not say its rate; --fps sets it"]
    if not store.attributes.get("tasks"):
        made_up.append(f"the data set has no text of a task; it is '{_tasks(store)[0][0]}'")
    return made_up


def _fps(store: Store) -> tuple[float, bool]:
    """Return the rate, and whether the data set says it."""
    rate = known_rate(store.attributes)
    return (_FPS, False) if rate is None else (rate, True)


def _tasks(store: Store) -> tuple[list[str], list[int]]:
    """Return the texts of the tasks, and the number of each episode's task."""
    tasks, index = store.attributes.get("tasks"), store.attributes.get("episode_tasks")
    if not tasks:
        return [str(store.attributes.get("env", "no task was recorded"))], [0] * store.episodes
    index = [0] * store.episodes if index is None else index
    if not isinstance(tasks, list) or not isinstance(index, list) or len(index) != store.episodes:
        raise GtpVisionError(
            f"the attributes 'tasks' and 'episode_tasks' do not name a task for each of {store.episodes} episodes; "
            f"correct or remove them"
        )
    if not all(type(task) is int and 0 <= task < len(tasks) for task in index):
        raise GtpVisionError(
            f"the attribute 'episode_tasks' names a task that is not among the {len(tasks)} 'tasks'; correct it"
        )
    return [str(task) for task in tasks], index


def _columns(store: Store, keys: dict[str, str], fps: float, tasks: Sequence[int]) -> dict[str, Array]:
    """Return the columns of the tables, (N,) or (N, D)."""
    lengths = np.diff(np.concatenate([[0], store.episode_ends]))
    frames = np.arange(len(store)) - np.repeat(store.episode_starts, lengths)
    columns: dict[str, Array] = {keys[name]: array for name, array in store.observations.items() if array.ndim != 4}
    columns |= {
        "action": in_file_units(store),
        "next.reward": np.asarray(store.rewards, np.float32),
        "next.done": np.asarray(store.terminals, bool),
        "next.truncated": np.asarray(store.timeouts, bool),
        "timestamp": (frames / fps).astype(np.float32),
        "frame_index": frames,
        "episode_index": np.repeat(np.arange(store.episodes), lengths),
        "index": np.arange(len(store)),
        "task_index": np.repeat(np.asarray(tasks, np.int64), lengths),
    }
    marks = store.attributes.get(MARKS)
    if isinstance(marks, list) and len(marks) == store.episodes and all(isinstance(mark, bool) for mark in marks):
        columns["next.success"] = np.isin(np.arange(len(store)), (store.episode_ends - 1)[np.asarray(marks)])
    return columns


def _as_stored(array: np.ndarray) -> np.ndarray:
    """Convert numbers for a table: vectors become float32 (n, D), or (n,) for D = 1; others stay as they are."""
    array = np.asarray(array)
    if array.ndim > 1:
        array = array.astype(np.float32, copy=False).reshape(len(array), -1)
    return array[:, 0] if array.ndim > 1 and array.shape[1] == 1 else array


def _write_tables(
    root: Path, template: str, columns: dict[str, Array], bounds: Sequence[tuple[int, int]], limit: int
) -> list[Place]:
    """Write data/ and return the place of each episode."""
    places: list[Place] = []
    with ExitStack() as stack:
        writer, size = None, 0
        for start, end in bounds:
            arrays = {}
            for key, column in columns.items():
                values = _as_stored(column[start:end])
                flat = pa.array(values.ravel())
                arrays[key] = flat if values.ndim == 1 else pa.FixedSizeListArray.from_arrays(flat, values.shape[1])
            table = pa.table(arrays)
            if writer is None or size + table.nbytes > limit:
                stack.close()
                places.append(_after(places))
                file = _created(root, template, places[-1])
                # Without a dictionary, in which all NaNs would become the same.
                writer = stack.enter_context(pq.ParquetWriter(file, table.schema, use_dictionary=False))
                size = 0
            else:
                places.append(places[-1])
            writer.write_table(table)
            size += table.nbytes
    return places


def _depth_step(frames: Array) -> int:
    """Return the millimeters of a code of a depth camera: 1 up to 4.095 m, so that nothing is lost; 0 of others."""
    if frames.shape[3] != depth.BYTES:
        return 0
    pieces = (np.asarray(frames[start:stop]) for start, stop in row_ranges(frames))
    return max(1, *(-(-int(depth.millimeters(piece).max()) // _LAST_CODE) for piece in pieces))


def _write_videos(
    root: Path,
    template: str,
    frames: Array,
    bounds: Sequence[tuple[int, int]],
    fps: float,
    limit: int,
    bar: Progress,
    step_of_depth: int,
) -> tuple[list[Place], list[float]]:
    """Write a camera's files and return the place of each episode, and the second of its first frame."""
    places: list[Place] = []
    seconds: list[float] = []
    step = max(1, COPY_BYTES // max(1, int(np.prod(frames.shape[1:]))))
    with ExitStack() as stack:
        file, encode, episodes, encoded = None, None, 0, 0  # of the current file
        for start, end in bounds:
            if encode is None or file is None or file.stat().st_size * (episodes + 1) / max(1, episodes) > limit:
                stack.close()
                places.append(_after(places))
                file = _created(root, template, places[-1])
                file.touch()
                encode = stack.enter_context(video.encoding(file, frames.shape[1:], fps))
                episodes = encoded = 0
            else:
                places.append(places[-1])
            seconds.append(encoded / fps)
            for low in range(start, end, step):
                piece = np.asarray(frames[low : min(low + step, end)])
                encode(depth.quantized(depth.millimeters(piece), step_of_depth) if step_of_depth else piece)
                bar.update(piece.nbytes)
            episodes, encoded = episodes + 1, encoded + end - start
    return places, seconds


def _after(places: Sequence[Place]) -> Place:
    """Return the chunk and file after the last one."""
    if not places:
        return 0, 0
    chunk, file = places[-1]
    return (chunk, file + 1) if file + 1 < _FILES else (chunk + 1, 0)


def _created(root: Path, template: str, place: Place) -> Path:
    chunk, file_index = place
    episode = {"episode_chunk": chunk, "episode_index": chunk * _FILES + file_index}  # of files of one episode
    file = root / template.format(chunk_index=chunk, file_index=file_index, **episode)
    file.parent.mkdir(parents=True, exist_ok=True)
    return file


def _indices(prefix: str, places: Sequence[Place]) -> dict[str, list[int]]:
    return {f"{prefix}/{part}_index": [place[i] for place in places] for i, part in enumerate(("chunk", "file"))}


def _feature(array: Array) -> dict[str, Any]:
    stored = _as_stored(array[:1])
    return {"dtype": str(stored.dtype), "shape": [1] if stored.ndim == 1 else [stored.shape[1]], "names": None}


def _camera_feature(frames: Array, fps: float, step: int) -> dict[str, Any]:
    height, width, channels = frames.shape[1:]
    channels = 1 if step else channels
    info = {"height": height, "width": width, "channels": channels, "codec": "hevc" if step else "h264", "fps": fps}
    info |= {"pix_fmt": video.pixel_format(frames.shape[1:]), "is_depth_map": bool(step)}
    if step:
        info |= {"depth_min": 0.0, "depth_max": step * _LAST_CODE / 1000, "shift": 0.0, "use_log": False}
    named = {f"video.{key}": value for key, value in info.items()}
    unit = {"is_depth_map": True, "depth_unit": "mm"} if step else {}
    return {
        "dtype": "video",
        "shape": [height, width, channels],
        "names": ["height", "width", "channels"],
        "info": named | unit | {"has_audio": False},
    }


def _listed(found: statistics.Statistics) -> dict[str, list[Any]]:
    return {kind: value.tolist() for kind, value in found.items()}


def _write_episode_table(
    root: Path, rows: dict[str, list[Any]], stats: dict[str, list[statistics.Statistics]], limit: int
) -> None:
    """Write meta/episodes of version 3."""
    for key, episodes in stats.items():
        for kind in episodes[0]:
            rows[f"stats/{key}/{kind}"] = [episode[kind].tolist() for episode in episodes]
    table = pa.table(rows)
    rows_per_file = max(1, int(limit / (table.nbytes / len(table) + 1)))
    places: list[Place] = []
    for start in range(0, len(table), rows_per_file):
        places.append(_after(places))
        part = table.slice(start, rows_per_file)
        for key, index in zip(("chunk", "file"), places[-1], strict=True):
            part = part.append_column(f"meta/episodes/{key}_index", pa.array([index] * len(part), pa.int64()))
        pq.write_table(part, _created(root, f"{EPISODES}/{_CHUNK}.parquet", places[-1]))


def _write_lines(
    root: Path,
    rows: dict[str, list[Any]],
    stats: dict[str, list[statistics.Statistics]],
    tasks: Sequence[str],
) -> None:
    """Write the lists of version 2.1, in lines of JSON."""
    named = ("episode_index", "tasks", "length")
    episodes = [dict(zip(named, row, strict=True)) for row in zip(*(rows[name] for name in named), strict=True)]
    of_episodes = [
        {"episode_index": e, "stats": {key: _listed(found[e]) for key, found in stats.items()}}
        for e in range(len(episodes))
    ]
    listed = [{"task_index": number, "task": task} for number, task in enumerate(tasks)]
    for name, lines in ((EPISODE_LINES, episodes), (EPISODE_STATS, of_episodes), (TASK_LINES, listed)):
        (root / name).parent.mkdir(exist_ok=True)
        with (root / name).open("w", encoding="utf-8") as file:
            file.writelines(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)


def _write_tasks(root: Path, tasks: Sequence[str]) -> None:
    """Write meta/tasks.parquet of version 3, in which the texts are the index of a pandas table."""
    columns = [("task_index", "int64", "int64"), ("task", "unicode", "object")]
    pandas = {
        "index_columns": ["task"],
        "column_indexes": [
            {"name": None, "field_name": None, "pandas_type": "unicode", "numpy_type": "object", "metadata": None}
        ],
        "columns": [
            {"name": name, "field_name": name, "pandas_type": kind, "numpy_type": numpy, "metadata": None}
            for name, kind, numpy in columns
        ],
        "creator": {"library": "pyarrow", "version": pa.__version__},
        "pandas_version": "2.0.0",
    }
    table = pa.table({"task_index": pa.array(range(len(tasks)), pa.int64()), "task": pa.array(tasks, pa.string())})
    pq.write_table(table.replace_schema_metadata({"pandas": json.dumps(pandas)}), root / TASKS)


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=4, ensure_ascii=False), encoding="utf-8")


@contextmanager
def _atomic_folder(path: Path) -> Iterator[Path]:
    """Yield a temporary folder that becomes `path` when the block ends without an exception."""
    path = Path(os.path.abspath(path))
    if path.is_dir() and any(path.iterdir()) and not lerobot.recognises(path):
        raise GtpVisionError(f"{path} is not empty and not a LeRobot data set; choose another folder")
    if path.exists() and not path.is_dir():
        raise GtpVisionError(f"{path} is a file, a LeRobot data set is a folder; choose another name")
    temporary, before = (path.with_name(f".{path.name}.{os.getpid()}.{kind}") for kind in ("part", "old"))
    temporary.mkdir(parents=True)
    try:
        yield temporary
        for file in temporary.rglob("*"):
            if file.is_file():
                with file.open("rb") as written:
                    os.fsync(written.fileno())
        if path.exists():
            os.replace(path, before)
        os.replace(temporary, path)
    finally:
        if before.exists() and not path.exists():
            os.replace(before, path)
        shutil.rmtree(before, ignore_errors=True)
        shutil.rmtree(temporary, ignore_errors=True)


LEROBOT = Format(
    "lerobot",
    "LeRobot",
    lambda path, _: lerobot.layout(path),
    other=lerobot.recognises,
    write=write,
    success=lambda store: unknown("the data set has no next.success, and its terminals are next.done"),
    notes=notes,
)
LEROBOT_21 = replace(
    LEROBOT, name="lerobot-v2.1", title="LeRobot v2.1", other=None, write=partial(write, version="v2.1")
)
"""Written on request; `LEROBOT` reads it."""
