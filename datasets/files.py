"""Careful file handling that all formats share: written aside and renamed, fingerprinted, cached once."""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from gtp_vision.errors import GtpVisionError

_CACHE_GB = 200.0
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


def touch(path: Path) -> None:
    """Note that an entry of the cache was used, so that others are evicted first."""
    with contextlib.suppress(OSError):
        os.utime(path)


def evict(folder: Path, wanted: int) -> None:
    """Remove the entries of a cache that were not used for longest, until `wanted` bytes more fit its limit.

    An entry that somebody has mapped stays readable for them until they close it.

    Raises:
        GtpVisionError: GTP_VISION_CACHE_SIZE is no number.
    """
    limit = _cache_limit()
    entries = sorted(folder.glob("*.h5"), key=lambda entry: entry.stat().st_mtime)
    held = sum(entry.stat().st_size for entry in entries)
    for entry in entries:
        if held + wanted <= limit:
            return
        held -= entry.stat().st_size
        entry.unlink(missing_ok=True)
        entry.with_suffix(".json").unlink(missing_ok=True)


def _cache_limit() -> float:
    """Bytes that the cache may hold: $GTP_VISION_CACHE_SIZE in GB, else 200 GB."""
    try:
        return 1e9 * float(os.environ.get("GTP_VISION_CACHE_SIZE", _CACHE_GB))
    except ValueError as error:
        raise GtpVisionError(
            f"GTP_VISION_CACHE_SIZE={os.environ['GTP_VISION_CACHE_SIZE']} is no number of GB; set it to one"
        ) from error


def fingerprint(path: Path, *extra: str) -> str:
    """A short name for the content of a file or folder, and `extra` (what is made from it).

    Of each file: its size, its time and both ends.
    """
    digest = hashlib.blake2b(":".join(extra).encode(), digest_size=16)
    files = sorted(file for file in path.rglob("*") if file.is_file()) if path.is_dir() else [path]
    for file in files:
        stat = file.stat()
        digest.update(f"{file.relative_to(path)}:{stat.st_size}:{stat.st_mtime_ns}".encode())
        with file.open("rb") as stream:
            digest.update(stream.read(_SAMPLE))
            stream.seek(max(0, stat.st_size - _SAMPLE))
            digest.update(stream.read(_SAMPLE))
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


def require_space(folder: Path, wanted: int, what: str, mend: str = "set GTP_VISION_CACHE to another disk") -> None:
    """Raise unless the disk below `folder` has room for `wanted` bytes of `what`; `mend` is what else to do."""
    existing = folder
    while not existing.exists():
        existing = existing.parent
    free = shutil.disk_usage(existing).free
    if wanted > free:
        raise GtpVisionError(
            f"{what} needs {wanted / 1e9:.1f} GB in {folder}, where {free / 1e9:.1f} GB are free; make room or {mend}"
        )
