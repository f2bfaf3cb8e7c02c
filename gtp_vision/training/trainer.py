"""The trainer: from a configuration to a run folder, on one or many processes by Accelerate.

    config.yaml  metrics.jsonl  checkpoints/  images/  videos/  results.json  report.html

The update is one function of (parameters, batch, noise), and batch and noise are functions of (seed, step), so a
resumed run equals an uninterrupted one. With `training.seeds` the folder holds such a folder for each seed,
`seed_0`, `seed_1`, ..., as if it had been trained alone, and a report of all.
"""

from __future__ import annotations

import itertools
import json
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from tqdm import tqdm

from gtp_vision import agents
from gtp_vision.agents.base import Metrics
from gtp_vision.config.schema import Config, to_yaml
from gtp_vision.core.distributed import any_rank
from gtp_vision.core.errors import GtpVisionError
from gtp_vision.core.files import atomic_write
from gtp_vision.core.signals import stop_requested
from gtp_vision.datasets.loader import Loader
from gtp_vision.datasets.pitfalls import pitfalls
from gtp_vision.evaluation.evaluator import Evaluator
from gtp_vision.models import WeightsError
from gtp_vision.report import build_report
from gtp_vision.training import checkpoint, engines, health, model_summary, recovery
from gtp_vision.training.build import build, components_for_seed
from gtp_vision.training.data import constant_dimensions
from gtp_vision.training.engines import Engine
from gtp_vision.training.evaluate import check_simulator, evaluator_of
from gtp_vision.training.guard import unchanged_state
from gtp_vision.training.nonfinite import Fault
from gtp_vision.training.processes import batch_shares, is_first, report_lost_ranks
from gtp_vision.training.run import InterruptedRunError, TrainingRun, pending_metrics_of, train_seconds_of
from gtp_vision.training.run_lock import RunLock, clear_folder
from gtp_vision.training.seeds import folders, seeds_of, summary
from gtp_vision.training.tracking import Meters

Pending = list[list[Metrics | None]]
"""Of each step since the last reading, what each run's step told; None of one that was left out."""
_ASK = 50  # steps; launchers kill what has not ended half a minute after their signal

__all__ = ["InterruptedRunError", "prepare_folder", "refuse_occupied", "train"]


def train(config: Config, *, resume: bool = False, overwrite: bool = False, progress: bool = True) -> dict[str, Any]:
    """Train, evaluate and report one run, or one of each seed.

    Args:
        config: everything about it; `config.run_dir` is where it goes.
        resume: go on from the newest whole checkpoint in the run folder.
        overwrite: throw away what stands in the run folder.
        progress: show bars.

    Returns:
        The contents of results.json.

    Raises:
        GtpVisionError: any mistake of input or machine; `InterruptedRunError` after SIGINT, SIGTERM or SIGUSR1.
    """
    folder = Path(config.run_dir)
    refuse_occupied(folder, resume=resume, overwrite=overwrite)
    with report_lost_ranks(folder), RunLock(folder) as place:
        if (folder / "config.yaml").exists():
            place.enter()

        def enter() -> None:
            place.enter()
            refuse_occupied(folder, resume=resume, overwrite=overwrite)  # somebody may have been faster

        return _train(config, enter, resume=resume, progress=progress)


def _train(config: Config, enter: Callable[[], None], *, resume: bool, progress: bool) -> dict[str, Any]:
    folder = Path(config.run_dir)
    configs, into = seeds_of(config), folders(config)
    found = checkpoint.newest_of_all([each / "checkpoints" for each in into], _warn) if resume else None
    evaluated = config.training.eval_episodes > 0
    check = (lambda store: check_simulator(config, store)) if evaluated else None
    parts = build(config, goes_on=found[0] if found else None, check=check)
    engines.check(config, parts)  # before anything is written or removed
    every = [parts, *(components_for_seed(parts, other) for other in configs[1:])]
    accelerator = parts.accelerator
    start, train_seconds, skips = 0, 0.0, [set[int]() for _ in every]
    held: list[list[dict[str, float]]] = [[] for _ in every]
    if found is not None:
        states = [checkpoint.load(path, one.agent, one.optimizer) for one, path in zip(every, found, strict=True)]
        start, train_seconds = states[-1]["step"], train_seconds_of(states[-1], found[-1])
        skips = [recovery.skips_of(state, path) for state, path in zip(states, found, strict=True)]
        held = [pending_metrics_of(state, path) for state, path in zip(states, found, strict=True)]
        accelerator.print(f"going on from step {start} ({found[0]})")
    elif resume:
        accelerator.print(f"no whole checkpoint in {folder}: starting from step 0")
    said = progress and accelerator.is_main_process

    def tell(line: str) -> None:
        if said and line:
            tqdm.write(line, file=sys.stderr)

    if accelerator.is_main_process:
        enter()
        prepare_folder(folder, config, empty=not resume)
        for own, place in zip(configs, into, strict=True):
            if place != folder:
                place.mkdir(exist_ok=True)
                prepare_folder(place, own, empty=False)
    tell(batch_shares(accelerator.num_processes, parts.sampler.batch_size))
    tell(parts.where)
    tell(model_summary.summary(parts.agent, config))
    tell(constant_dimensions(parts.statistics))
    if said and not resume:
        for unlikely in pitfalls(parts.store, parts.statistics, rewarded=config.task.goals is None):
            tell(f"warning: {unlikely}")
    accelerator.wait_for_everyone()
    members = [
        TrainingRun(
            own, place, one, start=start, train_seconds=train_seconds, resume_with=folder, skips=left_out, held=rows
        )
        for own, place, one, left_out, rows in zip(configs, into, every, skips, held, strict=True)
    ]
    try:
        with stop_requested() as stop, evaluator_of(config, parts, said) as evaluator:
            for member in members:
                member.begin()
            run = _Run(config, members, engines.choose(config, every, tell), said, tell)
            run.loop(start, stop, evaluator)
        results = [member.finish(run.engine.name, len(members)) for member in members]
    finally:
        for member in members:
            member.close()
    if len(members) == 1:
        return results[0]
    told = summary(results)
    with atomic_write(folder / "results.json") as aside:
        aside.write_text(json.dumps(told, indent=1))
    build_report(into, folder / "report.html", title=f"{told['agent']} on {config.task.name}, {len(into)} seeds")
    return told


class _Run:
    """The loop over steps of the runs that are trained side by side.

    Args:
        config: of all.
        members: the runs.
        engine: takes their steps.
        progress: show a bar.
        tell: is given sentences.
    """

    def __init__(
        self,
        config: Config,
        members: Sequence[TrainingRun],
        engine: Engine,
        progress: bool,
        tell: Callable[[str], None],
    ) -> None:
        self.config, self.members, self.engine, self.progress, self.tell = config, members, engine, progress, tell
        self.accelerator = members[0].parts.accelerator

    def loop(self, start: int, stop: Callable[[], bool], evaluator: Evaluator) -> None:
        """Steps `start` to the last; what a step that is not finite makes of it, `recovery` knows."""
        mode = self.config.training.on_nonfinite
        if mode == "rollback" and start == 0:  # there must be something to go back to
            for member in self.members:
                member.save(0)
        while True:
            try:
                return self._steps(start, stop, evaluator)
            except Fault as fault:
                start = recovery.answer(mode, self.members, fault, self.tell)

    def _steps(self, start: int, stop: Callable[[], bool], evaluator: Evaluator) -> None:
        """Steps `start` to the last, with logging, checkpoints and evaluations in between."""
        training, members = self.config.training, self.members
        if start and self._due(start):  # the run may have ended between its checkpoint and its evaluation
            self._evaluate(start, evaluator, stop)
        loader = Loader(
            self.engine.source,
            start=start,
            stop=training.steps,
            device=self.accelerator.device,
            rank=self.accelerator.process_index,
            world_size=self.accelerator.num_processes,
        )
        pending: Pending = []
        meters, began, read = Meters(), time.perf_counter(), start
        label = f"{agents.label(self.config.agent)} on {self.config.task.name}"
        with (
            loader,
            tqdm(
                total=training.steps,
                initial=start,
                desc=label,
                unit="step",
                disable=not self.progress,
                mininterval=1,
            ) as bar,
        ):
            batches = iter(loader)
            for step in range(start, training.steps):
                with meters.measure("data"):
                    _, inputs = next(batches)
                with meters.measure("update"):
                    pending.append(self._step(step, inputs, pending))
                done = step + 1
                last = done == training.steps
                stopping = self._agreed(stop, done)
                planned = last or self._due(done) or done % training.checkpoint_every == 0
                saving = planned or stopping
                metrics: list[dict[str, float]] = []
                if last or done % training.log_every == 0:
                    with meters.measure("update"):  # reading waits for the device
                        metrics = self._read(pending, done)
                    times = meters.read(done - read)
                    read = done
                    metrics = [told | times for told in metrics]
                    pending.clear()
                    recovery.check_idle(members, done)
                    bar.set_postfix_str(f"loss {sum(told['loss'] for told in metrics) / len(metrics):.3f}")
                elif saving:
                    self._hold(pending, done)
                if saving:
                    recovery.check_parameters(members, done)
                    for member in members:
                        member.train_seconds += time.perf_counter() - began
                for member, told in zip(members, metrics, strict=False):
                    # Not where a run is only asked to stop: its lines would be others than an undisturbed run's.
                    drift = member.watch.drift() if planned and member.watch else {}
                    if member.tracker:
                        member.tracker.write(done, told | drift | (self._act(member, done) if planned else {}))
                    self._tell(member, member.health.read_metrics(done, told))
                bar.update()
                if saving:
                    for member in members:
                        member.save(done)
                    for member in members:
                        member.prune()
                    if stopping and not last:
                        raise members[0].interrupted(done)
                    if self._due(done):
                        self._evaluate(done, evaluator, stop)
                    began = time.perf_counter()

    def _step(self, step: int, inputs: engines.Inputs, pending: Pending) -> list[Metrics | None]:
        """One step of every run; None for those that leave it out."""
        out = [step + 1 in member.skips for member in self.members]
        metrics: list[Metrics | None] = [None] * len(out)
        try:
            with ExitStack() as stack:
                for member in itertools.compress(self.members, out):
                    stack.enter_context(unchanged_state(member.parts.agent, member.parts.optimizer, step))
                metrics[:] = self.engine.step(step, inputs)
        except WeightsError as error:
            if pending:
                self._read(pending, step)  # what was not finite first
            raise Fault(0, step + 1, f"the actor's {error}", ["weight"]) from error
        return [None if left else told for left, told in zip(out, metrics, strict=True)]

    def _read(self, pending: Pending, done: int) -> list[dict[str, float]]:
        """Each member's metrics, see `TrainingRun.read`."""
        each = enumerate(zip(self.members, zip(*pending, strict=True), strict=True))
        return [member.read(own, done, index) for index, (member, own) in each]

    def _act(self, member: TrainingRun, step: int) -> dict[str, float]:
        """How much the policy's actions differ, as metrics."""
        agent = member.parts.agent
        found = health.spread_of(member.parts, self.config.training.eval_steps or agent.config.acting.steps, step)
        self._tell(member, member.health.read_spread(step, found, noisy=health.noisy(member.parts)))
        return found.metrics()

    def _tell(self, member: TrainingRun, lines: list[str]) -> None:
        whose = f"seed {member.config.seed}: " if len(self.members) > 1 else ""
        for line in member.tell(lines):
            self.tell(whose + line)

    def _hold(self, pending: Pending, done: int) -> None:
        """Read the metrics that the next line will tell of, see `TrainingRun.hold`."""
        for index, (member, own) in enumerate(zip(self.members, zip(*pending, strict=True), strict=True)):
            member.hold(own, done, index)
        pending.clear()

    def _evaluate(self, step: int, evaluator: Evaluator, stop: Callable[[], bool]) -> None:
        for member in self.members:
            if not member.evaluated(step):
                member.evaluate(step, evaluator, stop)
                self._tell(member, member.health.read_evaluations(member.evaluations))

    def _agreed(self, stop: Callable[[], bool], step: int) -> bool:
        """Whether to stop here; several processes ask each other now and then, so that all stop at one step."""
        if self.accelerator.num_processes == 1:
            return stop()
        if step % min(self.config.training.log_every, _ASK):
            return False
        return any_rank(stop(), device=self.accelerator.device)[0]

    def _due(self, step: int) -> bool:
        """Whether an evaluation belongs to this step."""
        training = self.config.training
        regular = training.eval_every > 0 and step % training.eval_every == 0
        return training.eval_episodes > 0 and (regular or step == training.steps)


def _warn(sentence: str) -> None:
    """Said of a machine or a disk that needs a look, also where no bars are shown."""
    if is_first():
        tqdm.write(f"warning: {sentence}", file=sys.stderr)


def refuse_occupied(folder: Path, *, resume: bool, overwrite: bool) -> None:
    """Refuse to mix two runs.

    Raises:
        GtpVisionError: the folder holds a run and neither resume nor overwrite was asked for.
    """
    if (folder / "config.yaml").exists() and not (resume or overwrite):
        raise GtpVisionError(
            f"{folder} holds a run already; give --resume to go on with it, --overwrite to replace it, "
            f"or another run_dir=..."
        )


def prepare_folder(folder: Path, config: Config, *, empty: bool) -> None:
    """Make the run folder, emptied of an earlier run if asked, and write its configuration.

    Raises:
        GtpVisionError: it cannot be written.
    """
    try:
        if empty and (folder / "config.yaml").exists():
            clear_folder(folder)
        with atomic_write(folder / "config.yaml") as aside:
            aside.write_text(to_yaml(config))
    except OSError as error:
        raise GtpVisionError(
            f"the run folder {folder} cannot be written ({error}); choose another run_dir=..."
        ) from error
