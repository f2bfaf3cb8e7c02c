"""LeRobot's folder `meta/`: the features, and the rows and files of each episode.

Every function raises a GtpVisionError that names the file and what is wrong in it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from gtp_vision.core.errors import GtpVisionError
from gtp_vision.core.files import data_files
from gtp_vision.core.safe_json import read_json
from gtp_vision.datasets.formats import tables, video

INFO, STATS, TASKS, EPISODES = "meta/info.json", "meta/stats.json", "meta/tasks.parquet", "meta/episodes"
OURS = "meta/gtp_vision.json"  # the store's attributes, in data sets of our writer
CAMERA, STATE = "observation.images.", "observation."
ROWS = 4096  # of a table that are read together
_OWN = ("timestamp", "frame_index", "episode_index", "index", "task_index")  # LeRobot's own columns
_MAX_SIDE = 1 << 15  # of an image, in pixels
_MAX_ROWS = 1 << 40  # of a data set, so that sums stay exact


@dataclass(frozen=True)
class Feature:
    """A feature of meta/info.json: its key there, its kind (`image`, `video` or `state`) and the shape of a row."""

    key: str
    kind: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Episodes:
    """Where the E episodes lie.

    `lengths` (E,) are rows; `data` (E, 2) chunk and file of the table; `videos`, by the camera's key, chunk and file
    (E, 2), and the second of the first frame (E,).
    """

    lengths: np.ndarray
    data: np.ndarray
    videos: dict[str, tuple[np.ndarray, np.ndarray]]


def read_info(path: Path) -> dict[str, Any]:
    """Read meta/info.json of version 3."""
    info = read_json(tables.inside(path, INFO))
    version, fps = info.get("codebase_version"), info.get("fps")
    if not isinstance(version, str) or not re.fullmatch(r"v?3(\.\d+)*", version):
        if isinstance(version, str) and re.match(r"v?[12]\.", version):
            is_last = re.match(r"v?2\.1", version)
            first = "" if is_last else ", which takes v2.1: run convert_dataset_v20_to_v21 of lerobot 0.3 before it"
            raise GtpVisionError(
                f"{path} is a LeRobot data set of version {version}, this program reads v3.0; convert it by LeRobot's "
                f"python -m lerobot.scripts.convert_dataset_v21_to_v30 --repo-id NAME --root FOLDER --push-to-hub=false"
                f"{first}"
            )
        raise GtpVisionError(
            f"{path / INFO}: codebase_version is {version!r}, this program reads v3.0; update gtp-vision"
        )
    if isinstance(fps, bool) or not isinstance(fps, int | float) or not 0 < fps < 1e5:
        raise GtpVisionError(f"{path / INFO}: fps is {str(fps)[:80]!r}; wanted a number of frames per second above 0")
    if not isinstance(info.get("features"), dict):
        raise GtpVisionError(f"{path / INFO} has no object 'features'; copy the data set again")
    return info


def read_features(info: dict[str, Any], path: Path) -> tuple[dict[str, Feature], list[str]]:
    """Return observations and `action` by their names in the store, and the keys of observations left out.

    Left out are text and sound.
    """
    found: dict[str, Feature] = {}
    left_out = []
    for key, entry in info["features"].items():
        kind = entry.get("dtype") if isinstance(entry, dict) else None
        is_camera = kind in ("image", "video")
        if not is_camera and key != "action" and not key.startswith(STATE):
            continue
        if not isinstance(kind, str):
            raise GtpVisionError(f"{path / INFO}: the feature '{key}' has no dtype; copy the data set again")
        if kind in ("string", "audio", "language"):
            left_out.append(key)
            continue
        name = key.removeprefix(CAMERA).removeprefix(STATE) if is_camera else key.removeprefix(STATE)
        if not name or "/" in name or not name.isprintable() or name in (".", ".."):
            raise GtpVisionError(f"{path / INFO}: '{key}' cannot be the name of an observation; rename it")
        if name in found:
            raise GtpVisionError(
                f"{path / INFO}: '{found[name].key}' and '{key}' both get the name '{name}'; rename one"
            )
        found[name] = Feature(key, kind if is_camera else "state", _shape(key, entry, is_camera, path))
    if "action" not in found or found["action"].kind != "state":
        raise GtpVisionError(f"{path / INFO} has no feature 'action' of numbers {_held(info)}")
    if len(found) == 1:
        raise GtpVisionError(f"{path / INFO} has no feature 'observation.*' of numbers or images {_held(info)}")
    return found, left_out


def _held(info: dict[str, Any]) -> str:
    """Return the features that a data set has under its own names, and what to do about them."""
    names = [key for key in info["features"] if key not in _OWN and not key.startswith("next.")]
    return (
        f"(it has {', '.join(names[:12]) or 'no other'}); rename features to 'action', 'observation.NAME' (states) and "
        f"'observation.images.NAME' (cameras) in meta/info.json, in the columns of data/*/*.parquet and "
        f"meta/episodes/*/*.parquet, and below videos/"
    )


def _shape(key: str, entry: dict[str, Any], is_camera: bool, path: Path) -> tuple[int, ...]:
    """Return the shape of a row: (D,) of a state, (H, W, C) of a camera."""
    shape, names = entry.get("shape"), entry.get("names")
    if not isinstance(shape, list) or not all(type(size) is int and 0 < size < _MAX_SIDE for size in shape):
        raise GtpVisionError(
            f"{path / INFO}: the feature '{key}' has shape {str(shape)[:80]}; wanted sizes from 1 to {_MAX_SIDE}"
        )
    if not is_camera:
        width = int(np.prod(shape, dtype=np.float64))
        if not 0 < width < 1 << 24:
            raise GtpVisionError(f"{path / INFO}: the feature '{key}' has {width} numbers a row; remove it")
        return (width,)
    if isinstance(names, list) and len(names) == 3 and all(isinstance(name, str) for name in names):
        is_channels_first = names[0].startswith("channel")
    else:
        is_channels_first = shape[:1] in ([1], [3]) and shape[-1:] not in ([1], [3])
    shape = [*shape[1:], shape[0]] if is_channels_first else shape
    if len(shape) != 3 or shape[2] not in video.CHANNELS:
        raise GtpVisionError(
            f"{path / INFO}: the camera '{key}' has shape {shape}; wanted height, width and 1 or 3 channels"
        )
    return tuple(shape)


def read_episodes(path: Path, info: dict[str, Any], cameras: list[str]) -> Episodes:
    """Read where the episodes lie; `cameras` are the keys of the cameras that are videos."""
    integers = ["episode_index", "length", "dataset_from_index", "dataset_to_index"]
    integers += ["data/chunk_index", "data/file_index"]
    integers += [f"videos/{key}/{part}_index" for key in cameras for part in ("chunk", "file")]
    seconds = [f"videos/{key}/from_timestamp" for key in cameras]
    parts: list[list[np.ndarray]] = [[] for _ in (*integers, *seconds)]
    for file in sorted(data_files(path / EPISODES, "*/*.parquet")):
        name = str(file.relative_to(path))
        for batch in tables.batches(tables.inside(path, name), [*integers, *seconds], ROWS):
            for part, array, key in zip(parts, batch, (*integers, *seconds), strict=True):
                part.append((tables.numbers if key in seconds else tables.integers)(array, 1, key, file)[:, 0])
    if not parts[0]:
        raise GtpVisionError(f"{path} has no episode below {EPISODES}; copy the data set again")
    table = dict(zip((*integers, *seconds), map(np.concatenate, parts), strict=True))
    order = np.argsort(table["episode_index"], kind="stable")
    table = {key: column[order] for key, column in table.items()}
    number = table["episode_index"]
    wrong = np.flatnonzero(number != np.arange(len(number)))
    if len(wrong):
        raise GtpVisionError(
            f"{path / EPISODES}: episode {wrong[0]} is missing or listed twice; copy the data set again"
        )
    lengths = table["length"].astype(np.int64)
    before = np.concatenate([[0], np.cumsum(np.clip(lengths, 0, _MAX_ROWS // len(lengths)))])
    bad = (lengths <= 0) | (table["dataset_from_index"] != before[:-1]) | (table["dataset_to_index"] != before[1:])
    if len(wrong := np.flatnonzero(bad)):
        e = wrong[0]
        raise GtpVisionError(
            f"{path / EPISODES}: episode {e} has length {lengths[e]}, from row {table['dataset_from_index'][e]} to "
            f"{table['dataset_to_index'][e]}, but the episodes before it have {before[e]} rows; copy the data set again"
        )
    for key, count in (("total_episodes", len(lengths)), ("total_frames", int(before[-1]))):
        if key in info and info[key] != count:
            raise GtpVisionError(
                f"{path}: {INFO} says {key} {str(info[key])[:80]}, but {EPISODES} list {count}; the copy is "
                f"incomplete: copy the data set again"
            )

    def places(name: str) -> np.ndarray:
        return np.stack([table[f"{name}/{part}_index"] for part in ("chunk", "file")], 1)

    videos = {}
    for key in cameras:
        begin = table[f"videos/{key}/from_timestamp"].astype(np.float64)
        if len(wrong := np.flatnonzero(~((begin >= 0) & (begin < 1e9)))):
            raise GtpVisionError(f"{path / EPISODES}: episode {wrong[0]} of '{key}' begins at second {begin[wrong[0]]}")
        videos[key] = (places(f"videos/{key}"), begin)
    return Episodes(lengths, places("data"), videos)


def files_of(
    path: Path, template: str, key: str, places: np.ndarray, lengths: np.ndarray
) -> list[tuple[Path, int, int]]:
    """Return the files that hold the episodes, in order: path, first and exclusive last episode.

    The template has `chunk_index`, `file_index` and `video_key` (`key`) in braces; `places` (E, 2) are chunk and file
    of each episode, `lengths` (E,) its rows.
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
            raise GtpVisionError(
                f"{path}: the episodes of '{name}' are not consecutive (episode {begin}); write it again"
            )
        seen.add(name)
        found.append((file, int(begin), int(end)))
    return found
