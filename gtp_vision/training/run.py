"""One of the runs that are trained side by side: its folder, and what it has measured so far."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from gtp_vision import agents, envs
from gtp_vision.agents.acting import best_of
from gtp_vision.agents.base import Metrics
from gtp_vision.config.schema import Config
from gtp_vision.core.errors import GtpVisionError
from gtp_vision.core.files import atomic_write
from gtp_vision.core.names import SALIENCY
from gtp_vision.envs.scores import has_reference, normalised
from gtp_vision.evaluation.evaluator import Evaluator, SimulatorError, StoppedError, write_videos
from gtp_vision.evaluation.saliency import Saliency
from gtp_vision.report import build_report
from gtp_vision.training import checkpoint, model_summary, pictures
from gtp_vision.training.build import Components
from gtp_vision.training.data import save_statistics
from gtp_vision.training.evaluate import actor_of, chosen, eval_seed
from gtp_vision.training.health import Health
from gtp_vision.training.nonfinite import FILE as NONFINITE_FILE
from gtp_vision.training.nonfinite import Fault, means, reading, report
from gtp_vision.training.probes import Watch
from gtp_vision.training.tracking import Tracker

_EVALUATIONS = "evaluations.json"
_SKIPPED = "skipped"  # stands for the metrics of a step that was not applied, and counts them in a line


class InterruptedRunError(GtpVisionError):
    """The user or the scheduler asked the run to stop; it did, after a checkpoint."""

    exit_status = 130


class TrainingRun:
    """A run that is being trained.

    Args:
        config: of this run alone.
        folder: of this run.
        parts: what it consists of.
        start: the step it goes on from.
        train_seconds: spent on training before.
        resume_with: what to give to `gtp-vision train --resume` after an interruption.
        skips: steps, from 1, that it leaves out; see `recovery`.
        held: metrics of the last steps before `start`, which no line of metrics.jsonl holds yet.

    Attributes:
        health: its warnings.
        idle: lines of metrics since the last one with a step that was applied.
        idle_since: the step, from 1, of the first step since.
    """

    def __init__(
        self,
        config: Config,
        folder: Path,
        parts: Components,
        *,
        start: int,
        train_seconds: float,
        resume_with: Path,
        skips: Collection[int] = (),
        held: Sequence[Mapping[str, float]] = (),
    ) -> None:
        self.config, self.folder, self.parts, self.train_seconds = config, folder, parts, train_seconds
        self.evaluations = _read_evaluations(folder, start)
        self._held = list(held)
        spent = train_seconds + sum(found["seconds"] for found in self.evaluations)
        main, evaluated = parts.accelerator.is_main_process, [found["step"] for found in self.evaluations]
        if main:
            self._tidy(start)
        self.tracker = Tracker(folder, resume_step=start, seconds=spent, evaluated=evaluated) if main else None
        self.health = Health(folder, config, parts.store, start=start, writes=main)
        self.skips, self.idle, self.idle_since = set(skips), 0, start + 1
        self.unsaid: list[str] = []
        self.watch: Watch | None = None
        self._start, self._resume_with = start, resume_with

    def begin(self) -> None:
        """What is written before the first step, on the main process."""
        config, parts, folder = self.config, self.parts, self.folder
        if not parts.accelerator.is_main_process:
            return
        save_statistics(folder, parts.statistics, parts.store)
        if self._start == 0:
            pictures.first_batch(folder / "images" / "first_batch.png", parts.frames.batch(0), parts)
            pictures.augmentation(folder / "images" / "augmentation.png", parts.frames.batch(0), parts)
        if config.training.probe_rows and parts.agent.actor_encoder.cameras:
            self.watch = Watch(folder, config, parts, resumed=self._start > 0)

    def _tidy(self, start: int) -> None:
        """Leave the checkpoints as they were at step `start`: a kill may have come before their links."""
        checkpoints = self.folder / "checkpoints"
        checkpoint.forget_after(checkpoints, start)
        best = max(self.evaluations, key=_merit, default=None)
        for name, step in (("last", start), ("best", best["step"] if best else 0)):
            if (checkpoints / f"step_{step}").exists():
                checkpoint.link(checkpoints, name, checkpoints / f"step_{step}")

    def save(self, step: int) -> None:
        """A checkpoint with all that resuming needs."""
        if self.tracker:
            self.tracker.sync()
        if self.parts.accelerator.is_main_process:
            checkpoint.save(
                self.folder / "checkpoints",
                step,
                self.parts.agent,
                self.parts.optimizer,
                {"train_seconds": self.train_seconds, "skip_steps": sorted(self.skips), "metrics": self._held},
                keep=None,
            )
        self.parts.accelerator.wait_for_everyone()

    def prune(self) -> None:
        """Remove old checkpoints, once all runs have their new ones."""
        if self.parts.accelerator.is_main_process:
            checkpoint.prune(self.folder / "checkpoints", self.config.training.keep_checkpoints)

    def evaluated(self, step: int) -> bool:
        """Whether an evaluation of this step is on record."""
        return any(found["step"] == step for found in self.evaluations)

    def evaluate(self, step: int, evaluator: Evaluator, stop: Callable[[], bool]) -> None:
        """Evaluate on all processes; the main one keeps `best`, and writes videos and what was found."""
        training = self.config.training
        actor = actor_of(self.parts.agent, training.eval_steps)
        evaluator.seed = eval_seed(self.config)
        try:
            found, episodes = evaluator.run(actor, training.eval_episodes, film=2 * training.videos, stop=stop)
            several = {}
            for count in training.eval_candidates or ():
                with best_of(self.parts.agent.config, count):
                    several[str(count)], _ = evaluator.run(actor, training.eval_episodes, stop=stop)
        except StoppedError:
            raise self.interrupted(step) from None
        except SimulatorError as error:
            raise SimulatorError(
                f"{error}; training has lost nothing, and goes on from step {step} with: gtp-vision train --resume "
                f"{self._resume_with}"
            ) from error
        found = self._scored(found) | (
            {"candidates": {count: self._scored(one) for count, one in several.items()}} if several else {}
        )
        best = max(map(_merit, self.evaluations), default=())
        self.evaluations.append({"step": step, **found})
        if self.parts.accelerator.is_main_process:
            filmed, videos = chosen(episodes, training.videos), self.folder / "videos" / f"step_{step}"
            write_videos(videos, filmed)
            if self.tracker:
                told = {f"eval/{key}": value for key, value in found.items() if isinstance(value, float)}
                self.tracker.write(step, told)
            folder = self.folder / "checkpoints"
            if _merit(found) > best:
                checkpoint.link(folder, "best", folder / f"step_{step}")
            if step == training.steps and self.parts.agent.actor_encoder.cameras:
                draw = Saliency(self.parts.agent, self.config.task.frame_stack, evaluator.seed, training.eval_steps)
                write_videos(videos, filmed[:1], draw, SALIENCY)
            with atomic_write(self.folder / _EVALUATIONS) as aside:  # last: what is on record is not made again
                aside.write_text(json.dumps(self.evaluations, indent=1))
        self.parts.accelerator.wait_for_everyone()

    def _scored(self, found: dict[str, Any]) -> dict[str, Any]:
        """With D4RL's normalised score, where the task has one."""
        env = self.config.task.env or ""
        return found | ({"score": normalised(env, found["return"])} if has_reference(env) else {})

    def interrupted(self, step: int) -> InterruptedRunError:
        """The error that ends a run which was asked to stop."""
        return InterruptedRunError(
            f"stopped at step {step} of {self.config.training.steps}; "
            f"go on with: gtp-vision train --resume {self._resume_with}"
        )

    def read(self, pending: Sequence[Metrics | None], done: int, index: int = 0) -> dict[str, float]:
        """Means over the steps since the last reading that have them; only here the host waits for the device.

        Args:
            pending: metrics of the steps before step `done`; None for a step that was left out.
            done: steps that were taken.
            index: number of this run among those that are trained side by side.

        Raises:
            Fault: one of them is not finite, and was applied.
        """
        self.hold(pending, done, index)
        rows, self._held = self._held, []
        found = means([row for row in rows if _SKIPPED not in row])
        skipped = sum(_SKIPPED in row for row in rows)
        mode = self.config.training.on_nonfinite
        if mode == "skip" and rows and skipped == len(rows):
            self.idle += 1
        else:
            self.idle, self.idle_since = 0, done + 1
        return found if mode == "stop" else found | {_SKIPPED: float(skipped)}

    def hold(self, pending: Sequence[Metrics | None], done: int, index: int = 0) -> None:
        """Read the metrics of steps, and keep them for the next line: a checkpoint carries them to a run that goes on.

        Args:
            pending: as `read` takes them.
            done: steps that were taken.
            index: number of this run among those that are trained side by side.

        Raises:
            Fault: one of them is not finite, and was applied.
        """
        if not pending:
            return
        found = reading(pending, self.parts.accelerator, skips=self.config.training.on_nonfinite == "skip")
        begun = done - len(pending) + 1
        if found.first is not None:
            raise Fault(index, begun + found.first, f"{found.names[0]} is not finite", found.names)
        if found.skipped:
            self._first_skipped(begun + found.skipped[0], found.names)
        self._held += [{_SKIPPED: 1.0} if row is None else row for row in found.rows]

    def _first_skipped(self, step: int, names: Sequence[str]) -> None:
        """Look into the first step that was skipped; of later ones the metric `skipped` tells."""
        if not any(one["kind"] == "skipped" for one in self.health.warnings):
            told = report(self.parts, self.config, self.folder, step, names)
            self.unsaid += self.health.note(step, "skipped", f"step {step}: {names[0]} is not finite, {told}; skipped")

    def tell(self, told: list[str]) -> list[str]:
        """What is to be told: these lines, after those that waited."""
        lines, self.unsaid = [*self.unsaid, *told], []
        return lines

    def diverged(self, step: int, what: str, told: str) -> GtpVisionError:
        """The error that ends a run in which nothing can be learnt any more.

        Args:
            step: from 1.
            what: was not finite.
            told: what was found about it, see `nonfinite.report`; may be empty.
        """
        kept = checkpoint.newest(self.folder / "checkpoints")
        looked = f"{told} ({self.folder / NONFINITE_FILE}); " if told else ""
        mends = ["lower training.learning_rate", "set training.clip_gradient"]
        if self.config.training.on_nonfinite == "stop":
            mends.append("set training.on_nonfinite=skip")
        return GtpVisionError(
            f"step {step}: {what}; the last good checkpoint is {kept or 'none'}; {looked}{', or '.join(mends)}"
        )

    def go_back(self, step: int, held: Sequence[Mapping[str, float]]) -> None:
        """Forget what was written after step `step`; parameters and moments are the caller's.

        Args:
            step: of the checkpoint.
            held: the metrics that it carries.
        """
        self.evaluations = [found for found in self.evaluations if found["step"] <= step]
        self.idle, self.idle_since, self._held = 0, step + 1, list(held)
        if self.tracker:
            seconds = self.tracker.seconds
            self.tracker.close()
            self._tidy(step)
            evaluated = [found["step"] for found in self.evaluations]
            self.tracker = Tracker(self.folder, resume_step=step, seconds=seconds, evaluated=evaluated)

    def finish(self, engine: str, beside: int) -> dict[str, Any]:
        """results.json and report.html, on the main process.

        Args:
            engine: that ran the steps.
            beside: number of runs that were trained side by side, and share `train_seconds`.
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
                key: sum(e[key] for e in recent) / len(recent)
                for key in ("score", "success", "return", "length")
                if key in recent[0]
            }
            results["best"] = max(self.evaluations, key=_merit)
        if self.watch:
            results["probe"] = self.watch.probe()
        if self.parts.accelerator.is_main_process:
            with atomic_write(self.folder / "results.json") as aside:
                aside.write_text(json.dumps(results, indent=1))
            build_report([self.folder], self.folder / "report.html", title=f"{results['agent']} on {config.task.name}")
        return results

    def close(self) -> None:
        """Close what is open."""
        if self.tracker:
            self.tracker.close()


def _merit(found: Mapping[str, Any]) -> tuple[float, ...]:
    """What the best evaluation has most of: score, successes, and among equals return."""
    return float(found.get("score", 0)), float(found["success"]), float(found["return"])


def pending_metrics_of(state: Mapping[str, Any], where: Path) -> list[dict[str, float]]:
    """The metrics that a checkpoint carries.

    Raises:
        GtpVisionError: they are none.
    """
    rows = state.get("metrics", [])
    if not isinstance(rows, list) or not all(
        isinstance(row, dict) and all(map(_is_number, row.values())) for row in rows
    ):
        raise GtpVisionError(f"{where / 'state.json'} holds metrics that are no numbers; use another checkpoint")
    return rows


def train_seconds_of(state: Mapping[str, Any], where: Path) -> float:
    """The seconds of training that a checkpoint tells of.

    Raises:
        GtpVisionError: it does not.
    """
    seconds = state.get("train_seconds")
    if seconds is None or not _is_number(seconds):
        raise GtpVisionError(f"{where / 'state.json'} does not tell train_seconds; use another checkpoint")
    return float(seconds)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e300


def _read_evaluations(folder: Path, until: int) -> list[dict[str, Any]]:
    """What a run that goes on from step `until` had evaluated by then."""
    path = folder / _EVALUATIONS
    try:
        stored = json.loads(path.read_text())
        for found in stored:
            if not all(_is_number(found[key]) for key in ("step", "seconds", "success", "return", "length")):
                raise ValueError(f"an evaluation of step {str(found['step'])[:20]} lacks numbers")
        return [found for found in stored if found["step"] <= until]
    except FileNotFoundError:
        return []
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise GtpVisionError(f"{path} is damaged ({error}); remove it to go on without it") from error
