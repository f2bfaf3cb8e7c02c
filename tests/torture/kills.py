"""kill -9 at random moments; and the run that went on must be the one that nothing happened to.

Half of the moments are moments of the clock, drawn over what the run takes undisturbed. The others are moments of the
disk: just before a file is opened to write, made, renamed or removed, drawn over all of these of the undisturbed run,
so that checkpoints, evaluations and reports that are being written are hit as often as they are written to. Most
victims are forks, which begin at once; some are started from nothing as a person starts them, and of these some train
by compiled steps, which a fork cannot compile.
"""

from __future__ import annotations

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
from torture.runs import differences, whole, words

_MIX = ("states", "evaluated", "states", "seeds", "states", "pixels")
_STARTED = ("states", "compiled", "states", "compiled_seeds", "states")
_LATEST = 55  # step whose checkpoint may be waited for


@dataclass(frozen=True)
class Undisturbed:
    """A run that nothing happened to.

    Attributes:
        folder: of the run.
        seconds: that it took.
        events: changes that it made to the disk.
    """

    folder: Path
    seconds: float
    events: int


def undisturbed(kind: str, data: Path, folder: Path) -> Undisturbed:
    """Train a run of a kind, and count."""
    counted = folder / f"{kind}.count"
    run = folder / kind
    if kind.startswith("compiled"):
        victim = started(words(kind, data, run), folder / f"{kind}.log")
        victim.check(0)
        _check_compiled(run)
        return Undisturbed(run, time.monotonic() - victim.began, 0)
    victim = forked(words(kind, data, run), folder / f"{kind}.log", before=_counting(run, counted))
    victim.check(0)
    return Undisturbed(run, time.monotonic() - victim.began, counted.stat().st_size)


def _check_compiled(run: Path) -> None:
    """Raise if it fell back to eager steps: what is compared should be what it is called."""
    found = {json.loads(path.read_text(encoding="utf-8"))["engine"] for path in run.rglob("results.json")}
    if found != {"compile"}:
        raise FailedError(f"{run} was trained by {', '.join(sorted(found)) or 'nothing'}, not by compiled steps")


def _counting(run: Path, counted: Path) -> Callable[[], None]:
    def begin() -> None:
        handle = os.open(counted, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)

        def count(event: str, path: str) -> None:
            os.write(handle, b".")

        on_event(run, count)

    return begin


def _struck_at(run: Path, number: int) -> Callable[[], None]:
    """Kill itself just before event `number` on the disk."""

    def begin() -> None:
        left = number

        def strike(event: str, path: str) -> None:
            nonlocal left
            left -= 1
            if left < 0:
                os.kill(os.getpid(), signal.SIGKILL)

        on_event(run, strike)

    return begin


def kills(count: int, data: Path, folder: Path, seed: int, tell: Callable[[str], None], *, real: int = 5) -> int:
    """Kill `count` trainings, go on with each, and compare.

    Args:
        count: how many.
        data: folder of `runs.data`.
        folder: that the runs go to.
        seed: of the moments.
        tell: is given a sentence about each.
        real: how many of them are started from nothing, the others being forks.

    Returns:
        How many came out bit for bit as the run that nothing happened to.
    """
    folder.mkdir(parents=True, exist_ok=True)
    kinds = [_MIX[number % len(_MIX)] for number in range(count)]
    real = min(real, count)
    kinds[:real] = [_STARTED[number % len(_STARTED)] for number in range(real)]
    references = {kind: undisturbed(kind, data, folder) for kind in sorted(set(kinds))}
    slow = 0.0
    if real:
        victim = started(words("states", data, folder / "started"), folder / "started.log")
        victim.check(0)
        slow = time.monotonic() - victim.began
    equal = 0
    for number, kind in enumerate(kinds):
        random = np.random.default_rng([seed, number])
        run = folder / f"{number}_{kind}"
        try:
            if kind.startswith("compiled"):
                at = int(random.integers(1, 1 + _LATEST // 5)) * 5
                when = _at_a_checkpoint(started(words(kind, data, run), run.with_suffix(".log")), run, at, random)
            elif number < real:
                when = _by_the_clock(started(words(kind, data, run), run.with_suffix(".log")), slow, random, 0.3)
            elif number % 2:
                at = int(random.integers(references[kind].events))
                victim = forked(words(kind, data, run), run.with_suffix(".log"), before=_struck_at(run, at))
                victim.check(-signal.SIGKILL)
                when = f"before change {at} of {references[kind].events} to the disk"
            else:
                when = _by_the_clock(
                    forked(words(kind, data, run), run.with_suffix(".log")), references[kind].seconds, random
                )
            kept = whole(run)
            again = [*words(kind, data, run), "--resume"]
            log = run.with_suffix(".resumed.log")
            (started(again, log) if number < real else forked(again, log)).check(0)
            found = differences(references[kind].folder, run)
            if found:
                raise FailedError("; ".join(found[:5]))
            shutil.rmtree(run)
            equal += 1
            tell(f"kill {number}: {kind}, {when}, from step {max(kept.values(), default=0)}: equal")
        except FailedError as error:
            tell(f"kill {number}: {kind} (kept in {run}): {error}")
    return equal


def _at_a_checkpoint(victim: Victim, run: Path, step: int, random: np.random.Generator) -> str:
    """Kill it when a checkpoint of a step is there, or up to a tenth of a second later; when that was."""
    wanted = f"checkpoints/step_{step}"  # looked for by name: a walk stumbles over what the victim renames
    while not (run / wanted).exists() and not any(run.glob(f"seed_*/{wanted}")) and not victim.ended():
        time.sleep(0.001)
    later = float(random.uniform(0, 0.1))
    time.sleep(later)
    victim.kill()
    victim.check_alone()
    return f"{1000 * later:.0f} ms after step {step}"


def _by_the_clock(victim: Victim, takes: float, random: np.random.Generator, first: float = 0.0) -> str:
    """Kill it between `first` and all of what the run takes; when that was."""
    moment = float(random.uniform(first, 1.0)) * takes
    while time.monotonic() - victim.began < moment and not victim.ended():
        time.sleep(0.001)
    late = victim.ended()
    victim.kill()
    victim.check_alone()
    return f"after {moment:.2f} of {takes:.2f} s" + (" (it had just ended)" if late else "")
