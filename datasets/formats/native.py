"""Our own file: plain HDF5 with flat arrays over all frames, every frame once.

Layout, version 1 (N frames, E episodes):

    /observations/<name>   uint8 (N, H, W, C) for a camera, float32 (N, D) for a state
    /actions               float32 (N, A) in [-1, 1]
    /rewards               float32 (N,)
    /terminals /timeouts   uint8 (N,)
    /episode_ends          int64 (E,)
    attributes             format = "gtp-vision", version = 1, metadata = JSON (provenance, rendering)

Arrays are contiguous and uncompressed, so each is mapped at its offset in the file: memory speed once cached,
pages shared by all processes. A compressed file (small ones, to be carried in a repository) is unpacked once
into the cache.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from tqdm import tqdm

from gtp_vision.datasets import hdf5, quarantine
from gtp_vision.datasets.arrays import Array
from gtp_vision.datasets.files import cached, fingerprint, require_space, written_aside
from gtp_vision.datasets.layout import COPY_BYTES, Layout, to_store
from gtp_vision.datasets.store import Store
from gtp_vision.errors import GtpVisionError

FORMAT, VERSION = "gtp-vision", 1
# Kinds of dtype and number of dimensions.
_FLAT = {
    "actions": ("f", 2),
    "rewards": ("f", 1),
    "terminals": ("ui", 1),
    "timeouts": ("ui", 1),
    "episode_ends": ("i", 1),
}


@contextmanager
def create(
    path: Path,
    shapes: Mapping[str, tuple[tuple[int, ...], Any]],
    metadata: Mapping[str, Any],
    *,
    compression: str | None = None,
) -> Iterator[dict[str, h5py.Dataset]]:
    """A new native file, written aside and renamed when the block ends well.

    Args:
        path: the file to be.
        shapes: data set name (`observations/<name>` for observations) to (shape, dtype).
        metadata: provenance, stored as JSON.
        compression: None for mappable files; "gzip" for small ones.

    Yields:
        Name to h5py data set, to be filled by slices.
    """
    with written_aside(path) as aside, h5py.File(aside, "w") as file:
        file.attrs.update(format=FORMAT, version=VERSION, metadata=json.dumps(metadata))
        made = {}
        for name, (shape, dtype) in shapes.items():
            options: dict[str, Any] = {}
            if compression and len(shape) > 1 and shape[0]:
                options = {"compression": compression, "compression_opts": 9, "shuffle": False}
                # One row of the picture over many frames: gzip then sees a background that stands still.
                strip = (1, *shape[2:]) if len(shape) == 4 else shape[1:]
                options["chunks"] = (min(shape[0], 256), *strip)
            made[name] = file.create_dataset(name, shape, dtype, **options)
        yield made


def write(path: Path, store: Store, *, compression: str | None = None) -> Path:
    """Write a store to a native file.

    Args:
        path: the file to be; an existing one is replaced when the new one is whole.
        store: what to write.
        compression: see `create`.

    Returns:
        `path`.
    """
    arrays: dict[str, Array] = {f"observations/{name}": array for name, array in store.observations.items()}
    arrays |= {
        "actions": np.asarray(store.actions, np.float32),
        "rewards": np.asarray(store.rewards, np.float32),
        "terminals": np.asarray(store.terminals, np.uint8),
        "timeouts": np.asarray(store.timeouts, np.uint8),
        "episode_ends": np.asarray(store.episode_ends, np.int64),
    }
    shapes = {name: (array.shape, array.dtype) for name, array in arrays.items()}
    with create(path, shapes, store.attributes, compression=compression) as file:
        for name, array in arrays.items():
            _copy(array, file[name])
    return path


def layout(path: Path, *, elsewhere: bool = False) -> Layout:
    """Where the arrays of a native file lie; a compressed one goes through the cache once.

    Args:
        path: a file of this format.
        elsewhere: whether it may lack observations, which then lie in other files (only the cache has such files).

    Raises:
        GtpVisionError: not HDF5, truncated, another format or version, a missing or mistyped array, a link that
            leads out of the file, lengths that disagree.
    """
    with hdf5.opened(path) as file:
        metadata = _check_attributes(file, path)
        arrays = _check_arrays(file, path, elsewhere)
        offsets = {name: data.id.get_offset() for name, data in arrays.items()}
        if all(offsets[name] is not None or not data.size for name, data in arrays.items()):
            return {"arrays": {name: entry(data, path) for name, data in arrays.items()}, "attributes": metadata}
        unpacked = _unpack(path, arrays, metadata)
    return layout(unpacked)


def entry(data: h5py.Dataset, path: Path) -> dict[str, Any]:
    """The layout of one contiguous array."""
    return {
        "dtype": data.dtype.str,
        "shape": list(data.shape),
        "pieces": [[str(path), data.id.get_offset(), data.shape[0]]],
    }


def read(path: Path) -> Store:
    """A native file as a store of memory-mapped arrays; see `layout`, and `open_store` for files of strangers."""
    return to_store(layout(path), path)


def is_native(file: h5py.File, path: Path) -> bool:
    """Whether an HDF5 file says that it is of this format."""
    return hdf5.text(file, "format", path) == FORMAT


def _check_attributes(file: h5py.File, path: Path) -> dict[str, Any]:
    """The metadata, if the file is of this format and version."""
    if not is_native(file, path):
        raise GtpVisionError(
            f"{path} is HDF5 but not a gtp-vision file (no attribute format='{FORMAT}'); "
            f"write it with gtp_vision.datasets.formats.native.write"
        )
    version = hdf5.text(file, "version", path)
    if version != str(VERSION):
        raise GtpVisionError(
            f"{path} is version {version} of the format, this program reads {VERSION}; "
            f"update gtp-vision or write the file again"
        )
    return hdf5.json_object(file, "metadata", path)


def _check_arrays(file: h5py.File, path: Path, elsewhere: bool) -> dict[str, h5py.Dataset]:
    """Name to array, if all are there, inside the file, of the right type and shape, and of one length."""
    names = []
    if not elsewhere or "observations" in file:
        names = hdf5.children(hdf5.group(file, "observations", path), path)
        if not names:
            raise GtpVisionError(f"{path} has no array in its group 'observations'; write the file again")
    arrays: dict[str, h5py.Dataset] = {}
    for name in [*(f"observations/{key}" for key in names), *_FLAT]:
        kinds, dimensions = _FLAT.get(name, ("uf", None))
        arrays[name] = hdf5.array(file, name, path, kinds=kinds, ndim=dimensions)
    frames = arrays["actions"].shape[0]
    for name, data in arrays.items():
        if name != "episode_ends" and data.shape[0] != frames:
            raise GtpVisionError(f"{path}: '{name}' has shape {data.shape}, but 'actions' has {frames} rows")
    return arrays


def _unpack(path: Path, arrays: Mapping[str, h5py.Dataset], metadata: Mapping[str, Any]) -> Path:
    target = cached(f"{path.stem}-{fingerprint(path, str(VERSION))}.h5")
    if target.exists():
        return target
    shapes = {name: (data.shape, data.dtype) for name, data in arrays.items()}
    size = sum(hdf5.nbytes(*described) for described in shapes.values())
    require_space(target.parent, size, f"unpacking {path.name}")
    with create(target, shapes, metadata) as made:
        for name, data in arrays.items():
            _copy(data, made[name], f"unpacking {path.name}" if size > 1 << 30 else None)
    return target


def _copy(source: Any, target: h5py.Dataset, label: str | None = None) -> None:
    rows = source.shape[0]
    piece = max(1, COPY_BYTES // max(1, int(np.prod(source.shape[1:])) * source.dtype.itemsize))
    for start in tqdm(range(0, rows, piece), desc=label, disable=label is None):
        target[start : start + piece] = source[start : start + piece]
        quarantine.alive()
