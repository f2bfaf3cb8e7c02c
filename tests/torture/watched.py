"""A process that uses inputs, one after another, watched by this one: its time, its memory, its end."""

from __future__ import annotations

import contextlib
import json
import os
import resource
import select
import shutil
import signal
import time
import traceback
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import psutil

from gtp_vision.core.errors import GtpVisionError
from torture.inputs import KINDS, Kind, copied

_HANG = 5.0  # seconds of work
_WAIT = 30.0  # seconds on a machine that is busy with others
_SAFE = 3_000_000_000  # bytes beyond what the process has: more than any input may take, less than the machine has


@dataclass
class Findings:
    """What came of inputs.

    Attributes:
        ends: how often each end was met.
        peak: most bytes that one took.
        slowest: seconds of work that one took.
        bad: a sentence about each that should not have happened.
    """

    ends: Counter[str] = field(default_factory=Counter)
    peak: int = 0
    slowest: float = 0.0
    bad: list[str] = field(default_factory=list)

    @property
    def inputs(self) -> int:
        """How many there were."""
        return sum(self.ends.values())

    def __iadd__(self, other: Findings) -> Findings:
        self.ends += other.ends
        self.peak, self.slowest = max(self.peak, other.peak), max(self.slowest, other.slowest)
        self.bad += other.bad
        return self


class Worker:
    """A fork of this process that uses inputs of a kind.

    Args:
        kind: of the inputs.
        sample: a good one.
        log: file that gets what it says.
    """

    def __init__(self, kind: Kind, sample: Path, log: Path) -> None:
        asks, self._ask = os.pipe()
        self._answers, answers = os.pipe()
        self.process = os.fork()
        if not self.process:
            os.close(self._ask)
            os.close(self._answers)
            _serve(kind, sample, log, asks, answers)
        os.close(asks)
        os.close(answers)
        self._answer(300.0)  # it is ready

    def use(self, path: Path) -> tuple[str, float, int]:
        """How an input ended, the seconds of work and the bytes of memory that it took.

        A `hang` or a `crash` is the end of the worker, too.
        """
        before = {process.pid: _memory(process.pid)[0] for process in self._all()}
        for process in before:
            with contextlib.suppress(OSError):
                Path(f"/proc/{process}/clear_refs").write_text("5")  # forget the most that was held
        worked, began = self._work(), time.monotonic()
        os.write(self._ask, str(path).encode() + b"\n")
        end = ""
        while not end:
            end = self._answer(0.25)
            spent = self._work() - worked
            waited = time.monotonic() - began
            if not end and (spent > _HANG or waited > _WAIT):
                self.kill()
                return "hang", spent, 0
        peak = sum(max(0, _memory(p.pid)[1] - before.get(p.pid, _FRESH)) for p in self._all())
        return end, spent, peak

    def kill(self) -> None:
        """End it and all that it has started."""
        for process in self._all():
            with contextlib.suppress(psutil.Error):
                process.kill()
        with contextlib.suppress(ChildProcessError):
            os.waitpid(self.process, 0)

    def _all(self) -> list[psutil.Process]:
        with contextlib.suppress(psutil.Error):
            own = psutil.Process(self.process)
            return [own, *own.children(recursive=True)]
        return []

    def _work(self) -> float:
        total = 0.0
        for process in self._all():
            with contextlib.suppress(psutil.Error):
                total += sum(process.cpu_times()[:2])
        return total

    def _answer(self, seconds: float) -> str:
        ready, _, _ = select.select([self._answers], [], [], seconds)
        if not ready:
            return ""
        said = os.read(self._answers, 1 << 16)
        return json.loads(said) if said else "crash"


_FRESH = 60_000_000  # bytes of a process apart that has just been started, before it has seen the input


def _memory(process: int) -> tuple[int, int]:
    """Bytes that a process holds, and the most that it held."""
    try:
        status = dict(line.split(":", 1) for line in Path(f"/proc/{process}/status").read_text().splitlines())
        return 1024 * int(status["VmRSS"].split()[0]), 1024 * int(status["VmHWM"].split()[0])
    except (OSError, KeyError):
        return 0, 0


def _serve(kind: Kind, sample: Path, log: Path, asks: int, answers: int) -> None:
    """The fork: a path in, a word out."""
    try:
        os.setsid()
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        handle = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        os.dup2(handle, 1)
        os.dup2(handle, 2)
        os.environ |= {"TQDM_DISABLE": "1", "GTP_VISION_PATIENCE": "4"}
        use = kind.opened(sample)
        _, hard = resource.getrlimit(resource.RLIMIT_DATA)
        held = next(
            int(line.split()[1]) for line in Path("/proc/self/status").read_text().splitlines() if "VmData" in line
        )
        resource.setrlimit(resource.RLIMIT_DATA, (1024 * held + _SAFE, hard))
        os.write(answers, json.dumps("ready").encode())
        with os.fdopen(asks) as paths:
            for line in paths:
                os.write(answers, json.dumps(_end(use, Path(line.rstrip("\n")))).encode())
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(0)


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
    """Use `count` damaged inputs of all kinds.

    Args:
        count: how many.
        folder: for samples, copies and what is said; those that end badly stay there.
        seed: of the damage.
        tell: is given a sentence about each kind, and each bad end.
        kinds: names in `KINDS`; None is all.
    """
    chosen = {name: KINDS[name] for name in kinds or KINDS}
    shares = np.cumsum([0, *(kind.share for kind in chosen.values())])
    cuts = np.round(shares / shares[-1] * count).astype(int)
    whole = Findings()
    for place, (name, kind) in enumerate(chosen.items()):
        found = _of_kind(name, kind, int(cuts[place + 1] - cuts[place]), folder / name.replace(" ", "_"), seed, tell)
        ends = ", ".join(f"{number} {end}" for end, number in sorted(found.ends.items()))
        tell(f"inputs: {name}: {ends}; at most {found.slowest:.1f} s of work, {found.peak / 1e6:.0f} MB")
        whole += found
    return whole


def _of_kind(name: str, kind: Kind, count: int, folder: Path, seed: int, tell: Callable[[str], None]) -> Findings:
    found = Findings()
    if not count:
        return found
    (folder / "sample").mkdir(parents=True)
    sample = kind.sample(folder / "sample")
    worker = Worker(kind, sample, folder / "worker.log")
    try:
        end, _, _ = worker.use(copied(sample, folder / "undamaged"))
        if end != "sound":
            found.bad.append(f"{name}: the sample itself ends in: {end}")
        for number in range(count):
            path = copied(sample, folder / str(number))
            what = kind.damaged(path, np.random.default_rng([seed, number]))
            end, spent, peak = worker.use(path)
            word = end.partition(":")[0]
            found += Findings(Counter({word: 1}), peak, spent)
            if word in ("hang", "crash", "traceback", "no sentence"):
                found.bad.append(f"{name} {number} ({what}): {end}")
                tell(f"{name} {number} ({what}): {word}: {end.strip().splitlines()[-1]}")
                (folder / str(number) / "end.txt").write_text(end)
                if word in ("hang", "crash"):
                    worker.kill()
                    worker = Worker(kind, sample, folder / "worker.log")
            else:
                shutil.rmtree(folder / str(number), ignore_errors=True)
    finally:
        worker.kill()
    return found
