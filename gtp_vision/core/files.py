"""Atomic writes, fingerprints of files, and the cache of converted data sets."""

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
_STEM = 40  # characters of a source's name in that of its entry; in any alphabet short enough for a file name
LABELS = ".labels.json"
"""End of the name of a file with labels of the episodes of a data set, see `datasets.labels`."""
_CLUTTER_BEGINS = (".", "~$", "#")  # of macOS, Jupyter, editors and network drives
_CLUTTER_ENDS = (
    *("~", ".lock", ".swp", ".bak", ".tmp", ".part", ".partial", ".crdownload", ".download", ".incomplete"),
    LABELS,
)
_POINTER = b"version https://git-lfs"
_ABANDONED = 3600.0  # seconds without a write after which the writer counts as killed

T = TypeVar("T")


def cache_dir() -> Path:
    """The folder of converted data sets: $GTP_VISION_CACHE, else gtp-vision under $XDG_CACHE_HOME or ~/.cache."""
    if chosen := os.environ.get("GTP_VISION_CACHE"):
        return Path(os.path.expanduser(chosen))
    return Path(os.path.expanduser(os.environ.get("XDG_CACHE_HOME", "~/.cache"))) / "gtp-vision"


def cached(path: Path, *key: str) -> Path:
    """The entry of the cache for a result computed from a file or folder and `key`.

    Raises GtpVisionError: the cache cannot be written.
    """
    folder = cache_dir()
    existing = _existing(folder)
    if not existing.is_dir() or not os.access(existing, os.W_OK):
        raise GtpVisionError(f"the cache {folder} cannot be written; set GTP_VISION_CACHE to a folder that can")
    return folder / f"{path.stem[:_STEM]}-{fingerprint(path, *key)}.h5"


def from_cache(target: Path, read: Callable[[], T], make: Callable[[], None]) -> T:
    """Read an entry of the cache with `read`; write it with `make` first if it is missing or damaged."""
    if target.exists():
        touch(target)
        with contextlib.suppress(GtpVisionError, OSError, ValueError, KeyError):  # damaged, or evicted just now
            return read()
    make()
    return read()


def touch(path: Path) -> None:
    """Mark an entry of the cache as used, so that others are evicted first."""
    with contextlib.suppress(OSError):
        os.utime(path)


def evict(folder: Path, wanted: int, advice: str = "") -> None:
    """Remove the least recently used entries of a cache until `wanted` more bytes fit its limit.

    Processes that have an entry mapped can read it until they close it. Temporary files of killed processes are
    removed, too. `advice` is what else can be set, for the message.

    Raises:
        GtpVisionError: GTP_VISION_CACHE_SIZE is not a number, or less than `wanted`.
    """
    limit = _cache_limit()
    if wanted > limit:
        raise GtpVisionError(
            f"{wanted / 1e9:.3g} GB do not fit the cache {folder}, whose limit is {limit / 1e9:.3g} GB; "
            f"set {advice}GTP_VISION_CACHE_SIZE to more"
        )
    for used, _, part in _files(folder, ".*.part"):
        process = part.name.split(".")[-2]  # if the clock jumps, files of running processes must stay
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
    """Time of last use, size and path of each file; another process may remove some meanwhile."""
    for path in folder.glob(pattern):
        with contextlib.suppress(FileNotFoundError):
            stat = path.stat()
            yield stat.st_mtime, stat.st_size, path


def _cache_limit() -> float:
    """The limit of the cache in bytes: $GTP_VISION_CACHE_SIZE in GB, else 200 GB."""
    try:
        return 1e9 * float(os.environ.get("GTP_VISION_CACHE_SIZE", _CACHE_GB))
    except ValueError as error:
        raise GtpVisionError(
            f"GTP_VISION_CACHE_SIZE={os.environ['GTP_VISION_CACHE_SIZE']} is not a number; set it to GB"
        ) from error


def is_clutter(name: str) -> bool:
    """Whether a name is that of a hidden file, a lock, a backup, a partial download or labels: of no data set."""
    return name.startswith(_CLUTTER_BEGINS) or name.endswith(_CLUTTER_ENDS)


def data_files(folder: Path, pattern: str) -> Iterator[Path]:
    """Yield what matches a glob pattern below a folder, without clutter and what lies in folders of such a name."""
    for path in folder.glob(pattern):
        if not any(map(is_clutter, path.relative_to(folder).parts)):
            yield path


def lfs_pointer(path: Path) -> str | None:
    """Say what to do about a file that is a Git LFS pointer, whose content was not fetched; None for other files."""
    with path.open("rb") as file:
        if file.read(len(_POINTER)) != _POINTER:
            return None
    return f"it is a pointer of Git LFS and not the data: run 'git lfs install && git lfs pull' in {path.parent}"


def fingerprint(path: Path, *extra: str) -> str:
    """A hash of a file or folder (name, size, time and both ends of each file) and of `extra`."""
    digest = hashlib.blake2b(":".join(extra).encode(), digest_size=16)
    files = sorted(file for file in data_files(path, "**/*") if file.is_file()) if path.is_dir() else [path]
    for file in files:
        stat = file.stat()
        digest.update(f"{file.relative_to(path)}:{stat.st_size}:{stat.st_mtime_ns}".encode())
        with file.open("rb") as stream:
            digest.update(stream.read(_SAMPLE))
            stream.seek(max(0, stat.st_size - _SAMPLE))
            digest.update(stream.read(_SAMPLE))
        sandbox.heartbeat()
    return digest.hexdigest()


@contextlib.contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Yield a temporary path, which is flushed to the disk and renamed to `path` at the end of the block.

    If the block raises, the temporary file is removed and `path` is untouched.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        yield temporary
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def make_folder(folder: Path) -> None:
    """Create a folder for results, or raise a GtpVisionError."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise GtpVisionError(f"{folder} cannot be created ({error.strerror}); choose another --out") from error


def require_space(folder: Path, wanted: int, what: str, advice: str = "set GTP_VISION_CACHE to another disk") -> None:
    """Raise unless the disk of `folder` has room for `wanted` bytes of `what`."""
    free = shutil.disk_usage(_existing(folder)).free
    if wanted > free:
        raise GtpVisionError(
            f"{what} needs {wanted / 1e9:.1f} GB in {folder}, where {free / 1e9:.1f} GB are free; make room or {advice}"
        )


def _existing(folder: Path) -> Path:
    """The folder, or the nearest one above it that exists."""
    return next((parent for parent in (folder, *folder.parents) if parent.exists()), folder)
