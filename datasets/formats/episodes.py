"""What the formats share that keep an HDF5 group an episode: numbered groups, arrays of any dtype, one recording."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from gtp_vision.core.errors import GtpVisionError
from gtp_vision.datasets import hdf5
from gtp_vision.datasets.layout import FileArrays, Piece, piece_of

NUMBERS = "uifb"
"""NumPy's kinds of dtype that observations, rewards and flags are accepted in."""
_PICTURE_SIDE = 32  # a matrix of bytes that is at least this high and wide is a picture
_CHANNELS = (1, 3, 4)
_DAMAGE = (OSError, RuntimeError, ValueError, KeyError, TypeError)  # what h5py raises for chunks that lie


def numbered(parent: h5py.Group, prefix: str, path: Path) -> list[str]:
    """The members `<prefix><number>` of a group, in the order of their numbers; other members are passed over.

    Raises:
        GtpVisionError: a member of this prefix without a number, or two of one number.
    """
    found: dict[int, str] = {}
    for name in names(parent, path):
        if not name.startswith(prefix):
            continue
        digits = name.removeprefix(prefix)
        if not re.fullmatch("[0-9]{1,18}", digits):
            raise GtpVisionError(f"{path}: '{name}' has no number after '{prefix}'; rename or remove it")
        if int(digits) in found:
            raise GtpVisionError(
                f"{path}: '{found[int(digits)]}' and '{name}' have one number; rename or remove one of them"
            )
        found[int(digits)] = name
    return [found[number] for number in sorted(found)]


def names(parent: h5py.Group, path: Path) -> list[str]:
    """The names of a group's members, all fit to be shown and to name an array.

    Raises:
        GtpVisionError: the group is damaged; a name with control characters.
    """
    return [checked(name, path) for name in hdf5.children(parent, path)]


def checked(name: str, path: Path | str) -> str:
    """A name that was found in a file, if it can be shown and used.

    Raises:
        GtpVisionError: it is empty, a dot, endless, or holds control characters.
    """
    if name in ("", ".", "..") or len(name) > 255 or not name.isprintable():
        raise GtpVisionError(f"{path}: {name[:80]!a} cannot be the name of an array; rename it")
    return name


def rows(data: h5py.Dataset, start: int, stop: int, path: Path) -> np.ndarray:
    """Rows of an array that `hdf5.array` let pass.

    Raises:
        GtpVisionError: its bytes are damaged.
    """
    try:
        return np.asarray(data[start:stop])
    except _DAMAGE as error:
        raise GtpVisionError(
            f"{path}: '{data.name.lstrip('/')}' is damaged in rows {start} to {stop - 1} ({hdf5.first_line(error)}); "
            f"copy the file again"
        ) from error


def column(parent: h5py.Group, name: str, path: Path, count: int) -> np.ndarray:
    """A number a step: (N,), or (N, 1) as some tools write it.

    Raises:
        GtpVisionError: as `hdf5.array`; more than one number a step.
    """
    data = hdf5.array(parent, name, path, kinds=NUMBERS, rows=count)
    if data.size != count:
        raise GtpVisionError(f"{path}: '{data.name.lstrip('/')}' has shape {data.shape}, wanted ({count},)")
    return rows(data, 0, count, path).reshape(count)


def flags(parent: h5py.Group, name: str, path: Path, count: int) -> np.ndarray:
    """A flag a step, bool (N,): whatever is not 0 is set.

    Raises:
        GtpVisionError: as `column`; a flag that is not finite.
    """
    values = column(parent, name, path, count)
    bad = np.flatnonzero(~np.isfinite(values))
    if len(bad):
        raise GtpVisionError(
            f"{path}: '{parent.name.lstrip('/')}/{name}' is not finite at frame {bad[0]}; write 0 or 1 there"
        )
    return values != 0


def matrix(parent: h5py.Group, name: str, path: Path, *, kinds: str, count: int | None = None) -> np.ndarray:
    """A vector a step, float32 (N, D).

    Raises:
        GtpVisionError: as `hdf5.array`; no dimension.
    """
    data = hdf5.array(parent, name, path, kinds=kinds, ndim=2, rows=count)
    if not data.shape[1]:
        raise GtpVisionError(f"{path}: '{data.name.lstrip('/')}' has shape {data.shape}: vectors without a number")
    with np.errstate(over="ignore"):  # what is too large for float32 is infinite, and validation tells where
        return rows(data, 0, data.shape[0], path).astype(np.float32)


def observation(parent: h5py.Group, name: str, path: Path, count: int) -> Piece | None:
    """One observation of one episode, as the store wants it.

    Bytes (H, W, C) are a camera; so are (C, H, W) with 1, 3 or 4 channels first and another number last, which is
    transposed, and (H, W) of at least 32 each. All else is a state: float32, flattened to one dimension. Pictures that
    are not bytes (depth, float pictures, numbers of segments) are no state: a policy would get thousands of numbers.

    Args:
        parent: the group it lies in.
        name: its name there.
        path: of the file.
        count: rows it must have.

    Returns:
        The piece, which reads the file while it is open; None for a picture that is not of bytes.

    Raises:
        GtpVisionError: as `hdf5.array`; rows without a number.
    """
    data = hdf5.array(parent, name, path, kinds=NUMBERS, rows=count)
    shape, dtype = data.shape[1:], data.dtype
    if not data.size:
        raise GtpVisionError(f"{path}: '{data.name.lstrip('/')}' has shape {data.shape}: rows without a number")
    picture = len(shape) == 3 or (len(shape) == 2 and min(shape) >= _PICTURE_SIDE)
    if picture and dtype != np.uint8:
        return None
    place = piece_of(data, path.absolute()).place  # the layout outlives this process's working folder

    def stored(start: int, stop: int) -> np.ndarray:
        return rows(parent[name], start, stop, path)  # opened anew: all data sets held open would fill the memory

    if not picture:
        width = int(np.prod(shape, dtype=np.int64))
        return Piece(
            count,
            (width,),
            np.dtype(np.float32),
            lambda start, stop: _float32(stored(start, stop)).reshape(stop - start, width),
            place if dtype == np.float32 else None,
        )
    if len(shape) == 2:
        return Piece(count, (*shape, 1), dtype, lambda start, stop: stored(start, stop)[..., None], place)
    if shape[0] in _CHANNELS and shape[2] not in _CHANNELS:
        turned = (shape[1], shape[2], shape[0])
        return Piece(count, turned, dtype, lambda start, stop: stored(start, stop).transpose(0, 2, 3, 1))
    return Piece(count, shape, dtype, stored, place)


def last_row(piece: Piece) -> Piece:
    """The last row of a piece."""
    row = int(np.prod(piece.shape, dtype=np.int64)) * piece.dtype.itemsize
    before = piece.rows - 1
    place = (piece.place[0], piece.place[1] + before * row) if piece.place else None
    return replace(piece, rows=1, read=lambda start, stop: piece.read(before + start, before + stop), place=place)


@dataclass
class Recording:
    """Episodes, added one after another.

    Attributes:
        path: of the file, for messages.
    """

    path: Path
    _observations: dict[str, list[Piece]] = field(default_factory=dict)
    _flat: list[tuple[np.ndarray, ...]] = field(default_factory=list)
    _ends: list[int] = field(default_factory=list)
    _first: str = ""

    def add(
        self,
        episode: str,
        observations: Mapping[str, Sequence[Piece]],
        actions: np.ndarray,
        rewards: np.ndarray,
        terminals: np.ndarray,
    ) -> None:
        """Add an episode.

        Args:
            episode: its name in the file.
            observations: name to pieces of T rows, or T + 1 where the observation after the last action is recorded.
            actions: float32 (T, A).
            rewards: (T,).
            terminals: bool (T,). Without a T + 1st observation the last row is a terminal or a timeout.

        Raises:
            GtpVisionError: no step, frames that do not fit the actions, or other observations or another width of
                actions than in the episodes before.
        """
        if not len(actions):
            raise GtpVisionError(f"{self.path}: '{episode}' has no step; remove it")
        if not self._flat:
            self._first = episode
            self._observations = {name: [] for name in observations}
        known = self._agreed(episode, observations, actions)
        for name, pieces in observations.items():
            self._observations[name] += pieces
        timeouts = np.zeros(known, bool)
        timeouts[-1] = known > len(actions) or not terminals[-1]
        padded = tuple(_padded(array, known) for array in (actions, _float32(rewards), terminals))
        self._flat.append((*padded, timeouts))
        self._ends.append(known)

    def source(self, attributes: dict[str, Any]) -> FileArrays:
        """What was added, as a source."""
        actions, rewards, terminals, timeouts = (np.concatenate(arrays) for arrays in zip(*self._flat, strict=True))
        return FileArrays(
            observations=self._observations,
            actions=actions,
            rewards=rewards,
            terminals=terminals,
            timeouts=timeouts,
            episode_ends=np.cumsum(self._ends),
            attributes=attributes,
        )

    def _agreed(self, episode: str, observations: Mapping[str, Sequence[Piece]], actions: np.ndarray) -> int:
        """The rows of an episode that fits the first one."""
        for name in sorted(self._observations.keys() ^ observations.keys()):
            has, lacks = (episode, self._first) if name in observations else (self._first, episode)
            raise GtpVisionError(
                f"{self.path}: '{name}' is in '{has}' and not in '{lacks}'; every episode needs the same observations"
            )
        counts = {name: sum(piece.rows for piece in pieces) for name, pieces in observations.items()}
        known = max(counts.values())
        if known - len(actions) not in (0, 1):
            raise GtpVisionError(
                f"{self.path}: '{episode}' has {known} frames for {len(actions)} actions; wanted as many or one more"
            )
        for name, pieces in observations.items():
            first = (self._observations[name] or pieces)[0]
            for piece in pieces:
                if (piece.shape, piece.dtype) != (first.shape, first.dtype):
                    raise GtpVisionError(
                        f"{self.path}: '{name}' is {piece.dtype} {piece.shape} in '{episode}' and {first.dtype} "
                        f"{first.shape} in '{self._first}'; all episodes need the same"
                    )
            if counts[name] != known:
                raise GtpVisionError(
                    f"{self.path}: '{episode}' has {counts[name]} usable frames of '{name}' and {known} of another "
                    f"observation; every observation needs the same frames"
                )
        width = self._flat[0][0].shape[1] if self._flat else actions.shape[1]
        if actions.shape[1] != width:
            raise GtpVisionError(
                f"{self.path}: actions have {actions.shape[1]} dimensions in '{episode}' and {width} in "
                f"'{self._first}'; all episodes need the same"
            )
        return known


def usable(found: Mapping[str, Piece | None], episode: str, path: Path) -> dict[str, Piece]:
    """The observations of an episode without those that are `None`.

    Raises:
        GtpVisionError: none is left.
    """
    kept = {name: piece for name, piece in found.items() if piece is not None}
    if not kept:
        held = f"{', '.join(list(found)[:6])}: text or pictures not of bytes" if found else "there is none"
        raise GtpVisionError(
            f"{path}: '{episode}' has no observation that a policy reads ({held}); a state is a vector, a camera "
            f"uint8 (H, W, C)"
        )
    return kept


def left_out(found: Mapping[str, Piece | None]) -> dict[str, list[str]]:
    """The attribute `left_out` with the names of the observations that no policy reads; empty if there is none."""
    omitted = sorted(name for name, piece in found.items() if piece is None)
    return {"left_out": omitted} if omitted else {}


def _padded(array: np.ndarray, count: int) -> np.ndarray:
    return np.concatenate([array, np.zeros((count - len(array), *array.shape[1:]), array.dtype)])


def _float32(values: np.ndarray) -> np.ndarray:
    with np.errstate(over="ignore"):  # see `matrix`
        return values.astype(np.float32)
