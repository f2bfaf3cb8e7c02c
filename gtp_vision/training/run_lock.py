"""What a killed process left half written in a run folder, and the lock that lets one training into it."""

from __future__ import annotations

import re
import shutil
import sys
from pathlib import Path

import psutil
from filelock import FileLock, Timeout
from tqdm import tqdm

from gtp_vision.core.errors import GtpVisionError
from gtp_vision.training.ranks import is_first

_LOCK = ".lock"
_ASIDE = re.compile(r"\.(?P<name>.+)\.(?P<process>\d+)\.(part|link|old)")


class RunLock:
    """A run folder that this process holds against other trainings, once it has entered it.

    The kernel frees the lock when the process is gone, however it went. Of several processes of one training the first
    holds it. Entering tells of, and removes, what killed processes have left half written.

    Args:
        folder: of the run.
    """

    def __init__(self, folder: Path) -> None:
        self._folder, self._lock = folder, FileLock(folder / _LOCK)

    def __enter__(self) -> RunLock:
        return self

    def __exit__(self, *_: object) -> None:
        self._lock.release()

    def enter(self) -> None:
        """Hold the folder, which is made if there is none; doing so twice is doing so once.

        Raises:
            GtpVisionError: another training is in it, or it cannot be written.
        """
        if self._lock.is_locked or not is_first():
            return
        folder = self._folder
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._lock.acquire(timeout=0)
            removed = [path for each in (folder, *folder.glob("seed_*")) for path in remove_leftovers(each)]
        except Timeout as error:
            raise GtpVisionError(
                f"another process trains in {folder}; wait for it, stop it, or choose another run_dir=..."
            ) from error
        except OSError as error:
            raise GtpVisionError(
                f"the run folder {folder} cannot be written ({error}); choose another run_dir=..."
            ) from error
        if removed:
            names = ", ".join(str(path.relative_to(folder)) for path in removed[:3])
            tqdm.write(f"removed what a killed process left half written: {names}", file=sys.stderr)


def clear_folder(folder: Path) -> None:
    """Remove what stands in a folder, but for its lock."""
    for path in folder.iterdir():
        if path.name == _LOCK:
            continue
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()


def remove_leftovers(folder: Path) -> list[Path]:
    """Remove what processes that are gone have left half written in a folder and its `checkpoints`; what it was.

    A checkpoint that was put aside for another of the same step, which then never came, is put back.
    """
    removed = []
    for place in (folder, folder / "checkpoints"):
        for path in sorted(place.glob(".*")):
            found = _ASIDE.fullmatch(path.name)
            if found is None or psutil.pid_exists(int(found["process"][-9:])):
                continue
            if path.suffix == ".old" and not (place / found["name"]).exists():
                path.rename(place / found["name"])
            elif path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink()
            removed.append(path)
    return removed
