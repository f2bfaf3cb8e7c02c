"""Files changed in one place, and the sentence by which they are refused."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pyarrow.parquet as pq
import pytest
from samples import MAIN

from gtp_vision.core.errors import GtpVisionError
from gtp_vision.datasets import formats
from gtp_vision.datasets.layout import to_store
from gtp_vision.datasets.scaling import scaled
from gtp_vision.datasets.store import Store
from gtp_vision.datasets.validation import validate

Edit = Callable[[Path], Any]


def open_here(path: Path, env: str | None = None) -> Store:
    """`formats.open_store` without the child process."""
    return to_store(formats._layout(path, env), path)


ARRAYS = ("actions", "rewards", "terminals", "timeouts", "episode_ends")


def assert_same(found: Store, store: Store, *, cameras: bool = True) -> None:
    """All arrays (without `cameras`, all but these) are equal bit for bit, and so are attributes."""
    assert found.observations.keys() == store.observations.keys()
    for name, array in store.observations.items():
        if cameras or array.ndim == 2:
            assert found.observations[name].dtype == array.dtype
            assert np.asarray(found.observations[name]).tobytes() == np.asarray(array).tobytes(), name
    for name in ARRAYS:
        np.testing.assert_array_equal(getattr(found, name), getattr(store, name), err_msg=name)
    assert dict(found.attributes) == dict(store.attributes)


def refused(path: Path, *words: str, env: str | None = None) -> str:
    """The one sentence, with the path's name and the words, by which a data set is refused; nothing else is raised."""
    with pytest.raises(GtpVisionError) as error:
        validate(*scaled([open_here(path, env)]))
    message = str(error.value)
    assert path.name in message
    assert "\n" not in message
    assert all(word in message for word in words), message
    return message


def hdf5(change: Callable[[h5py.File], Any]) -> Edit:
    """A change of an HDF5 file, or of Minari's main file."""

    def edit(path: Path) -> None:
        with h5py.File(path / MAIN if path.is_dir() else path, "r+") as file:
            change(file)

    return edit


def put(name: str, array: Any) -> Edit:
    """Another array of a name in an HDF5 or npz file; None removes it."""

    def change(file: Any) -> None:
        if name in file:
            del file[name]
        if array is not None:
            file[name] = array

    def edit(path: Path) -> None:
        if path.suffix != ".npz":
            return hdf5(change)(path)
        with np.load(path) as archive:
            members = dict(archive)
        change(members)
        np.savez_compressed(path, **members)

    return edit


def attribute(node: str, name: str, value: Any) -> Edit:
    return hdf5(lambda file: file[node].attrs.__setitem__(name, value))


def text(member: str, content: str | bytes) -> Edit:
    content = content.encode() if isinstance(content, str) else content
    return lambda path: (path / member).write_bytes(content)


def entry(member: str, *keys: str, value: Any) -> Edit:
    """Another value in a JSON file of a folder; `...` removes it."""

    def edit(path: Path) -> None:
        content = inner = json.loads((path / member).read_text())
        for key in keys[:-1]:
            inner = inner[key]
        inner[keys[-1]] = value
        if value is ...:
            del inner[keys[-1]]
        (path / member).write_text(json.dumps(content))

    return edit


def table(member: str, change: Callable[[Any], Any]) -> Edit:
    """A change of a Parquet file of a folder."""
    return lambda path: pq.write_table(change(pq.read_table(path / member)), path / member)


def truncated(share: float, member: str = "") -> Edit:
    def edit(path: Path) -> None:
        content = (path / member).read_bytes()
        (path / member).write_bytes(content[: int(share * len(content))])

    return edit


def as_links(folder: Path, blobs: Path) -> None:
    """Move a folder's files into `blobs`, and leave links to them, as huggingface_hub does."""
    blobs.mkdir(parents=True)
    for number, file in enumerate(sorted(path for path in folder.rglob("*") if path.is_file())):
        file.rename(blobs / str(number))
        file.symlink_to(os.path.relpath(blobs / str(number), file.parent))
