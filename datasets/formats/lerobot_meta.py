"""LeRobot's folder `meta/`: the features, the tasks, and the rows and files of each episode.

Version 3 lists these in Parquet tables and puts many episodes into a file; versions 2.0 and 2.1 list them in lines of
JSON and have a file an episode. Every function raises a GtpVisionError that names the file and what is wrong in it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np

from gtp_vision.core import depth, sandbox
from gtp_vision.core.errors import GtpVisionError
from gtp_vision.core.files import data_files
from gtp_vision.core.safe_json import read_json, read_json_lines
from gtp_vision.core.success import KEYS
from gtp_vision.datasets import names
from gtp_vision.datasets.formats import tables, video

INFO, STATS, TASKS, EPISODES = "meta/info.json", "meta/stats.json", "meta/tasks.parquet", "meta/episodes"
OURS = "meta/gtp_vision.json"  # the store's attributes, in data sets of our writer
TASK_LINES, EPISODE_LINES = "meta/tasks.jsonl", "meta/episodes.jsonl"  # of version 2
EPISODE_STATS = "meta/episodes_stats.jsonl"  # of version 2.1, not read
CAMERA, STATE = "observation.images.", "observation."
DEPTH_BITS = 12  # of a depth video
_DEPTH = {"depth_min": 0.01, "depth_max": 10.0, "shift": 3.5, "use_log": True}  # LeRobot's defaults, in meters
ROWS = 4096  # of a table that are read together
_OWN = ("timestamp", "frame_index", "episode_index", "index", "task_index")  # LeRobot's own columns
_OF_ACTIONS = re.compile("actions?|rewards?|terminals?|timeouts?|dones?|(is_)?(success|done|terminal|first|last)")
_CAMERAS = ("image", "video")
_MAX_SIDE = 1 << 15  # of an image, in pixels
_MAX_ROWS = 1 << 40  # of a data set, so that sums stay exact


@dataclass(frozen=True)
class Feature:
    """A feature of meta/info.json.

    Attributes:
        key: its name there.
        kind: `image`, `video` or `state`.
        shape: of a row.
        depth: millimeters of each code of a depth video, uint16 (4096,); an empty array of other depth, which is
            millimeters; None: no depth.
    """

    key: str
    kind: str
    shape: tuple[int, ...]
    depth: np.ndarray | None = None


Part = tuple[Path, int, int]
"""A file with its first and its exclusive last episode."""


@dataclass(frozen=True)
class Episodes:
    """Where the E episodes lie.

    Attributes:
        listed: the file or folder that lists them, for messages.
        lengths: (E,) rows.
        tables: the files of rows.
        videos: by the camera's key, its files, and the second of each episode's first frame (E,).
    """

    listed: str
    lengths: np.ndarray
    tables: list[Part]
    videos: dict[str, tuple[list[Part], np.ndarray]]


def read_info(path: Path) -> dict[str, Any]:
    """Read meta/info.json of a version that is known."""
    info = read_json(tables.inside(path, INFO))
    version, fps = info.get("codebase_version"), info.get("fps")
    if not isinstance(version, str) or not re.fullmatch(r"v?(2\.[01]|3(\.\d+)*)", version):
        is_old = isinstance(version, str) and re.match(r"v?1\.", version)
        advice = "record it again, or convert it with a LeRobot of 2024" if is_old else "update gtp-vision"
        raise GtpVisionError(
            f"{path / INFO}: codebase_version is {str(version)[:80]!r}, this program reads v2.0, v2.1 and v3.0; "
            f"{advice}"
        )
    if isinstance(fps, bool) or not isinstance(fps, int | float) or not 0 < fps < 1e5:
        raise GtpVisionError(f"{path / INFO}: fps is {str(fps)[:80]!r}; wanted a number of frames per second above 0")
    if not isinstance(info.get("features"), dict):
        raise GtpVisionError(f"{path / INFO} has no object 'features'; copy the data set again")
    return info


def read_features(info: dict[str, Any], path: Path) -> tuple[dict[str, Feature], list[str]]:
    """Return observations and `action` by their names in the store, and the keys of observations left out.

    openpi's converters write `actions`, and states without `observation.` before their names: these are read if there
    is no `action`, or no other state. Features that the user chose are read, too. Left out are text, sound, and other
    numbers.
    """
    features = info["features"]
    roles = {name: member for name, member in names.chosen().items() if name in names.ROLES}
    for name in (name for name, member in roles.items() if member not in features):
        raise names.missing(name, path / INFO, features)
    chosen = set(names.chosen().values()) - set(roles.values())
    is_openpi = "action" not in features and "actions" in features
    kinds = {key: entry.get("dtype") if isinstance(entry, dict) else None for key, entry in features.items()}
    is_plain = is_openpi or not any(key.startswith(STATE) and kind not in _CAMERAS for key, kind in kinds.items())
    action = roles.get("action", roles.get("actions", "actions" if is_openpi else "action"))
    found: dict[str, Feature] = {}
    left_out = []
    for key, entry in features.items():
        kind = kinds[key]
        is_camera = kind in _CAMERAS
        is_other = not _is_own(key) and key not in roles.values()
        is_state = key.startswith(STATE) or (is_plain and is_other and not _OF_ACTIONS.fullmatch(key))
        if not (is_camera or is_state or key in chosen or key == action):
            left_out += [key] if is_other and key not in KEYS else []
            continue
        if not isinstance(kind, str):
            raise GtpVisionError(f"{path / INFO}: the feature '{key}' has no dtype; copy the data set again")
        if kind in ("string", "audio", "language"):
            left_out.append(key)
            continue
        name = key.removeprefix(CAMERA).removeprefix(STATE) if is_camera else key.removeprefix(STATE)
        name = "action" if key == action else name
        if not name or "/" in name or not name.isprintable() or name in (".", ".."):
            raise GtpVisionError(f"{path / INFO}: '{key}' cannot be the name of an observation; rename it")
        if name in found:
            raise GtpVisionError(
                f"{path / INFO}: '{found[name].key}' and '{key}' both get the name '{name}'; rename one"
            )
        shape, depth_codes = _shape(key, entry, is_camera, path), _depth(key, entry, path) if is_camera else None
        shape = shape if depth_codes is None else (*shape[:2], depth.BYTES)
        found[name] = Feature(key, kind if is_camera else "state", shape, depth_codes)
    held = ", ".join([key for key in features if not _is_own(key)][:12]) or "no other"
    advice = f"(it has {held}); set task.features, or --features of 'data', "
    if "action" not in found or found["action"].kind != "state":
        raise GtpVisionError(
            f"{path / INFO} has no feature 'action' of numbers {advice}e.g. --features action=NAME,state=NAME"
        )
    if len(found) == 1:
        raise GtpVisionError(
            f"{path / INFO} has no feature 'observation.*' of numbers or images {advice}e.g. --features state=NAME"
        )
    return found, left_out


def _is_own(key: str) -> bool:
    """Whether a feature is one of LeRobot's own columns, or about what follows the action."""
    return key in _OWN or key.startswith("next.")


def _depth(key: str, entry: dict[str, Any], path: Path) -> np.ndarray | None:
    """Return `Feature.depth` of a camera; LeRobot describes it in `info`, some names of which once had a prefix."""
    parts = [entry.get(name) for name in ("video_info", "info")]
    listed = [(name.removeprefix("video."), x) for part in parts if isinstance(part, dict) for name, x in part.items()]
    if ("is_depth_map", True) not in listed or 3 in entry["shape"]:  # a picture of distances
        return None
    said = dict(listed)
    pixels = str(said.get("pix_fmt", ""))
    if entry["dtype"] == "image" or "16" in pixels:
        return np.empty(0, np.uint16)
    if pixels and str(DEPTH_BITS) not in pixels:
        raise GtpVisionError(
            f"{path / INFO}: the pixels of the depth video '{key}' are {pixels[:20]!a}, wanted {DEPTH_BITS} bits, as "
            f"LeRobot has them, or 16, millimeters; set is_depth_map to false to read it as a gray camera"
        )
    near, far, shift, is_log = (said.get(name, default) for name, default in _DEPTH.items())
    if not all(isinstance(x, int | float) and -1e3 < x < 1e3 for x in (near, far, shift)) or not 0 <= near < far:
        raise GtpVisionError(f"{path / INFO}: depth_min, depth_max and shift of '{key}' are {near}, {far} and {shift}")
    if is_log and near + shift <= 0:
        raise GtpVisionError(f"{path / INFO}: depth_min + shift of '{key}' is {near + shift:g}, which has no logarithm")
    return depth.unquantized(DEPTH_BITS, near, far, shift, is_logarithmic=bool(is_log))


def _shape(key: str, entry: dict[str, Any], is_camera: bool, path: Path) -> tuple[int, ...]:
    """Return the shape of a row: (D,) of a state, (H, W, C) of a camera."""
    shape, axes = entry.get("shape"), entry.get("names")
    if not isinstance(shape, list) or not all(type(size) is int and 0 < size < _MAX_SIDE for size in shape):
        raise GtpVisionError(
            f"{path / INFO}: the feature '{key}' has shape {str(shape)[:80]}; wanted sizes from 1 to {_MAX_SIDE}"
        )
    if not is_camera:
        width = int(np.prod(shape, dtype=np.float64))
        if not 0 < width < 1 << 24:
            raise GtpVisionError(f"{path / INFO}: the feature '{key}' has {width} numbers a row; remove it")
        return (width,)
    if isinstance(axes, list) and len(axes) == 3 and all(isinstance(axis, str) for axis in axes):
        is_channels_first = axes[0].startswith("channel")
    else:
        is_channels_first = shape[:1] in ([1], [3], [4]) and shape[-1:] not in ([1], [3], [4])
    shape = [*shape[1:], shape[0]] if is_channels_first else shape
    known = (*video.CHANNELS, *([4] if entry["dtype"] == "image" else []))
    if len(shape) != 3 or shape[2] not in known:
        raise GtpVisionError(
            f"{path / INFO}: the camera '{key}' has shape {shape}; wanted height, width and "
            f"{' or '.join(map(str, known))} channels"
        )
    return tuple(shape)


def read_splits(info: dict[str, Any], episodes: int) -> dict[str, list[int]]:
    """Return the episodes of each split, `first:stop` in meta/info.json, without splits of all or of none."""
    splits, found = info.get("splits"), dict[str, list[int]]()
    for name, text in splits.items() if isinstance(splits, dict) else ():
        if match := re.fullmatch(r"(\d{1,9}):(\d{1,9})", str(text)):
            found[name] = list(range(int(match[1]), min(int(match[2]), episodes)))
    return {name: own for name, own in found.items() if 0 < len(own) < episodes}


def is_version_2(info: dict[str, Any]) -> bool:
    """Whether each episode has files of its own."""
    return str(info["codebase_version"]).lstrip("v").startswith("2")


def read_tasks(path: Path, info: dict[str, Any]) -> dict[int, str]:
    """Read the texts of the tasks by their numbers."""
    if is_version_2(info):
        file = tables.inside(path, TASK_LINES)
        lines = read_json_lines(file)
        return {_integer(line, "task_index", file): str(line.get("task")) for line in lines}
    file = tables.inside(path, TASKS)
    columns = tables.columns_of_text(file)
    if not columns:
        raise GtpVisionError(f"{file} has no column of text with the tasks; copy the data set again")
    return {
        int(number): str(word)
        for numbers, words in tables.batches(file, ["task_index", "task" if "task" in columns else columns[0]], ROWS)
        for number, word in zip(tables.integers(numbers, 1, "task_index", file)[:, 0], words.to_pylist(), strict=True)
    }


def read_episodes(path: Path, info: dict[str, Any], cameras: list[str]) -> Episodes:
    """Read where the episodes lie; `cameras` are the keys of the cameras that are videos."""
    episodes = (_file_each if is_version_2(info) else _from_tables)(path, info, cameras)
    found = {"total_episodes": len(episodes.lengths), "total_frames": int(episodes.lengths.sum())}
    for key, count in found.items():
        if key in info and info[key] != count:
            raise GtpVisionError(
                f"{path}: {INFO} says {key} {str(info[key])[:80]}, but {episodes.listed} lists {count}; the copy is "
                f"incomplete: copy the data set again"
            )
    return episodes


def _file_each(path: Path, info: dict[str, Any], cameras: list[str]) -> Episodes:
    """Read where the episodes of version 2 lie, each in files of its own."""
    file = tables.inside(path, EPISODE_LINES)
    lines = read_json_lines(file)
    listed = {_integer(line, "episode_index", file): _integer(line, "length", file) for line in lines}
    _check_numbers(np.array(sorted(_integer(line, "episode_index", file) for line in lines)), file)
    lengths = np.array([listed[number] for number in sorted(listed)], np.int64)
    if len(wrong := np.flatnonzero((lengths <= 0) | (lengths > _MAX_ROWS // len(lengths)))):
        raise GtpVisionError(f"{file}: episode {wrong[0]} has length {lengths[wrong[0]]}; copy the data set again")
    chunk = _integer(info, "chunks_size", path / INFO)
    if chunk <= 0:
        raise GtpVisionError(f"{path / INFO}: chunks_size is {chunk}; copy the data set again")

    def files(template: str, key: str = "") -> list[Part]:
        of = [{"episode_chunk": e // chunk, "episode_index": e, "video_key": key} for e in range(len(lengths))]
        return _parts(path, str(info.get(template)), of)

    begins = np.zeros(len(lengths))
    videos = {key: (files("video_path", key), begins) for key in cameras}
    return Episodes(EPISODE_LINES, lengths, files("data_path"), videos)


def _from_tables(path: Path, info: dict[str, Any], cameras: list[str]) -> Episodes:
    """Read where the episodes of version 3 lie."""
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
    _check_numbers(table["episode_index"], path / EPISODES)
    lengths = table["length"].astype(np.int64)
    before = np.concatenate([[0], np.cumsum(np.clip(lengths, 0, _MAX_ROWS // len(lengths)))])
    bad = (lengths <= 0) | (table["dataset_from_index"] != before[:-1]) | (table["dataset_to_index"] != before[1:])
    if len(wrong := np.flatnonzero(bad)):
        e = wrong[0]
        raise GtpVisionError(
            f"{path / EPISODES}: episode {e} has length {lengths[e]}, from row {table['dataset_from_index'][e]} to "
            f"{table['dataset_to_index'][e]}, but the episodes before it have {before[e]} rows; copy the data set again"
        )

    def files(template: str, prefix: str, key: str = "") -> list[Part]:
        chunks, numbers = (table[f"{prefix}/{part}_index"].tolist() for part in ("chunk", "file"))
        of = [{"chunk_index": c, "file_index": n, "video_key": key} for c, n in zip(chunks, numbers, strict=True)]
        return _parts(path, str(info.get(template)), of)

    videos = {}
    for key in cameras:
        begin = table[f"videos/{key}/from_timestamp"].astype(np.float64)
        if len(wrong := np.flatnonzero(~((begin >= 0) & (begin < 1e9)))):
            raise GtpVisionError(f"{path / EPISODES}: episode {wrong[0]} of '{key}' begins at second {begin[wrong[0]]}")
        videos[key] = (files("video_path", f"videos/{key}", key), begin)
    return Episodes(EPISODES, lengths, files("data_path", "data"), videos)


def _parts(path: Path, template: str, fields: list[dict[str, Any]]) -> list[Part]:
    """Return the files that hold the episodes, in order.

    `fields` are, for each episode, what stands in braces in the template.
    """
    found: list[Part] = []
    seen = set()
    for fits, members in groupby(enumerate(fields), key=lambda member: member[1]):
        (begin, _), *others = members

        def filled(match: re.Match[str], fits: dict[str, Any] = fits) -> str:
            return str(fits[match[1]]).zfill(int(match[2] or 0)) if match[1] in fits else match[0]

        name = re.sub(r"\{(\w+)(?::0?(\d)d)?\}", filled, template)
        file = tables.inside(path, name)
        if name in seen:
            raise GtpVisionError(
                f"{path}: the episodes of '{name}' are not consecutive (episode {begin}); write it again"
            )
        seen.add(name)
        sandbox.heartbeat()
        found.append((file, begin, begin + 1 + len(others)))
    return found


def _check_numbers(numbers: np.ndarray, listed: Path) -> None:
    """Raise unless the numbers of the episodes are 0, 1, ..."""
    if not len(numbers):
        raise GtpVisionError(f"{listed} lists no episode; copy the data set again")
    if len(wrong := np.flatnonzero(numbers != np.arange(len(numbers)))):
        raise GtpVisionError(f"{listed}: episode {wrong[0]} is missing or listed twice; copy the data set again")


def _integer(line: dict[str, Any], key: str, file: Path) -> int:
    value = line.get(key)
    if type(value) is not int or not 0 <= value <= _MAX_ROWS:
        raise GtpVisionError(f"{file}: '{key}' is {str(value)[:80]!r}, wanted an integer; copy the data set again")
    return value
