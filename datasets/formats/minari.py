"""Minari's data sets: a folder whose `data` holds `main_data.hdf5` and `metadata.json`.

    /episode_<k>                              attribute total_steps = T
        observations                          T + 1 rows; Dict spaces are groups, of Tuple spaces `_index_<i>`
        actions rewards terminations truncations      T rows
    metadata.json                             observation_space, action_space, total_episodes, total_steps, env_spec

An episode of T actions becomes T + 1 rows: the last holds the final observation, with action and reward 0, and is a
timeout. `terminations` are terminals and may stand inside an episode; `truncations` only at its end.

Nested names are joined by `_`: `{"arm": {"q": ...}}` is `arm_q`, entry 1 of a Tuple `pair` is `pair_1`. An observation
without a name is `camera` if it is a picture of bytes, else `state`; see `episodes.observation` for which is which.
Texts are left out, and named in the attribute `left_out`.

Policies act in [-1, 1]. Where the action space has other finite bounds, actions are scaled to [-1, 1], and the
attributes `action_low` and `action_high` hold the bounds that acting needs; without bounds actions stay as they are.
"""

from __future__ import annotations

import io
import json
import re
import struct
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from PIL import Image, UnidentifiedImageError

from gtp_vision.core import safe_json, sandbox
from gtp_vision.core.errors import GtpVisionError
from gtp_vision.core.files import fingerprint
from gtp_vision.datasets import hdf5
from gtp_vision.datasets.formats import episodes
from gtp_vision.datasets.formats.format import Format
from gtp_vision.datasets.layout import FileArrays, Layout, Piece, through_cache, to_store
from gtp_vision.datasets.store import Store

_MAIN, _METADATA, _PREFIX = "main_data.hdf5", "metadata.json", "episode_"
_DEEPEST = 16  # levels of nested spaces
_UNBOUNDED = 1e30  # some spaces write "no bound" as the largest float32
_SHORT = 1000  # characters of metadata that are taken over
_TAKEN_OVER = ("dataset_id", "minari_version", "algorithm_name", "author", "ref_min_score", "ref_max_score")
_SPECS = ("env_spec", "eval_env_spec")
_NO_PICTURE = (  # what pillow raises
    *(OSError, SyntaxError, ValueError, EOFError, TypeError, IndexError, KeyError, struct.error),
    *(Image.DecompressionBombError, Image.DecompressionBombWarning),
)


def recognises(path: Path) -> bool:
    """Whether a folder is a Minari data set, or the folder `data` of one."""
    return path.is_dir() and _data_folder(path) is not None


def holds_episodes(file: h5py.File, path: Path) -> bool:
    """Whether an open HDF5 file is Minari's `main_data.hdf5`."""
    found = hdf5.children(file, path)
    return bool(found) and all(re.fullmatch(f"{_PREFIX}[0-9]+", name) for name in found)


def layout(path: Path) -> Layout:
    """A Minari data set: all of it is copied once into the cache, since Minari's arrays are chunked.

    Args:
        path: the data set's folder, its folder `data`, or `main_data.hdf5` in it.

    Raises:
        GtpVisionError: damage, missing or mistyped arrays, counts that disagree with the metadata, actions that are
            not a bounded or unbounded vector of floats, Arrow files.
    """
    folder = path.parent if path.is_file() else _data_folder(path)
    assert folder is not None, "recognised before"
    main, metadata = path if path.is_file() else folder / _MAIN, folder / _METADATA
    described = _load(metadata)
    if described.get("data_format", "hdf5") != "hdf5":
        raise GtpVisionError(
            f"{metadata}: the data set is stored as {str(described['data_format'])[:20]!a}, not as HDF5; give "
            f"data_format='hdf5' to minari.create_dataset_from_buffers or DataCollector and create it again"
        )
    if not main.is_file():
        raise GtpVisionError(f"{folder} has no {_MAIN} beside {_METADATA}; copy the whole folder")
    return through_cache(main, lambda: _opened(main, metadata, described), "minari", fingerprint(metadata))


def read(path: Path) -> Store:
    """A Minari data set as a store; see `layout`, and `open_store` for files of strangers."""
    return to_store(layout(path), path)


def _data_folder(path: Path) -> Path | None:
    """Where the data set's two files lie."""
    for folder in (path, path / "data"):
        if (folder / _METADATA).is_file() and ((folder / _MAIN).is_file() or _says_minari(folder / _METADATA)):
            return folder
    return None


def _says_minari(metadata: Path) -> bool:
    try:
        return {"data_format", "action_space"} <= _load(metadata).keys()
    except GtpVisionError:
        return False


def _load(metadata: Path) -> dict[str, Any]:
    try:
        return safe_json.json_object(metadata.read_text(encoding="utf-8"))
    except OSError as error:
        raise GtpVisionError(
            f"{metadata} cannot be read ({error.strerror}), and it holds the spaces of the data set; "
            f"copy the whole folder"
        ) from error
    except ValueError as error:
        raise GtpVisionError(f"{metadata} is not a JSON object; copy it again") from error


@contextmanager
def _opened(main: Path, metadata_path: Path, metadata: Mapping[str, Any]) -> Iterator[FileArrays]:
    observed, acted = (_space(metadata, name, metadata_path) for name in ("observation_space", "action_space"))
    bounds = _bounds(acted, metadata_path)
    with hdf5.opened(main) as file:
        found = episodes.numbered(file, _PREFIX, main)
        _check_numbers(found, metadata, main)
        recording = episodes.Recording(main)
        steps, omitted = 0, dict[str, list[str]]()
        for name in found:
            taken, omitted = _add(recording, hdf5.group(file, name, main), observed, bounds, main)
            steps += taken
            sandbox.alive()
        if metadata.get("total_steps", steps) != steps:
            raise GtpVisionError(
                f"{main} has {steps} steps, but {_METADATA} says {str(metadata['total_steps'])[:20]!a}; copy both again"
            )
        yield recording.source(_attributes(metadata, metadata_path) | omitted | _scaled_by(bounds))


def _check_numbers(found: list[str], metadata: Mapping[str, Any], main: Path) -> None:
    if not found:
        raise GtpVisionError(f"{main} has no episode; copy it again")
    for number, name in enumerate(found):
        if int(name.removeprefix(_PREFIX)) != number:
            raise GtpVisionError(f"{main} has no '{_PREFIX}{number}' but '{name}'; copy it again")
    if metadata.get("total_episodes", len(found)) != len(found):
        raise GtpVisionError(
            f"{main} has {len(found)} episodes, but {_METADATA} says {str(metadata['total_episodes'])[:20]!a}; "
            f"copy both again"
        )


_Bounds = tuple[np.ndarray, np.ndarray] | None


def _add(
    recording: episodes.Recording, episode: h5py.Group, observed: Mapping[str, Any], bounds: _Bounds, main: Path
) -> tuple[int, dict[str, list[str]]]:
    """Add an episode; returns its number of steps and the attribute `left_out`."""
    whole = episode.name.lstrip("/")
    actions = episodes.matrix(episode, "actions", main, kinds="f")
    count = len(actions)
    declared = hdf5.text(episode, "total_steps", main, str(count))
    if declared != str(count):
        raise GtpVisionError(
            f"{main}: '{whole}' has {count} actions, but total_steps says {str(declared)[:20]!a}; copy it again"
        )
    truncated = np.flatnonzero(episodes.flags(episode, "truncations", main, count))
    if len(truncated) and truncated[0] != count - 1:
        raise GtpVisionError(
            f"{main}: '{whole}' goes on after its truncation at frame {truncated[0]}; write what follows as an episode "
            f"of its own"
        )
    found: dict[str, Piece | None] = {}
    _collect(found, episode, "observations", "", observed, count + 1, main)
    pieces = {name: [piece] for name, piece in episodes.usable(found, whole, main).items()}
    if bounds is not None:
        actions = _scaled(actions, bounds, whole, main)
    recording.add(
        whole,
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
    """Put the observations of a space into `found`, by their joined names; `None` for what no policy reads.

    Args:
        found: filled.
        parent: group of the episode's file.
        member: of `parent`, which holds the values of the space.
        name: the joined name so far.
        space: as the metadata describe it.
        rows: that each must have.
        main: the file, for messages.
        depth: how many spaces are around this one.
    """
    kind = space.get("type") if isinstance(space, dict) else None
    inner = space.get("subspaces") if isinstance(space, dict) else None
    if depth > _DEEPEST:
        raise GtpVisionError(f"{main}: observations are nested deeper than {_DEEPEST} levels; flatten them")
    if kind == "Dict" and isinstance(inner, dict):
        group = hdf5.group(parent, member, main)
        for key, subspace in inner.items():
            joined = "_".join(filter(None, [name, episodes.checked(key, main).replace("/", "_")]))
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
        encoded = data.dtype.kind == "O" or (data.ndim == 2 and len(_shape(space)) > 1)
        piece = _jpegs(data, parent, _shape(space), main) if encoded else None
        piece = piece or episodes.observation(parent, member, main, rows)
    name = name or ("camera" if piece is not None and piece.dtype == np.uint8 else "state")
    if name in found:
        raise GtpVisionError(f"{main}: two observations are named '{name}' when nested names are joined; rename one")
    found[name] = piece


def _jpegs(data: h5py.Dataset, parent: h5py.Group, shape: tuple[int, ...], main: Path) -> Piece:
    """Frames that are each the bytes of a JPEG file, of the size that the space says."""
    whole, rows = data.name, data.shape[0]
    stored = data.dtype if data.dtype.kind == "u" else h5py.check_vlen_dtype(data.dtype)
    if len(shape) not in (2, 3) or stored != np.uint8:
        raise GtpVisionError(f"{main}: '{whole.lstrip('/')}' holds neither numbers nor JPEG frames; write it again")
    shape = (*shape, 1)[:3]

    def read(start: int, stop: int) -> np.ndarray:
        out = np.empty((stop - start, *shape), np.uint8)
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            for row, encoded in enumerate(episodes.rows(parent[whole], start, stop, main)):
                try:
                    out[row] = _decoded(encoded, shape)
                except _NO_PICTURE as error:
                    foreign = isinstance(error, UnidentifiedImageError)  # whose text is an address in memory
                    reason = "its bytes are another format" if foreign else hdf5.first_line(error)
                    raise GtpVisionError(
                        f"{main}: '{whole.lstrip('/')}' has no JPEG picture of {shape[0]}x{shape[1]}x{shape[2]} at "
                        f"frame {start + row} ({reason}); copy the file again"
                    ) from error
                sandbox.alive()
        return out

    read(0, 1)  # a size that is not true would only be told after the room for it was asked for
    return Piece(rows, shape, np.dtype(np.uint8), read)


def _decoded(encoded: Any, shape: tuple[int, ...]) -> np.ndarray:
    with Image.open(io.BytesIO(np.asarray(encoded, np.uint8).tobytes()), formats=["JPEG"]) as picture:
        found = (picture.height, picture.width, len(picture.getbands()))
        if found != shape:  # before a pixel of it is made
            raise ValueError(f"it is {found[0]}x{found[1]}x{found[2]}")
        return np.asarray(picture).reshape(shape)


def _space(metadata: Mapping[str, Any], name: str, path: Path) -> dict[str, Any]:
    found = metadata.get(name)
    try:
        if isinstance(found, dict):
            return found
        return safe_json.json_object(found if isinstance(found, str) else "")
    except ValueError as error:
        raise GtpVisionError(f"{path} has no '{name}' that is a JSON object; create the data set again") from error


def _shape(space: Any) -> tuple[int, ...]:
    """The shape that a space declares; empty if it declares none that makes sense."""
    shape = space.get("shape") if isinstance(space, dict) else None
    if not isinstance(shape, list) or not all(isinstance(size, int) and 0 < size < 1 << 16 for size in shape):
        return ()
    return tuple(shape)


def _bounds(space: Mapping[str, Any], path: Path) -> _Bounds:
    """Low and high of actions, float64 (A,); None if they are those that policies act in, or are not finite."""
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
    return None if np.all(low == -1) and np.all(high == 1) else (low, high)


def _scaled(actions: np.ndarray, bounds: tuple[np.ndarray, np.ndarray], episode: str, main: Path) -> np.ndarray:
    low, high = bounds
    if actions.shape[1] != len(low):
        raise GtpVisionError(
            f"{main}: '{episode}/actions' has {actions.shape[1]} dimensions, but the action space has {len(low)}; "
            f"copy both files again"
        )
    span = np.where(high > low, high - low, 1)
    scaled = (actions.astype(np.float64) - low) / span * 2 - 1
    return np.where(high > low, scaled, 0).astype(np.float32)  # a number that cannot be chosen is 0


def _scaled_by(bounds: _Bounds) -> dict[str, Any]:
    return {} if bounds is None else {"action_low": bounds[0].tolist(), "action_high": bounds[1].tolist()}


def _attributes(metadata: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """What is small and of use: names, authors, reference scores, and how the environment is made."""
    kept = {name: metadata[name] for name in _TAKEN_OVER if name in metadata}
    for name in _SPECS:
        if metadata.get(name) is not None:
            kept[name] = _space(metadata, name, path)
    kept = {name: value for name, value in kept.items() if len(json.dumps(value)) <= _SHORT or name in _SPECS}
    folder = path.absolute().parent
    return {
        "suite": "minari",
        "source": folder.parent.name if folder.name == "data" else folder.name,
        "env": str(kept.get("env_spec", {}).get("id", "")),
        "rendering": {},
    } | kept


MINARI = Format("minari", "Minari", lambda path, _: layout(path), hdf5=holds_episodes, other=recognises)
