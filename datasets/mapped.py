"""Memory maps whose files are checked for their size: reading beyond the end of a file kills the process (SIGBUS)."""

from __future__ import annotations

import os
import weakref
from pathlib import Path
from typing import Any

import numpy as np

from gtp_vision.core.errors import GtpVisionError

_sizes: dict[str, tuple[int, weakref.ref[Any]]] = {}  # path to the file's size and one of its maps


def map_file(path: str | Path, **arguments: Any) -> np.memmap:
    """Return a read-only `np.memmap` of a file, whose size `check_sizes` checks as long as the map is in use."""
    array = np.memmap(path, mode="r", **arguments)
    # Views of an array refer to the map below it, so that it lives as long as they do.
    _sizes[os.path.abspath(path)] = os.stat(path).st_size, weakref.ref(array._mmap)  # type: ignore[attr-defined]
    return array


def check_sizes() -> None:
    """Raise if a mapped file is shorter than it was when it was mapped.

    Call this before a batch is read and before a checkpoint is written: a page beyond the end of a file cannot be read,
    and the process that tries dies of SIGBUS ("Bus error"). A removed file stays readable as long as it is mapped.

    Raises:
        GtpVisionError: a file has become shorter, with its name and sizes.
    """
    for path, (size, mapping) in list(_sizes.items()):
        if mapping() is None:  # no array refers to it any more
            del _sizes[path]
            continue
        try:
            now = os.stat(path).st_size
        except OSError:
            continue
        if now < size:
            raise GtpVisionError(
                f"{path} has become shorter while it was in use ({now} of {size} bytes): another program wrote to it, "
                f"or its disk is at fault; restore the file, then continue with --resume"
            )
