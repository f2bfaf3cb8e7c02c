"""`gtp-vision` in processes of its own: forks of this process, which begin at once, or started as a user does."""

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
_ORPHAN = 5.0  # seconds after which a process that outlives its parent counts as left behind
_EVENTS = {"open": 0, "os.mkdir": 0, "os.rename": 1, "os.remove": 0, "os.rmdir": 0, "os.symlink": 1}  # path's argument


class FailedError(Exception):
    """A run or a process did not end as it should."""


@dataclass
class Victim:
    """A process to kill or disturb: its id, its log, the mark of its descendants, and its start (`time.monotonic`)."""

    process: int
    log: Path
    mark: str
    began: float
    status: int | None = None

    def ended(self) -> bool:
        """Whether it has ended."""
        if self.status is None:
            done, status = os.waitpid(self.process, os.WNOHANG)
            self.status = os.waitstatus_to_exitcode(status) if done else None
        return self.status is not None

    def wait(self, seconds: float = 300.0) -> int:
        """Its exit status, or minus the signal that killed it."""
        while not self.ended():
            if time.monotonic() - self.began > seconds:
                self.kill()
                raise FailedError(f"process {self.process} did not end within {seconds:g} s: {self.last_line()}")
            time.sleep(0.005)
        assert self.status is not None
        return self.status

    def kill(self, number: int = signal.SIGKILL) -> None:
        """Send it a signal; after SIGKILL wait for its end."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.process, number)
        while number == signal.SIGKILL and not self.ended():
            time.sleep(0.001)

    def last_line(self) -> str:
        """The last line of its log."""
        lines = self.log.read_text(errors="replace").replace("\r", "\n").split("\n")
        return next((line for line in reversed(lines) if line.strip()), "")

    def check(self, status: int) -> None:
        """Require this exit status, an error message if it is 2, no traceback, and no process left behind."""
        actual, text = self.wait(), self.log.read_text(errors="replace")
        has_message = any(line.startswith("gtp-vision: ") for line in text.split("\n"))
        if actual != status or (status == 2 and not has_message) or "Traceback (most recent call last)" in text:
            raise FailedError(f"status {actual}, and not {status} with a message and no traceback: {text[-3000:]}")
        self.check_alone()

    def check_alone(self) -> None:
        """Require that no process outlives the one that started it."""
        ends = time.monotonic() + _ORPHAN
        while left := descendants(self.mark):
            if time.monotonic() > ends:
                for process in left:
                    process.kill()
                raise FailedError(f"{len(left)} processes outlive the one that started them")
            time.sleep(0.02)


def descendants(mark: str) -> list[psutil.Process]:
    """The running processes that a victim, or one of its own, has started."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.status() != psutil.STATUS_ZOMBIE and process.environ().get(_MARK) == mark:
                found.append(process)
    return found


def redirect(log: Path) -> None:
    """Append this process's output to a file from now on."""
    handle = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(handle, 1)
    os.dup2(handle, 2)


def forked(
    words: Sequence[str],
    log: Path,
    *,
    before: Callable[[], None] = lambda: None,
    environment: Mapping[str, str] | None = None,
) -> Victim:
    """Run `gtp-vision WORDS` in a fork of this process, which calls `before` first, to prepare a fault."""
    import torch._dynamo  # noqa: F401  # once for all forks, whose main module has no file, which its import reads

    mark = f"{log}:{time.monotonic_ns()}"
    process = os.fork()
    if process:
        return Victim(process, log, mark, time.monotonic())
    status = 1
    try:
        os.setsid()
        redirect(log)
        os.environ.update({_MARK: mark, "TQDM_DISABLE": "1", **(environment or {})})
        from gtp_vision.cli.main import main

        entry = sys.modules["__main__"]  # processes of simulators import it: theirs is the command's, not ours
        entry.__spec__, entry.__file__ = None, None
        before()
        status = main(words)
    except SystemExit as error:
        status = error.code if isinstance(error.code, int) else 1
    except BaseException:  # as the interpreter would
        traceback.print_exc()
    finally:
        from gtp_vision.core import sandbox

        with contextlib.suppress(Exception):
            sys.stdout.flush()
            sys.stderr.flush()
            sandbox.stop()  # as the interpreter would at its exit
        os._exit(status)


def started(words: Sequence[str], log: Path) -> Victim:
    """Run `gtp-vision WORDS` as a user would."""
    mark = f"{log}:{time.monotonic_ns()}"
    with log.open("wb") as file:
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", "gtp_vision", *words],
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            env=os.environ | {_MARK: mark, "TQDM_DISABLE": "1"},
        )
    process.returncode = 0  # `Victim` waits for it
    return Victim(process.pid, log, mark, time.monotonic())


def on_event(folder: Path, act: Callable[[str, str], None]) -> None:
    """Call `act(event, path)` before a path in `folder` is changed, from now on: audit hooks cannot be removed."""
    prefix, is_busy = str(folder), False

    def see(event: str, arguments: tuple) -> None:
        nonlocal is_busy
        if event not in _EVENTS or is_busy:
            return
        path = os.fsdecode(arguments[_EVENTS[event]]) if not isinstance(arguments[0], int) else ""
        if event == "open" and not (arguments[2] or 0) & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
            return
        if path.startswith(prefix):
            is_busy = True
            try:
                act(event, path)
            finally:
                is_busy = False

    sys.addaudithook(see)
