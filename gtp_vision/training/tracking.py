"""Metrics to JSON lines and TensorBoard, and the meters that say where the time goes."""

from __future__ import annotations

import json
import math
import os
import threading
import time
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from torch.utils.tensorboard import SummaryWriter

from gtp_vision.core.files import atomic_write


class Tracker:
    """Appends metrics to `metrics.jsonl` and to TensorBoard files in `tensorboard/`.

    Args:
        folder: the run folder.
        resume_step: lines after this step are dropped first: the run goes on from here.
        seconds: training time already spent, which the `seconds` column continues.
        evaluated: steps whose evaluation is on record; the lines of others are dropped, too: they will be made again.
    """

    def __init__(
        self, folder: Path, *, resume_step: int = 0, seconds: float = 0.0, evaluated: Collection[int] = ()
    ) -> None:
        self._path = folder / "metrics.jsonl"
        self._started = time.perf_counter() - seconds
        _keep_until(self._path, resume_step, evaluated)
        self._file = self._path.open("a")
        self._before, threading.excepthook = threading.excepthook, self._in_thread
        self._board = SummaryWriter(str(folder / "tensorboard"), purge_step=resume_step + 1 if resume_step else None)

    @property
    def seconds(self) -> float:
        """Seconds since the run began, without the time it lay interrupted."""
        return time.perf_counter() - self._started

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """One line. Values that are not finite are written as null: NaN is not JSON."""
        finite = {key: value if math.isfinite(value) else None for key, value in metrics.items()}
        self._file.write(json.dumps({"step": step, "seconds": round(self.seconds, 3), **finite}) + "\n")
        self._file.flush()
        for key, value in metrics.items():
            self._board.add_scalar(key, value, step)

    def sync(self) -> None:
        """Have all lines on the disk: a checkpoint that follows stands for them."""
        os.fsync(self._file.fileno())

    def close(self) -> None:
        """Flush and close both."""
        try:
            self._file.close()
            self._board.close()
        finally:
            threading.excepthook = self._before

    def _in_thread(self, failed: threading.ExceptHookArgs) -> None:
        """TensorBoard's thread tells of a full disk by a traceback, and then again to who writes to it."""
        if not isinstance(failed.exc_value, OSError):
            self._before(failed)


class Meters:
    """Seconds spent in named phases since the last reading."""

    def __init__(self) -> None:
        self._spent: dict[str, float] = {}

    @contextmanager
    def measure(self, phase: str) -> Iterator[None]:
        """Add the time of the block to `phase`."""
        started = time.perf_counter()
        try:
            yield
        finally:
            self._spent[phase] = self._spent.get(phase, 0.0) + time.perf_counter() - started

    def read(self, steps: int) -> dict[str, float]:
        """Of each phase `time/<phase>_ms` a step and `time/<phase>_share` of all phases, and start again."""
        whole = sum(self._spent.values())
        told = {f"time/{phase}_ms": 1e3 * spent / max(1, steps) for phase, spent in self._spent.items()}
        told |= {f"time/{phase}_share": spent / whole for phase, spent in self._spent.items()}
        self._spent = {}
        return told


def _keep_until(path: Path, step: int, evaluated: Collection[int]) -> None:
    if not path.exists():
        return
    kept = []
    for line in path.read_text(errors="replace").splitlines():
        try:
            told = json.loads(line)
            lost = told["step"] not in evaluated and any(key.startswith("eval/") for key in told)
            if told["step"] <= step and not lost:
                kept.append(line + "\n")
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            continue  # cut off by a kill
    with atomic_write(path) as aside:
        aside.write_text("".join(kept))
