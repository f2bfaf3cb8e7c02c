"""What a format is: how its files are recognised, read and written."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from gtp_vision.datasets.layout import Layout
from gtp_vision.datasets.store import ACTION_BOUNDS, Store


@dataclass(frozen=True)
class Format:
    """One on-disk format, found wherever it stands at the top of a file of `gtp_vision.datasets.formats`.

    Attributes:
        name: that `data convert --to` takes.
        title: what people call it.
        layout: (path, environment name or None) to the layout; runs in the process apart.
        hdf5: whether an open HDF5 file is of this format; None if the format is not one HDF5 file.
        other: whether a path that is not an HDF5 file is of this format; None if the format is one HDF5 file.
        write: (path, store) writes the store in this format; None if nothing writes it.
        notes: (store) to sentences on what writing it makes up, or what other programs cannot know of it; None if
            there is nothing to say.
        states: (path) to the arrays of a layout: states that are recorded beside the observations; None if there are
            none; runs in the process apart.
        snapshots: (path, numbers of episodes) to what was recorded of the simulator in each, see `Snapshots.of`: the
            states before its actions, a possible last one after them; empty if there are none; runs in the process
            apart.
        success: (store) to its rate of success as `datasets.success.rate` and `unknown` return it, where the recorder
            marked no episode; of every store whose attribute `suite` is the name. None: always unknown.
    """

    name: str
    title: str
    layout: Callable[[Path, str | None], Layout]
    hdf5: Callable[[h5py.File, Path], bool] | None = None
    other: Callable[[Path], bool] | None = None
    write: Callable[[Path, Store], Any] | None = None
    states: Callable[[Path], dict[str, Any]] | None = None
    snapshots: Callable[[Path, Sequence[int]], list[dict[str, Any]]] | None = None
    success: Callable[[Store], dict[str, Any]] | None = None
    notes: Callable[[Store], list[str]] | None = None


@dataclass(frozen=True)
class Snapshots:
    """The simulator in an episode, which no policy sees: float or integer arrays (T, D) by name, and its model."""

    arrays: dict[str, np.ndarray]
    model: str = ""

    @classmethod
    def of(cls, record: dict[str, Any]) -> Snapshots:
        """The inverse of `record`."""
        return cls({name: np.asarray(rows, dtype) for name, (dtype, rows) in record["arrays"].items()}, record["model"])

    def record(self) -> dict[str, Any]:
        """As JSON-able values."""
        return {"arrays": {name: [x.dtype.str, x.tolist()] for name, x in self.arrays.items()}, "model": self.model}


def units_notes(store: Store) -> list[str]:
    """Return a sentence on actions in [-1, 1] that are not the robot's, where another program cannot know its units."""
    low, high = (store.attributes.get(bound) for bound in ACTION_BOUNDS)
    if not low or not high or (set(low) == {-1} and set(high) == {1}):
        return []
    return [
        "actions stay those of [-1, 1], and only the attribute 'gtp_vision' holds their units (action_low, "
        "action_high): other programs have to compute low + (action + 1) / 2 * (high - low)"
    ]
