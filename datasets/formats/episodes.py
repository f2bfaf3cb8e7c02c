"""What the HDF5 formats share: numbered groups, arrays of any dtype, and episodes collected into a `FileArrays`.

Every function raises a GtpVisionError that names the file (`path`) and the member, as `hdf5` does.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from gtp_vision.core import depth, sandbox
from gtp_vision.core.errors import GtpVisionError, first_line
from gtp_vision.core.files import data_files
from gtp_vision.core.success import KEYS, marked
from gtp_vision.datasets import hdf5, names
from gtp_vision.datasets.layout import FileArrays, Piece, place_of
from gtp_vision.datasets.success import attributes_of

NUMBERS = "uifb"
"""NumPy's kinds of dtype that observations, rewards and flags are accepted in."""
_IMAGE_SIDE = 32  # a matrix of bytes that is at least this high and wide is an image
_CHANNELS = (1, 3, 4)
_MAX_TEXT = 1000  # characters of an instruction
MAX_DEPTH = 16
"""Levels of groups, or of nested spaces."""
MAX_NAMES = 2000
"""Observations of a file."""


def numbered_members(parent: h5py.Group, prefix: str, path: Path) -> list[str]:
    """Return the members `<prefix><number>` of a group, in the order of their numbers; others are ignored."""
    found: dict[int, str] = {}
    for name in member_names(parent, path):
        if not name.startswith(prefix):
            continue
        digits = name.removeprefix(prefix)
        if not re.fullmatch("[0-9]{1,18}", digits):
            raise GtpVisionError(f"{path}: '{name}' has no number after '{prefix}'; rename or remove it")
        if int(digits) in found:
            raise GtpVisionError(
                f"{path}: '{found[int(digits)]}' and '{name}' have the same number; rename or remove one of them"
            )
        found[int(digits)] = name
    return [found[number] for number in sorted(found)]


def member_names(parent: h5py.Group, path: Path) -> list[str]:
    """Return the names of a group's members, each checked by `check_name`."""
    return [check_name(name, path) for name in hdf5.children(parent, path)]


def files_in(folder: Path, *suffixes: str) -> list[Path]:
    """Return the files of a folder with these suffixes, in the order of the numbers in their names."""
    if not folder.is_dir():
        return []
    found = [path for path in data_files(folder, "*") if path.suffix in suffixes and path.is_file()]
    return sorted(
        found,
        key=lambda path: [
            (len(part), part) if part.isdigit() else (0, part) for part in re.split("([0-9]+)", path.name)
        ],
    )


def check_name(name: str, path: Path | str) -> str:
    """Return a name from a file unless it is empty, a dot, too long or not printable."""
    if name in ("", ".", "..") or len(name) > 255 or not name.isprintable():
        raise GtpVisionError(f"{path}: {name[:80]!a} cannot be the name of an array; rename it")
    return name


def read_rows(data: h5py.Dataset, start: int, stop: int, path: Path) -> np.ndarray:
    """Read rows of an array that `hdf5.array` returned."""
    try:
        if (start, stop) == (0, data.shape[0]) and data.dtype.kind in NUMBERS:  # a third of the time of data[:]
            whole = np.empty(data.shape, data.dtype)
            data.id.read(h5py.h5s.ALL, h5py.h5s.ALL, whole)
            return whole
        return np.asarray(data[start:stop])
    except hdf5.DAMAGE as error:
        raise GtpVisionError(
            f"{path}: '{data.name.lstrip('/')}' is damaged in rows {start} to {stop - 1} ({first_line(error)}); "
            f"copy the file again"
        ) from error


def column(parent: h5py.Group, name: str, path: Path, count: int) -> np.ndarray:
    """Read one number per step, (N,); an array (N, 1) is accepted."""
    data = hdf5.array(parent, name, path, kinds=NUMBERS, rows=count)
    if math.prod(data.shape) != count:
        raise GtpVisionError(f"{path}: '{data.name.lstrip('/')}' has shape {data.shape}, wanted ({count},)")
    return read_rows(data, 0, count, path).reshape(count)


def flags(parent: h5py.Group, name: str, path: Path, count: int) -> np.ndarray:
    """Read one flag per step, bool (N,); every finite number but 0 is true."""
    values = column(parent, name, path, count)
    bad = np.flatnonzero(~np.isfinite(values))
    if len(bad):
        full_name = f"{parent.name}/{name}".lstrip("/")
        raise GtpVisionError(f"{path}: '{full_name}' is not finite at frame {bad[0]}; write 0 or 1 there")
    return values != 0


def matrix(parent: h5py.Group, name: str, path: Path, *, kinds: str, count: int | None = None) -> np.ndarray:
    """Read one vector per step, float32 (N, D)."""
    data = hdf5.array(parent, name, path, kinds=kinds, ndim=2, rows=count)
    if not data.shape[1]:
        raise GtpVisionError(f"{path}: '{data.name.lstrip('/')}' has shape {data.shape}: its rows are empty")
    return to_float32(read_rows(data, 0, data.shape[0], path))


def mark(parent: h5py.Group, path: Path) -> bool | None:
    """Read whether an episode succeeded: an attribute, a flag, or one flag a step, of which any; None if unknown."""
    members = hdf5.children(parent, path)
    for key in KEYS:
        text = hdf5.text_attribute(parent, names.source(key), path)
        if text is not None and (found := marked(text.strip(" []"))) is not None:
            return found
        if key in members and (values := _numbers(parent, key, path)) is not None and np.isfinite(values).any():
            return marked(np.nanmax(values))
    return None


def flat_marks(
    file: h5py.File, groups: Sequence[str], ends: np.ndarray, path: Path, filters: Any = None
) -> dict[str, Any]:
    """Return the attributes of an array of marks in one of the groups, one a row or one an episode; none without."""
    for group in groups:
        if group and group not in hdf5.children(file, path):
            continue
        parent = hdf5.group(file, group, path) if group else file
        for key in (key for key in KEYS if key in hdf5.children(parent, path)):
            values = _numbers(parent, key, path)
            if values is None or values.size not in (ends[-1], len(ends)):
                continue
            if values.size == ends[-1]:
                values = np.fmax.reduceat(values, np.concatenate([[0], ends[:-1]]))
            words = f"episodes ({'/'.join(filter(None, [group, key]))})"
            return attributes_of([marked(value) for value in values], words, filters)
    return {}


def _numbers(parent: h5py.Group, name: str, path: Path) -> np.ndarray | None:
    """Read an array of numbers as float64 (N,); None if it holds something else."""
    data = hdf5.member(parent, name, path)
    if not isinstance(data, h5py.Dataset) or data.dtype.kind not in NUMBERS:
        return None
    try:
        data = data if data.shape == () else hdf5.array(parent, name, path, kinds=NUMBERS)
        return np.asarray(data[()], np.float64).ravel()
    except hdf5.DAMAGE as error:
        raise GtpVisionError(f"{path}: '{name}' is damaged ({first_line(error)}); copy the file again") from error


def to_float32(values: np.ndarray) -> np.ndarray:
    """Convert numbers to float32; those too large become infinite, which validation reports with their place."""
    with np.errstate(over="ignore"):
        return values.astype(np.float32)


def hold_nothing(actions: np.ndarray) -> bool:
    """Whether rows hold dummies instead of actions: zeros, or NaN."""
    return not np.nan_to_num(actions).any()


def observation(parent: h5py.Group, name: str, path: Path, count: int) -> Piece | None:
    """Return one observation of one episode as the store needs it; None for an image that is not of bytes.

    Bytes (H, W, C) are a camera; so are (C, H, W) with 1, 3 or 4 channels first and another number last, which are
    transposed, and (H, W) of at least 32 each. So are distances, see `core.depth`. Everything else is a state:
    float32, flattened to one dimension. Other images that are not bytes (floats, segment numbers) are not used as a
    state of thousands of numbers.
    """
    return _observation(hdf5.array(parent, name, path, kinds=NUMBERS, rows=count), parent, name, name, path)


def observations(
    parent: h5py.Group, path: Path, count: int, *, unread: Collection[str] = (), joined: str = "", level: int = 0
) -> dict[str, Piece | None]:
    """Return the observations of one episode in a group and in the groups in it; see `observation`.

    Names in groups are joined by `_`. Text, and what is below the names `unread`, is None. `joined` and `level` are the
    name and the depth of `parent`.
    """
    found: dict[str, Piece | None] = {}
    for member in member_names(parent, path):
        name = f"{joined}_{member}" if joined else member
        node = None if name in unread else hdf5.member(parent, member, path)
        inside: Mapping[str, Piece | None]
        if isinstance(node, h5py.Group) and level == MAX_DEPTH:
            raise GtpVisionError(f"{path}: '{node.name.lstrip('/')[:80]}' is nested too deeply; flatten its groups")
        if isinstance(node, h5py.Group):
            inside = observations(node, path, count, unread=unread, joined=name, level=level + 1)
        elif node is None or node.dtype.kind not in NUMBERS:
            inside = {name: None}
        else:
            data = hdf5.checked_array(node, path, kinds=NUMBERS, rows=count)
            inside = {name: _observation(data, parent, member, name, path)}
        if twice := found.keys() & inside.keys():
            raise GtpVisionError(f"{path}: two observations get the joined name '{min(twice)}'; rename one")
        found |= inside
        if len(found) > MAX_NAMES:
            raise GtpVisionError(f"{path}: '{parent.name.lstrip('/')}' holds more than {MAX_NAMES} arrays; remove some")
        sandbox.heartbeat()
    return found


def _observation(data: h5py.Dataset, parent: h5py.Group, member: str, name: str, path: Path) -> Piece | None:
    if not all(data.shape):
        raise GtpVisionError(f"{path}: '{data.name.lstrip('/')}' has shape {data.shape}: its rows are empty")
    held = names.source(member)

    def stored(start: int, stop: int) -> np.ndarray:
        return read_rows(parent[held], start, stop, path)  # reopened: open arrays would fill the memory

    return as_observation(Piece(data.shape[0], data.shape[1:], data.dtype, stored, place_of(data, path)), name)


def is_image(shape: tuple[int, ...]) -> bool:
    """Whether rows of this shape are images."""
    return len(shape) == 3 or (len(shape) == 2 and min(shape) >= _IMAGE_SIDE)


def as_observation(stored: Piece, name: str) -> Piece | None:
    """Return rows as the store needs them, of rows as a file holds them under a name; see `observation`."""
    count, shape, dtype, read, place = stored.rows, stored.shape, stored.dtype, stored.read, stored.place
    is_depth = is_image(shape) and depth.is_depth(name, shape, dtype)
    if is_image(shape) and dtype != np.uint8 and not is_depth:
        return None
    if not is_image(shape):
        width = math.prod(shape)
        return Piece(
            count,
            (width,),
            np.dtype(np.float32),
            lambda start, stop: to_float32(read(start, stop)).reshape(stop - start, width),
            place if dtype == np.float32 else None,
        )
    if is_depth:
        sides = tuple(side for side in shape if side > 1) if len(shape) == 3 else shape
        frames = (*sides, depth.BYTES)

        def distances(start: int, stop: int) -> np.ndarray:
            return depth.to_bytes(read(start, stop).reshape(stop - start, *sides))

        return Piece(count, frames, np.dtype(np.uint8), distances, is_depth=True)
    if len(shape) == 2:
        return Piece(count, (*shape, 1), dtype, lambda start, stop: read(start, stop)[..., None], place)
    if shape[0] in _CHANNELS and shape[2] not in _CHANNELS:
        transposed = (shape[1], shape[2], shape[0])
        return Piece(count, transposed, dtype, lambda start, stop: read(start, stop).transpose(0, 2, 3, 1))
    return stored


def last_row(piece: Piece) -> Piece:
    """Return the last row of a piece."""
    before = piece.rows - 1
    place = (piece.place[0], piece.place[1] + before * hdf5.nbytes(piece.shape, piece.dtype)) if piece.place else None
    return replace(piece, rows=1, read=lambda start, stop: piece.read(before + start, before + stop), place=place)


def reopened(piece: Piece, path: Path, again: Callable[[h5py.File], Piece | None]) -> Piece:
    """Return a piece that opens its file when it is read: a folder may hold more files than a process may open.

    `again` returns the piece of the opened file.
    """

    def read(start: int, stop: int) -> np.ndarray:
        with hdf5.open_file(path) as file:
            found = again(file)
            assert found is not None, "it was read before"
            return found.read(start, stop)

    return replace(piece, read=read)


def upside_down(piece: Piece) -> Piece:
    """Return the images of a piece with their rows in the other order."""
    return replace(piece, read=lambda start, stop: piece.read(start, stop)[:, ::-1], place=None)


def usable(found: Mapping[str, Piece | None], episode: str, path: Path) -> dict[str, Piece]:
    """Return the observations of an episode that are not None; there must be one."""
    kept = {name: piece for name, piece in found.items() if piece is not None}
    if not kept:
        held = f"{', '.join(list(found)[:6])}: text or images not of bytes" if found else "it has none at all"
        raise GtpVisionError(
            f"{path}: '{episode}' has no observation that a policy can read ({held}); a state is a vector, a camera "
            f"uint8 (H, W, C)"
        )
    return kept


def left_out(found: Mapping[str, Piece | None]) -> dict[str, list[str]]:
    """Return the attribute `left_out` with the names of the observations that are None; empty if there are none."""
    omitted = sorted(name for name, piece in found.items() if piece is None)
    return {"left_out": omitted} if omitted else {}


def tasks(instructions: Sequence[str]) -> dict[str, Any]:
    """Return the attributes `tasks` and `episode_tasks` of each episode's instruction; none if one is missing."""
    texts = [text.strip()[:_MAX_TEXT] for text in instructions]
    numbers = {text: number for number, text in enumerate(dict.fromkeys(texts))}
    return {"tasks": list(numbers), "episode_tasks": [numbers[text] for text in texts]} if all(texts) else {}


@dataclass
class Recording:
    """Episodes of a file, added one after another."""

    path: Path
    _observations: dict[str, list[Piece]] = field(default_factory=dict)
    _flat: list[tuple[np.ndarray, ...]] = field(default_factory=list)
    _lengths: list[int] = field(default_factory=list)
    _first: str = ""

    def add(
        self,
        episode: str,
        observations: Mapping[str, Sequence[Piece]],
        actions: np.ndarray,
        rewards: np.ndarray,
        terminals: np.ndarray,
    ) -> None:
        """Add an episode; its observations and actions must have the shapes and dtypes of those before.

        Args:
            episode: its name in the file.
            observations: name to pieces of T rows, or T + 1 where the observation after the last action is recorded.
            actions: float32 (T, A).
            rewards: (T,).
            terminals: bool (T,). Without a T + 1st observation the last row is a terminal or a timeout.
        """
        if not len(actions):
            raise GtpVisionError(f"{self.path}: '{episode}' has no step; remove it")
        if not self._flat:
            self._first = episode
            self._observations = {name: [] for name in observations}
        frames = self._checked_frames(episode, observations, actions)
        for name, pieces in observations.items():
            self._observations[name] += pieces
        timeouts = np.zeros(frames, bool)
        timeouts[-1] = frames > len(actions) or not terminals[-1]
        padded = (_padded(array, frames) for array in (actions, to_float32(rewards), terminals))
        self._flat.append((*padded, timeouts))
        self._lengths.append(frames)

    def file_arrays(self, attributes: dict[str, Any]) -> FileArrays:
        """Return the episodes as the arrays of a file."""
        actions, rewards, terminals, timeouts = (np.concatenate(arrays) for arrays in zip(*self._flat, strict=True))
        return FileArrays(
            observations=self._observations,
            actions=actions,
            rewards=rewards,
            terminals=terminals,
            timeouts=timeouts,
            episode_ends=np.cumsum(self._lengths),
            attributes=attributes,
        )

    def _checked_frames(self, episode: str, observations: Mapping[str, Sequence[Piece]], actions: np.ndarray) -> int:
        """Return the number of frames of an episode that matches the first one."""
        for name in sorted(self._observations.keys() ^ observations.keys()):
            has, lacks = (episode, self._first) if name in observations else (self._first, episode)
            raise GtpVisionError(
                f"{self.path}: '{name}' is in '{has}' and not in '{lacks}'; every episode needs the same observations"
            )
        counts = {name: sum(piece.rows for piece in pieces) for name, pieces in observations.items()}
        frames = max(counts.values())
        if frames - len(actions) not in (0, 1):
            raise GtpVisionError(
                f"{self.path}: '{episode}' has {frames} frames for {len(actions)} actions; wanted as many or one more"
            )
        for name, pieces in observations.items():
            first = (self._observations[name] or pieces)[0]
            for piece in pieces:
                if (piece.shape, piece.dtype) != (first.shape, first.dtype):
                    raise GtpVisionError(
                        f"{self.path}: '{name}' is {piece.dtype} {piece.shape} in '{episode}' and {first.dtype} "
                        f"{first.shape} in '{self._first}'; all episodes need the same"
                    )
            if counts[name] != frames:
                raise GtpVisionError(
                    f"{self.path}: '{episode}' has {counts[name]} usable frames of '{name}' and {frames} of another "
                    f"observation; every observation needs the same frames"
                )
        width = self._flat[0][0].shape[1] if self._flat else actions.shape[1]
        if actions.shape[1] != width:
            raise GtpVisionError(
                f"{self.path}: actions have {actions.shape[1]} dimensions in '{episode}' and {width} in "
                f"'{self._first}'; all episodes need the same"
            )
        return frames


def _padded(array: np.ndarray, count: int) -> np.ndarray:
    return np.concatenate([array, np.zeros((count - len(array), *array.shape[1:]), array.dtype)])
