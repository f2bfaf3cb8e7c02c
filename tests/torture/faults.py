"""Faults, caused for real where the machine allows it; after each the resumed run must equal an undisturbed one.

Each ends in an error message and status 2 (or that of the signal), leaves no process behind, and loses no checkpoint.
"""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil

from torture.forked import FailedError, Victim, descendants, forked, on_event
from torture.runs import require_equal, whole, words

_DISK = 64  # MB of the small disk
_NOTICE = 60.0  # seconds within which the other ranks must have noticed that one died
_TIMEOUT = 120.0  # seconds
_EVALUATED = (
    *("training.steps=15", "training.eval_episodes=40", "training.eval_timeout=10", "task.max_episode_steps=200"),
)
_STEPPING = 2000  # context switches of a simulator that has started and is stepping


class SkippedError(Exception):
    """A fault cannot be caused on this machine."""


@dataclass
class Bench:
    """Where faults are caused: the folder of `runs.data`, and that of their runs."""

    data: Path
    folder: Path

    def reference(self, kind: str, *more: str) -> Path:
        """An undisturbed run of a kind, trained when it is first needed."""
        name = "reference_" + "_".join((kind, *more)).translate({ord(x): "_" for x in "=./"})
        run = self.folder / name
        if not (run / "report.html").exists():
            self.train(kind, run, *more).check(0)
        return run

    def train(self, kind: str, run: Path, *more: str, **options: object) -> Victim:
        """Start a training of a kind in a fork; its log lies in the folder."""
        log = self.folder / f"{run.name}{'.resumed' * ('--resume' in more)}.log"
        return forked(words(kind, self.data, run, *more), log, **options)  # type: ignore[arg-type]

    def resume(self, kind: str, run: Path, *more: str) -> None:
        """Resume, and compare with the undisturbed run."""
        self.train(kind, run, *more, "--resume").check(0)
        require_equal(self.reference(kind, *more), run)


Fault = Callable[[Bench], None]
"""Causes a fault, or raises `FailedError`."""


@contextlib.contextmanager
def _disk(at: Path) -> Iterator[Path]:
    """A small disk (tmpfs)."""
    at.mkdir(exist_ok=True)
    mount = ["mount", "-t", "tmpfs", "-o", f"size={_DISK}m", "tmpfs", at]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        raise SkippedError
    try:
        yield at
    finally:
        subprocess.run(["umount", "-l", str(at)], check=True)


def _fill(disk: Path) -> None:
    for size in (1 << 20, 512):
        with contextlib.suppress(OSError), (disk / "filler").open("ab", buffering=0) as file:
            while True:
                file.write(bytes(size))


def _at(folder: Path, wanted: str, act: Callable[[], object], event: str = "") -> Callable[[], None]:
    """What a victim calls first, to `act` once, just before the first change to a path that contains `wanted`."""
    left = [act]

    def see(name: str, path: str) -> None:
        if left and wanted in path and event in ("", name):
            left.pop()()

    return lambda: on_event(folder, see)


def _full(bench: Bench, wanted: str, *more: str) -> None:
    """Fill the disk when the run comes to `wanted`."""
    with _disk(bench.folder / "disk") as disk:
        run = disk / f"full_{wanted.strip('.').split('.')[0]}"
        bench.train("states", run, *more, before=_at(run, wanted, lambda: _fill(disk))).check(2)
        (disk / "filler").unlink()
        if wanted != "metrics.jsonl" and not whole(run):
            raise FailedError("no checkpoint is left")
        if hidden := list(run.rglob(".*.part")):
            raise FailedError(f"{hidden[0]} is left behind")
        bench.resume("states", run, *more)


def _full_at_cache(bench: Bench) -> None:
    """No room where a foreign data set is unpacked."""
    with _disk(bench.folder / "disk") as disk:
        cache, run = disk / "cache", bench.folder / "full_cache"
        cache.mkdir()
        foreign, environment = f"task.dataset={bench.data / 'foreign.hdf5'}", {"GTP_VISION_CACHE": str(cache)}
        bench.train("states", run, foreign, before=lambda: _fill(disk), environment=environment).check(2)
        if left := [*bench.folder.glob(run.name), *cache.glob("*.h5")]:
            raise FailedError(f"{left[0]} is left behind")
        (disk / "filler").unlink()
        bench.train("states", run, foreign, environment=environment).check(0)


def _read_only(bench: Bench) -> None:
    """A run folder that turns read-only, as on a disk with errors, and one that always was."""
    with _disk(bench.folder / "disk") as disk:

        def remount(options: str) -> None:
            subprocess.run(["mount", "-o", f"remount,{options}", str(disk)], check=False, capture_output=True)

        run = disk / "read_only"
        bench.train("states", run, before=_at(run, ".step_20.", lambda: remount("ro,force"), "os.mkdir")).wait()
        remount("ro")
        bench.train("states", disk / "other").check(2)
        remount("rw")
        bench.resume("states", run)


def _rank_dies(bench: Bench) -> None:
    """Kill one of two ranks: first the second, then the one that writes."""
    reference = bench.folder / "reference_ranks"
    for victim in _ranks(bench, reference):
        victim.check(0)
    for dies in (1, 0):
        run = bench.folder / f"ranks_{dies}"
        ranks = _ranks(bench, run)
        _wait_until(ranks[0], (run / "checkpoints" / "step_10").exists)
        ranks[dies].kill()
        survivor = ranks[1 - dies]
        survivor.wait(time.monotonic() - survivor.began + _NOTICE)
        survivor.check(2)
        if "processes has ended" not in survivor.last_line():
            raise FailedError(f"it does not say why: {survivor.last_line()}")
        for victim in _ranks(bench, run, "--resume"):
            victim.check(0)
        require_equal(reference, run)


def _ranks(bench: Bench, run: Path, *more: str) -> list[Victim]:
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        shared = {"MASTER_ADDR": "localhost", "MASTER_PORT": str(probe.getsockname()[1])}
    shared |= {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    line = words("states", bench.data, run, *more)
    logs = {rank: bench.folder / f"{run.name}_{rank}{''.join(more)}.log" for rank in "01"}
    return [forked(line, log, environment=shared | {"RANK": rank, "LOCAL_RANK": rank}) for rank, log in logs.items()]


def _wait_until(victim: Victim, is_reached: Callable[[], bool]) -> None:
    ends = time.monotonic() + _TIMEOUT
    while not is_reached():
        if victim.ended() or time.monotonic() > ends:
            raise FailedError(f"it did not come so far: {victim.last_line()}")
        time.sleep(0.005)


def _strike_simulator(bench: Bench, number: int, message: str, switches: int) -> None:
    """Send a signal to a simulator after some context switches: few while it starts, then two a step."""
    run = bench.folder / f"simulator_{number}_{switches}"
    victim = bench.train("evaluated", run, *_EVALUATED)

    def simulators() -> list[psutil.Process]:
        return [process for process in descendants(victim.mark) if "spawn_main" in " ".join(process.cmdline())]

    def is_busy() -> bool:
        with contextlib.suppress(psutil.Error):
            return any(process.num_ctx_switches().voluntary >= switches for process in simulators())
        return False

    _wait_until(victim, lambda: (run / "checkpoints" / "last").exists() and is_busy())
    with contextlib.suppress(psutil.Error):
        for process in simulators():
            process.send_signal(number)
    victim.check(2)
    if message not in victim.last_line() or "step 15" not in victim.last_line():
        raise FailedError(f"it does not say what happened: {victim.last_line()}")
    bench.resume("evaluated", run, *_EVALUATED)


def _simulator_hangs(bench: Bench) -> None:
    _strike_simulator(bench, signal.SIGSTOP, "60 s", 0)
    _strike_simulator(bench, signal.SIGSTOP, "10 s in episode", _STEPPING)


def _data_shrink(bench: Bench) -> None:
    """Truncate the data file while the run reads it."""
    file, run = bench.folder / "shrinking" / "pixels.h5", bench.folder / "shrunk"
    file.parent.mkdir()
    shutil.copyfile(bench.data / "pixels.h5", file)
    more = (f"task.dataset={file}", "training.steps=30")
    truncate = _at(run, ".step_10.", lambda: os.truncate(file, 100))
    for resume, options in (((), {"before": truncate}), (("--resume",), {})):
        victim = bench.train("pixels", run, *more, *resume, **options)
        victim.check(2)
        if str(file) not in victim.log.read_text():
            raise FailedError("it does not name the file")
    shutil.copyfile(bench.data / "pixels.h5", file)
    bench.resume("pixels", run, *more)


def _clock_jumps(bench: Bench) -> None:
    """Replace the wall clock by one that jumps by days at every look; the run must equal the undisturbed one."""
    real, days = time.time, random.Random(0)

    def begin() -> None:
        time.time = lambda: real() + 86400 * days.uniform(-1000, 1000)

    bench.train("evaluated", bench.folder / "clock", before=begin).check(0)
    require_equal(bench.reference("evaluated"), bench.folder / "clock")


def _scheduler_signals(bench: Bench) -> None:
    """Send SIGTERM, SIGINT and SLURM's SIGUSR1: a checkpoint and status 130, and the run can be resumed."""
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
        run = bench.folder / f"stopped_{number.name}"
        victim = bench.train("states", run)
        _wait_until(victim, (run / "checkpoints" / "step_15").exists)
        victim.kill(number)
        victim.check(130)
        bench.resume("states", run)


FAULTS: dict[str, Fault] = {
    "disk full at a checkpoint": lambda bench: _full(bench, ".step_20."),
    "disk full at metrics": lambda bench: _full(
        bench, "metrics.jsonl", "training.log_every=1", "training.checkpoint_every=1000"
    ),
    "disk full at the report": lambda bench: _full(bench, ".report.html."),
    "disk full at the cache": _full_at_cache,
    "read-only folder": _read_only,
    "a rank dies": _rank_dies,
    "a simulator hangs": _simulator_hangs,
    "a simulator dies": lambda bench: _strike_simulator(bench, signal.SIGKILL, "has ended in episode", _STEPPING),
    "the data shrink": _data_shrink,
    "the clock jumps": _clock_jumps,
    "the scheduler asks": _scheduler_signals,
}
"""By name."""


def cause(names: list[str], data: Path, folder: Path, tell: Callable[[str], None]) -> int:
    """Cause faults by name, report each to `tell`, and return how many ended as they should, or had to be skipped."""
    folder.mkdir(parents=True, exist_ok=True)
    bench, passed = Bench(data, folder), 0
    for name in names:
        began, end = time.monotonic(), "as it should"
        try:
            FAULTS[name](bench)
        except SkippedError:
            end = "skipped, as no disk can be mounted here"
        except (FailedError, OSError, subprocess.SubprocessError) as error:
            tell(f"fault: {name}: {error}")
            continue
        passed += 1
        tell(f"fault: {name}: {end} ({time.monotonic() - began:.0f} s)")
    return passed
