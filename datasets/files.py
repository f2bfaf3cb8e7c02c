"""Careful file handling that all formats share: written aside and renamed, fingerprinted, cached once."""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from gtp_vision.errors import GtpVisionError

_SAMPLE = 1 << 20  # a fingerprint reads this much at both ends of a file


def cache_dir() -> Path:
    """Where converted data sets live: $GTP_VISION_CACHE, else gtp-vision under $XDG_CACHE_HOME or ~/.cache."""
    chosen = os.environ.get("GTP_VISION_CACHE")
    if chosen:
        return Path(chosen).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser() / "gtp-vision"


def cached(name: str) -> Path:
    """The place of a file in the cache, whose folder is made if it can be.

    Raises:
        GtpVisionError: the cache cannot be written.
    """
    folder = cache_dir()
    existing = folder
    while not existing.exists() and existing != existing.parent:
        existing = existing.parent
    if not existing.is_dir() or not os.access(existing, os.W_OK):
        raise GtpVisionError(f"the cache {folder} cannot be written; set GTP_VISION_CACHE to a folder that can")
    return folder / name


def fingerprint(path: Path, *extra: str) -> str:
    """A short name for the content of a file: its size, time, both ends, and `extra` (what is made from it)."""
    stat = path.stat()
    digest = hashlib.blake2b(f"{stat.st_size}:{stat.st_mtime_ns}:{':'.join(extra)}".encode(), digest_size=16)
    with path.open("rb") as file:
        digest.update(file.read(_SAMPLE))
        file.seek(max(0, stat.st_size - _SAMPLE))
        digest.update(file.read(_SAMPLE))
    return digest.hexdigest()


@contextlib.contextmanager
def written_aside(path: Path) -> Iterator[Path]:
    """A temporary name beside `path`, synchronised and renamed to `path` when the block ends well.

    When it ends badly the temporary file is removed and whatever stood at `path` is untouched.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        yield aside
        with aside.open("rb") as file:
            os.fsync(file.fileno())
        os.replace(aside, path)
    finally:
        aside.unlink(missing_ok=True)


def require_space(folder: Path, wanted: int, what: str) -> None:
    """Raise unless the disk below `folder` has room for `wanted` bytes of `what`."""
    existing = folder
    while not existing.exists():
        existing = existing.parent
    free = shutil.disk_usage(existing).free
    if wanted > free:
        raise GtpVisionError(
            f"{what} needs {wanted / 1e9:.1f} GB in {folder}, where {free / 1e9:.1f} GB are free; "
            f"make room or set GTP_VISION_CACHE to another disk"
        )
