"""Untrusted zarr stores, version 2 or 3, in a folder or a zip: their arrays are checked before zarr opens them.

A zarr array may name any codec of numcodecs, of which `pickle` executes code: only codecs of numbers and images are
accepted, before zarr sees the array. Chunks that are not stored read as the array's fill value, which zarr's writers
rely on for constant chunks and which a broken copy looks like; `ZarrStore.missing` counts them.
"""

from __future__ import annotations

import contextlib
import math
import os
import re
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from gtp_vision.core import sandbox
from gtp_vision.core.errors import GtpVisionError, first_line
from gtp_vision.core.extras import importing
from gtp_vision.core.files import lfs_pointer
from gtp_vision.core.safe_json import parse_json
from gtp_vision.datasets import hdf5, names, npz
from gtp_vision.datasets.formats import tables

METADATA = (".zarray", "zarr.json")
"""Names of an array's metadata in version 2 and 3."""
_IMAGE_CODECS = "imagecodecs_"
_CODECS = {
    *("blosc", "zstd", "zlib", "gzip", "lz4", "lzma", "bz2", "shuffle", "delta", "bitround", "quantize", "astype"),
    *("fixedscaleoffset", "packbits", "crc32", "crc32c", "adler32", "fletcher32"),
    *("bytes", "transpose", "sharding_indexed", "endian"),
}
_MAX_METADATA = 1 << 20  # bytes
_MAX_COMPRESSION = 40_000  # bytes of one: runs in Zstandard


class ZarrStore:
    """A zarr store whose arrays are checked before zarr opens them.

    Args:
        path: the folder or zip.
        group: what the names of arrays that the user may choose begin with.

    Attributes:
        path: the folder or zip.
        missing: array name to a sentence on its chunks that are not stored.
    """

    def __init__(self, path: Path, group: str) -> None:
        self.path, self.missing = path, dict[str, str]()
        sizes = _sizes(path)
        self._metadata = dict(_documents(path, sizes))
        self._stored = _stored(sizes, self._metadata)
        self._paths = {name: name for name in self._metadata}
        for role, member in names.chosen().items():
            if role in names.ROLES and (place := f"{group}{member}") in self._metadata:
                of_arrays: tuple[dict[str, Any], ...] = (self._metadata, self._stored, self._paths)
                for held in of_arrays:
                    held[f"{group}{role}"] = held.pop(place)
        zarr = _library()
        kind = zarr.storage.ZipStore if path.is_file() else zarr.storage.LocalStore
        self._store = kind(path, read_only=True)
        self._open = zarr.open_array

    def arrays(self, prefix: str) -> list[str]:
        """Return the names of arrays below a group, without the group's name."""
        return [name.removeprefix(prefix) for name in sorted(self._metadata) if name.startswith(prefix)]

    def holds_numbers(self, name: str) -> bool:
        """Whether an array holds numbers and not text, objects or records."""
        version, metadata = self._metadata[name]
        kind = metadata.get("dtype" if version == 2 else "data_type")
        return isinstance(kind, str) and re.fullmatch("[<>|][biuf][0-9]+|(bool|u?int|float)[0-9]*", kind) is not None

    def open(self, name: str) -> Any:
        """Return an array of numbers as zarr opens it; it is as large as it declares."""
        version, metadata = self._metadata[name]
        place = f"{self.path}: '{name}'"
        if not self.holds_numbers(name):
            raise GtpVisionError(f"{place} holds text or objects, wanted numbers; write it again")
        for codec in _codecs(metadata):
            if codec.startswith(_IMAGE_CODECS):
                _image_codecs(place)
            elif codec.removeprefix("numcodecs.") not in _CODECS:
                raise GtpVisionError(
                    f"{place} is stored by the codec {codec[:40]!a}, which is not one of numbers or images; write it "
                    f"again, e.g. with Blosc"
                )
        with self._faults(name):
            array = self._open(store=self._store, path=self._paths[name], mode="r", zarr_format=version)
            shape, chunks = array.shape, array.shards or array.chunks
        if not shape or not all(chunks):
            raise GtpVisionError(f"{place} has shape {shape} in chunks of {chunks}, wanted one or more dimensions")
        count = math.prod(-(-extent // chunk) for extent, chunk in zip(shape, chunks, strict=True))
        held, size = self._stored[name]
        declared = hdf5.nbytes(tuple(chunks), array.dtype) * min(held, count)
        if declared > _MAX_COMPRESSION * size:
            raise GtpVisionError(
                f"{place} declares {declared / 1e9:.3g} GB in chunks of {chunks}, of which {size} bytes are "
                f"stored; copy the whole data set again"
            )
        if held < count:
            self.missing[name] = f"{count - held} of {count} chunks are not stored and read as one value"
        return array

    def numbers(self, name: str, kinds: str, ndim: int, rows: int | None = None) -> np.ndarray:
        """Read an array of some kinds of dtype whole."""
        if name not in self._metadata:
            raise GtpVisionError(f"{self.path} has no '{name}'; write the data set again")
        array = self.open(name)
        if array.dtype.kind not in kinds or array.ndim != ndim or rows not in (None, array.shape[0]):
            wanted = " or ".join(dict.fromkeys(hdf5.KINDS[kind] for kind in kinds))
            raise GtpVisionError(
                f"{self.path}: '{name}' is {array.dtype} {array.shape}, wanted {wanted} in {ndim} dimensions"
                + (f" and {rows} rows, where the last episode ends" if rows is not None else "")
            )
        return self.rows(name, array, 0, array.shape[0])

    def column(self, name: str, rows: int) -> np.ndarray:
        """Read one number a row, (N,); an array (N, 1) is accepted."""
        array = self.open(name)
        if math.prod(array.shape) != rows:
            raise GtpVisionError(f"{self.path}: '{name}' has shape {array.shape}, wanted ({rows},)")
        return self.rows(name, array, 0, array.shape[0]).reshape(rows)

    def rows(self, name: str, array: Any, start: int, stop: int) -> np.ndarray:
        """Read rows of an array that `open` returned."""
        with self._faults(name):
            found = np.asarray(array[start:stop])
        sandbox.heartbeat()
        return found

    @contextmanager
    def _faults(self, name: str) -> Iterator[None]:
        try:
            yield
        except MemoryError as error:
            raise GtpVisionError(
                f"{self.path}: a chunk of '{name}' does not fit into memory; write it in chunks of a few frames"
            ) from error
        except Exception as error:  # zarr and the codecs raise errors of many types for damaged chunks
            reason = first_line(error) or type(error).__name__
            files = (file for file in (self.path / self._paths[name]).rglob("*") if file.is_file())
            pointer = next(filter(None, map(lfs_pointer, files)), "it is damaged or not complete; copy it again")
            raise GtpVisionError(f"{self.path}: '{name}' cannot be read ({reason}): {pointer}") from error


def _codecs(metadata: Mapping[str, Any]) -> Iterator[str]:
    """Yield the names of all codecs of an array, also those inside others."""
    todo: list[Any] = [metadata.get(name) for name in ("compressor", "filters", "codecs", "storage_transformers")]
    while todo:
        value = todo.pop()
        if isinstance(value, dict):
            yield from (str(value[key]) for key in ("id", "name") if key in value)
            todo += value.values()
        elif isinstance(value, list):
            todo += value


def _documents(path: Path, sizes: Mapping[str, int]) -> Iterator[tuple[str, tuple[int, dict[str, Any]]]]:
    """Yield the names of arrays, each with the version of its metadata and these."""
    with contextlib.nullcontext() if path.is_dir() else npz.open_archive(path, "a zip of zarr") as archive:
        for key, size in sizes.items():
            name, _, kind = key.rpartition("/")
            if kind not in METADATA or (kind == METADATA[1] and f"{name}/{METADATA[0]}" in sizes):
                continue
            if size > _MAX_METADATA:
                raise GtpVisionError(f"{path}: '{key}' has {size} bytes; write the data set again")
            content = (path / key).read_bytes() if archive is None else archive.read(key)
            found = parse_json(content, f"{path}: '{key}'", advice="copy the data set again")
            if kind == METADATA[0] or found.get("node_type") == "array":
                yield name, (2 + METADATA.index(kind), found)


def _stored(sizes: Mapping[str, int], arrays: Collection[str]) -> dict[str, tuple[int, int]]:
    """Return the number of chunks that are stored of each array, and their bytes."""
    found = dict.fromkeys(arrays, (0, 0))
    for key, size in sizes.items():
        place, _, name = key.rpartition("/")
        while place and place not in found and not name.startswith("."):
            place = place.rpartition("/")[0]
        if place in found and not name.startswith((".", METADATA[1])):
            found[place] = (found[place][0] + 1, found[place][1] + size)
    return found


def _sizes(path: Path) -> dict[str, int]:
    """Return the bytes of everything that a store holds, by its key; links must not lead out of a folder."""
    if path.is_file():
        with npz.open_archive(path, "a zip of zarr") as archive:
            return {member.filename: member.file_size for member in archive.infolist() if not member.is_dir()}
    found = {}
    for folder, inner, files in os.walk(path):
        for name in (*inner, *files):
            inside = os.path.join(folder, name)
            key = os.path.relpath(inside, path).replace(os.sep, "/")
            if os.path.islink(inside):
                tables.inside(path, key)
            if name in files:
                found[key] = os.path.getsize(inside)
        sandbox.heartbeat()
    return found


@cache
def _library() -> Any:
    """Import zarr, and start its threads, whose stacks would count for the memory limit of a file."""
    with sandbox.unlimited_memory():
        with importing("zarr", "a zarr store"):
            import zarr
            from numcodecs import blosc
        blosc.set_nthreads(1)
        zarr.config.set({"async.concurrency": 1, "threading.max_workers": 1})
        _ = zarr.array(np.zeros(9), store=zarr.storage.MemoryStore())[:]
    return zarr


def _image_codecs(place: str) -> None:
    with importing("umi", f"{place}, stored as images (UMI's JPEG XL),"):
        from imagecodecs import numcodecs
    numcodecs.register_codecs()
