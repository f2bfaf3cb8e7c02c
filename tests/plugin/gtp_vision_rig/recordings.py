"""Recordings of the rig: HDF5 with a group `runs`, in it one group a recording: `rgb`, `joints` and `commands`."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import h5py
import numpy as np

from gtp_vision.core.errors import GtpVisionError
from gtp_vision.datasets import hdf5
from gtp_vision.datasets.formats.episodes import NUMBERS, Recording, matrix, observation, usable
from gtp_vision.datasets.formats.format import Format
from gtp_vision.datasets.layout import FileArrays
from gtp_vision.datasets.store import Store
from gtp_vision.datasets.unpacking import through_cache


@contextmanager
def read(path: Path) -> Iterator[FileArrays]:
    """The arrays of a file, while it is open. The rig stops recording when the task is done."""
    with hdf5.open_file(path) as file:
        recording, runs = Recording(path), hdf5.group(file, "runs", path)
        names = sorted(hdf5.children(runs, path))
        if not names:
            raise GtpVisionError(f"{path} has no recording; record one")
        for name in names:
            run = hdf5.group(runs, name, path)
            actions = matrix(run, "commands", path, kinds=NUMBERS)
            success = np.arange(len(actions)) == len(actions) - 1
            found = {key: observation(run, key, path, len(actions)) for key in ("rgb", "joints")}
            pieces = {key: [piece] for key, piece in usable(found, name, path).items()}
            recording.add(name, pieces, actions, success, success)
        yield recording.file_arrays({})


def write(path: Path, store: Store) -> None:
    """Write a store as a file of the rig."""
    with h5py.File(path, "w") as file:
        for number, (start, end) in enumerate(zip(store.episode_starts, store.episode_ends, strict=True)):
            run = file.create_group(f"runs/{number:06}")
            run["commands"] = store.actions[start:end]
            for key in ("rgb", "joints"):
                run[key] = np.asarray(store.observations[key][start:end])


RIG = Format(
    "rig",
    "the rig's HDF5",
    lambda path, env: through_cache(path, lambda: read(path), "rig"),
    hdf5=lambda file, path: hdf5.children(file, path) == ["runs"],
    write=write,
)
