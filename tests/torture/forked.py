"""`gtp-vision` in processes of its own, at little cost: a fork of one that has imported everything already.

A fork is a process like any other to the kernel that kills it, and to the disk that it leaves half written. A few
kills are of processes that were started from nothing (`started`), which takes some seconds each.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

_MARK = "GTP_VISION_TORTURE"  # in the environment of every process that a victim starts
_GONE = 5.0  # seconds after which a process that a dead one has left is an orphan


class FailedError(Exception):
    """What should never happen did."""


@dataclass
class Victim:
    """A process that is about to suffer.

    Attributes:
        process: its number.
        told: file with all that it says.
        mark: by which those are known that it starts.
        began: when it was started, see `time.monotonic`.
    """

    process: int
    told: Path
    mark: str
    began: float
    status: int | None = None

    def ended(self) -> bool:
        """Whether it has."""
        if self.status is None:
            done, status = os.waitpid(self.process, os.WNOHANG)
            self.status = os.waitstatus_to_exitcode(status) if done else None
        return self.status is not None

    def wait(self, seconds: float = 300.0) -> int:
        """Its exit status, minus the signal if one killed it.

        Raises:
            FailedError: it did not end.
        """
        while not self.ended():
            if time.monotonic() - self.began > seconds:
                self.kill()
                raise FailedError(f"process {self.process} did not end within {seconds:g} s: {self.last_words()}")
            time.sleep(0.005)
        assert self.status is not None
        return self.status

    def kill(self, number: int = signal.SIGKILL) -> None:
        """Send it a signal, and if that is SIGKILL wait for its end."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.process, number)
        if number == signal.SIGKILL:
            while not self.ended():
                time.sleep(0.001)

    def last_words(self) -> str:
        """The last line that it said."""
        lines = self.told.read_text(errors="replace").replace("\r", "\n").split("\n")
        return next((line for line in reversed(lines) if line.strip()), "")

    def check(self, status: int) -> None:
        """It ended so, with a sentence if that is 2, without a traceback, and left nobody behind.

        Raises:
            FailedError: it did not.
        """
        found, said = self.wait(), self.told.read_text(errors="replace")
        if found != status:
            raise FailedError(f"status {found} where {status} belongs: {said[-2000:]}")
        if status == 2 and not any(line.startswith("gtp-vision: ") for line in said.split("\n")):
            raise FailedError(f"it ended without a sentence: {said[-2000:]}")
        if "Traceback (most recent call last)" in said:
            raise FailedError(f"a traceback: {said[-3000:]}")
        self.check_alone()

    def check_alone(self) -> None:
        """Nobody whom it started outlives it.

        Raises:
            FailedError: somebody does.
        """
        ends = time.monotonic() + _GONE
        while left := marked(self.mark):
            if time.monotonic() > ends:
                for process in left:
                    process.kill()
                raise FailedError(f"{len(left)} processes outlive the one that started them")
            time.sleep(0.02)


def marked(mark: str) -> list[psutil.Process]:
    """The living processes that were started by a victim, or by whom it started."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.status() != psutil.STATUS_ZOMBIE and process.environ().get(_MARK) == mark:
                found.append(process)
    return found


def forked(
    words: Sequence[str],
    told: Path,
    *,
    before: Callable[[], None] = lambda: None,
    environment: Mapping[str, str] | None = None,
) -> Victim:
    """`gtp-vision WORDS` in a fork of this process.

    Args:
        words: of the command line.
        told: file that gets all that it says.
        before: is called in it first; how faults get into it.
        environment: variables that it has beside this process's.
    """
    mark = f"{told}:{time.monotonic_ns()}"
    process = os.fork()
    if process:
        return Victim(process, told, mark, time.monotonic())
    status = 70
    try:
        os.setsid()
        handle = os.open(told, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
        os.dup2(handle, 1)
        os.dup2(handle, 2)
        os.environ.update({_MARK: mark, "TQDM_DISABLE": "1", **(environment or {})})
        from gtp_vision.cli.main import main

        entry = sys.modules["__main__"]  # which simulators' processes would import: theirs is the command's, not ours
        entry.__spec__, entry.__file__ = None, None
        before()
        status = main(words)
    except SystemExit as error:
        status = error.code if isinstance(error.code, int) else 1
    except BaseException:  # as the interpreter would
        traceback.print_exc()
        status = 1
    finally:
        with contextlib.suppress(OSError, ValueError):
            sys.stdout.flush()
            sys.stderr.flush()
        _tidy()
        os._exit(status)


def _tidy() -> None:
    """What the interpreter's exit would do of what matters here."""
    from gtp_vision.core import sandbox

    with contextlib.suppress(Exception):
        sandbox.stop()


def started(words: Sequence[str], told: Path) -> Victim:
    """`gtp-vision WORDS`, started from nothing, as a person would."""
    mark = f"{told}:{time.monotonic_ns()}"
    with told.open("wb") as file:
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", "gtp_vision", *words],
            stdout=file,
            stderr=subprocess.STDOUT,
            env=os.environ | {_MARK: mark, "TQDM_DISABLE": "1"},
            start_new_session=True,
        )
    process.returncode = 0  # it is this module that waits for it
    return Victim(process.pid, told, mark, time.monotonic())


def on_event(folder: Path, act: Callable[[str, str], None]) -> None:
    """Call `act` with what is about to happen to a path in `folder`: opened to write, mkdir, rename, remove, symlink.

    From now on, in this process, for ever: Python's audit hooks cannot be removed.

    Args:
        folder: in which paths are watched.
        act: is given the event's name and the path.
    """
    inside, busy = str(folder), False

    def see(event: str, arguments: tuple) -> None:
        nonlocal busy
        if event not in _EVENTS or busy:
            return
        path = os.fsdecode(arguments[_EVENTS[event]]) if not isinstance(arguments[0], int) else ""
        if event == "open" and not (arguments[2] or 0) & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
            return
        if path.startswith(inside):
            busy = True
            try:
                act(event, path)
            finally:
                busy = False

    sys.addaudithook(see)


_EVENTS = {"open": 0, "os.mkdir": 0, "os.rename": 1, "os.remove": 0, "os.rmdir": 0, "os.symlink": 1}
