"""Minari's data sets: a folder with `data/main_data.hdf5` and `data/metadata.json`.

    /episode_<k>                              attribute total_steps = T
        observations                          T + 1 rows; Dict spaces are groups, of Tuple spaces `_index_<i>`
        actions rewards terminations truncations      T rows
    metadata.json                             observation_space, action_space, total_episodes, total_steps, env_spec

Before Minari 0.5 the metadata are attributes of the HDF5 file, before 0.4 without the spaces; `minari_arrow` reads
data sets that are stored by Arrow.

An episode of T actions becomes T + 1 rows: the last holds the final observation, with action and reward 0, and is a
timeout. `terminations` are terminals and may be inside an episode; `truncations` only at its end.

Nested names are joined by `_`: `{"arm": {"q": ...}}` is `arm_q`, entry 1 of a Tuple `pair` is `pair_1`. An observation
without a name is `camera` if it is an image of bytes, else `state`; `episodes.observation` distinguishes them. Texts
are left out and listed in the attribute `left_out`.

Actions are those of the recorder's environment; the attribute `action_space` holds its bounds, if they are finite.
Success is what `infos/success` or `infos/is_success` say in any step.
"""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from gtp_vision.core import sandbox
from gtp_vision.core.errors import GtpVisionError
from gtp_vision.core.files import fingerprint
from gtp_vision.core.safe_json import parse_json, read_json
from gtp_vision.datasets import hdf5
from gtp_vision.datasets import success as successes
from gtp_vision.datasets.formats import episodes, jpeg, minari_arrow
from gtp_vision.datasets.formats.format import Format
from gtp_vision.datasets.formats.minari_spaces import Episode, Leaf, add, leaves, shape_of
from gtp_vision.datasets.layout import FileArrays, Layout, Piece
from gtp_vision.datasets.scaling import SPACE, recorded_bounds
from gtp_vision.datasets.unpacking import through_cache

_MAIN, _METADATA, _PREFIX = "main_data.hdf5", "metadata.json", "episode_"
MEMBERS = {"observations", "actions", "rewards", "terminations", "truncations"}
"""Names in every episode."""
_UNBOUNDED = 1e30  # some spaces write "no bound" as the largest float32
_MAX_TEXT = 1000  # characters of metadata that become attributes
_ATTRIBUTES = ("dataset_id", "minari_version", "algorithm_name", "author", "ref_min_score", "ref_max_score")
_SPECS = ("env_spec", "eval_env_spec")
_SPACES, _TOTALS = ("observation_space", "action_space"), ("total_episodes", "total_steps")


def recognises(path: Path) -> bool:
    """Whether a folder is a Minari data set, or the folder `data` of one."""
    return path.is_dir() and _data_folder(path) is not None


def holds_episodes(file: h5py.File, path: Path) -> bool:
    """Whether an open HDF5 file is Minari's `main_data.hdf5`: beside its metadata, or with its names in an episode."""
    found = hdf5.children(file, path)
    if not found or not all(re.fullmatch(f"{_PREFIX}[0-9]+", name) for name in found):
        return False
    first = hdf5.member(file, found[0], path)
    return (path.parent / _METADATA).is_file() or (
        isinstance(first, h5py.Group) and set(hdf5.children(first, path)) >= MEMBERS
    )


def layout(path: Path) -> Layout:
    """Return the layout of a Minari data set: all of it is copied into the cache, since Minari's arrays are chunked.

    `path` is the data set's folder, its folder `data`, or `main_data.hdf5` in it.
    """
    folder = path.parent if path.is_file() else _data_folder(path)
    assert folder is not None, "recognised before"
    main, metadata_path = path if path.is_file() else folder / _MAIN, folder / _METADATA
    if not metadata_path.is_file() and main.is_file() and (metadata := _metadata_inside(main)):
        return through_cache(main, lambda: _opened(main, main, metadata), "minari")
    metadata = read_json(metadata_path, what="the spaces of the data set", advice="copy the whole folder")
    form = metadata.get("data_format", "hdf5")
    if form in minari_arrow.FORMATS:
        return through_cache(folder, lambda: _opened(folder, metadata_path, metadata), "minari")
    if form != "hdf5":
        raise GtpVisionError(
            f"{metadata_path}: the data set is stored as {str(form)[:20]!a}, which is not hdf5, arrow or parquet; "
            f"update gtp-vision or create the data set again"
        )
    if not main.is_file():
        raise GtpVisionError(f"{folder} has no {_MAIN} beside {_METADATA}; copy the whole folder")
    return through_cache(main, lambda: _opened(main, metadata_path, metadata), "minari", fingerprint(metadata_path))


def _data_folder(path: Path) -> Path | None:
    """Return the folder of the data set's files."""
    for folder in (path, path / "data"):
        main, has_metadata = folder / _MAIN, (folder / _METADATA).is_file()
        if has_metadata and (main.is_file() or _is_metadata(folder / _METADATA)):
            return folder
        if not has_metadata and main.is_file() and _metadata_inside(main):
            return folder
    return None


def _is_metadata(path: Path) -> bool:
    try:
        return {"data_format", "action_space"} <= read_json(path).keys()
    except GtpVisionError:
        return False


def _metadata_inside(main: Path) -> dict[str, Any]:
    """Return the metadata in the HDF5 file, where Minari had them before 0.5; empty if there are none.

    Before 0.4 they name no spaces: these are made of the first episode's arrays, without bounds.
    """
    with contextlib.suppress(GtpVisionError), hdf5.open_file(main) as file:
        texts = {name: hdf5.text_attribute(file, name, main) for name in (*_ATTRIBUTES, *_SPECS, *_SPACES, *_TOTALS)}
        found: dict[str, Any] = {name: text for name, text in texts.items() if text is not None}
        if not found.keys() >= set(_TOTALS):
            return {}
        total = found.pop("total_episodes")
        found |= {"total_episodes": int(total) if total.isdigit() else total}
        del found["total_steps"]  # Minari 0.3 counted them wrongly
        first = hdf5.group(file, f"{_PREFIX}0", main)
        arrays = dict(zip(_SPACES, ("observations", "actions"), strict=True))
        return {name: _space_of(first, member, main) for name, member in arrays.items()} | found
    return {}


def _space_of(parent: h5py.Group, name: str, main: Path, depth: int = 0) -> dict[str, Any]:
    """Return the space of recorded arrays."""
    node = hdf5.member(parent, name, main)
    if isinstance(node, h5py.Group):
        if depth > episodes.MAX_DEPTH:
            raise GtpVisionError(
                f"{main}: observations are nested deeper than {episodes.MAX_DEPTH} levels; flatten them"
            )
        names = episodes.member_names(node, main)
        inner = {key: _space_of(node, key, main, depth + 1) for key in names}
        indexed = [f"_index_{index}" for index in range(len(names))]
        if set(names) == set(indexed):
            return {"type": "Tuple", "subspaces": [inner[key] for key in indexed]}
        return {"type": "Dict", "subspaces": inner}
    shape = list(node.shape[1:])
    ends = [sign * np.full(shape, np.inf) for sign in (-1, 1)]
    if node.dtype.kind == "O":
        return {"type": "Text"}
    return {"type": "Box", "dtype": str(node.dtype), "shape": shape, "low": ends[0].tolist(), "high": ends[1].tolist()}


@contextmanager
def _opened(main: Path, metadata_path: Path, metadata: Mapping[str, Any]) -> Iterator[FileArrays]:
    observed, acted = (_space(metadata, name, metadata_path) for name in ("observation_space", "action_space"))
    bounds, (width,) = _bounds(acted, metadata_path), shape_of(acted)
    with contextlib.ExitStack() as stack:
        if main.is_dir():
            found = minari_arrow.read(main, metadata, observed)
        else:
            found = _read(stack.enter_context(hdf5.open_file(main)), metadata, observed, main)
        recording = episodes.Recording(main)
        steps, omitted, marks = 0, dict[str, list[str]](), list[bool | None]()
        for episode in found:
            _add(recording, episode, width)
            omitted = episodes.left_out(episode.observations)
            marks.append(episode.mark)
            steps += len(episode.actions)
        if metadata.get("total_steps", steps) != steps:
            raise GtpVisionError(
                f"{main} has {steps} steps, but its metadata say {str(metadata['total_steps'])[:20]!a}; copy both again"
            )
        attributes = _attributes(metadata, metadata_path) | omitted
        arrays = recording.file_arrays(attributes | successes.attributes_of(marks, "episodes (infos)"))
        arrays.attributes |= recorded_bounds(arrays.actions) if bounds is None else {SPACE: bounds}
        yield arrays


def _check_numbers(names: list[str], metadata: Mapping[str, Any], main: Path) -> None:
    if not names:
        raise GtpVisionError(f"{main} has no episode; copy it again")
    for number, name in enumerate(names):
        if int(name.removeprefix(_PREFIX)) != number:
            raise GtpVisionError(f"{main} has no '{_PREFIX}{number}' but '{name}'; copy it again")
    if metadata.get("total_episodes", len(names)) != len(names):
        raise GtpVisionError(
            f"{main} has {len(names)} episodes, but {_METADATA} says {str(metadata['total_episodes'])[:20]!a}; "
            f"copy both again"
        )


def _add(recording: episodes.Recording, episode: Episode, width: int) -> None:
    actions, path = episode.actions, recording.path
    truncated = np.flatnonzero(episode.truncations)
    if len(truncated) and truncated[0] != len(actions) - 1:
        raise GtpVisionError(
            f"{path}: '{episode.name}' continues after its truncation at frame {truncated[0]}; write the rest as "
            f"another episode"
        )
    pieces = {name: [piece] for name, piece in episodes.usable(episode.observations, episode.name, path).items()}
    if actions.shape[1] != width:
        raise GtpVisionError(
            f"{path}: '{episode.name}/actions' has {actions.shape[1]} dimensions, but the action space has {width}; "
            f"copy both files again"
        )
    recording.add(episode.name, pieces, actions, episode.rewards, episode.terminations)


def _read(file: h5py.File, metadata: Mapping[str, Any], observed: Any, main: Path) -> Iterator[Episode]:
    """Yield the episodes of an open HDF5 file, in their order."""
    names = episodes.numbered_members(file, _PREFIX, main)
    _check_numbers(names, metadata, main)
    for name in names:
        group = hdf5.group(file, name, main)
        actions = episodes.matrix(group, "actions", main, kinds="f")
        count = len(actions)
        declared = hdf5.text_attribute(group, "total_steps", main, str(count))
        if declared != str(count):
            raise GtpVisionError(
                f"{main}: '{name}' has {count} actions, but total_steps says {str(declared)[:20]!a}; copy it again"
            )
        found: dict[str, Piece | None] = {}
        for leaf in leaves(observed, main):
            add(found, leaf, _observation(group, leaf, count + 1, main), main)
        has_infos = "infos" in hdf5.children(group, main)
        yield Episode(
            name=name,
            observations=found,
            actions=actions,
            rewards=episodes.column(group, "rewards", main, count),
            terminations=episodes.flags(group, "terminations", main, count),
            truncations=episodes.flags(group, "truncations", main, count),
            mark=episodes.mark(hdf5.group(group, "infos", main), main) if has_infos else None,
        )
        sandbox.heartbeat()


def _observation(group: h5py.Group, leaf: Leaf, rows: int, main: Path) -> Piece | None:
    *groups, member = ["observations", *(key if isinstance(key, str) else f"_index_{key}" for key in leaf.place)]
    for name in groups:
        group = hdf5.group(group, name, main)
    if isinstance(leaf.space, dict) and leaf.space.get("type") == "Text":
        return None
    shape = shape_of(leaf.space)
    data = hdf5.array(group, member, main, kinds=episodes.NUMBERS + "O", rows=rows)
    if data.dtype.kind == "O" or (data.ndim == 2 and len(shape) > 1):
        return jpeg.piece(data, group, main, shape=shape)
    return episodes.observation(group, member, main, rows)


def _space(metadata: Mapping[str, Any], name: str, path: Path) -> dict[str, Any]:
    space = metadata.get(name)
    if isinstance(space, dict):
        return space
    return parse_json(space if isinstance(space, str) else "", f"{path}: '{name}'", advice="create the data set again")


def _bounds(space: Mapping[str, Any], path: Path) -> list[list[float]] | None:
    """Return low and high of actions; None if they are not finite."""
    kind, dtype = space.get("type"), str(space.get("dtype"))
    if kind != "Box" or not dtype.startswith("float") or len(shape_of(space)) != 1:
        described = f"{kind} of {dtype} {space.get('shape', '')}" if kind == "Box" else kind
        raise GtpVisionError(f"{path}: actions are {str(described)[:60]!a}; policies need a Box of floats (A,)")
    try:
        low, high = (np.asarray(space[name], np.float64).reshape(shape_of(space)) for name in ("low", "high"))
    except (KeyError, ValueError, TypeError, OverflowError) as error:
        raise GtpVisionError(
            f"{path}: the bounds of 'action_space' are not numbers; create the data set again"
        ) from error
    if not np.all(np.abs([low, high]) < _UNBOUNDED):
        return None
    if np.any(low > high):
        raise GtpVisionError(f"{path}: 'action_space' has a low bound above its high one; create the data set again")
    return [low.tolist(), high.tolist()]


def _attributes(metadata: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """Return short metadata that are useful: names, authors, reference scores, and the environment's spec."""
    short = {name: metadata[name] for name in _ATTRIBUTES if name in metadata}
    short = {name: value for name, value in short.items() if len(json.dumps(value)) <= _MAX_TEXT}
    specs = {name: _space(metadata, name, path) for name in _SPECS if metadata.get(name) is not None}
    folder = path.absolute().parent
    return {
        "suite": "minari",
        "source": folder.parent.name if folder.name == "data" else folder.name,
        "env": str(specs.get("env_spec", {}).get("id", "")),
        "rendering": {},
        **short,
        **specs,
    }


MINARI = Format(
    "minari",
    "Minari",
    lambda path, _: layout(path),
    hdf5=holds_episodes,
    other=recognises,
    success=lambda store: successes.unknown("its infos do not say, and a termination may be a success or a failure"),
)
