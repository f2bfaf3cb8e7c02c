"""`checksums.json`: what was downloaded into a folder, so that a file that changed later is noticed.

{"files": {"name.hdf5": {"sha256": ..., "size": ..., "url": ..., "date": ...}},
 "sets": {"hf://datasets/owner/name@main": {"commit": ..., "files": ["meta/info.json", ...]}}}
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from gtp_vision.core.errors import GtpVisionError
from gtp_vision.core.files import atomic_write
from gtp_vision.core.locks import FileLock


@dataclass(frozen=True)
class Entry:
    """A file: SHA-256 of its content, bytes, address (empty if the user put it there), and date of the download."""

    sha256: str
    size: int
    url: str
    date: str

    def __post_init__(self) -> None:
        if not isinstance(self.size, int) or not all(isinstance(x, str) for x in (self.sha256, self.url, self.date)):
            raise TypeError("a value of another type")

    @classmethod
    def of(cls, path: Path, url: str) -> Entry:
        """The entry of a file as it is now."""
        return cls(digest(path), path.stat().st_size, url, time.strftime("%Y-%m-%d"))


class Ledger:
    """The checksums of one folder, which is locked in the `with` block.

    Raises:
        GtpVisionError: the folder cannot be written, or its checksums.json is damaged.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.path = folder, folder / "checksums.json"
        self.files: dict[str, Entry] = {}
        self.sets: dict[str, tuple[str, list[str]]] = {}
        self._lock = FileLock(folder / ".download.lock", f"downloads into {folder}", waits=True)

    def __enter__(self) -> Ledger:
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._lock.acquire()
            if self.path.exists():
                document = json.loads(self.path.read_bytes())
                self.files = {name: Entry(**entry) for name, entry in document["files"].items()}
                stored = document["sets"].items()
                self.sets = {key: (str(entry["commit"]), list(map(str, entry["files"]))) for key, entry in stored}
        except OSError as error:
            raise GtpVisionError(f"{self.folder} cannot be written ({error}); choose another with --to") from error
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise GtpVisionError(
                f"{self.path} is not a list of checksums ({type(error).__name__}); remove it to record the files again"
            ) from error
        return self

    def __exit__(self, *_: object) -> None:
        self._lock.release()

    def verify(self, name: str) -> Entry:
        """Compare a file with its entry; record it if there is none. Raises GtpVisionError: they differ."""
        path = self.folder / name
        if name not in self.files:
            self.add({name: Entry.of(path, "")})
        entry, size = self.files[name], path.stat().st_size
        sha256 = digest(path) if size == entry.size else ""
        if sha256 != entry.sha256:
            here, recorded = (sha256, entry.sha256) if sha256 else (f"{size} bytes", f"{entry.size} bytes")
            raise GtpVisionError(
                f"{path} has {here}, but {self.path} has {recorded}, as {'downloaded' if entry.url else 'found'} on "
                f"{entry.date}: it is truncated or was changed since; remove it and download it again"
            )
        return entry

    def add(self, entries: Mapping[str, Entry], key: str = "", commit: str = "") -> None:
        """Record files, and with `key` and `commit` that together they are a complete set."""
        self.files |= entries
        if key:
            self.sets[key] = (commit, sorted(entries))
        document = {
            "files": {name: asdict(entry) for name, entry in sorted(self.files.items())},
            "sets": {key: {"commit": commit, "files": names} for key, (commit, names) in sorted(self.sets.items())},
        }
        with atomic_write(self.path) as temporary:
            temporary.write_text(json.dumps(document, indent=2) + "\n")


def digest(path: Path, algorithm: str = "sha256", prefix: bytes = b"") -> str:
    """The checksum of a prefix and a file's content, hexadecimal."""
    checksum = hashlib.new(algorithm, prefix)
    with path.open("rb") as file:
        hashlib.file_digest(file, lambda: checksum)
    return checksum.hexdigest()
