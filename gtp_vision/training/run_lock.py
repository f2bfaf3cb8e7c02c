"""The lock that lets one training into a run folder, and the removal of what killed processes left there."""

from __future__ import annotations

import contextlib
import os
import platform
import re
import shutil
import sys
import time
from pathlib import Path

import psutil
import torch
from accelerate.utils import gather_object

from gtp_vision.core.errors import GtpVisionError
from gtp_vision.core.locks import FileLock
from gtp_vision.core.progress import Progress
from gtp_vision.training.ranks import is_first

_LOCK = ".lock"
_SEEN_AFTER = 60.0  # seconds; network file systems remember for half a minute that a file is missing
_TEMPORARY = re.compile(r"\.(?P<name>.+)\.(?P<process>\d+)\.(part|link|old)")


class RunLock:
    """A run folder that this process locks against other trainings, from `enter` to the end of the `with` block.

    Of several processes of one training the first holds the lock.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._lock = FileLock(folder / _LOCK, f"trains in {folder}", "choose another run_dir=...")

    def __enter__(self) -> RunLock:
        return self

    def __exit__(self, *_: object) -> None:
        self._lock.release()

    def enter(self) -> None:
        """Make the folder if it is missing, lock it (once), and remove temporary files of killed processes from it.

        Raises GtpVisionError: another training runs in it, or it cannot be written.
        """
        if self._lock.is_held or not is_first():
            return
        folder = self._folder
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._lock.acquire()
            removed = [path for run in (folder, *folder.glob("seed_*")) for path in remove_leftovers(run)]
        except OSError as error:
            raise GtpVisionError(
                f"the run folder {folder} cannot be written ({error}); choose another run_dir=..."
            ) from error
        if removed:
            names = ", ".join(str(path.relative_to(folder)) for path in removed[:3])
            Progress.write(f"removed temporary files of a killed process: {names}", file=sys.stderr)

    def check_shared(self) -> None:
        """Check that all processes see the folder that the first has entered. All call this together, after `enter`.

        Raises GtpVisionError, in all of them: the folder of another machine is another one.
        """
        if not torch.distributed.is_initialized():
            return
        first = [self._text()]
        torch.distributed.broadcast_object_list(first)
        ends = time.monotonic() + _SEEN_AFTER
        while (is_seen := self._text() == first[0]) is False and time.monotonic() < ends:
            time.sleep(0.5)
        if blind := list(filter(None, gather_object(["" if is_seen else platform.node()]))):
            raise GtpVisionError(
                f"the run folder {self._folder} of the first process ({first[0]}) is another one, or missing, on "
                f"{', '.join(dict.fromkeys(blind))}; set run_dir to a folder that all machines share"
            )

    def _text(self) -> str:
        """What the lock's holder wrote into it."""
        with contextlib.suppress(OSError):
            os.listdir(self._folder)  # has a network file system look again for files that it did not find before
            return (self._folder / _LOCK).read_text(errors="replace")[:100].strip()
        return ""


def clear_folder(folder: Path) -> None:
    """Remove everything from a folder but its lock."""
    for path in folder.iterdir():
        if path.name != _LOCK:
            _remove(path)


def remove_leftovers(folder: Path) -> list[Path]:
    """Remove, and return, temporary files of processes that no longer run, also from `checkpoints` and `replay`.

    A checkpoint that was moved away for a new one of the same step, which was then never written, is moved back.
    """
    removed = []
    for place in (folder, folder / "checkpoints", folder / "replay"):
        for path in sorted(place.glob(".*")):
            match = _TEMPORARY.fullmatch(path.name)
            if match is None or psutil.pid_exists(int(match["process"][-9:])):
                continue
            if path.suffix == ".old" and not (place / match["name"]).exists():
                path.rename(place / match["name"])
            else:
                _remove(path)
            removed.append(path)
    return removed


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()
