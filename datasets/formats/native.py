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

from gtp_vision.datasets.files import cached, fingerprint, require_space, written_aside
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
_COPY_BYTES = 1 << 25  # frames are copied in pieces of about 32 MB, so that memory stays bounded


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
    arrays = {f"observations/{name}": array for name, array in store.observations.items()}
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


def read(path: Path) -> Store:
    """Open a native file as a store of memory-mapped arrays; a compressed one goes through the cache once.

    Args:
        path: a file of this format.

    Raises:
        GtpVisionError: not HDF5, truncated, another format or version, a missing or mistyped array, a link that
            leads out of the file, lengths that disagree.
    """
    try:
        with h5py.File(path, "r") as file:
            metadata = _check_attributes(file, path)
            arrays = _check_arrays(file, path)
            offsets = {name: data.id.get_offset() for name, data in arrays.items()}
            if all(offset is not None or arrays[name].size == 0 for name, offset in offsets.items()):
                mapped = {name: _map(path, data, offsets[name]) for name, data in arrays.items()}
                return _store(path, mapped, metadata)
            unpacked = _unpack(path, arrays, metadata)
    except (OSError, RuntimeError) as error:
        raise GtpVisionError(
            f"{path} cannot be read as HDF5 ({_first_line(error)}); it is missing, truncated or of another format: "
            f"copy it again"
        ) from error
    store = read(unpacked)
    store.path = path
    return store


def is_native(path: Path) -> bool:
    """Whether the file says that it is of this format."""
    try:
        with h5py.File(path, "r") as file:
            return file.attrs.get("format") == FORMAT
    except OSError:
        return False


def _check_attributes(file: h5py.File, path: Path) -> dict[str, Any]:
    """The metadata, if the file is of this format and version."""
    if str(file.attrs.get("format")) != FORMAT:
        raise GtpVisionError(
            f"{path} is HDF5 but not a gtp-vision file (no attribute format='{FORMAT}'); "
            f"write it with gtp_vision.datasets.formats.native.write"
        )
    version = str(file.attrs.get("version"))
    if version != str(VERSION):
        raise GtpVisionError(
            f"{path} is version {version} of the format, this program reads {VERSION}; "
            f"update gtp-vision or write the file again"
        )
    try:
        metadata = json.loads(str(file.attrs.get("metadata", "{}")))
        if not isinstance(metadata, dict):
            raise ValueError("no object")
    except ValueError as error:
        raise GtpVisionError(f"{path}: the attribute 'metadata' is not a JSON object; write the file again") from error
    return metadata


def _check_arrays(file: h5py.File, path: Path) -> dict[str, h5py.Dataset]:
    """Name to array, if all are there, inside the file, of the right type and shape, and of one length."""
    _check_link(file, "observations", path)
    group = _opened(file, "observations", path)
    if not isinstance(group, h5py.Group) or not len(group):
        raise GtpVisionError(f"{path} has no group 'observations' with at least one array; write the file again")
    arrays: dict[str, h5py.Dataset] = {}
    for name in [*(f"observations/{key}" for key in group), *_FLAT]:
        _check_link(file, name, path)
        data = _opened(file, name, path)
        if not isinstance(data, h5py.Dataset) or data.external or data.is_virtual:
            raise GtpVisionError(f"{path}: '{name}' is not an array inside the file; write the file again")
        kinds, dimensions = _FLAT.get(name, ("uf", None))
        if data.dtype.kind not in kinds:
            raise GtpVisionError(f"{path}: '{name}' has dtype {data.dtype}, wanted one of kind '{kinds}'")
        if not data.shape or (dimensions and data.ndim != dimensions):
            raise GtpVisionError(f"{path}: '{name}' has shape {data.shape}, wanted {dimensions or 2} dimensions")
        arrays[name] = data
    frames = arrays["actions"].shape[0]
    for name, data in arrays.items():
        if name != "episode_ends" and data.shape[0] != frames:
            raise GtpVisionError(f"{path}: '{name}' has shape {data.shape}, but 'actions' has {frames} rows")
    return arrays


def _opened(file: h5py.File, name: str, path: Path) -> h5py.Dataset | h5py.Group:
    """The array or group, once its header has been read."""
    try:
        found = file[name]
        if isinstance(found, h5py.Dataset):
            _ = found.dtype, found.shape  # read from the header only now
        return found
    except (KeyError, RuntimeError, OSError, ValueError, TypeError) as error:
        raise GtpVisionError(f"{path}: '{name}' is damaged ({_first_line(error)}); copy the file again") from error


def _check_link(file: h5py.File, name: str, path: Path) -> None:
    parent, _, key = name.rpartition("/")
    link = (_opened(file, parent, path) if parent else file).get(key, getlink=True)
    if link is None:
        raise GtpVisionError(f"{path} has no '{name}'; write the file again")
    if not isinstance(link, h5py.HardLink):
        raise GtpVisionError(f"{path}: '{name}' is a link out of its place, which is not followed; copy the array")


def _map(path: Path, data: h5py.Dataset, offset: int | None) -> np.ndarray:
    if offset is None:
        return np.empty(data.shape, data.dtype)
    return np.memmap(path, mode="r", dtype=data.dtype, shape=data.shape, offset=offset)


def _unpack(path: Path, arrays: Mapping[str, h5py.Dataset], metadata: Mapping[str, Any]) -> Path:
    target = cached(f"{path.stem}-{fingerprint(path, str(VERSION))}.h5")
    if target.exists():
        return target
    shapes = {name: (data.shape, data.dtype) for name, data in arrays.items()}
    size = sum(int(np.prod(shape, dtype=np.float64)) * dtype.itemsize for shape, dtype in shapes.values())
    require_space(target.parent, size, f"unpacking {path.name}")
    with create(target, shapes, metadata) as made:
        for name, data in arrays.items():
            _copy(data, made[name], f"unpacking {path.name}" if size > 1 << 30 else None)
    return target


def _copy(source: Any, target: h5py.Dataset, label: str | None = None) -> None:
    rows = source.shape[0]
    piece = max(1, _COPY_BYTES // max(1, int(np.prod(source.shape[1:])) * source.dtype.itemsize))
    for start in tqdm(range(0, rows, piece), desc=label, disable=label is None):
        target[start : start + piece] = source[start : start + piece]


def _store(path: Path, arrays: Mapping[str, np.ndarray], metadata: Mapping[str, Any]) -> Store:
    prefix = "observations/"
    ends = np.asarray(arrays["episode_ends"], np.int64)
    return Store(
        observations={name.removeprefix(prefix): a for name, a in arrays.items() if name.startswith(prefix)},
        actions=arrays["actions"],
        rewards=arrays["rewards"],
        terminals=arrays["terminals"],
        timeouts=arrays["timeouts"],
        episode_ends=ends,
        attributes=metadata,
        path=path,
    )


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
