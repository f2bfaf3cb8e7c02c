"""Processes that run Python modules, and end with their parent."""

from __future__ import annotations

import contextlib
import ctypes
import os
import runpy
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

_PR_SET_PDEATHSIG = 1  # of linux/prctl.h
_POLL_SECONDS = 0.2


def end_with_parent(parent: int, number: int = signal.SIGKILL, *, can_use_kernel: bool = True) -> None:
    """Have this process receive a signal when its parent ends, however that ends.

    Args:
        parent: process id of the parent.
        number: the signal.
        can_use_kernel: let Linux send it, which also ends a process that hangs. Linux counts the end of the *thread*
            that started this process, so it must be one that lives as long as the parent.
    """
    if can_use_kernel and sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, number)
        if os.getppid() != parent:  # it ended before the kernel was asked
            os.kill(os.getpid(), number)
    else:
        threading.Thread(target=_watch_parent, args=(parent, number), daemon=True).start()


def _watch_parent(parent: int, number: int) -> None:
    while os.getppid() == parent:
        time.sleep(_POLL_SECONDS)
    os.kill(os.getpid(), number)


def start(
    module: str,
    *arguments: str,
    environment: Mapping[str, str | None] | None = None,
    log: Path | None = None,
    **options: Any,
) -> subprocess.Popen:
    """Start `python -m module arguments`, which gets SIGTERM when this process ends.

    Args:
        module: run as `__main__`.
        *arguments: of its command line.
        environment: variables beside those of this process; None removes one.
        log: file that stdout and stderr are appended to.
        **options: of `subprocess.Popen`, e.g. `start_new_session=True`, without which Ctrl-C reaches the process, too.
    """
    changed = {**os.environ, **(environment or {})}
    is_main_thread = threading.current_thread() is threading.main_thread()
    parent = [str(os.getpid()), str(int(is_main_thread))]
    with contextlib.ExitStack() as stack:
        if log is not None:
            options |= {"stdout": stack.enter_context(log.open("ab")), "stderr": subprocess.STDOUT}
        return subprocess.Popen(
            [sys.executable, "-P", "-m", "gtp_vision.core.processes", *parent, module, *arguments],
            env={name: value for name, value in changed.items() if value is not None},
            **options,
        )


def stop(process: subprocess.Popen, seconds: float | None = 10.0) -> None:
    """End a process: SIGTERM, and SIGKILL if it still runs after `seconds` (None waits for as long as it takes)."""
    process.terminate()
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


if __name__ == "__main__":  # what `start` runs
    end_with_parent(int(sys.argv[1]), signal.SIGTERM, can_use_kernel=sys.argv[2] == "1")
    sys.argv = sys.argv[3:]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
