"""One of the runs that are trained side by side: its folder, its metrics, evaluations and checkpoints."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable, Collection, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from gtp_vision import agents, envs
from gtp_vision.agents import ActingConfig
from gtp_vision.agents.base import evaluating
from gtp_vision.agents.improvement import Metrics
from gtp_vision.config.compose import acting_of, best_of
from gtp_vision.config.schema import Config
from gtp_vision.core.errors import GtpVisionError
from gtp_vision.core.files import atomic_write
from gtp_vision.core.names import SALIENCY
from gtp_vision.datasets.mapped import check_sizes
from gtp_vision.datasets.record import differences
from gtp_vision.evaluation.evaluator import Evaluator, SimulatorError, StoppedError, write_videos
from gtp_vision.evaluation.metrics import averaged
from gtp_vision.evaluation.saliency import Saliency
from gtp_vision.report import build_report
from gtp_vision.training import checkpoint, model_summary, pictures
from gtp_vision.training.build import Components
from gtp_vision.training.data import save_statistics
from gtp_vision.training.evaluate import actor_of, chosen, eval_seed
from gtp_vision.training.health import Health, has_noise, spread_of
from gtp_vision.training.nonfinite import FILE as NONFINITE_FILE
from gtp_vision.training.nonfinite import Fault, diagnose, means, read_steps
from gtp_vision.training.probes import FeatureMonitor
from gtp_vision.training.segments import Segment, state_of
from gtp_vision.training.trackers import Trackers
from gtp_vision.training.tracking import Tracker
from gtp_vision.training.validation import Validation

_EVALUATIONS = "evaluations.json"
_SKIPPED = "skipped"  # stands for the metrics of a step that was not applied, and counts them in a line


class InterruptedRunError(GtpVisionError):
    """The run stopped after a checkpoint because the user or the scheduler asked it to."""

    exit_status = 130


class TrainingRun:
    """A run that is being trained.

    It is number `index` of those trained side by side, consists of `segments`, continues from step `start`, and leaves
    out the steps `skips`, from 1. `pending` are metrics of the last steps before `start`, which no line of
    metrics.jsonl holds yet; `resume_with` is the argument of `gtp-vision train --resume` after an interruption. `idle`
    counts lines of metrics since a step was applied, `idle_since` is the step, from 1, after that one.
    """

    def __init__(
        self,
        config: Config,
        folder: Path,
        parts: Components,
        *,
        index: int = 0,
        segments: Sequence[Segment] = (),
        start: int,
        train_seconds: float,
        resume_with: Path,
        skips: Collection[int] = (),
        pending: Sequence[Mapping[str, float]] = (),
        log: Callable[[str], None] = lambda line: None,
    ) -> None:
        self.config, self.folder, self.parts, self.index = config, folder, parts, index
        self.segments, self.train_seconds, self.log = segments, train_seconds, log
        self.evaluations = _read_evaluations(folder, start)
        is_validated = parts.held_out is not None and config.training.validation_rows > 0
        self.validation = Validation(folder, config, parts, start=start) if is_validated else None
        self._pending = list(pending)
        spent = train_seconds + sum(evaluation["seconds"] for evaluation in self.evaluations)
        is_main, evaluated = parts.accelerator.is_main_process, [found["step"] for found in self.evaluations]
        if is_main:
            self._tidy(start)
        self.trackers = Trackers(folder, config, log) if is_main and config.training.trackers else None
        logs = {"resume_step": start, "seconds": spent, "evaluated": evaluated, "trackers": self.trackers}
        self.tracker = Tracker(folder, **logs) if is_main else None
        self.health = Health(folder, config, parts.store, start=start, writes=is_main)
        self.skips, self.idle, self.idle_since = set(skips), 0, start + 1
        self.watch: FeatureMonitor | None = None
        self._start, self._resume_with = start, shlex.quote(str(resume_with))

    def begin(self) -> None:
        """Write what belongs before the first step, on the main process."""
        config, parts, folder = self.config, self.parts, self.folder
        if not parts.accelerator.is_main_process:
            return
        save_statistics(folder, parts.statistics, parts.store)
        if self._start < config.training.steps:  # those of a shorter run
            (folder / "results.json").unlink(missing_ok=True)
        if self._start == 0:
            pictures.first_batch(folder / "images" / "first_batch.png", parts.frames.batch(0), parts)
            pictures.augmentation(folder / "images" / "augmentation.png", parts.frames.batch(0), parts)
        if config.training.probe_rows and parts.agent.actor_encoder.cameras:
            same = not any(differences(segment.data, parts.record) for segment in self.segments if segment.data)
            self.watch = FeatureMonitor(folder, config, parts, resumed=self._start > 0, same_data=same)

    def _tidy(self, start: int) -> None:
        """Restore the checkpoints and links of step `start`: a kill may have come before the links."""
        checkpoints = self.folder / "checkpoints"
        checkpoint.forget_after(checkpoints, start)
        for name, step in (("last", start), ("best", self._best_step())):
            if (checkpoints / f"step_{step}").exists():
                checkpoint.link(checkpoints, name, checkpoints / f"step_{step}")

    def _best_step(self) -> int | None:
        """The step of the best evaluation; of a run that is never evaluated, of the best validation; None: none yet."""
        if best := max(self.evaluations, key=_merit, default=None):
            return int(best["step"])
        has_simulator = self.config.training.eval_episodes > 0
        return None if has_simulator or self.validation is None else self.validation.best()

    def validate(self, step: int) -> dict[str, float]:
        """Measure the agent on held-out episodes, before the checkpoint of this step: metrics, on the main process."""
        if self.validation is None or self.tracker is None:
            return {}
        with self.parts.agent.averaged():
            metrics = self.validation.measure(step)
        self.report(self.health.check_validation(self.validation.entries))
        return metrics

    def save(self, step: int) -> None:
        """Write a checkpoint with everything that resuming needs."""
        check_sizes()  # a mapped file may have become shorter
        if self.tracker:
            self.tracker.sync()
        if self.parts.accelerator.is_main_process:
            checkpoint.save(
                self.folder / "checkpoints",
                step,
                self.parts.agent,
                self.parts.optimizer,
                {
                    "train_seconds": self.train_seconds,
                    "skip_steps": sorted(self.skips),
                    "metrics": self._pending,
                    **state_of(self.segments),
                },
                keep=None,
            )
            if self._best_step() == step:
                folder = self.folder / "checkpoints"
                checkpoint.link(folder, "best", folder / f"step_{step}")
        self.parts.accelerator.wait_for_everyone()

    def prune(self) -> None:
        """Remove old checkpoints, once all runs have their new ones."""
        if self.parts.accelerator.is_main_process:
            checkpoint.prune(self.folder / "checkpoints", self.config.training.keep_checkpoints)

    def evaluated(self, step: int) -> bool:
        """Whether an evaluation of this step is recorded."""
        return any(found["step"] == step for found in self.evaluations)

    def evaluate(self, step: int, evaluator: Evaluator, stop: Callable[[], bool]) -> None:
        """Evaluate on all processes; the main one updates `best`, and writes videos and results."""
        with self.parts.agent.averaged(), evaluating(self.parts.agent):
            self._evaluate(step, evaluator, stop)
        self.parts.accelerator.wait_for_everyone()
        self.report(self.health.check_evaluations(self.evaluations))

    def _evaluate(self, step: int, evaluator: Evaluator, stop: Callable[[], bool]) -> None:
        training, agent = self.config.training, self.parts.agent
        actor = actor_of(agent, training.eval_steps)
        evaluator.seed = eval_seed(self.config)
        try:
            found, episodes = evaluator.run(actor, training.eval_episodes, film=2 * training.videos, stop=stop)
            again: dict[tuple[str, str], ActingConfig] = {}
            for count in training.eval_candidates or ():
                again["candidates", str(count)] = acting_of(agent.config.acting, best_of(count))
            for option in training.eval_acting or ():
                again["acting", option] = acting_of(agent.config.acting, [f"acting={option}"])
            several: dict[str, dict[str, Any]] = {}
            for (kind, name), acting in again.items():
                other = actor_of(agent, training.eval_steps, acting)
                several.setdefault(kind, {})[name], _ = evaluator.run(other, training.eval_episodes, stop=stop)
        except StoppedError:
            raise self.interrupted(step) from None
        except SimulatorError as error:
            raise SimulatorError(
                f"{error}; no training step is lost: continue from step {step} with gtp-vision train --resume "
                f"{self._resume_with}"
            ) from error
        found |= several
        best = max(map(_merit, self.evaluations), default=())
        self.evaluations.append({"step": step, **found, "train_seconds": self.train_seconds})
        if self.parts.accelerator.is_main_process:
            filmed, videos = chosen(episodes, training.videos), self.folder / "videos" / f"step_{step}"
            written = write_videos(videos, filmed)
            if self.trackers:
                self.trackers.videos(step, written)
            if self.tracker:
                numbers = {f"eval/{key}": value for key, value in found.items() if isinstance(value, float)}
                self.tracker.write(step, numbers)
            folder = self.folder / "checkpoints"
            if _merit(found) > best:
                checkpoint.link(folder, "best", folder / f"step_{step}")
            if step == training.steps and self.parts.agent.actor_encoder.cameras:
                draw = Saliency(self.parts.agent, self.config.task.frame_stack, evaluator.seed, training.eval_steps)
                write_videos(videos, filmed[:1], draw, SALIENCY)
            with atomic_write(self.folder / _EVALUATIONS) as aside:  # last: a recorded evaluation is not repeated
                aside.write_text(json.dumps(self.evaluations, indent=1))

    def write_metrics(self, step: int, metrics: Mapping[str, float], *, is_planned: bool) -> None:
        """Write a line of metrics since the last one, if there are any, and report what looks wrong in it.

        Validation, the features' drift and the spread of actions belong into planned lines only: where a run is only
        asked to stop, its lines would differ from an undisturbed run's.
        """
        more = self.validate(step) if is_planned else {}
        if not metrics:
            if self.tracker and more:
                self.tracker.write(step, more)
            return
        if is_planned and self.watch:
            more |= self.watch.drift()
        if is_planned and self.tracker:
            agent = self.parts.agent
            with agent.averaged():
                spread = spread_of(self.parts, self.config.training.eval_steps or agent.config.acting.steps, step)
            self.report(self.health.check_spread(step, spread, has_noise=has_noise(self.parts)))
            more |= spread.metrics()
        if self.tracker:
            self.tracker.write(step, dict(metrics) | more)
        self.report(self.health.check_metrics(step, metrics))

    def report(self, lines: Sequence[str]) -> None:
        """Print lines for the user."""
        for line in lines:
            self.log(line)

    def interrupted(self, step: int) -> InterruptedRunError:
        """The error that ends a run that was asked to stop."""
        return InterruptedRunError(
            f"stopped at step {step} of {self.config.training.steps}; "
            f"continue with: gtp-vision train --resume {self._resume_with}"
        )

    def read(self, pending: Sequence[Metrics | None], done: int) -> dict[str, float]:
        """Means over the steps since the last reading that have them; only here the host waits for the device.

        `pending` has None for a step that was left out. Raises Fault: one of them is not finite, and was applied.
        """
        self.hold(pending, done)
        rows, self._pending = self._pending, []
        line = means([row for row in rows if _SKIPPED not in row])
        skipped = sum(_SKIPPED in row for row in rows)
        mode = self.config.training.on_nonfinite
        if mode == "skip" and rows and skipped == len(rows):
            self.idle += 1
        else:
            self.idle, self.idle_since = 0, done + 1
        return line if mode == "stop" else line | {_SKIPPED: float(skipped)}

    def hold(self, pending: Sequence[Metrics | None], done: int) -> None:
        """Read the metrics of steps as `read` does, and keep them for the next line; a checkpoint stores them."""
        if not pending:
            return
        found = read_steps(pending, self.parts.accelerator, skips=self.config.training.on_nonfinite == "skip")
        first = done - len(pending) + 1
        if found.first is not None:
            raise Fault(self.index, first + found.first, f"{found.names[0]} is not finite", found.names)
        if found.skipped:
            self._first_skipped(first + found.skipped[0], found.names)
        self._pending += [{_SKIPPED: 1.0} if row is None else row for row in found.rows]

    def _first_skipped(self, step: int, names: Sequence[str]) -> None:
        """Examine the first step that was skipped; the metric `skipped` counts later ones."""
        if not any(warning["kind"] == "skipped" for warning in self.health.warnings):
            what = diagnose(self.parts, self.config, self.folder, step, names)
            self.report(self.health.add(step, "skipped", f"step {step}: {names[0]} is not finite, {what}; skipped"))

    def diverged(self, step: int, what: str, clause: str) -> GtpVisionError:
        """The error that ends a run that cannot learn any more; `clause`, of `nonfinite.report`, may be empty."""
        kept = checkpoint.newest(self.folder / "checkpoints")
        looked = f"{clause} ({self.folder / NONFINITE_FILE}); " if clause else ""
        fixes = ["lower training.learning_rate", "set training.clip_gradient"]
        if self.config.training.on_nonfinite == "stop":
            fixes.append("set training.on_nonfinite=skip")
        return GtpVisionError(
            f"step {step}: {what}; the last good checkpoint is {kept or 'none'}; {looked}{', or '.join(fixes)}"
        )

    def go_back(self, step: int, pending: Sequence[Mapping[str, float]]) -> None:
        """Forget what was written after a checkpoint of step `step`; the caller restores parameters and moments."""
        self.evaluations = [found for found in self.evaluations if found["step"] <= step]
        if self.validation:
            self.validation.go_back(step)
        self.idle, self.idle_since, self._pending = 0, step + 1, list(pending)
        if self.tracker:
            seconds = self.tracker.seconds
            self.tracker.close()
            self._tidy(step)
            evaluated = [found["step"] for found in self.evaluations]
            self.tracker = Tracker(
                self.folder, resume_step=step, seconds=seconds, evaluated=evaluated, trackers=self.trackers
            )

    def finish(self, engine: str, beside: int) -> dict[str, Any]:
        """Write results.json and report.html, on the main process; `beside` runs share `train_seconds`.

        `step` is the step of the weights, the last one; `data` the fingerprint of the data set.
        """
        agent, config = self.parts.agent, self.config
        results: dict[str, Any] = {
            "task": config.task.name,
            "env": config.task.env,
            "dataset": str(self.parts.store.path),
            "agent": agents.label(config.agent),
            "family": config.agent.policy.family,
            "encoder": config.encoder.name,
            "seed": config.seed,
            "steps": config.training.steps,
            "step": config.training.steps,
            "data": self.parts.record.fingerprint,
            "engine": engine,
            "side_by_side": beside,
            "train_seconds": self.train_seconds,
            "feature_seconds": self.parts.feature_seconds,
            "eval_seconds": sum(found["seconds"] for found in self.evaluations),
            **model_summary.counts(agent),
            "device": str(self.parts.accelerator.device),
            "processes": self.parts.accelerator.num_processes,
            "batch": self.parts.sampler.batch_size,
            "versions": {name: version(name) for name in ("gtp-vision", "torch", "accelerate")} | envs.versions(),
            "evaluations": self.evaluations,
            "health": self.health.warnings,
        }
        if self.evaluations:
            recent = self.evaluations[-3:]
            results["last"] = self.evaluations[-1]
            results["mean_last_3"] = {
                key: None if None in (values := [found[key] for found in recent]) else sum(values) / len(recent)
                for key in averaged(recent[0])
            }
            results["best"] = max(self.evaluations, key=_merit)
            if config.online.steps:
                results |= {"offline": self.evaluations[0], "online": self.evaluations[-1]}
        if self.validation and self.validation.entries:
            results["validation"] = self.validation.summary()
        if self.watch:
            results["probe"] = self.watch.probe()
        if self.parts.accelerator.is_main_process:
            with atomic_write(self.folder / "results.json") as aside:
                aside.write_text(json.dumps(results, indent=1))
            if self.trackers:
                numbers = [{key: found[key] for key in ("step", *averaged(found))} for found in self.evaluations]
                self.trackers.table("evaluations", numbers)
            build_report([self.folder], self.folder / "report.html", title=f"{results['agent']} on {config.task.name}")
        return results

    def close(self) -> None:
        """Close what is open."""
        if self.tracker:
            self.tracker.close()
        if self.trackers:
            self.trackers.close()


def _merit(found: Mapping[str, Any]) -> tuple[float, ...]:
    """The order of evaluations: by score, then success, then return."""
    return float(found.get("score", 0)), float(found["success"] or 0), float(found["return"])


def pending_metrics_of(state: Mapping[str, Any], where: Path) -> list[dict[str, float]]:
    """The pending metrics in a checkpoint's state, or a GtpVisionError."""
    rows = state.get("metrics", [])
    if not isinstance(rows, list) or not all(
        isinstance(row, dict) and all(map(_is_number, row.values())) for row in rows
    ):
        raise GtpVisionError(f"{where / 'state.json'} holds metrics that are not numbers; use another checkpoint")
    return rows


def train_seconds_of(state: Mapping[str, Any], where: Path) -> float:
    """The seconds of training in a checkpoint's state, or a GtpVisionError."""
    seconds = state.get("train_seconds")
    if seconds is None or not _is_number(seconds):
        raise GtpVisionError(f"{where / 'state.json'} holds no train_seconds; use another checkpoint")
    return float(seconds)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e300


def _read_evaluations(folder: Path, until: int) -> list[dict[str, Any]]:
    """The evaluations up to step `until`, of a run that continues from there."""
    path = folder / _EVALUATIONS
    try:
        stored = json.loads(path.read_text())
        for found in stored:
            numbers = [found[key] for key in ("step", "seconds", "return", "length")]
            numbers += [] if found["success"] is None else [found["success"]]
            if not all(map(_is_number, numbers)):
                raise ValueError(f"an evaluation of step {str(found['step'])[:20]} lacks numbers")
        return [found for found in stored if found["step"] <= until]
    except FileNotFoundError:
        return []
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise GtpVisionError(f"{path} is damaged ({error}); remove it to continue without it") from error
