"""Run a suite from its plan to its tables; finished runs are kept and interrupted ones resumed."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path

from gtp_vision import envs
from gtp_vision.config.overrides import quoted
from gtp_vision.core.errors import GtpVisionError
from gtp_vision.core.files import atomic_write
from gtp_vision.suites import tables
from gtp_vision.suites.peers import Peers, read
from gtp_vision.suites.plan import Plan, records
from gtp_vision.suites.records import Record
from gtp_vision.suites.suite import Suite
from gtp_vision.training.jobs import require_same_settings, train_runs


class InterruptedSuiteError(GtpVisionError):
    """The suite was stopped; its runs have written checkpoints."""

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
    peers: Path | None = None,
    progress: bool = True,
) -> list[Record]:
    """Train the unfinished runs of a plan, `workers` at once, and write the tables, also when stopped.

    A run that fails does not stop the others and is reported at the end.
    `launcher` are settings of a Hydra launcher that starts the runs (see `jobs.train_runs`); `command` is the command
    line for the tables, `peers` the folder of official runs that stand in them.

    Returns:
        The scores of all runs.

    Raises:
        GtpVisionError: a folder holds a run of other settings, or runs failed.
        InterruptedSuiteError: SIGINT or SIGTERM arrived.
    """
    if peers:
        read(suite, plan, peers)  # what is wrong with it is found before days of training
    left = {job.folder: job.settings for job in plan.jobs if job.done < 1}
    for job in plan.jobs:
        require_same_settings(job.folder, job.config)
    failures = []
    try:
        with _interruptible():
            for _, failure in train_runs(left, workers=workers, threads=threads, launcher=launcher, progress=progress):
                failures += [failure] if failure else []
    finally:
        scores = write(suite, plan, out, command=command, peers=peers)
    if failures:
        raise GtpVisionError(f"{len(failures)} of {len(left)} runs failed; the first: {failures[0]}")
    return scores


def commands(plan: Plan) -> list[str]:
    """Return a line of the shell for each unfinished run, which starts or resumes it; their order does not matter.

    Raises GtpVisionError: a folder holds a run of other settings.
    """
    for job in plan.jobs:
        require_same_settings(job.folder, job.config)
    words = ((*job.settings, quoted("run_dir", job.folder)) for job in plan.jobs if job.done < 1)
    return [shlex.join(["gtp-vision", "train", "--resume", *settings]) for settings in words]


def write(suite: Suite, plan: Plan, out: Path, *, command: str, peers: Path | None = None) -> list[Record]:
    """Write the tables of the runs' scores so far, and return the scores, last those of official code."""
    official = read(suite, plan, peers) if peers else Peers()
    scores = records(suite, out) + official.records
    out.mkdir(parents=True, exist_ok=True)
    with atomic_write(out / "records.json") as temporary:
        temporary.write_text(json.dumps([asdict(record) for record in scores], indent=1))
    if scores:
        facts, missing = _facts(suite, command) | official.sources, [*plan.missing, *official.notes]
        tables.write(
            scores, out, title=suite.title, facts=facts, selection=suite.selection, reach=suite.reach, missing=missing
        )
    return scores


def _facts(suite: Suite, command: str) -> dict[str, str]:
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
    """Turn Ctrl-C, and SIGTERM, which `cli.main` makes one, into `InterruptedSuiteError`."""
    try:
        yield
    except KeyboardInterrupt:
        raise InterruptedSuiteError("stopped, with a checkpoint of each run; run the same command to resume") from None
