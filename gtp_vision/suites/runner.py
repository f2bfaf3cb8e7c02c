"""A suite from its plan to its tables; what was interrupted is gone on with, and what is done is not done again."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from types import FrameType

from gtp_vision import envs
from gtp_vision.core.errors import GtpVisionError
from gtp_vision.core.files import atomic_write
from gtp_vision.suites import tables
from gtp_vision.suites.plan import Plan, records
from gtp_vision.suites.records import Record
from gtp_vision.suites.suite import Suite
from gtp_vision.training.jobs import require_same_settings, train_runs


class InterruptedSuiteError(GtpVisionError):
    """The suite was asked to stop; its runs did, after their checkpoints."""

    exit_status = 130


def run(
    suite: Suite,
    plan: Plan,
    out: Path,
    *,
    workers: int,
    threads: int,
    launcher: Sequence[str] = (),
    command: str,
    progress: bool = True,
) -> list[Record]:
    """Train what is left of a plan, `workers` runs at once, and write the tables, also if asked to stop.

    A run that fails is told at the end; the others go on.

    Args:
        suite: what is run.
        plan: of it.
        out: folder of the runs and tables.
        workers: runs at once.
        threads: of each.
        launcher: Hydra's settings of one, which starts the runs (see `jobs.trained`).
        command: the command line, for the tables.
        progress: show a bar of runs.

    Returns:
        What all runs have scored.

    Raises:
        GtpVisionError: a folder holds a run of other settings; runs failed; asked to stop (`InterruptedSuiteError`).
    """
    left = {job.folder: job.settings for job in plan.jobs if job.done < 1}
    for job in plan.jobs:
        require_same_settings(job.folder, job.config)
    faults = []
    try:
        with _interruptible():
            for _, fault in train_runs(left, workers=workers, threads=threads, launcher=launcher, progress=progress):
                faults += [fault] if fault else []
    finally:
        told = write(suite, plan, out, command=command)
    if faults:
        raise GtpVisionError(f"{len(faults)} of {len(left)} runs failed; the first: {faults[0]}")
    return told


def write(suite: Suite, plan: Plan, out: Path, *, command: str) -> list[Record]:
    """Write the tables of what the runs in `out` have scored so far, and return it."""
    found = records(suite, out)
    out.mkdir(parents=True, exist_ok=True)
    with atomic_write(out / "records.json") as aside:
        aside.write_text(json.dumps([asdict(record) for record in found], indent=1))
    if found:
        tables.write(
            found, out, title=suite.title, facts=_facts(suite, command), selection=suite.selection, missing=plan.missing
        )
    return found


def _facts(suite: Suite, command: str) -> Mapping[str, str]:
    versions = {name: version(name) for name in ("gtp-vision", "torch")} | envs.versions()
    return {
        "command": command,
        "protocol": " ".join(suite.protocol),
        "selection": suite.selection,
        "gradient steps": f"{suite.steps:,}",
        "evaluations": f"{suite.episodes} episodes every {suite.eval_every:,} steps",
        "seeds": str(suite.seeds),
        "versions": ", ".join(f"{name} {number}" for name, number in versions.items()),
    }


@contextmanager
def _interruptible() -> Iterator[None]:
    """SIGTERM, too, ends the runs in order."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    except KeyboardInterrupt:
        raise InterruptedSuiteError("stopped, the runs after their checkpoints; the same command goes on") from None
    finally:
        signal.signal(signal.SIGTERM, before)
