"""Stop requests, to a long loop and to everything else."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)


@contextmanager
def stop_requested() -> Iterator[Callable[[], bool]]:
    """Yield a function that returns whether one of `_SIGNALS` has come; a second SIGINT interrupts at once.

    SLURM sends SIGTERM at the end of a job, and SIGUSR1 before it with `--signal=USR1@90`; submitit has SIGUSR2 sent.
    A process that `processes.start` started gets SIGTERM when its parent ends.
    """
    is_requested = False

    def handle(number: int, frame: FrameType | None) -> None:
        nonlocal is_requested
        if is_requested and number == signal.SIGINT:
            raise KeyboardInterrupt
        is_requested = True

    before = {number: signal.signal(number, handle) for number in _SIGNALS}
    try:
        yield lambda: is_requested
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def sigterm_interrupts() -> Iterator[None]:
    """Let SIGTERM do what Ctrl-C does, where nothing handles it: half-written files go, and it is said."""
    if threading.current_thread() is not threading.main_thread() or signal.getsignal(signal.SIGTERM) != signal.SIG_DFL:
        yield
        return

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
