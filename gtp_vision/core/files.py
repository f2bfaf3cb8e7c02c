"""Careful file handling that all formats share: written aside and renamed, fingerprinted, cached once."""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

import psutil

from gtp_vision.core import sandbox
from gtp_vision.core.errors import GtpVisionError

_CACHE_GB = 200.0
_SAMPLE = 1 << 20  # a fingerprint reads this much at both ends of a file
_STEM = 40  # characters of a source's name in its entry's: in any alphabet a file system takes the whole
_ABANDONED = 3600.0  # seconds without a write after which whoever unpacked was killed

T = TypeVar("T")


def cache_dir() -> Path:
    """Where converted data sets live: $GTP_VISION_CACHE, else gtp-vision under $XDG_CACHE_HOME or ~/.cache."""
    chosen = os.environ.get("GTP_VISION_CACHE")
    if chosen:
        return Path(chosen).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser() / "gtp-vision"


def cached(path: Path, *key: str) -> Path:
    """The place in the cache of what is made of a file or folder: its name holds their `fingerprint`.

    Args:
        path: file or folder.
        *key: what the result depends on beside the content.

    Raises:
        GtpVisionError: the cache cannot be written.
    """
    folder = cache_dir()
    existing = folder
    while not existing.exists() and existing != existing.parent:
        existing = existing.parent
    if not existing.is_dir() or not os.access(existing, os.W_OK):
        raise GtpVisionError(f"the cache {folder} cannot be written; set GTP_VISION_CACHE to a folder that can")
    return folder / f"{path.stem[:_STEM]}-{fingerprint(path, *key)}.h5"


def from_cache(target: Path, read: Callable[[], T], make: Callable[[], None]) -> T:
    """What an entry of the cache holds, made first where there is none, or a damaged one.

    Args:
        target: the entry.
        read: reads it.
        make: makes it.
    """
    if target.exists():
        touch(target)
        with contextlib.suppress(GtpVisionError, OSError, ValueError, KeyError):  # damaged, or evicted just now
            return read()
    make()
    return read()


def touch(path: Path) -> None:
    """Note that an entry of the cache was used, so that others are evicted first."""
    with contextlib.suppress(OSError):
        os.utime(path)


def evict(folder: Path, wanted: int) -> None:
    """Remove the entries of a cache that were not used for longest, until `wanted` bytes more fit its limit.

    An entry that somebody has mapped stays readable for them until they close it. What a killed process left half
    written goes, too.

    Raises:
        GtpVisionError: GTP_VISION_CACHE_SIZE is no number, or less than what is wanted alone.
    """
    limit = _cache_limit()
    if wanted > limit:
        raise GtpVisionError(
            f"{wanted / 1e9:.3g} GB are to be unpacked into the cache {folder}, which may hold {limit / 1e9:.3g} GB; "
            f"set GTP_VISION_CACHE_SIZE to more"
        )
    for used, _, part in _files(folder, ".*.part"):
        process = part.name.split(".")[-2]  # a clock that jumps must not make a living process's work look abandoned
        if time.time() - used > _ABANDONED and not (process.isdigit() and psutil.pid_exists(int(process[-9:]))):
            part.unlink(missing_ok=True)
    entries = sorted(_files(folder, "*.h5"))
    held = sum(size for _, size, _ in entries)
    for _, size, entry in entries:
        if held + wanted <= limit:
            return
        held -= size
        entry.unlink(missing_ok=True)
        for suffix in (".json", ".lock"):  # see datasets.resumable
            entry.with_suffix(suffix).unlink(missing_ok=True)


def _files(folder: Path, pattern: str) -> Iterator[tuple[float, int, Path]]:
    """When each was written or used, its size and path; another process may remove some meanwhile."""
    for path in folder.glob(pattern):
        with contextlib.suppress(FileNotFoundError):
            stat = path.stat()
            yield stat.st_mtime, stat.st_size, path


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
        sandbox.alive()
    return digest.hexdigest()


@contextlib.contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
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
