"""The trainer: from a configuration to a run folder, on one or many processes by Accelerate.

    config.yaml  metrics.jsonl  checkpoints/  images/  videos/  results.json  report.html

A step is a function of (parameters, batch, noise), and batch and noise are functions of (seed, step), so a resumed run
equals an uninterrupted one. With `training.seeds` the folder holds such a folder for each seed (`seed_0`, `seed_1`,
...), as if it had been trained alone, and a report of all.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from gtp_vision import agents
from gtp_vision.agents.improvement import Metrics
from gtp_vision.config.schema import Config, TrainingConfig
from gtp_vision.core.distributed import any_rank
from gtp_vision.core.files import atomic_write
from gtp_vision.core.progress import Progress
from gtp_vision.core.signals import stop_requested
from gtp_vision.datasets.loader import Loader
from gtp_vision.evaluation.evaluator import Evaluator, StoppedError
from gtp_vision.report import build_report
from gtp_vision.training import engines, recovery
from gtp_vision.training.eager import learning_rate
from gtp_vision.training.engines import Engine
from gtp_vision.training.evaluate import evaluator_of
from gtp_vision.training.guard import unchanged_state
from gtp_vision.training.nonfinite import Fault
from gtp_vision.training.online import OnlineLoader
from gtp_vision.training.prepare import Log, prepare, refuse_occupied
from gtp_vision.training.ranks import is_first, report_lost_ranks, with_launcher
from gtp_vision.training.run import InterruptedRunError, TrainingRun
from gtp_vision.training.run_lock import RunLock
from gtp_vision.training.seeds import folders, summary
from gtp_vision.training.tracking import Meters
from gtp_vision.training.warm_start import Source, open_run

# Steps between two agreements of several processes to stop; launchers kill half a minute after a signal.
_STOP_POLL = 50

__all__ = ["InterruptedRunError", "train"]


def train(
    config: Config,
    *,
    resume: bool = False,
    new_segment: bool = False,
    overwrite: bool = False,
    progress: bool = True,
    open_source: Callable[[str], Source] = open_run,
) -> dict[str, Any]:
    """Train, evaluate and report one run, or one of each seed; return the contents of results.json.

    `config.run_dir` is the folder; `resume` continues from the newest intact checkpoint in it, with `new_segment` also
    with other data or settings, `overwrite` replaces the run. `open_source` reads `init.source`.

    Raises:
        GtpVisionError: a mistake in the input or a failure of the machine; `InterruptedRunError` after SIGINT, SIGTERM
            or SIGUSR1.
    """
    config = with_launcher(config)
    folder = Path(config.run_dir)
    refuse_occupied(folder, resume=resume, overwrite=overwrite)
    with report_lost_ranks(folder), RunLock(folder) as lock:
        if (folder / "config.yaml").exists():
            lock.enter()

        def enter() -> None:
            lock.enter()
            refuse_occupied(folder, resume=resume, overwrite=overwrite)  # another process may have been faster

        verbose = progress and is_first()

        def log(line: str) -> None:
            if verbose and line:
                Progress.write(line, file=sys.stderr)

        runs, start = prepare(config, enter, resume=resume, new_segment=new_segment, open_source=open_source, log=log)
        try:
            lock.check_shared()
            with stop_requested() as stop, evaluator_of(runs[0].config, runs[0].parts, verbose) as evaluator:
                for run in runs:
                    run.begin()
                engine = engines.choose(runs[0].config, [run.parts for run in runs], log)
                _loop(runs, engine, start, stop, evaluator, verbose, log)
            results = [run.finish(engine.name, len(runs)) for run in runs]
        finally:
            for run in runs:
                run.close()
    if len(runs) == 1:
        return results[0]
    common = summary(results)
    with atomic_write(folder / "results.json") as aside:
        aside.write_text(json.dumps(common, indent=1))
    title = f"{common['agent']} on {config.task.name}, {len(runs)} seeds"
    build_report(folders(config), folder / "report.html", title=title)
    return common


def _loop(
    runs: Sequence[TrainingRun],
    engine: Engine,
    start: int,
    stop: Callable[[], bool],
    evaluator: Evaluator,
    verbose: bool,
    log: Log,
) -> None:
    """Take steps `start` to the last of the runs that are trained side by side; log, save and evaluate in between.

    Raises:
        InterruptedRunError: `stop` asked to.
        GtpVisionError: a step was not finite, and `training.on_nonfinite` says to stop there.
    """
    training = runs[0].config.training
    is_online = runs[0].config.online.steps > 0
    label = f"{agents.label(runs[0].config.agent)} on {runs[0].config.task.name}"
    needs_first = runs[0].config.init.source is not None or is_online  # to resume from
    if start == 0 and (needs_first or training.on_nonfinite == "rollback"):  # to go back to
        for run in runs:
            if needs_first:
                run.validate(0)
            run.save(0)
    while True:  # once, and once more from a checkpoint after each rollback
        # The run may have ended between its checkpoint and its evaluation.
        if _evaluates_at(training, start) if start else is_online and training.eval_episodes:
            _evaluate(runs, start, evaluator, stop)
        pending: list[list[Metrics | None]] = []  # of each step since the last reading, each run's; None if left out
        meters, since, read = Meters(), time.perf_counter(), start
        loader = _loader(runs[0], engine, start, stop, meters)
        bar = Progress(
            total=training.steps,
            initial=start,
            desc=label,
            unit="step",
            disable=not verbose,
            mininterval=1,
        )
        try:
            with loader, bar:
                batches = iter(loader)
                for step in range(start, training.steps):
                    try:
                        with meters.measure("data"):
                            fetched = next(batches)
                    except StoppedError:
                        for run, own in zip(runs, zip(*pending, strict=True), strict=bool(pending)):
                            run.hold(own, step)
                        for run in runs:
                            run.train_seconds += time.perf_counter() - since
                            run.save(step)
                        raise runs[0].interrupted(step) from None
                    with meters.measure("update"), ExitStack() as stack:
                        left_out = [run for run in runs if step + 1 in run.skips]
                        for run in left_out:
                            stack.enter_context(unchanged_state(run.parts.agent, run.parts.optimizer, step))
                        metrics = engine.step(step, fetched)
                        pending.append(
                            [None if run in left_out else own for run, own in zip(runs, metrics, strict=True)]
                        )

                    done = step + 1
                    is_last = done == training.steps
                    is_stopping = _all_stop(stop, runs[0], done)
                    is_planned = is_last or _evaluates_at(training, done) or done % training.checkpoint_every == 0
                    saves = is_planned or is_stopping
                    logs = is_last or done % training.log_every == 0

                    if logs:
                        with meters.measure("update"):  # reading waits for the device
                            lines = [
                                run.read(own, done) for run, own in zip(runs, zip(*pending, strict=True), strict=True)
                            ]
                        times = meters.read(done - read)
                        rate = {"learning_rate": learning_rate(runs[0].config, step)}
                        collected = loader.metrics() if isinstance(loader, OnlineLoader) else {}
                        lines = [line | rate | collected | times for line in lines]
                        read = done
                        recovery.check_idle(runs, done)
                        bar.set_postfix_str(f"loss {sum(line['loss'] for line in lines) / len(lines):.3f}")
                    elif saves:  # the checkpoint holds what the next line will need
                        lines = [{} for _ in runs]
                        for run, own in zip(runs, zip(*pending, strict=True), strict=True):
                            run.hold(own, done)
                    if logs or saves:
                        pending.clear()
                    if saves:
                        recovery.check_parameters(runs, done)
                        for run in runs:
                            run.train_seconds += time.perf_counter() - since
                    if logs or saves:
                        for run, line in zip(runs, lines, strict=True):
                            run.write_metrics(done, line, is_planned=is_planned)
                    bar.update()
                    if saves:
                        for run in runs:
                            run.save(done)
                        for run in runs:
                            run.prune()
                        if is_stopping and not is_last:
                            raise runs[0].interrupted(done)
                        if _evaluates_at(training, done):
                            _evaluate(runs, done, evaluator, stop)
                        since = time.perf_counter()
            return
        except Fault as fault:
            start = recovery.handle_fault(training.on_nonfinite, runs, fault, log)


def _loader(
    run: TrainingRun, engine: Engine, start: int, stop: Callable[[], bool], meters: Meters
) -> Loader | OnlineLoader:
    """What makes the batches of step `start` to the last."""
    config, accelerator = run.config, run.parts.accelerator
    if config.online.steps:
        return OnlineLoader(config, run.folder, run.parts, start=start, stop=stop, meters=meters)
    return Loader(
        engine.source,
        start=start,
        stop=config.training.steps,
        device=accelerator.device,
        rank=accelerator.process_index,
        world_size=accelerator.num_processes,
    )


def _evaluates_at(training: TrainingConfig, step: int) -> bool:
    """Whether an evaluation is due after step `step`, from 1."""
    is_regular = training.eval_every > 0 and step % training.eval_every == 0
    return training.eval_episodes > 0 and (is_regular or step == training.steps)


def _evaluate(runs: Sequence[TrainingRun], step: int, evaluator: Evaluator, stop: Callable[[], bool]) -> None:
    for run in runs:
        if not run.evaluated(step):
            run.evaluate(step, evaluator, stop)


def _all_stop(stop: Callable[[], bool], run: TrainingRun, step: int) -> bool:
    """Whether to stop after step `step`; several processes agree now and then, so that all stop at the same one."""
    accelerator = run.parts.accelerator
    if accelerator.num_processes == 1:
        return stop()
    if step % min(run.config.training.log_every, _STOP_POLL):
        return False
    return any_rank(stop(), device=accelerator.device)[0]
