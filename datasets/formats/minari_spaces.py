"""What Minari's two ways of storing share: spaces as names of arrays, and episodes as they are read."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from gtp_vision.core.errors import GtpVisionError
from gtp_vision.datasets.formats import episodes
from gtp_vision.datasets.layout import Piece


@dataclass(frozen=True)
class Episode:
    """An episode of T steps, as it is stored.

    Attributes:
        name: for messages.
        observations: name to a piece of T + 1 rows, or to None if no policy can read it.
        actions: float32 (T, A).
        rewards: (T,).
        terminations: bool (T,).
        truncations: bool (T,).
        mark: whether it succeeded; None if the infos do not say.
    """

    name: str
    observations: dict[str, Piece | None]
    actions: np.ndarray
    rewards: np.ndarray
    terminations: np.ndarray
    truncations: np.ndarray
    mark: bool | None


@dataclass(frozen=True)
class Leaf:
    """An array of observations: its joined name, empty for a single one, its place in the space, and its own space."""

    name: str
    place: tuple[str | int, ...]
    space: Any

    def named(self, piece: Piece | None) -> str:
        """Return its name in the store."""
        return self.name or ("camera" if piece is not None and piece.dtype == np.uint8 else "state")


def leaves(space: Any, path: Path, name: str = "", place: tuple[str | int, ...] = ()) -> Iterator[Leaf]:
    """Yield the arrays of a space, with names joined by `_`; see `minari`."""
    kind = space.get("type") if isinstance(space, dict) else None
    inner = space.get("subspaces") if isinstance(space, dict) else None
    if len(place) > episodes.MAX_DEPTH:
        raise GtpVisionError(f"{path}: observations are nested deeper than {episodes.MAX_DEPTH} levels; flatten them")
    if kind == "Dict" and isinstance(inner, dict):
        for key, subspace in inner.items():
            joined = "_".join(filter(None, [name, episodes.check_name(key, path).replace("/", "_")]))
            yield from leaves(subspace, path, joined, (*place, key))
    elif kind == "Tuple" and isinstance(inner, list):
        for index, subspace in enumerate(inner):
            yield from leaves(subspace, path, f"{name or 'observation'}_{index}", (*place, index))
    else:
        yield Leaf(name, place, space)


def add(found: dict[str, Piece | None], leaf: Leaf, piece: Piece | None, path: Path) -> None:
    """Put a piece, or None for one that is left out, into the observations of an episode."""
    name = leaf.named(piece)
    if name in found:
        raise GtpVisionError(f"{path}: two observations get the joined name '{name}'; rename one")
    found[name] = piece


def shape_of(space: Any) -> tuple[int, ...]:
    """Return the shape that a space declares; empty if it has none, or an invalid one."""
    shape = space.get("shape") if isinstance(space, dict) else None
    if not isinstance(shape, list) or not all(isinstance(size, int) and 0 < size < 1 << 16 for size in shape):
        return ()
    return tuple(shape)
