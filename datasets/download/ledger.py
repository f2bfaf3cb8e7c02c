"""`checksums.json`: what was downloaded into a folder, so that a file that changed later is noticed.

{"files": {"name.hdf5": {"sha256": ..., "size": ..., "url": ..., "date": ...}},
 "sets": {"hf://datasets/owner/name@main": {"commit": ..., "files": ["meta/info.json", ...]}}}
"""

from __future__ import annotations

import hashlib
import json
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from gtp_vision.core.errors import GtpVisionError
from gtp_vision.core.files import atomic_write


@dataclass(frozen=True)
class Entry:
    """What is known of one file.

    Attributes:
        sha256: of its content, hexadecimal.
        size: bytes.
        url: where it came from; empty where somebody put it there.
        date: of the download, YYYY-MM-DD.
    """

    sha256: str
    size: int
    url: str
    date: str


class Ledger:
    """The checksums of one folder.

    Raises:
        GtpVisionError: the folder cannot be written, or its checksums.json is none.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.path = folder / "checksums.json"
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise GtpVisionError(f"{folder} cannot be made ({error.strerror}); name another with --to") from error
        self._read()

    @contextmanager
    def lock(self) -> Iterator[None]:
        """One process at a time downloads into a folder; the others wait and find the files there."""
        import filelock

        held = filelock.FileLock(self.folder / ".download.lock")
        try:
            try:
                held.acquire(timeout=1)
            except filelock.Timeout:
                print(f"waiting for another process, which downloads into {self.folder}", file=sys.stderr)
                held.acquire()
        except OSError as error:
            raise GtpVisionError(
                f"{self.folder} cannot be written ({error.strerror}); name another with --to"
            ) from error
        try:
            yield
        finally:
            held.release()

    def __getitem__(self, name: str) -> Entry | None:
        return self._read()[0].get(name)

    def commit(self, key: str) -> tuple[str, list[str]] | None:
        """The commit and the files of a set that was downloaded whole; None if it was not."""
        return self._read()[1].get(key)

    def verify(self, name: str) -> Entry:
        """Compare a file that is there with what was recorded; record it, if nothing was.

        Raises:
            GtpVisionError: it is another one.
        """
        path, entry = self.folder / name, self[name]
        if entry is None:
            return self.record(name, "")
        came = f"as downloaded on {entry.date}" if entry.url else f"as found on {entry.date}"
        mend = "it is truncated or was changed here since; remove it and download it again"
        size = path.stat().st_size
        if size != entry.size:
            raise GtpVisionError(f"{path} has {size} bytes, but {self.path} says {entry.size}, {came}: {mend}")
        sha256 = digest(path)
        if sha256 != entry.sha256:
            raise GtpVisionError(f"{path} has sha256 {sha256}, but {self.path} says {entry.sha256}, {came}: {mend}")
        return entry

    def record(self, name: str, url: str) -> Entry:
        """Write down a file as it is now."""
        path = self.folder / name
        entry = Entry(digest(path), path.stat().st_size, url, time.strftime("%Y-%m-%d"))
        self.add({name: entry})
        return entry

    def add(self, entries: dict[str, Entry], key: str = "", commit: str = "") -> None:
        """Write down files, and with `key` and `commit` that together they are a whole set."""
        files, sets = self._read()
        if key:
            sets[key] = (commit, sorted(entries))
        told = {
            "files": {name: asdict(entry) for name, entry in sorted((files | entries).items())},
            "sets": {key: {"commit": commit, "files": names} for key, (commit, names) in sorted(sets.items())},
        }
        try:
            with atomic_write(self.path) as aside:
                aside.write_text(json.dumps(told, indent=2) + "\n")
        except OSError as error:
            raise GtpVisionError(
                f"{self.path} cannot be written ({error.strerror}); make room or name another folder with --to"
            ) from error

    def _read(self) -> tuple[dict[str, Entry], dict[str, tuple[str, list[str]]]]:
        try:
            told = json.loads(self.path.read_bytes())
            files = {name: _entry(entry) for name, entry in told["files"].items()}
            sets = {key: (str(each["commit"]), list(map(str, each["files"]))) for key, each in told["sets"].items()}
        except FileNotFoundError:
            return {}, {}
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise GtpVisionError(
                f"{self.path} is no list of checksums ({type(error).__name__}); remove it, "
                f"and what is in the folder now is recorded anew"
            ) from error
        return files, sets


def digest(path: Path, algorithm: str = "sha256", prefix: bytes = b"") -> str:
    """The checksum of a prefix and a file's content, hexadecimal."""
    made = hashlib.new(algorithm, prefix)
    with path.open("rb") as file:
        hashlib.file_digest(file, lambda: made)
    return made.hexdigest()


def _entry(told: dict[str, Any]) -> Entry:
    made = Entry(**{field.name: told[field.name] for field in fields(Entry)})
    if not isinstance(made.size, int) or not all(isinstance(each, str) for each in (made.sha256, made.url, made.date)):
        raise TypeError
    return made
