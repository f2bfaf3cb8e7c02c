"""A worker process that uses inputs one after another, and its time, memory and end as this process measures them."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import resource
import shutil
import signal
import time
import traceback
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
import psutil

from gtp_vision.core.errors import GtpVisionError
from torture.forked import redirect
from torture.inputs import KINDS, Kind, copied

_FORK = multiprocessing.get_context("fork")
_HANG = 5.0  # seconds of work
_WAIT = 30.0  # seconds on a busy machine
_LIMIT = 3_000_000_000  # bytes beyond what the worker holds: more than any input may take, less than the machine has
_FRESH = 60_000_000  # bytes of a child process that has just been started, before it has seen the input
_BAD = ("hang", "crash", "traceback", "no sentence")


@dataclass
class Findings:
    """Results of inputs: how often each end was met, the most bytes and seconds of one, a sentence per bad end."""

    ends: Counter[str] = field(default_factory=Counter)
    peak: int = 0
    slowest: float = 0.0
    bad: list[str] = field(default_factory=list)

    def __iadd__(self, other: Findings) -> Findings:
        self.ends += other.ends
        self.peak, self.slowest = max(self.peak, other.peak), max(self.slowest, other.slowest)
        self.bad += other.bad
        return self


class Worker:
    """A fork of this process that uses inputs of a kind, given an undamaged one, and logs to a file."""

    def __init__(self, kind: Kind, sample: Path, log: Path) -> None:
        self._pipe, theirs = _FORK.Pipe()
        self._process = _FORK.Process(target=_serve, args=(kind, sample, log, theirs))
        self._process.start()
        theirs.close()
        self._answer(300.0)  # it is ready

    def use(self, path: Path) -> tuple[str, float, int]:
        """The end of an input, its seconds of work and its bytes of memory.

        A `hang` or a `crash` also ends the worker.
        """
        before = {process.pid: _memory(process.pid, "VmRSS") for process in self._all()}
        for process in before:
            with contextlib.suppress(OSError):
                Path(f"/proc/{process}/clear_refs").write_text("5")  # reset the peak
        worked, began = self._work(), time.monotonic()
        self._pipe.send(path)
        while not (end := self._answer(0.25)):
            if self._work() - worked > _HANG or time.monotonic() - began > _WAIT:
                spent = self._work() - worked
                self.kill()
                return "hang", spent, 0
        spent = self._work() - worked
        peak = sum(max(0, _memory(p.pid, "VmHWM") - before.get(p.pid, _FRESH)) for p in self._all())
        return end, spent, peak

    def kill(self) -> None:
        """End it and all processes that it has started."""
        for process in self._all():
            with contextlib.suppress(psutil.Error):
                process.kill()
        self._process.join()

    def _all(self) -> list[psutil.Process]:
        with contextlib.suppress(psutil.Error):
            own = psutil.Process(self._process.pid)
            return [own, *own.children(recursive=True)]
        return []

    def _work(self) -> float:
        total = 0.0
        for process in self._all():
            with contextlib.suppress(psutil.Error):
                total += sum(process.cpu_times()[:2])
        return total

    def _answer(self, seconds: float) -> str:
        try:
            return str(self._pipe.recv()) if self._pipe.poll(seconds) else ""
        except EOFError:
            return "crash"


def _memory(process: int | str, name: str) -> int:
    """Bytes of memory of a process, by a name in its status."""
    with contextlib.suppress(OSError, KeyError):
        status = dict(line.split(":", 1) for line in Path(f"/proc/{process}/status").read_text().splitlines())
        return 1024 * int(status[name].split()[0])
    return 0


def _serve(kind: Kind, sample: Path, log: Path, pipe: Connection) -> None:
    """The fork: a path in, the end out, until it is killed."""
    os.setsid()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    redirect(log)
    os.environ |= {"TQDM_DISABLE": "1", "GTP_VISION_PATIENCE": "4"}
    use = kind.opened(sample)
    hard = resource.getrlimit(resource.RLIMIT_DATA)[1]
    resource.setrlimit(resource.RLIMIT_DATA, (_memory("self", "VmData") + _LIMIT, hard))
    pipe.send("ready")
    while True:
        pipe.send(_end(use, pipe.recv()))


def _end(use: Callable[[Path], str], path: Path) -> str:
    try:
        return use(path)
    except GtpVisionError as error:
        return "refused" if str(error) and "\n" not in str(error) else f"no sentence: {error}"
    except BaseException:
        return "traceback: " + traceback.format_exc()[-3000:]


def damage_inputs(
    count: int, folder: Path, seed: int, tell: Callable[[str], None], *, kinds: list[str] | None = None
) -> Findings:
    """Use `count` damaged inputs of all kinds, or of those named; inputs that end badly stay in the folder.

    `tell` is called with a sentence about each kind, and each bad end.
    """
    chosen = {name: KINDS[name] for name in kinds or KINDS}
    shares = np.cumsum([0, *(kind.share for kind in chosen.values())])
    counts = np.diff(np.round(shares / shares[-1] * count).astype(int))
    total = Findings()
    for name, number in zip(chosen, counts, strict=True):
        if number:
            findings = _of_kind(name, int(number), folder / name.replace(" ", "_"), seed, tell)
            ends = ", ".join(f"{number} {end}" for end, number in sorted(findings.ends.items()))
            tell(f"inputs: {name}: {ends}; at most {findings.slowest:.1f} s of work, {findings.peak / 1e6:.0f} MB")
            total += findings
    return total


def _of_kind(name: str, count: int, folder: Path, seed: int, tell: Callable[[str], None]) -> Findings:
    kind, findings = KINDS[name], Findings()
    (folder / "sample").mkdir(parents=True)
    sample = kind.sample(folder / "sample")
    worker = Worker(kind, sample, folder / "worker.log")
    try:
        end, _, _ = worker.use(copied(sample, folder / "undamaged"))
        if end != "sound":
            findings.bad.append(f"{name}: the sample itself ends in: {end}")
            tell(findings.bad[-1])
        for number in range(count):
            path = copied(sample, folder / str(number))
            what = kind.damaged(path, np.random.default_rng([seed, number]))
            end, spent, peak = worker.use(path)
            word = end.partition(":")[0]
            findings += Findings(Counter({word: 1}), peak, spent)
            if word not in _BAD:
                shutil.rmtree(folder / str(number), ignore_errors=True)
                continue
            findings.bad.append(f"{name} {number} ({what}): {end}")
            tell(f"{name} {number} ({what}): {word}: {end.strip().splitlines()[-1]}")
            (folder / str(number) / "end.txt").write_text(end)
            if word in ("hang", "crash"):
                worker.kill()
                worker = Worker(kind, sample, folder / "worker.log")
    finally:
        worker.kill()
    return findings
