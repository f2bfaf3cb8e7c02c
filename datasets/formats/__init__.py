"""Readers: one on-disk format a file, each turning files into a Store. `open_store` finds the right one."""

from __future__ import annotations

from pathlib import Path

from gtp_vision.datasets.formats import native, ogbench
from gtp_vision.datasets.store import Store
from gtp_vision.errors import GtpVisionError


def detect(path: Path) -> str:
    """The format of a file by its content: `native` or `ogbench`.

    Raises:
        GtpVisionError: no such file, or none of the known formats.
    """
    if not path.is_file():
        raise GtpVisionError(f"there is no data set file at {path}; check the path")
    with path.open("rb") as file:
        magic = file.read(8)
    if magic[:4] == b"PK\x03\x04":
        return "ogbench"
    if magic == b"\x89HDF\r\n\x1a\n":
        return "native"
    raise GtpVisionError(
        f"{path} is of no known format (it begins with {magic[:4]!r}); known: gtp-vision HDF5 and OGBench npz"
    )


def open_store(path: Path, env: str | None = None) -> Store:
    """Open a data set of any known format.

    Args:
        path: the file.
        env: environment name, for formats whose rewards depend on the task (OGBench).
    """
    kind = detect(path)
    if kind == "native":
        return native.read(path)
    return ogbench.read(path, env or path.stem)


__all__ = ["detect", "native", "ogbench", "open_store"]
