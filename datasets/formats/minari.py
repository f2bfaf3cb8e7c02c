"""Minari's data sets: a folder with `data/main_data.hdf5` and `data/metadata.json`.

    /episode_<k>                              attribute total_steps = T
        observations                          T + 1 rows; Dict spaces are groups, of Tuple spaces `_index_<i>`
        actions rewards terminations truncations      T rows
    metadata.json                             observation_space, action_space, total_episodes, total_steps, env_spec

An episode of T actions becomes T + 1 rows: the last holds the final observation, with action and reward 0, and is a
timeout. `terminations` are terminals and may be inside an episode; `truncations` only at its end.

Nested names are joined by `_`: `{"arm": {"q": ...}}` is `arm_q`, entry 1 of a Tuple `pair` is `pair_1`. An observation
without a name is `camera` if it is an image of bytes, else `state`; `episodes.observation` distinguishes them. Texts
are left out and listed in the attribute `left_out`.

Actions are those of the recorder's environment; the attribute `action_space` holds its bounds, if they are finite.
Success is what `infos/success` or `infos/is_success` say in any step.
"""

from __future__ import annotations

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
from gtp_vision.datasets.formats import episodes, jpeg
from gtp_vision.datasets.formats.format import Format
from gtp_vision.datasets.layout import FileArrays, Layout, Piece, through_cache
from gtp_vision.datasets.scaling import SPACE, recorded_bounds

_MAIN, _METADATA, _PREFIX = "main_data.hdf5", "metadata.json", "episode_"
MEMBERS = {"observations", "actions", "rewards", "terminations", "truncations"}
"""Names in every episode."""
_MAX_DEPTH = 16  # levels of nested spaces
_UNBOUNDED = 1e30  # some spaces write "no bound" as the largest float32
_MAX_TEXT = 1000  # characters of metadata that become attributes
_ATTRIBUTES = ("dataset_id", "minari_version", "algorithm_name", "author", "ref_min_score", "ref_max_score")
_SPECS = ("env_spec", "eval_env_spec")


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
    metadata = read_json(metadata_path, what="the spaces of the data set", advice="copy the whole folder")
    if metadata.get("data_format", "hdf5") != "hdf5":
        raise GtpVisionError(
            f"{metadata_path}: the data set is stored as {str(metadata['data_format'])[:20]!a}, not as HDF5; create it "
            f"again with data_format='hdf5' of minari.create_dataset_from_buffers or DataCollector"
        )
    if not main.is_file():
        raise GtpVisionError(f"{folder} has no {_MAIN} beside {_METADATA}; copy the whole folder")
    return through_cache(main, lambda: _opened(main, metadata_path, metadata), "minari", fingerprint(metadata_path))


def _data_folder(path: Path) -> Path | None:
    """Return the folder of the data set's two files."""
    for folder in (path, path / "data"):
        if (folder / _METADATA).is_file() and ((folder / _MAIN).is_file() or _is_metadata(folder / _METADATA)):
            return folder
    return None


def _is_metadata(path: Path) -> bool:
    try:
        return {"data_format", "action_space"} <= read_json(path).keys()
    except GtpVisionError:
        return False


@contextmanager
def _opened(main: Path, metadata_path: Path, metadata: Mapping[str, Any]) -> Iterator[FileArrays]:
    observed, acted = (_space(metadata, name, metadata_path) for name in ("observation_space", "action_space"))
    bounds, (width,) = _bounds(acted, metadata_path), _shape(acted)
    with hdf5.open_file(main) as file:
        names = episodes.numbered_members(file, _PREFIX, main)
        _check_numbers(names, metadata, main)
        recording = episodes.Recording(main)
        steps, omitted, marks = 0, dict[str, list[str]](), list[bool | None]()
        for name in names:
            episode = hdf5.group(file, name, main)
            length, omitted = _add(recording, episode, observed, width, main)
            has_infos = "infos" in hdf5.children(episode, main)
            marks.append(episodes.mark(hdf5.group(episode, "infos", main), main) if has_infos else None)
            steps += length
            sandbox.heartbeat()
        if metadata.get("total_steps", steps) != steps:
            raise GtpVisionError(
                f"{main} has {steps} steps, but {_METADATA} says {str(metadata['total_steps'])[:20]!a}; copy both again"
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


def _add(
    recording: episodes.Recording, episode: h5py.Group, observed: Mapping[str, Any], width: int, main: Path
) -> tuple[int, dict[str, list[str]]]:
    """Add an episode and return its number of steps and the attribute `left_out`."""
    full_name = episode.name.lstrip("/")
    actions = episodes.matrix(episode, "actions", main, kinds="f")
    count = len(actions)
    declared = hdf5.text_attribute(episode, "total_steps", main, str(count))
    if declared != str(count):
        raise GtpVisionError(
            f"{main}: '{full_name}' has {count} actions, but total_steps says {str(declared)[:20]!a}; copy it again"
        )
    truncated = np.flatnonzero(episodes.flags(episode, "truncations", main, count))
    if len(truncated) and truncated[0] != count - 1:
        raise GtpVisionError(
            f"{main}: '{full_name}' continues after its truncation at frame {truncated[0]}; write the rest as another "
            f"episode"
        )
    found: dict[str, Piece | None] = {}
    _collect(found, episode, "observations", "", observed, count + 1, main)
    pieces = {name: [piece] for name, piece in episodes.usable(found, full_name, main).items()}
    if actions.shape[1] != width:
        raise GtpVisionError(
            f"{main}: '{full_name}/actions' has {actions.shape[1]} dimensions, but the action space has {width}; copy "
            f"both files again"
        )
    recording.add(
        full_name,
        pieces,
        actions,
        episodes.column(episode, "rewards", main, count),
        episodes.flags(episode, "terminations", main, count),
    )
    return count, episodes.left_out(found)


def _collect(
    found: dict[str, Piece | None],
    parent: h5py.Group,
    member: str,
    name: str,
    space: Any,
    rows: int,
    main: Path,
    depth: int = 0,
) -> None:
    """Put the observations of a space into `found`, by their joined names; None for those that are left out.

    `member` of the group `parent` holds the values of `space`; `depth` is the number of spaces around it.
    """
    kind = space.get("type") if isinstance(space, dict) else None
    inner = space.get("subspaces") if isinstance(space, dict) else None
    if depth > _MAX_DEPTH:
        raise GtpVisionError(f"{main}: observations are nested deeper than {_MAX_DEPTH} levels; flatten them")
    if kind == "Dict" and isinstance(inner, dict):
        group = hdf5.group(parent, member, main)
        for key, subspace in inner.items():
            joined = "_".join(filter(None, [name, episodes.check_name(key, main).replace("/", "_")]))
            _collect(found, group, key, joined, subspace, rows, main, depth + 1)
        return
    if kind == "Tuple" and isinstance(inner, list):
        group = hdf5.group(parent, member, main)
        for index, subspace in enumerate(inner):
            joined = f"{name or 'observation'}_{index}"
            _collect(found, group, f"_index_{index}", joined, subspace, rows, main, depth + 1)
        return
    if kind == "Text":
        piece = None
    else:
        data = hdf5.array(parent, member, main, kinds=episodes.NUMBERS + "O", rows=rows)
        is_encoded = data.dtype.kind == "O" or (data.ndim == 2 and len(_shape(space)) > 1)
        piece = jpeg.piece(data, parent, main, shape=_shape(space)) if is_encoded else None
        piece = piece or episodes.observation(parent, member, main, rows)
    name = name or ("camera" if piece is not None and piece.dtype == np.uint8 else "state")
    if name in found:
        raise GtpVisionError(f"{main}: two observations get the joined name '{name}'; rename one")
    found[name] = piece


def _space(metadata: Mapping[str, Any], name: str, path: Path) -> dict[str, Any]:
    space = metadata.get(name)
    if isinstance(space, dict):
        return space
    return parse_json(space if isinstance(space, str) else "", f"{path}: '{name}'", advice="create the data set again")


def _shape(space: Any) -> tuple[int, ...]:
    """Return the shape that a space declares; empty if it has none, or an invalid one."""
    shape = space.get("shape") if isinstance(space, dict) else None
    if not isinstance(shape, list) or not all(isinstance(size, int) and 0 < size < 1 << 16 for size in shape):
        return ()
    return tuple(shape)


def _bounds(space: Mapping[str, Any], path: Path) -> list[list[float]] | None:
    """Return low and high of actions; None if they are not finite."""
    kind, dtype = space.get("type"), str(space.get("dtype"))
    if kind != "Box" or not dtype.startswith("float") or len(_shape(space)) != 1:
        described = f"{kind} of {dtype} {space.get('shape', '')}" if kind == "Box" else kind
        raise GtpVisionError(f"{path}: actions are {str(described)[:60]!a}; policies need a Box of floats (A,)")
    try:
        low, high = (np.asarray(space[name], np.float64).reshape(_shape(space)) for name in ("low", "high"))
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
