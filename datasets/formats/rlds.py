"""RLDS data sets of TensorFlow Datasets, as Open X-Embodiment has them: a version's folder with records of episodes.

    features.json                                      names, shapes and dtypes of `steps` and `episode_metadata`
    dataset_info.json                                  fileFormat tfrecord, splits with shardLengths
    <name>-<split>.tfrecord-00000-of-00064             a tf.train.Example per episode

In an Example the steps of an episode lie one after another, in one list for each array (`steps/observation/image`:
files of PNG or JPEG; `steps/action`: T * A floats), as `tensorflow_datasets/core/example_serializer.py` writes them.
TensorFlow is not needed to read them.

The action and reward of a step are of its observation. The last step holds the observation after the last action; its
own action, reward and discount are undefined (google-research/rlds, "Step"). Many writers of Open X-Embodiment record a
reward of 1 there, so its reward is added to that of the step before. The row of the last step is a timeout; the row
before is a terminal if `is_terminal` is set in the last step. An episode of one step has no outcome.

Numbers, and images of bytes, of `observation` are observations. Entries of an `action` that is a dictionary are joined
in the order of features.json, which the attribute `action_columns` keeps. The instruction of the first step, or of the
episode's metadata, is its task. Splits are filters. Ragged arrays, text and images not of bytes are left out.
"""

from __future__ import annotations

import io
import math
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from gtp_vision.core import sandbox
from gtp_vision.core.errors import GtpVisionError, first_line, propose
from gtp_vision.core.files import data_files
from gtp_vision.core.safe_json import read_json
from gtp_vision.datasets import names
from gtp_vision.datasets.formats import episodes, tables, tfrecords
from gtp_vision.datasets.formats.format import Format
from gtp_vision.datasets.layout import FileArrays, Layout, Piece
from gtp_vision.datasets.unpacking import through_cache

_FEATURES, _INFO = "features.json", "dataset_info.json"
_STEPS, _OBSERVATION, _ACTION = "steps/", "steps/observation/", "steps/action"
_SHARD = re.compile(r".*-(?P<split>[\w]+)\.tfrecord-(?P<number>\d{5})-of-(?P<count>\d{5})")
_INSTRUCTION = re.compile(r"(natural_)?language_instruction|instruction|task")
_MODES = {1: ("1", "L"), 3: ("RGB",), 4: ("RGBA",)}


@dataclass(frozen=True)
class _Array:
    """An array of each step, or of an episode's metadata.

    Attributes:
        key: its name in an Example.
        kind: `tensor`, `image` or `text`.
        shape: of one step.
        dtype: of its numbers; None for one that is not of numbers or has no fixed shape.
    """

    key: str
    kind: str
    shape: tuple[int, ...]
    dtype: np.dtype | None


def recognises(path: Path) -> bool:
    """Whether a folder is a version of a data set of TensorFlow Datasets."""
    return path.is_dir() and (path / _FEATURES).is_file() and (path / _INFO).is_file()


def layout(path: Path) -> Layout:
    """Return the layout of an RLDS folder, decoded once into the cache.

    Raises:
        GtpVisionError: another form of records, steps without actions or observations, damage, lengths that disagree.
    """
    return through_cache(path, lambda: _opened(path), "rlds")


@contextmanager
def _opened(path: Path) -> Iterator[FileArrays]:
    arrays = {array.key: array for array in _arrays(read_json(tables.inside(path, _FEATURES)), path)}
    for role, member in names.chosen().items():
        if role in names.ROLES and f"{_STEPS}{member}" in arrays:
            arrays[f"{_STEPS}{role}"] = arrays.pop(f"{_STEPS}{member}")
    acted = [array for key, array in arrays.items() if key == _ACTION or key.startswith(f"{_ACTION}/")]
    acted = [array for array in acted if array.dtype is not None and array.dtype.kind in "fiu"]
    seen = {key.removeprefix(_OBSERVATION): array for key, array in arrays.items() if key.startswith(_OBSERVATION)}
    if not acted or not seen:
        missing = "an action of numbers" if not acted else "an observation"
        raise GtpVisionError(
            f"{path / _FEATURES}: its steps have not {missing}: {propose(_ACTION, [*arrays])}; prepare the data set "
            f"with steps/observation and steps/action"
        )
    shards, notes = _shards(path)
    recording = episodes.Recording(path)
    texts, splits, omitted = list[str](), dict[str, list[int]](), dict[str, list[str]]()
    for shard, split in shards:
        for offset, content in tfrecords.records(shard):
            number = len(texts)
            episode = _Episode(shard, offset, f"episode {number} of {shard.name}")
            parsed = episode.parse(content)
            actions = np.concatenate([_flat(parsed, array, episode) for array in acted], axis=1)
            steps, place = len(actions), episode.place
            found = {name: _observation(parsed, array, episode, steps) for name, array in seen.items()}
            joined = {episodes.check_name(name.replace("/", "_"), path): piece for name, piece in found.items()}
            pieces = {name: [piece] for name, piece in episodes.usable(joined, place, path).items()}
            omitted = episodes.left_out(joined)
            rewards = _column(parsed, arrays, "reward", episode, steps)
            ends = _column(parsed, arrays, "is_terminal", episode, steps) != 0
            if steps > 1:
                rewards[-2:] = rewards[-2:].sum(), 0
            recording.add(place, pieces, episodes.to_float32(actions), rewards, np.append(ends[1:], False))
            texts.append(_instruction(parsed, arrays))
            splits.setdefault(split, []).append(number)
            sandbox.heartbeat()
    if not texts:
        raise GtpVisionError(f"{path} has no episode: no file like NAME-SPLIT.tfrecord-00000-of-00001; copy it again")
    attributes: dict[str, Any] = {"suite": "rlds", "source": path.resolve().parent.name, "env": "", "rendering": {}}
    attributes |= omitted | notes | ({"filters": splits} if len(splits) > 1 else {})
    if acted[0].key != _ACTION:
        attributes["action_columns"] = [
            array.key.removeprefix(f"{_ACTION}/") for array in acted for _ in range(math.prod(array.shape))
        ]
    if any(texts):
        tasks = sorted(set(texts))
        attributes |= {"tasks": tasks, "episode_tasks": [tasks.index(text) for text in texts]}
    yield recording.file_arrays(attributes)


def _arrays(features: Mapping[str, Any], path: Path) -> list[_Array]:
    """Return the arrays that features.json declares, in its order."""

    def walk(node: Any, key: str, depth: int) -> Iterator[_Array]:
        if not isinstance(node, dict) or depth > episodes.MAX_DEPTH:
            raise ValueError(f"'{key[:80]}' is not a feature")
        if "featuresDict" in node:
            for name, inner in node["featuresDict"]["features"].items():
                yield from walk(inner, f"{key}/{name}" if key else str(name), depth + 1)
        elif "sequence" in node and key == "steps":
            yield from walk(node["sequence"]["feature"], key, depth + 1)
        else:
            kind = next((kind for kind in ("tensor", "image", "text") if kind in node), "other")
            held = node.get(kind) or {}
            shape = tuple(int(size) for size in (held.get("shape") or {}).get("dimensions", ()))
            is_plain = (
                kind in ("tensor", "image")
                and str(held.get("encoding", "none")) == "none"
                and min(shape, default=1) > 0
            )
            dtype = re.fullmatch("bool|u?int[0-9]+|float[0-9]+", str(held.get("dtype"))) if is_plain else None
            yield _Array(key, kind, shape, np.dtype(dtype[0]) if dtype else None)

    try:
        return list(walk(features, "", 0))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise GtpVisionError(f"{path / _FEATURES} cannot be read ({first_line(error)}); copy it again") from error


def _shards(path: Path) -> tuple[list[tuple[Path, str]], dict[str, Any]]:
    """Return the files of records with their splits, in order, and an attribute on splits that are not complete."""
    info = read_json(tables.inside(path, _INFO))
    if (form := str(info.get("fileFormat", "tfrecord"))) != "tfrecord":
        raise GtpVisionError(
            f"{path}: its records are stored as {form[:20]!a}; prepare it again with file_format='tfrecord' of "
            f"tensorflow_datasets"
        )
    found: list[tuple[Path, str]] = []
    counts: dict[str, list[int]] = {}
    for file in sorted(data_files(path, "*.tfrecord-*")):
        if match := _SHARD.fullmatch(file.name):
            found.append((tables.inside(path, file.name), match["split"]))
            counts.setdefault(match["split"], []).append(int(match["count"]))
    partial = {split: f"{len(all_)} of {all_[0]}" for split, all_ in counts.items() if len(all_) != all_[0]}
    return found, {"shards": partial} if partial else {}


@dataclass(frozen=True)
class _Episode:
    """The place of an episode's record."""

    shard: Path
    offset: int
    place: str

    def parse(self, content: bytes) -> dict[str, Any]:
        """Return the lists of a record by their names."""
        return tfrecords.features(content, f"{self.shard}: {self.place}")

    def read(self) -> dict[str, Any]:
        """Read the record again."""
        with self.shard.open("rb") as file:
            file.seek(self.offset)
            length = int.from_bytes(file.read(12)[:8], "little")
            return self.parse(file.read(length))


def _numbers(parsed: Mapping[str, Any], array: _Array, episode: _Episode) -> np.ndarray:
    """Return an array of an episode, (T, *shape)."""
    held = parsed.get(array.key)
    kind = held.WhichOneof("kind") if held is not None else None
    width = math.prod(array.shape)
    if held is None or kind not in ("float_list", "int64_list"):
        raise GtpVisionError(f"{episode.shard}: {episode.place} has no numbers '{array.key}'; copy the file again")
    values = np.array(getattr(held, kind).value)
    if not len(values) or len(values) % width:
        raise GtpVisionError(
            f"{episode.shard}: '{array.key}' of {episode.place} has {len(values)} numbers, not {width} a step"
        )
    return values.astype(array.dtype).reshape(-1, *array.shape)


def _flat(parsed: Mapping[str, Any], array: _Array, episode: _Episode) -> np.ndarray:
    values = _numbers(parsed, array, episode)
    return values.reshape(len(values), -1)


def _column(
    parsed: Mapping[str, Any], arrays: Mapping[str, _Array], name: str, episode: _Episode, steps: int
) -> np.ndarray:
    """Return one number a step, float32 (T,); zeros if the data set does not have it."""
    array = arrays.get(f"{_STEPS}{name}")
    if array is None or array.dtype is None:
        return np.zeros(steps, np.float32)
    values = _numbers(parsed, array, episode).ravel()
    _check(len(values), steps, array, episode)
    return episodes.to_float32(values)


def _check(found: int, steps: int, array: _Array, episode: _Episode) -> None:
    if found != steps:
        raise GtpVisionError(
            f"{episode.shard}: '{array.key}' of {episode.place} has {found} steps, and its action {steps}; copy the "
            f"file again"
        )


def _observation(parsed: Mapping[str, Any], array: _Array, episode: _Episode, steps: int) -> Piece | None:
    if array.dtype is None:
        return None
    if array.kind == "tensor":
        values = _numbers(parsed, array, episode)
        _check(len(values), steps, array, episode)
        piece = Piece(
            steps,
            array.shape or (1,),
            values.dtype,
            lambda start, stop: _numbers(episode.read(), array, episode).reshape(steps, *(array.shape or (1,)))[
                start:stop
            ],
        )
        return episodes.as_observation(piece, array.key)
    if array.dtype != np.uint8 or len(array.shape) != 3 or array.shape[2] not in _MODES:
        return None
    held = parsed.get(array.key)
    _check(len(held.bytes_list.value) if held is not None else 0, steps, array, episode)

    def read(start: int, stop: int) -> np.ndarray:
        encoded = episode.read()[array.key].bytes_list.value[start:stop]
        return np.stack([_decoded(one, array, episode, start + row) for row, one in enumerate(encoded)])

    read(0, 1)  # checks the shape before memory is allocated for it
    return Piece(steps, array.shape, array.dtype, read)


def _decoded(encoded: bytes, array: _Array, episode: _Episode, step: int) -> np.ndarray:
    height, width, channels = array.shape
    try:
        with Image.open(io.BytesIO(encoded), formats=("PNG", "JPEG")) as image:
            if image.size != (width, height) or image.mode not in _MODES[channels]:  # checked before decoding
                raise ValueError(f"it is {image.mode} {image.height}x{image.width}")
            pixels = np.asarray(image.convert("L") if image.mode == "1" else image).reshape(array.shape)
    except MemoryError:
        raise
    except Exception as error:  # Pillow raises errors of many types for damaged images
        raise GtpVisionError(
            f"{episode.shard}: '{array.key}' of {episode.place} has no image of {height}x{width}x{channels} in step "
            f"{step} ({first_line(error)}); copy the file again"
        ) from error
    sandbox.heartbeat()
    return pixels


def _instruction(parsed: Mapping[str, Any], arrays: Mapping[str, _Array]) -> str:
    """Return the text of an episode's task; empty if there is none."""
    for key in arrays:
        if _INSTRUCTION.fullmatch(key.rpartition("/")[2]) and key in parsed and parsed[key].bytes_list.value:
            return str(parsed[key].bytes_list.value[0].decode("utf-8", "replace"))
    return ""


RLDS = Format("rlds", "RLDS (TensorFlow Datasets)", lambda path, _: layout(path), other=recognises)
