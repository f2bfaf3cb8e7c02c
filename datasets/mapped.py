"""Mapped files: one that shrinks while it is mapped ends the process with a sentence.

Reading a page behind a file's end is a bus error, of which a process dies without a word, and which Python's own signal
handlers, run later, cannot answer. So the handler is installed below Python; it looks which of the mapped files has
become shorter, writes that, and ends the process. Checkpoints are whole at any time, and a run goes on from them.
"""

from __future__ import annotations

import ctypes
import os
import signal
from pathlib import Path
from typing import Any

import numpy as np

_STATUS = 2  # as a GtpVisionError's
_ONCE_MORE = 1000  # accesses that are tried again, when the file is whole again by the time one looks

_sizes: dict[str, int] = {}
_handler: Any = None
_tried = 0


def mapped(path: str | Path, **arguments: Any) -> np.memmap:
    """A read-only `np.memmap` of a file that is watched from now on.

    Args:
        path: the file.
        **arguments: of `np.memmap`.
    """
    array = np.memmap(path, mode="r", **arguments)
    _sizes[os.path.abspath(path)] = os.stat(path).st_size
    _watch()
    return array


def shrunk() -> str:
    """A sentence about a mapped file that has become shorter than it was; empty if none has."""
    for path, size in _sizes.items():
        try:
            now = os.stat(path).st_size
        except OSError:
            continue  # a removed file stays whole for who has mapped it
        if now < size:
            return (
                f"{path} has become shorter while it was in use ({now} of {size} bytes): somebody wrote to it or its "
                f"disk is at fault; put the whole file back, then go on with --resume"
            )
    return ""


def _watch() -> None:
    global _handler
    if _handler is None and hasattr(signal, "SIGBUS"):
        libc = ctypes.CDLL(None)
        _handler = ctypes.CFUNCTYPE(None, ctypes.c_int)(_bus_error)
        libc.signal(int(signal.SIGBUS), _handler)


def _bus_error(number: int) -> None:
    global _tried
    sentence = shrunk()
    if sentence:
        os.write(2, f"\ngtp-vision: {sentence}\n".encode(errors="replace"))
        os._exit(_STATUS)
    _tried += 1
    if _tried > _ONCE_MORE:  # it is about something else, and ends the process as it would have
        ctypes.CDLL(None).signal(number, None)


__all__ = ["mapped", "shrunk"]
