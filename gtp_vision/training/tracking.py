"""Log metrics to JSON lines and TensorBoard, and measure where the time goes."""

from __future__ import annotations

import json
import math
import os
import threading
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch.utils.tensorboard import SummaryWriter

from gtp_vision.core.files import atomic_write
from gtp_vision.training.trackers import Trackers


class Tracker:
    """Append metrics to `metrics.jsonl`, to TensorBoard files in `tensorboard/`, and to `trackers`, if any.

    Lines after `resume_step` are dropped, and evaluations of steps that are not in `evaluated`, as they will be
    repeated. The `seconds` column continues from `seconds`.
    """

    def __init__(
        self,
        folder: Path,
        *,
        resume_step: int = 0,
        seconds: float = 0.0,
        evaluated: Collection[int] = (),
        trackers: Trackers | None = None,
    ) -> None:
        self._trackers = trackers
        self._path = folder / "metrics.jsonl"
        self._started = time.perf_counter() - seconds
        _truncate(self._path, resume_step, evaluated)
        self._file = self._path.open("a")
        self._default_hook, threading.excepthook = threading.excepthook, self._in_thread
        self._board = SummaryWriter(str(folder / "tensorboard"), purge_step=resume_step + 1 if resume_step else None)

    @property
    def seconds(self) -> float:
        """Seconds since the run began, without interruptions."""
        return time.perf_counter() - self._started

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """Write one line, with null for values that are not finite: NaN is not JSON."""
        finite = {key: value if math.isfinite(value) else None for key, value in metrics.items()}
        self._file.write(json.dumps({"step": step, "seconds": round(self.seconds, 3), **finite}) + "\n")
        self._file.flush()
        for key, value in metrics.items():
            self._board.add_scalar(key, value, step)
        if self._trackers:
            self._trackers.log(step, metrics)

    def sync(self) -> None:
        """Force all lines to the disk, before a checkpoint that relies on them."""
        os.fsync(self._file.fileno())

    def close(self) -> None:
        """Flush and close both."""
        try:
            self._file.close()
            self._board.close()
        finally:
            threading.excepthook = self._default_hook

    def _in_thread(self, failed: threading.ExceptHookArgs) -> None:
        """Hide the traceback of a full disk in TensorBoard's thread, which raises it again in the next write."""
        if not isinstance(failed.exc_value, OSError):
            self._default_hook(failed)


class Meters:
    """Seconds spent in named phases since the last reading."""

    def __init__(self) -> None:
        self._spent: dict[str, float] = {}
        self._inside = 0.0  # of the phases within the one that is measured

    @contextmanager
    def measure(self, phase: str) -> Iterator[None]:
        """Add the time of the block to `phase`, but for that of phases within it."""
        started, outside = time.perf_counter(), self._inside
        self._inside = 0.0
        try:
            yield
        finally:
            seconds = time.perf_counter() - started
            self._spent[phase] = self._spent.get(phase, 0.0) + seconds - self._inside
            self._inside = outside + seconds

    def read(self, steps: int) -> dict[str, float]:
        """Per phase `time/<phase>_ms` of a step and `time/<phase>_share` of all phases; resets the meters."""
        spent, self._spent = self._spent, {}
        total = sum(spent.values())
        times = {f"time/{phase}_ms": 1e3 * seconds / max(1, steps) for phase, seconds in spent.items()}
        return times | {f"time/{phase}_share": seconds / total for phase, seconds in spent.items()}


def read_entries(path: Path, types: Mapping[str, type]) -> list[dict[str, Any]]:
    """The entries of a JSON list with fields of these types; none if the file is missing or damaged."""
    try:
        stored = json.loads(path.read_text())
    except (OSError, ValueError, RecursionError):
        return []
    entries = stored if isinstance(stored, list) else []
    return [
        entry
        for entry in entries
        if isinstance(entry, dict) and all(isinstance(entry.get(name), kind) for name, kind in types.items())
    ]


def write_entries(path: Path, entries: Sequence[Mapping[str, Any]]) -> None:
    """Write a JSON list."""
    with atomic_write(path) as aside:
        aside.write_text(json.dumps(entries, indent=1))


def _truncate(path: Path, step: int, evaluated: Collection[int]) -> None:
    """Drop the lines after a step, evaluations that will be repeated, and lines that a kill cut off."""
    if not path.exists():
        return
    lines = []
    for line in path.read_text(errors="replace").splitlines():
        try:
            entry = json.loads(line)
            is_lost = entry["step"] not in evaluated and any(key.startswith("eval/") for key in entry)
            if entry["step"] <= step and not is_lost:
                lines.append(line + "\n")
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            continue
    with atomic_write(path) as aside:
        aside.write_text("".join(lines))
