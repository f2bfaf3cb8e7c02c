"""File locks that the kernel releases when their process ends, however it ends."""

from __future__ import annotations

import contextlib
import os
import platform
import sys
from pathlib import Path

import filelock

from gtp_vision.core.errors import GtpVisionError
from gtp_vision.core.progress import Progress


class FileLock:
    """A lock file that one process holds at a time. It names its holder, and stays on the disk after its release.

    Args:
        path: the lock file; its folder must exist.
        activity: what the holder does, to complete "another process ...".
        advice: what a refused process can do, to complete "wait for it, stop it, or ...".
        waits: wait for another holder, and print who that is, instead of failing.
    """

    def __init__(self, path: Path, activity: str, advice: str = "", *, waits: bool = False) -> None:
        self._path, self._activity, self._advice, self._waits = path, activity, advice, waits
        self._lock = filelock.FileLock(path)

    @property
    def is_held(self) -> bool:
        """Whether this object holds the lock."""
        return self._lock.is_locked

    def acquire(self) -> None:
        """Take the lock; to take it twice is to take it once.

        Raises:
            GtpVisionError: another process holds it.
            OSError: the file cannot be written.
        """
        if self.is_held:
            return
        holder = self._holder()  # old versions of filelock empty the file
        try:
            self._lock.acquire(timeout=0)
        except filelock.Timeout as error:
            if not self._waits:
                advice = f", stop it, or {self._advice}" if self._advice else " or stop it"
                raise GtpVisionError(f"{holder} {self._activity}; wait for it{advice}") from error
            Progress.write(f"waiting for {holder}, which {self._activity}", file=sys.stderr)
            self._lock.acquire()
        self._path.write_text(f"{os.getpid()} on {platform.node()}\n")

    def release(self) -> None:
        """Let the next process have it."""
        self._lock.release()

    def __enter__(self) -> FileLock:
        self.acquire()
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    def _holder(self) -> str:
        name = ""
        with contextlib.suppress(OSError):
            name = self._path.read_text(errors="replace")[:100].strip()
        return f"another process ({name})" if name else "another process"
