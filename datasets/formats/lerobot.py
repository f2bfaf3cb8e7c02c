"""LeRobot's data sets, versions 2.0, 2.1 and 3: tables in Parquet, cameras as mp4 or as images in the tables.

Version 3:

    meta/info.json                                features, fps, where the files lie
    meta/stats.json                               statistics of every feature, which are not read
    meta/tasks.parquet                            the tasks, as text
    meta/episodes/chunk-XXX/file-XXX.parquet      length of each episode, its files and its seconds in them
    data/chunk-XXX/file-XXX.parquet               a row per frame, many episodes per file
    videos/<key>/chunk-XXX/file-XXX.mp4           many episodes per file

Version 2 has files of each episode, and lists in lines of JSON (v2.0 has meta/stats.json, v2.1
meta/episodes_stats.jsonl, which is not read):

    meta/{episodes,tasks}.jsonl                   length of each episode; the tasks, as text
    data/chunk-XXX/episode_XXXXXX.parquet
    videos/chunk-XXX/<key>/episode_XXXXXX.mp4

Every row is a row of the store. Observations lose the prefix `observation.` and, as cameras, `observation.images.`.
`terminals` are `next.success` if present, else `next.done`: a demonstration's `done` often only means that the
recording stopped, while its success ends the task. An episode's last row is a timeout if it is not a terminal, or if
`next.truncated` is set. Missing rewards and flags are 0.

`lerobot_times` pairs rows with the frames of videos. Each video is decoded once, into the cache, several at a time; or
its frames are decoded when they are read (`seeking`), except those of depth cameras.

Actions are the robot's, as recorded; within [-1, 1] the attributes `action_low` and `action_high`, -1 and 1, say so.
Our writer multiplies scaled actions by these attributes, and they are scaled again here.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Generator, Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from gtp_vision.core import depth, sandbox
from gtp_vision.core.errors import GtpVisionError, first_line
from gtp_vision.core.extras import require
from gtp_vision.core.framing import Framing
from gtp_vision.core.safe_json import read_json
from gtp_vision.core.units import to_policy
from gtp_vision.datasets import names
from gtp_vision.datasets import success as successes
from gtp_vision.datasets.formats import lerobot_times, seeking, tables, video
from gtp_vision.datasets.formats.episodes import to_float32
from gtp_vision.datasets.formats.lerobot_meta import (
    DEPTH_BITS,
    INFO,
    OURS,
    ROWS,
    Episodes,
    Feature,
    read_episodes,
    read_features,
    read_info,
    read_splits,
    read_tasks,
)
from gtp_vision.datasets.layout import FileArrays, Layout, Piece, VideoRows
from gtp_vision.datasets.scaling import ROUNDING, recorded_bounds
from gtp_vision.datasets.store import ACTION_BOUNDS
from gtp_vision.datasets.unpacking import seeks, through_cache
from gtp_vision.datasets.validation import place

_MARKS = ("next.success", "next.is_success", "success", "is_success")  # names of columns of flags
_OPTIONAL = ("timestamp", *_MARKS, "next.done", "next.truncated", "next.reward", "task_index")
_IMAGES = 16  # decoded together
_MODES = {1: "L", 3: "RGB", 4: "RGBA"}  # Pillow's, by channels


def recognises(path: Path) -> bool:
    """Whether a folder has LeRobot's meta/info.json."""
    return path.is_dir() and (path / INFO).is_file()


def layout(path: Path) -> Layout:
    """Return the layout of a LeRobot folder, decoded once into the cache.

    Raises:
        GtpVisionError: another version, missing or damaged files, lengths that disagree, files outside the folder.
    """
    if seeks():
        require("lerobot", "task.video=seek", "av")
    return through_cache(path, lambda: _opened(path), "lerobot", *(["seek"] if seeks() else []))


@contextmanager
def _opened(path: Path) -> Iterator[FileArrays]:
    info = read_info(path)
    features, left_out = read_features(info, path)
    observations = {name: feature for name, feature in features.items() if name != "action"}
    episodes = read_episodes(path, info, [feature.key for feature in observations.values() if feature.kind == "video"])
    rows = _rows(info, features["action"], episodes)
    ends = np.cumsum(episodes.lengths)
    stamps, videos = rows["timestamp"], [feature for feature in observations.values() if feature.kind == "video"]
    notes = lerobot_times.stamps_note(stamps, ends - episodes.lengths, info["fps"])
    pairings = {feature.key: lerobot_times.pair(path, info["fps"], feature, episodes, stamps) for feature in videos}
    notes += [note for pairing in pairings.values() for note in pairing.notes]
    last = np.isin(np.arange(ends[-1]), ends - 1)
    ours = read_json(tables.inside(path, OURS)) if (path / OURS).is_file() else None
    ends_task = ["next.done"] if ours is not None else ["next.success", "next.done"]
    terminals = next((rows[key] for key in ends_task if key in rows), np.zeros(len(last))).astype(bool)
    truncated = rows.get("next.truncated", np.zeros(len(last))).astype(bool)
    attributes = {} if ours is None else ours.get("attributes", {})
    if not isinstance(attributes, dict):
        raise GtpVisionError(f"{path / OURS}: 'attributes' is not an object; convert the data set again")
    actions = to_float32(rows["action"])
    if ours is not None and ours.get("units") == "robot" and attributes.keys() >= set(ACTION_BOUNDS):
        actions = _scaled_again(path, actions, attributes)
    if ours is None:
        attributes = {"source": path.resolve().name, "suite": "lerobot", "fps": info["fps"]}
        attributes |= {"robot_type": str(info["robot_type"])} if info.get("robot_type") else {}
        if "task_index" in rows:
            attributes |= _tasks(path, info, rows["task_index"][ends - episodes.lengths])
        splits = read_splits(info, len(ends))
        attributes |= {"filters": splits} if splits else {}
        for key in [key for key in _MARKS if key in rows][:1]:
            flags = np.logical_or.reduceat(rows[key] > 0, ends - episodes.lengths)
            attributes |= successes.attributes_of(flags.tolist(), f"episodes ({key})", splits)
        attributes |= recorded_bounds(actions) | ({"left_out": left_out} if left_out else {})
    attributes |= {"time_stamps": notes} if notes else {}
    with ExitStack() as stack:
        pieces = {}
        for name, feature in observations.items():
            streams: list[Stream]
            if feature.kind == "video":
                streams = _of_videos(name, feature, pairings[feature.key], ends - episodes.lengths)
            else:
                streams = [_of_tables(feature, episodes)]
            # The first one before memory and disk are taken for the size that info.json declares.
            pieces[name] = [_streamed(name, feature, each, path, stack, not n) for n, each in enumerate(streams)]
        yield FileArrays(
            observations=pieces,
            actions=actions,
            rewards=rows.get("next.reward", np.zeros(len(last))),
            terminals=terminals,
            timeouts=last & (truncated | ~terminals),
            episode_ends=ends,
            attributes=attributes,
        )


def _rows(info: dict[str, Any], action: Feature, episodes: Episodes) -> dict[str, np.ndarray]:
    """Read the columns with one number per row, (N,), and `action`, (N, A), of all files."""
    keys = ["episode_index", "frame_index", *(key for key in _OPTIONAL if _is_flag(info, key))]
    batches: dict[str, list[np.ndarray]] = {key: [] for key in (*keys[2:], "action")}
    for file, begin, end in episodes.tables:
        lengths = episodes.lengths[begin:end]
        wanted, at = int(lengths.sum()), 0
        starts = np.cumsum(lengths) - lengths
        for batch in tables.batches(file, [*map(names.source, keys), action.key], ROWS):
            columns = [
                tables.numbers(array, 1, key, file, allow_missing=key == "timestamp")[:, 0]
                for key, array in zip(keys, batch[:-1], strict=True)
            ]
            rows = np.arange(at, at + len(columns[0]))
            at += len(rows)
            if at > wanted:
                break
            here = np.searchsorted(starts, rows, side="right") - 1
            wrong = np.flatnonzero((columns[0] != here + begin) | (columns[1] != rows - starts[here]))
            if len(wrong):
                w = wrong[0]
                raise GtpVisionError(
                    f"{file}: row {rows[w]} is episode {columns[0][w]}, frame {columns[1][w]}, by {episodes.listed} "
                    f"it is episode {here[w] + begin}, frame {rows[w] - starts[here[w]]}; copy the data set again"
                )
            for key, column in zip(keys[2:], columns[2:], strict=True):
                batches[key].append(column)
            batches["action"].append(tables.numbers(batch[-1], action.shape[0], action.key, file))
        if at != wanted:
            count = at if at < wanted else f"more than {wanted}"
            raise GtpVisionError(
                f"{file} has {count} rows, but {episodes.listed} lists {wanted} for episodes {begin} to {end - 1}; "
                f"copy the data set again"
            )
    found = {key: np.concatenate(arrays) for key, arrays in batches.items()}
    return {"timestamp": np.full(len(found["action"]), np.nan)} | found


def _is_flag(info: dict[str, Any], key: str) -> bool:
    """Whether a feature has one number a row; a column of our own choice of names may hold anything."""
    entry = info["features"].get(names.source(key))
    if key not in _MARKS[1:] or not isinstance(entry, dict):
        return entry is not None
    return str(entry.get("dtype")).startswith(("bool", "int", "uint", "float")) and entry.get("shape") == [1]


def _scaled_again(path: Path, actions: np.ndarray, attributes: dict[str, Any]) -> np.ndarray:
    """Return the actions of a data set of our writer in [-1, 1]."""
    try:
        low, high = (np.asarray(attributes[bound], np.float64).reshape(actions.shape[1]) for bound in ACTION_BOUNDS)
    except (TypeError, ValueError) as error:
        raise GtpVisionError(
            f"{path / OURS}: action_low and action_high do not fit {actions.shape[1]} actions; convert the data set "
            f"again"
        ) from error
    scaled = np.where((low == -1) & (high == 1), actions, to_policy(actions, low, high))
    if np.abs(scaled).max() <= 1 + ROUNDING:  # validation reports those that leave them
        scaled = np.clip(scaled, -1, 1)
    return scaled.astype(np.float32)


def _tasks(path: Path, info: dict[str, Any], index: np.ndarray) -> dict[str, Any]:
    """Return the attributes `tasks` (texts) and `episode_tasks` (numbers of texts) for each episode's task index."""
    texts = read_tasks(path, info)
    if len(wrong := np.flatnonzero(~np.isin(index, list(texts)))):
        raise GtpVisionError(
            f"{path} has no text of task {index[wrong[0]]}, the task of episode {wrong[0]}; copy it again"
        )
    numbers = sorted(texts)
    return {
        "tasks": [texts[number] for number in numbers],
        "episode_tasks": np.searchsorted(numbers, index.astype(np.int64)).tolist(),
    }


@dataclass(frozen=True)
class Stream:
    """Some rows of a feature, one after the other.

    Attributes:
        rows: their number.
        frames: yields them; frames of a camera cropped and resized, if it gets a framing.
        frames_itself: whether it takes one.
        video: as that of a `Piece`.
    """

    rows: int
    frames: Callable[[Framing | None], Generator[np.ndarray, None, None]]
    frames_itself: bool = False
    video: VideoRows | None = None


def _streamed(name: str, feature: Feature, stream: Stream, path: Path, stack: ExitStack, begins: bool) -> Piece:
    """Return a stream as a piece; `stack` ends it, and its first row is read now if it `begins`."""
    dtype = np.dtype(np.float32 if feature.kind == "state" else np.uint8)

    def reader(framing: Framing | None = None, begins: bool = False) -> Callable[[int, int], np.ndarray]:
        shape = feature.shape if framing is None else framing.shape(name, feature.shape)
        frames = stack.enter_context(closing(stream.frames(framing)))
        first = [next(frames, None)] if begins else []

        def read(start: int, stop: int) -> np.ndarray:
            try:
                out = np.empty((stop - start, *shape), dtype)
            except MemoryError as error:  # the sandbox limits the memory
                size = "x".join(map(str, shape[1::-1]))
                raise GtpVisionError(
                    f"{path}: out of memory for the rows of '{feature.key}'; if the data set is complete, {size} is "
                    f"too large: scale the video down"
                ) from error
            for i in range(stop - start):
                row = first.pop() if first else next(frames, None)
                if row is None:
                    raise GtpVisionError(
                        f"{path}: '{feature.key}' ends at row {start + i} of {stream.rows}; copy the data set again"
                    )
                out[i] = row
            if stop == stream.rows:
                frames.close()  # and with them a decoder that has more
            return out

        return read

    framed = reader if stream.frames_itself else None
    return Piece(
        stream.rows,
        feature.shape,
        dtype,
        reader(None, begins and not (seeks() and stream.video)),
        is_depth=feature.depth is not None,
        framed=framed,
        is_independent=feature.kind == "video",
        video=stream.video,
    )


def _of_tables(feature: Feature, episodes: Episodes) -> Stream:
    return Stream(int(episodes.lengths.sum()), lambda _: _from_tables(feature, episodes))


def _from_tables(feature: Feature, episodes: Episodes) -> Generator[np.ndarray, None, None]:
    """Yield a feature's rows from the tables: numbers or decoded images."""
    for file, *_ in episodes.tables:
        if feature.kind == "state":
            for (array,) in tables.batches(file, [feature.key], ROWS):
                yield from to_float32(tables.numbers(array, feature.shape[0], feature.key, file))
        else:
            row = 0
            for (array,) in tables.batches(file, [feature.key], _IMAGES):
                for encoded in tables.encoded_images(array, feature.key, file):
                    yield _decoded(encoded, feature, f"{file}: the image of '{feature.key}' in row {row}")
                    row += 1


def _decoded(encoded: bytes, feature: Feature, where: str) -> np.ndarray:
    height, width, channels = feature.shape
    is_depth = feature.depth is not None
    try:
        with Image.open(io.BytesIO(encoded), formats=("PNG", "TIFF" if is_depth else "JPEG")) as image:
            size, mode = image.size, image.mode
            wanted = ("I;16", "F") if is_depth else ("1", "L", "P", "RGB", "RGBA")
            if size == (width, height) and mode in wanted:  # checked before decoding
                pixels = np.asarray(image if is_depth else image.convert(_MODES[channels]))
                sandbox.heartbeat()
                return depth.to_bytes(pixels) if is_depth else pixels.reshape(feature.shape)
    except MemoryError:
        raise
    except Exception as error:  # Pillow raises errors of many types for damaged images
        raise GtpVisionError(f"{where} cannot be decoded ({first_line(error)}); copy the data set again") from error
    raise GtpVisionError(
        f"{where} is {mode} {size[0]}x{size[1]}, but {INFO} says {'16 bits or floats' if is_depth else '8 bits'}, "
        f"{width}x{height}; write it again"
    )


def _of_videos(name: str, feature: Feature, pairing: lerobot_times.Pairing, starts: np.ndarray) -> list[Stream]:
    """Return the rows of a camera, a stream for each file; `starts` (E,) are the episodes' first rows."""
    height, width, channels = feature.shape

    def stream(file: Path, begin: int, end: int, packets: video.Packets, wanted: np.ndarray) -> Stream:
        def frames(framing: Framing | None) -> Generator[np.ndarray, None, None]:
            with video.decoding(file, (height, width, channels), framing, name) as decoded:
                number, frame = -1, np.empty(0, np.uint8)
                for row, number_wanted in enumerate(wanted, start=int(starts[begin])):
                    while number < number_wanted:
                        following = next(decoded, None)
                        if following is None:
                            episode = int(np.searchsorted(starts[:end], row, side="right")) - 1
                            raise GtpVisionError(
                                f"{file} has no frame {number_wanted} for {place(episode, row - int(starts[episode]))} "
                                f"of camera '{feature.key}': {decoded.ended} after {number + 1} frames; "
                                f"{decoded.advice}"
                            )
                        number, frame = number + 1, following
                        if feature.depth is not None and len(feature.depth):
                            codes = depth.millimeters(frame) >> (16 - DEPTH_BITS)
                            frame = depth.to_bytes(feature.depth[codes])
                    yield frame

        if feature.depth is not None:
            return Stream(len(wanted), frames)
        places = partial(seeking.places, file, packets, wanted, int(starts[begin]))
        return Stream(len(wanted), frames, frames_itself=True, video=VideoRows(file, (height, width, channels), places))

    return [stream(*each) for each in pairing.files]
