"""kill -9 at random moments; the resumed run must equal the one that was not disturbed.

Half of the moments are drawn from the time that the undisturbed run takes. The others are drawn from its changes to the
disk: just before a file is opened to write, made, renamed or removed, so that checkpoints, evaluations and reports are
hit while they are written. Most victims are forks, which begin at once; some are started as a user starts them, and of
these some train by compiled steps, which a fork cannot compile.
"""

from __future__ import annotations

import itertools
import json
import os
import shutil
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from torture.forked import FailedError, Victim, forked, on_event, started
from torture.runs import require_equal, whole, words

_MIX = ("states", "evaluated", "states", "seeds", "states", "pixels", "online")
_STARTED = ("states", "compiled", "states", "compiled_seeds", "states")
_LATEST = 55  # the last step whose checkpoint may be waited for


@dataclass(frozen=True)
class Undisturbed:
    """A run that was not disturbed: its folder, the seconds that it took, and its changes to the disk."""

    folder: Path
    seconds: float
    changes: int


def _undisturbed(kind: str, data: Path, folder: Path) -> Undisturbed:
    counts, run, log = folder / f"{kind}.count", folder / kind, folder / f"{kind}.log"
    if kind.startswith("compiled"):
        victim = started(words(kind, data, run), log)
        victim.check(0)
        engines = {json.loads(path.read_text(encoding="utf-8"))["engine"] for path in run.rglob("results.json")}
        if engines != {"compile"}:
            raise FailedError(f"{run} was trained by {', '.join(sorted(engines)) or 'nothing'}, not by compiled steps")
        return Undisturbed(run, time.monotonic() - victim.began, 0)

    def begin() -> None:
        handle = os.open(counts, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
        on_event(run, lambda event, path: os.write(handle, b".") and None)

    victim = forked(words(kind, data, run), log, before=begin)
    victim.check(0)
    return Undisturbed(run, time.monotonic() - victim.began, counts.stat().st_size)


def _kill_at_change(run: Path, number: int) -> Callable[[], None]:
    """What a victim calls first, to kill itself just before change `number` to the disk."""
    left = itertools.count(number, -1)

    def see(event: str, path: str) -> None:
        if next(left) == 0:
            os.kill(os.getpid(), signal.SIGKILL)

    return lambda: on_event(run, see)


def kills(
    count: int,
    data: Path,
    folder: Path,
    seed: int,
    tell: Callable[[str], None],
    *,
    real: int = 5,
    only: str | None = None,
) -> int:
    """Kill `count` trainings at moments by a seed, resume each, compare, and report each to `tell`.

    `real` of them are started as a user starts them, the others are forks; all are of the kind `only`, if given.
    Returns how many equal the undisturbed run bit for bit.
    """
    folder.mkdir(parents=True, exist_ok=True)
    kinds = [only or (_STARTED[n % len(_STARTED)] if n < real else _MIX[n % len(_MIX)]) for n in range(count)]
    references = {kind: _undisturbed(kind, data, folder) for kind in sorted(set(kinds))}
    seconds = 0.0  # of a run that is started as a user starts it
    if real:
        victim = started(words(only or "states", data, folder / "started"), folder / "started.log")
        victim.check(0)
        seconds = time.monotonic() - victim.began
    equal = 0
    for number, kind in enumerate(kinds):
        random, reference = np.random.default_rng([seed, number]), references[kind]
        run, launch = folder / f"{number}_{kind}", started if number < real else forked
        line, log = words(kind, data, run), run.with_suffix(".log")
        try:
            if kind.startswith("compiled"):
                when = _kill_at_checkpoint(started(line, log), run, random)
            elif number < real:
                when = _kill_at_time(started(line, log), seconds, random, 0.3)
            elif number % 2:
                at = int(random.integers(reference.changes))
                forked(line, log, before=_kill_at_change(run, at)).check(-signal.SIGKILL)
                when = f"before change {at} of {reference.changes} to the disk"
            else:
                when = _kill_at_time(forked(line, log), reference.seconds, random)
            step = max(whole(run).values(), default=0)
            launch([*line, "--resume"], run.with_suffix(".resumed.log")).check(0)
            require_equal(reference.folder, run)
            shutil.rmtree(run)
            equal += 1
            tell(f"kill {number}: {kind}, {when}, from step {step}: equal")
        except FailedError as error:
            tell(f"kill {number}: {kind} (kept in {run}): {error}")
    return equal


def _kill_at_checkpoint(victim: Victim, run: Path, random: np.random.Generator) -> str:
    """Kill it up to a tenth of a second after a checkpoint is there; returns when that was."""
    step = int(random.integers(1, 1 + _LATEST // 5)) * 5
    name = f"checkpoints/step_{step}"  # looked for by name: a walk fails at what the victim renames
    while not (run / name).exists() and not any(run.glob(f"seed_*/{name}")) and not victim.ended():
        time.sleep(0.001)
    delay = float(random.uniform(0, 0.1))
    time.sleep(delay)
    victim.kill()
    victim.check_alone()
    return f"{1000 * delay:.0f} ms after step {step}"


def _kill_at_time(victim: Victim, seconds: float, random: np.random.Generator, first: float = 0.0) -> str:
    """Kill it between `first` and all of the time that the run takes; returns when that was."""
    moment = float(random.uniform(first, 1.0)) * seconds
    while time.monotonic() - victim.began < moment and not victim.ended():
        time.sleep(0.001)
    is_late = victim.ended()
    victim.kill()
    victim.check_alone()
    return f"after {moment:.2f} of {seconds:.2f} s" + (" (it had just ended)" if is_late else "")
