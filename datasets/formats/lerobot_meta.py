"""What LeRobot's folder `meta/` says: the features, and in which rows of which files each episode lies."""

from __future__ import annotations

import re
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from gtp_vision.datasets.formats import tables, video
from gtp_vision.datasets.formats.tables import fault

INFO, STATS, TASKS, EPISODES = "meta/info.json", "meta/stats.json", "meta/tasks.parquet", "meta/episodes"
OURS = "meta/gtp_vision.json"  # the store's attributes, where our writer wrote the data set
CAMERA, STATE = "observation.images.", "observation."
ROWS = 4096  # of a table that are read together
_SIDE = 1 << 15  # of a picture at most, in pixels
_LONGEST = 1 << 40  # rows of a data set at most, so that sums stay exact


@dataclass(frozen=True)
class Feature:
    """A feature of meta/info.json: its key there, its kind (`image`, `video` or `state`) and the shape of a row."""

    key: str
    kind: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Episodes:
    """Where the episodes lie; arrays have a row an episode.

    Attributes:
        lengths: int64, rows.
        data: int64 (E, 2), chunk and file of the table.
        videos: key of a camera to int64 (E, 2), chunk and file, and float64 (E,), the second of its first frame.
    """

    lengths: np.ndarray
    data: np.ndarray
    videos: dict[str, tuple[np.ndarray, np.ndarray]]


def read_info(path: Path) -> dict[str, Any]:
    """meta/info.json, if it is of version 3.

    Raises:
        GtpVisionError: another version, no JSON, no features, no frames a second.
    """
    info = tables.json_object(tables.inside(path, INFO))
    version, fps = info.get("codebase_version"), info.get("fps")
    if not isinstance(version, str) or not re.fullmatch(r"v?3(\.\d+)*", version):
        if isinstance(version, str) and re.match(r"v?[12]\.", version):
            raise fault(
                f"{path} is a LeRobot data set of version {version}, this program reads v3.0; convert it with "
                f"LeRobot's own `convert_dataset_v21_to_v30`"
            )
        raise fault(f"{path / INFO}: codebase_version is {version!r}, this program reads v3.0; update gtp-vision")
    if isinstance(fps, bool) or not isinstance(fps, int | float) or not 0 < fps < 1e5:
        raise fault(f"{path / INFO}: fps is {str(fps)[:80]!r}; wanted a number of frames a second above 0")
    if not isinstance(info.get("features"), dict):
        raise fault(f"{path / INFO} has no object 'features'; copy the data set again")
    return info


def read_features(info: dict[str, Any], path: Path) -> tuple[dict[str, Feature], list[str]]:
    """Observations and `action` by their names in the store, and the keys of observations that are text or sound.

    Raises:
        GtpVisionError: no action or observation, sizes that cannot be, two observations of one name.
    """
    found: dict[str, Feature] = {}
    left_out = []
    for key, entry in info["features"].items():
        kind = entry.get("dtype") if isinstance(entry, dict) else None
        camera = kind in ("image", "video")
        if not camera and key != "action" and not key.startswith(STATE):
            continue
        if not isinstance(kind, str):
            raise fault(f"{path / INFO}: the feature '{key}' has no dtype; copy the data set again")
        if kind in ("string", "audio", "language"):
            left_out.append(key)
            continue
        name = key.removeprefix(CAMERA).removeprefix(STATE) if camera else key.removeprefix(STATE)
        if not name or "/" in name or not name.isprintable() or name in (".", ".."):
            raise fault(f"{path / INFO}: '{key}' cannot be the name of an observation; rename it")
        if name in found:
            raise fault(f"{path / INFO}: '{found[name].key}' and '{key}' are both called '{name}' here; rename one")
        found[name] = Feature(key, kind if camera else "state", _shape(key, entry, camera, path))
    if "action" not in found or found["action"].kind != "state":
        raise fault(f"{path / INFO} has no feature 'action' of numbers; a policy cannot learn from it")
    if len(found) == 1:
        raise fault(
            f"{path / INFO} has no feature 'observation.*' of numbers or pictures; a policy cannot learn from it"
        )
    return found, left_out


def _shape(key: str, entry: dict[str, Any], camera: bool, path: Path) -> tuple[int, ...]:
    """The shape of a row: (D,) of a state, (H, W, C) of a camera."""
    shape, names = entry.get("shape"), entry.get("names")
    if not isinstance(shape, list) or not all(type(size) is int and 0 < size < _SIDE for size in shape):
        raise fault(f"{path / INFO}: the feature '{key}' has shape {str(shape)[:80]}; wanted sizes from 1 to {_SIDE}")
    if not camera:
        width = int(np.prod(shape, dtype=np.float64))
        if not 0 < width < 1 << 24:
            raise fault(f"{path / INFO}: the feature '{key}' has {width} numbers a row; remove it")
        return (width,)
    if isinstance(names, list) and len(names) == 3 and all(isinstance(name, str) for name in names):
        first = names[0].startswith("channel")
    else:
        first = shape[:1] in ([1], [3]) and shape[-1:] not in ([1], [3])
    shape = [*shape[1:], shape[0]] if first else shape
    if len(shape) != 3 or shape[2] not in video.CHANNELS:
        raise fault(f"{path / INFO}: the camera '{key}' has shape {shape}; wanted height, width and 1 or 3 channels")
    return tuple(shape)


def read_episodes(path: Path, info: dict[str, Any], cameras: list[str]) -> Episodes:
    """Where the episodes lie; `cameras` are the keys of those kept as videos.

    Raises:
        GtpVisionError: damage, numbers that are missing or stand twice, lengths that disagree.
    """
    integers = ["episode_index", "length", "dataset_from_index", "dataset_to_index"]
    integers += ["data/chunk_index", "data/file_index"]
    integers += [f"videos/{key}/{part}_index" for key in cameras for part in ("chunk", "file")]
    seconds = [f"videos/{key}/from_timestamp" for key in cameras]
    parts: list[list[np.ndarray]] = [[] for _ in (*integers, *seconds)]
    for file in sorted((path / EPISODES).glob("*/*.parquet")):
        name = str(file.relative_to(path))
        for batch in tables.batches(tables.inside(path, name), [*integers, *seconds], ROWS):
            for part, array, key in zip(parts, batch, (*integers, *seconds), strict=True):
                part.append((tables.numbers if key in seconds else tables.integers)(array, 1, key, file)[:, 0])
    if not parts[0]:
        raise fault(f"{path} has no episode below {EPISODES}; copy the data set again")
    table = dict(zip((*integers, *seconds), map(np.concatenate, parts), strict=True))
    order = np.argsort(table["episode_index"], kind="stable")
    table = {key: column[order] for key, column in table.items()}
    number = table["episode_index"]
    wrong = np.flatnonzero(number != np.arange(len(number)))
    if len(wrong):
        raise fault(f"{path / EPISODES}: episode {wrong[0]} is missing or stands there twice; copy the data set again")
    lengths = table["length"].astype(np.int64)
    before = np.concatenate([[0], np.cumsum(np.clip(lengths, 0, _LONGEST // len(lengths)))])
    bad = (lengths <= 0) | (table["dataset_from_index"] != before[:-1]) | (table["dataset_to_index"] != before[1:])
    if len(wrong := np.flatnonzero(bad)):
        e = wrong[0]
        raise fault(
            f"{path / EPISODES}: episode {e} has length {lengths[e]}, from row {table['dataset_from_index'][e]} to "
            f"{table['dataset_to_index'][e]}, where {before[e]} rows stand before it; copy the data set again"
        )
    for key, count in (("total_episodes", len(lengths)), ("total_frames", int(before[-1]))):
        if key in info and info[key] != count:
            raise fault(
                f"{path}: {INFO} says {key} {str(info[key])[:80]}, but {EPISODES} tell of {count}; the copy is not "
                f"complete: copy the data set again"
            )
    pair = lambda name: np.stack([table[f"{name}/{part}_index"] for part in ("chunk", "file")], 1)  # noqa: E731
    videos = {}
    for key in cameras:
        begin = table[f"videos/{key}/from_timestamp"].astype(np.float64)
        if len(wrong := np.flatnonzero(~((begin >= 0) & (begin < 1e9)))):
            raise fault(f"{path / EPISODES}: episode {wrong[0]} of '{key}' begins at second {begin[wrong[0]]}")
        videos[key] = (pair(f"videos/{key}"), begin)
    return Episodes(lengths, pair("data"), videos)


def files_of(
    path: Path, template: str, key: str, places: np.ndarray, lengths: np.ndarray
) -> list[tuple[Path, int, int]]:
    """The files that hold the episodes, in order: path, first and exclusive last episode.

    Raises:
        GtpVisionError: a file is missing or outside, or episodes of one file do not follow one another.
    """
    edges = [0, *(np.flatnonzero(np.any(places[1:] != places[:-1], axis=1)) + 1), len(lengths)]
    found: list[tuple[Path, int, int]] = []
    seen = set()
    for begin, end in pairwise(edges):
        fields = {"chunk_index": int(places[begin][0]), "file_index": int(places[begin][1]), "video_key": key}

        def filled(match: re.Match[str], fields: dict[str, Any] = fields) -> str:
            return str(fields[match[1]]).zfill(int(match[2] or 0))

        name = re.sub(r"\{(chunk_index|file_index|video_key)(?::0?(\d)d)?\}", filled, template)
        file = tables.inside(path, name)
        if name in seen:
            raise fault(f"{path}: episode {begin} lies in '{name}' again, after others; write the data set again")
        seen.add(name)
        found.append((file, int(begin), int(end)))
    return found
