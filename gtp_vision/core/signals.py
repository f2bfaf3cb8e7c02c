"""How a long loop is asked to stop: by a signal, or because who started it is gone."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

PARENT = "GTP_VISION_PARENT"
"""The variable that tells a training whose it is: when that process is gone, the training ends with a checkpoint."""


_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)


@contextmanager
def stop_requested() -> Iterator[Callable[[], bool]]:
    """Turns SIGINT, SIGTERM and SIGUSR1 into a question that a loop asks after every step; a second SIGINT kills.

    SLURM sends SIGTERM at a job's end, and SIGUSR1 before it where `--signal=USR1@90` asks for that. A training that
    another process started ends with it, too: `PARENT`.
    """
    asked, parent = False, int(os.environ.get(PARENT, 0))

    def note(number: int, frame: FrameType | None) -> None:
        nonlocal asked
        if asked and number == signal.SIGINT:
            raise KeyboardInterrupt
        asked = True

    before = {number: signal.signal(number, note) for number in _SIGNALS}
    try:
        yield lambda: asked or (parent > 0 and os.getppid() != parent)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
