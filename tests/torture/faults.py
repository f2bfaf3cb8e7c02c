"""Faults, caused and not imitated where the machine lets us; then the run goes on, and must be the undisturbed one.

After each: a sentence and status 2 (or the signal's), nobody left behind, no checkpoint lost that was whole before.
"""

from __future__ import annotations

import contextlib
import os
import random
import resource
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil

from torture.forked import FailedError, Victim, forked, marked, on_event
from torture.runs import differences, whole, words

_DISK = 64  # MB of the small disk
_SOON = 60.0  # seconds, by far, within which the others of a dead process must have noticed
_LONG = 120.0  # seconds until what is waited for must have happened


@dataclass
class Place:
    """Where faults are caused.

    Attributes:
        data: folder of `runs.data`.
        folder: for their runs.
        mounts: whether this machine lets us mount a small disk.
    """

    data: Path
    folder: Path
    mounts: bool

    def reference(self, kind: str, *more: str) -> Path:
        """A run of a kind that nothing happened to, trained when it is first asked for."""
        name = "reference_" + "_".join((kind, *more)).translate({ord(x): "_" for x in "=./"})
        run = self.folder / name
        if not (run / "report.html").exists():
            forked(words(kind, self.data, run, *more), self.folder / f"{name}.log").check(0)
        return run


Fault = Callable[[Place], str]
"""Causes a fault; returns how it was caused, or raises `FailedError`."""


def mountable(folder: Path) -> bool:
    """Whether a small disk can be mounted here."""
    try:
        with _disk(folder / "try"):
            return True
    except FailedError:
        return False


@contextlib.contextmanager
def _disk(at: Path) -> Iterator[Path]:
    """A small disk (tmpfs)."""
    at.mkdir(parents=True, exist_ok=True)
    options = f"size={_DISK}m"
    if (
        os.geteuid()
        or subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", at], capture_output=True).returncode
    ):
        raise FailedError("no disk can be mounted here")
    try:
        yield at
    finally:
        subprocess.run(["umount", "-l", str(at)], check=True)


def _fill(disk: Path) -> None:
    """Leave no byte of a disk."""
    with contextlib.suppress(OSError), (disk / "filler").open("ab", buffering=0) as file:
        while True:
            file.write(bytes(1 << 20))
    with contextlib.suppress(OSError), (disk / "filler").open("ab", buffering=0) as file:
        while True:
            file.write(bytes(512))


def _fill_when(disk: Path | None, watched: Path, wanted: str) -> Callable[[], None]:
    """What a victim does first: fill the disk (if none, let no file grow) just before a path's name has `wanted`."""

    def begin() -> None:
        done = False

        def act(event: str, path: str) -> None:
            nonlocal done
            if not done and wanted in path:
                done = True
                if disk is not None:
                    _fill(disk)
                else:
                    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
                    resource.setrlimit(resource.RLIMIT_FSIZE, (10, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))

        on_event(watched, act)

    return begin


def _full(place: Place, name: str, wanted: str, *more: str) -> str:
    """A disk that is full when the run comes to `wanted`."""
    with contextlib.ExitStack() as stack:
        disk = stack.enter_context(_disk(place.folder / f"disk_{name}")) if place.mounts else None
        run = (disk or place.folder) / f"full_{name}"
        log = place.folder / f"full_{name}.log"
        line = words("states", place.data, run, *more)
        forked(line, log, before=_fill_when(disk, run, wanted)).check(2)
        if disk is not None:
            (disk / "filler").unlink()
        kept = whole(run)
        if name != "metrics" and not kept:
            raise FailedError("no checkpoint is left")
        if hidden := list(run.rglob(".*.part")):
            raise FailedError(f"{hidden[0]} is left behind")
        _go_on(place, "states", run, *more)
    return "a tmpfs" if place.mounts else "RLIMIT_FSIZE (this machine lets nobody mount)"


def _go_on(place: Place, kind: str, run: Path, *more: str) -> None:
    """Resume, and compare with the undisturbed run."""
    forked([*words(kind, place.data, run, *more), "--resume"], place.folder / f"{run.name}.resumed.log").check(0)
    if found := differences(place.reference(kind, *more), run):
        raise FailedError("after it went on: " + "; ".join(found[:5]))


def _until(victim: Victim, wanted: Callable[[], bool]) -> None:
    ends = time.monotonic() + _LONG
    while not wanted():
        if victim.ended() or time.monotonic() > ends:
            raise FailedError(f"it never came so far: {victim.last_words()}")
        time.sleep(0.005)


def disk_full_at_a_checkpoint(place: Place) -> str:
    """ENOSPC while a checkpoint is written."""
    return _full(place, "checkpoint", ".step_20.")


def disk_full_at_metrics(place: Place) -> str:
    """ENOSPC while metrics.jsonl is written."""
    return _full(place, "metrics", "metrics.jsonl", "training.log_every=1", "training.checkpoint_every=1000")


def disk_full_at_the_report(place: Place) -> str:
    """ENOSPC when all is trained and the report is written."""
    return _full(place, "report", ".report.html.")


def disk_full_at_the_cache(place: Place) -> str:
    """No room where a foreign data set is to be unpacked."""
    foreign = f"task.dataset={place.data / 'foreign.hdf5'}"
    with contextlib.ExitStack() as stack:
        disk = stack.enter_context(_disk(place.folder / "disk_cache")) if place.mounts else None
        cache = (disk or place.folder) / "cache"
        cache.mkdir()

        def begin() -> None:
            if disk is not None:
                _fill(disk)
            else:  # of the process apart, which inherits it
                resource.setrlimit(resource.RLIMIT_FSIZE, (100, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))

        run = place.folder / "full_cache"
        environment = {"GTP_VISION_CACHE": str(cache)}
        forked(
            words("states", place.data, run, foreign),
            place.folder / "full_cache.log",
            before=begin,
            environment=environment,
        ).check(2)
        if run.exists():
            raise FailedError("a run without data was begun")
        if list(cache.glob("*.h5")):
            raise FailedError("an entry of the cache is left that was never written")
        if disk is not None:
            (disk / "filler").unlink()
        forked(
            words("states", place.data, run, foreign), place.folder / "full_cache.again.log", environment=environment
        ).check(0)
    return "a tmpfs" if place.mounts else "RLIMIT_FSIZE (this machine lets nobody mount)"


def read_only_folder(place: Place) -> str:
    """A run folder that turns read-only, as a disk with errors does, and one that always was."""
    if not place.mounts:
        return _read_only_by_mode(place)
    with _disk(place.folder / "disk_read_only") as disk:
        run = disk / "run"

        def begin() -> None:
            def act(event: str, path: str) -> None:
                if event == "os.mkdir" and ".step_20." in path:
                    subprocess.run(["mount", "-o", "remount,ro,force", str(disk)], check=False, capture_output=True)

            on_event(run, act)

        line = words("states", place.data, run)
        with _remount_lazily(disk):
            forked(line, place.folder / "read_only.log", before=begin).wait()
        victim = forked(
            words("states", place.data, disk / "other"), place.folder / "read_only.other.log", before=_read_only(disk)
        )
        victim.check(2)
        subprocess.run(["mount", "-o", "remount,rw", str(disk)], check=True)
        _go_on(place, "states", run)
    return "a tmpfs, mounted read-only"


@contextlib.contextmanager
def _remount_lazily(disk: Path) -> Iterator[None]:
    yield
    subprocess.run(["mount", "-o", "remount,rw", str(disk)], check=True)


def _read_only(disk: Path) -> Callable[[], None]:

    def begin() -> None:
        subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True) and None

    return begin


def _read_only_by_mode(place: Place) -> str:
    parent = place.folder / "read_only"
    parent.mkdir()
    parent.chmod(0o500)
    try:
        forked(words("states", place.data, parent / "run"), place.folder / "read_only.log").check(2)
    finally:
        parent.chmod(0o700)
    return "permissions of the folder above"


def a_rank_dies(place: Place) -> str:
    """Of two processes that train together one is killed; first the second, then the one that writes."""
    reference = place.folder / "reference_ranks"
    for victim in _ranks(place, reference):
        victim.check(0)
    for dies in (1, 0):
        run = place.folder / f"ranks_{dies}"
        ranks = _ranks(place, run)
        _until(ranks[0], lambda run=run: (run / "checkpoints" / "step_10").exists())  # type: ignore[misc]
        ranks[dies].kill()
        began = time.monotonic()
        survivor = ranks[1 - dies]
        survivor.wait(began - survivor.began + _SOON)
        survivor.check(2)
        if "processes has ended" not in survivor.last_words():
            raise FailedError(f"it does not say why: {survivor.last_words()}")
        for victim in _ranks(place, run, "--resume"):
            victim.check(0)
        if found := differences(reference, run):
            raise FailedError("after it went on: " + "; ".join(found[:5]))
    return "SIGKILL to each of two gloo processes"


def _ranks(place: Place, run: Path, *more: str) -> list[Victim]:
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port = probe.getsockname()[1]
    shared = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": str(port)}
    line = [*words("states", place.data, run), *more]
    return [
        forked(
            line,
            run.parent / f"{run.name}_{rank}{''.join(more)}.log",
            environment=shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
        )
        for rank in range(2)
    ]


_EVALUATED = (
    "training.steps=15",
    "task.max_episode_steps=200",
    "training.eval_episodes=40",
    "training.eval_timeout=10",
)


_STEPPING = 2000  # times that a simulator has waited for its next action, and surely is past its start


def _struck_simulator(place: Place, name: str, number: int, said: str, wakes: int) -> str:
    """Send a simulator a signal when it has waited `wakes` times: few while it starts, then twice a step."""
    run = place.folder / f"simulator_{name}"
    victim = forked(words("evaluated", place.data, run, *_EVALUATED), place.folder / f"{run.name}.log")
    _until(victim, lambda: (run / "checkpoints" / "last").exists() and _busy(victim, wakes))
    for process in _simulators(victim):
        with contextlib.suppress(psutil.Error):
            process.send_signal(number)
    victim.check(2)
    if said not in victim.last_words() or "goes on from step 15" not in victim.last_words():
        raise FailedError(f"it does not say what happened: {victim.last_words()}")
    _go_on(place, "evaluated", run, *_EVALUATED)
    return f"{signal.Signals(number).name} to the simulator's process"


def _busy(victim: Victim, wakes: int) -> bool:
    with contextlib.suppress(psutil.Error):
        return any(process.num_ctx_switches().voluntary >= wakes for process in _simulators(victim))
    return False


def _simulators(victim: Victim) -> list[psutil.Process]:
    found = []
    for process in marked(victim.mark):
        with contextlib.suppress(psutil.Error):
            if "spawn_main" in " ".join(process.cmdline()):
                found.append(process)
    return found


def a_simulator_hangs(place: Place) -> str:
    """An environment that never answers."""
    _struck_simulator(place, "never_starts", signal.SIGSTOP, "gave no answer for 60 s while it started", wakes=0)
    return _struck_simulator(place, "hangs", signal.SIGSTOP, "gave no answer for 10 s in episode", wakes=_STEPPING)


def a_simulator_dies(place: Place) -> str:
    """An environment whose process is killed."""
    return _struck_simulator(place, "dies", signal.SIGKILL, "has ended in episode", wakes=_STEPPING)


def the_data_shrink(place: Place) -> str:
    """The data file is cut while the run reads it."""
    own = place.folder / "shrinking"
    own.mkdir()
    file, run = own / "pixels.h5", place.folder / "shrunk"
    content = (place.data / "pixels.h5").read_bytes()
    file.write_bytes(content)

    def begin() -> None:
        def act(event: str, path: str) -> None:
            if event == "os.mkdir" and ".step_10." in path and file.stat().st_size > 100:
                os.truncate(file, 100)

        on_event(run, act)

    more = (f"task.dataset={file}", "training.steps=30")
    command = words("pixels", place.data, run, *more)
    victim = forked(command, place.folder / "shrunk.log", before=begin)
    if (status := victim.wait()) not in (2, -signal.SIGBUS):  # 2: noticed at a checkpoint
        raise FailedError(f"status {status} after the file shrank: {victim.last_words()}")
    victim.check_alone()
    forked([*command, "--resume"], place.folder / "shrunk.refused.log").check(2)
    file.write_bytes(content)
    _go_on(place, "pixels", run, *more)
    return "truncate"


def the_clock_jumps(place: Place) -> str:
    """Every look at the clock on the wall finds it days away from the last; the undisturbed run is the judge."""
    run = place.folder / "clock"

    def begin() -> None:
        real, days = time.time, random.Random(0)
        time.time = lambda: real() + 86400 * days.uniform(-1000, 1000)

    forked(words("evaluated", place.data, run), place.folder / "clock.log", before=begin).check(0)
    if found := differences(place.reference("evaluated"), run):
        raise FailedError("; ".join(found[:5]))
    return "time.time() replaced by one that jumps days"


def the_scheduler_asks(place: Place) -> str:
    """SIGTERM, SIGINT and SLURM's SIGUSR1: a checkpoint, status 130, and the run goes on as if nothing had been."""
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
        run = place.folder / f"asked_{number.name}"
        victim = forked(words("states", place.data, run), run.with_suffix(".log"))
        _until(victim, lambda run=run: (run / "checkpoints" / "step_15").exists())  # type: ignore[misc]
        victim.kill(number)
        victim.check(130)
        _go_on(place, "states", run)
    return "the signals themselves"


FAULTS: dict[str, Fault] = {
    "disk full at a checkpoint": disk_full_at_a_checkpoint,
    "disk full at metrics": disk_full_at_metrics,
    "disk full at the report": disk_full_at_the_report,
    "disk full at the cache": disk_full_at_the_cache,
    "read-only folder": read_only_folder,
    "a rank dies": a_rank_dies,
    "a simulator hangs": a_simulator_hangs,
    "a simulator dies": a_simulator_dies,
    "the data shrink": the_data_shrink,
    "the clock jumps": the_clock_jumps,
    "the scheduler asks": the_scheduler_asks,
}
"""By what is told of them."""


def cause(names: list[str], data: Path, folder: Path, tell: Callable[[str], None]) -> int:
    """Cause faults; how many came out well.

    Args:
        names: of `FAULTS`.
        data: folder of `runs.data`.
        folder: for their runs.
        tell: is given a sentence about each.
    """
    folder.mkdir(parents=True, exist_ok=True)
    place, well = Place(data, folder, mountable(folder)), 0
    for name in names:
        began = time.monotonic()
        try:
            how = FAULTS[name](place)
            well += 1
            tell(f"fault: {name}, by {how}: as it should ({time.monotonic() - began:.0f} s)")
        except (FailedError, OSError, subprocess.SubprocessError) as error:
            tell(f"fault: {name}: {error}")
    return well
