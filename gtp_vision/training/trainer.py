"""The trainer: from a configuration to a run folder, on one or many processes by Accelerate.

    config.yaml  metrics.jsonl  checkpoints/  images/  videos/  results.json  report.html

The update is one function of (parameters, batch, noise), and batch and noise are functions of (seed, step), so a
resumed run equals an uninterrupted one.
"""

from __future__ import annotations

import json
import math
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from tqdm import tqdm

from gtp_vision import agents
from gtp_vision.config import Config, to_yaml
from gtp_vision.datasets.files import written_aside
from gtp_vision.datasets.loader import Loader
from gtp_vision.datasets.pitfalls import pitfalls
from gtp_vision.errors import GtpVisionError
from gtp_vision.policies import WeightsError
from gtp_vision.training import checkpoint, pictures, trained
from gtp_vision.training.data import constant_dimensions, save_statistics
from gtp_vision.training.evaluation import EpisodeNoise, Evaluator, write_videos
from gtp_vision.training.insight import SALIENCY, Saliency
from gtp_vision.training.parts import Parts, build
from gtp_vision.training.probes import Watch
from gtp_vision.training.report import build_report
from gtp_vision.training.tracking import Meters, Tracker
from gtp_vision.training.trials import actor_of, check_simulator, chosen, evaluator_of

_EVALUATIONS = "evaluations.json"


class InterruptedRunError(GtpVisionError):
    """The user or the scheduler asked the run to stop; it did, after a checkpoint."""

    exit_status = 130


def learning_rate(config: Config, step: int) -> float:
    """Of step `step` (from 0): linear warm-up, then constant or a half cosine to 0."""
    training = config.training
    rate = training.learning_rate * min(1.0, (step + 1) / max(1, training.warmup_steps))
    if training.schedule == "cosine":
        rate *= 0.5 * (1 + math.cos(math.pi * step / training.steps))
    return rate


def update(parts: Parts, config: Config, step: int, batch: Any) -> dict[str, torch.Tensor]:
    """One gradient step and the targets' Polyak step; metrics stay on the device."""
    rate = learning_rate(config, step)
    for group in parts.optimizer.param_groups:
        group["lr"] = rate * group["scale"] * (step >= group["after"])
    parts.agent.begin(step)
    loss, metrics = parts.module(batch, parts.stream(step))
    parts.optimizer.zero_grad(set_to_none=True)
    parts.accelerator.backward(loss)
    if config.training.clip_gradient is not None:
        awake = [group for group in parts.optimizer.param_groups if step >= group["after"]]
        moved = [parameter for group in awake for parameter in group["params"]]
        metrics["gradient_norm"] = parts.accelerator.clip_grad_norm_(moved, config.training.clip_gradient)
    parts.optimizer.step()
    parts.agent.update_targets()
    return metrics


def train(config: Config, *, resume: bool = False, overwrite: bool = False, progress: bool = True) -> dict[str, Any]:
    """Train, evaluate and report one run.

    Args:
        config: everything about it; `config.run_dir` is where it goes.
        resume: go on from the newest whole checkpoint in the run folder.
        overwrite: throw away what stands in the run folder.
        progress: show bars.

    Returns:
        The contents of results.json.

    Raises:
        GtpVisionError: any mistake of input or machine; `InterruptedRunError` after SIGINT or SIGTERM.
    """
    folder = Path(config.run_dir)
    refuse_occupied(folder, resume=resume, overwrite=overwrite)
    found = checkpoint.newest(folder / "checkpoints") if resume else None
    evaluated = config.training.eval_episodes > 0
    parts = build(config, goes_on=found, check=(lambda store: check_simulator(config, store)) if evaluated else None)
    main = parts.accelerator.is_main_process
    start, train_seconds = 0, 0.0
    if found is not None:
        state = checkpoint.load(found, parts.agent, parts.optimizer)
        start, train_seconds = state["step"], state["train_seconds"]
        parts.accelerator.print(f"going on from step {start} ({found})")
    elif resume:
        parts.accelerator.print(f"no whole checkpoint in {folder}: starting from step 0")
    if main:
        prepare_folder(folder, config, empty=not resume)
        save_statistics(folder, parts.statistics, parts.store)
        if progress:
            unlikely = pitfalls(parts.store, parts.statistics, rewarded=config.task.goals is None)
            warnings = [f"warning: {found}" for found in unlikely] if not resume else []
            told = (parts.where, trained.summary(parts.agent, config), constant_dimensions(parts.statistics))
            for line in filter(None, (*told, *warnings)):
                tqdm.write(line, file=sys.stderr)
    parts.accelerator.wait_for_everyone()
    evaluations = _read_evaluations(folder, start)
    spent = train_seconds + sum(found["seconds"] for found in evaluations)
    tracker = Tracker(folder, resume_step=start, seconds=spent) if main else None
    run = _Run(config, folder, parts, tracker, train_seconds, evaluations, progress and main)
    try:
        with _stop_requested() as stop, evaluator_of(config, parts, run.progress) as evaluator:
            if main and start == 0:
                pictures.first_batch(folder / "images" / "first_batch.png", parts.frames.batch(0), parts)
                pictures.augmentation(folder / "images" / "augmentation.png", parts.frames.batch(0), parts)
            if main and config.training.probe_rows and parts.agent.actor_encoder.cameras:
                run.watch = Watch(folder, config, parts, resumed=start > 0)
            run.loop(start, stop, evaluator)
        return run.finish()
    finally:
        if tracker:
            tracker.close()


class _Run:
    """The loop of one run and what it has measured so far."""

    def __init__(
        self,
        config: Config,
        folder: Path,
        parts: Parts,
        tracker: Tracker | None,
        train_seconds: float,
        evaluations: list[dict[str, Any]],
        progress: bool,
    ) -> None:
        self.config, self.folder, self.parts, self.tracker = config, folder, parts, tracker
        self.train_seconds, self.evaluations, self.progress = train_seconds, evaluations, progress
        self.watch: Watch | None = None

    def loop(self, start: int, stop: Callable[[], bool], evaluator: Evaluator) -> None:
        """Steps `start` to the last, with logging, checkpoints and evaluations in between."""
        training, parts = self.config.training, self.parts
        accelerator = parts.accelerator
        if start and self._due(start) and all(found["step"] != start for found in self.evaluations):
            self.evaluate(start, evaluator, stop)  # the run ended between its checkpoint and its evaluation
        loader = Loader(
            parts.sampler,
            start=start,
            stop=training.steps,
            device=accelerator.device,
            rank=accelerator.process_index,
            world_size=accelerator.num_processes,
        )
        pending: list[dict[str, torch.Tensor]] = []
        meters, began = Meters(), time.perf_counter()
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
                    _, batch = next(batches)
                with meters.measure("update"):
                    pending.append(self._update(step, batch, pending))
                done = step + 1
                last = done == training.steps
                stopping = self._agreed(stop, done)
                saving = last or stopping or self._due(done) or done % training.checkpoint_every == 0
                metrics: dict[str, float] = {}
                if last or stopping or done % training.log_every == 0:
                    with meters.measure("update"):  # reading waits for the device
                        metrics = self._read(pending, done)
                    metrics |= meters.read(len(pending))
                    pending.clear()
                    bar.set_postfix_str(f"loss {metrics['loss']:.3f}")
                if saving:
                    self.train_seconds += time.perf_counter() - began
                    if self.watch:
                        metrics |= self.watch.drift()
                if metrics and self.tracker:
                    self.tracker.write(done, metrics)
                bar.update()
                if saving:
                    self.save(done)
                    if stopping and not last:
                        raise self._interrupted(done)
                    if self._due(done):
                        self.evaluate(done, evaluator, stop)
                    began = time.perf_counter()

    def _update(self, step: int, batch: Any, pending: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
        try:
            return update(self.parts, self.config, step, batch)
        except WeightsError as error:
            if pending:
                self._read(pending, step)  # what was not finite first
            raise self._diverged(step + 1, f"the actor's {error}") from error

    def save(self, step: int) -> None:
        """A checkpoint with all that resuming needs."""
        if self.parts.accelerator.is_main_process:
            checkpoint.save(
                self.folder / "checkpoints",
                step,
                self.parts.agent,
                self.parts.optimizer,
                {"train_seconds": self.train_seconds},
                keep=self.config.training.keep_checkpoints,
            )
        self.parts.accelerator.wait_for_everyone()

    def evaluate(self, step: int, evaluator: Evaluator, stop: Callable[[], bool]) -> None:
        """Evaluate on the main process, keep `best`, write videos and what was found."""
        training = self.config.training
        if self.parts.accelerator.is_main_process:
            actor = actor_of(self.parts.agent, training.eval_steps)

            def act(observation: Mapping[str, torch.Tensor], noise: EpisodeNoise) -> torch.Tensor:
                if stop():
                    raise self._interrupted(step)
                return actor(observation, noise)

            found, episodes = evaluator.run(act, training.eval_episodes, film=2 * training.videos)
            best = max((e["success"] for e in self.evaluations), default=-1.0)
            self.evaluations.append({"step": step, **found})
            with written_aside(self.folder / _EVALUATIONS) as aside:
                aside.write_text(json.dumps(self.evaluations, indent=1))
            filmed, videos = chosen(episodes, training.videos), self.folder / "videos" / f"step_{step}"
            write_videos(videos, filmed)
            if self.tracker:
                told = {f"eval/{key}": value for key, value in found.items() if isinstance(value, float)}
                self.tracker.write(step, told)
            folder = self.folder / "checkpoints"
            if found["success"] > best:
                checkpoint.link(folder, "best", folder / f"step_{step}")
            if step == training.steps and self.parts.agent.actor_encoder.cameras:
                draw = Saliency(self.parts.agent, self.config.task.frame_stack, evaluator.seed, training.eval_steps)
                write_videos(videos, filmed[:1], draw, SALIENCY)
        self.parts.accelerator.wait_for_everyone()

    def _agreed(self, stop: Callable[[], bool], step: int) -> bool:
        """Whether to stop here; several processes ask each other when they log, so that all stop at one step."""
        accelerator = self.parts.accelerator
        if accelerator.num_processes == 1:
            return stop()
        if step % self.config.training.log_every:
            return False
        asked = torch.tensor(float(stop()), device=accelerator.device)
        return float(accelerator.reduce(asked, "sum")) > 0

    def _due(self, step: int) -> bool:
        """Whether an evaluation belongs to this step."""
        training = self.config.training
        regular = training.eval_every > 0 and step % training.eval_every == 0
        return training.eval_episodes > 0 and (regular or step == training.steps)

    def _interrupted(self, step: int) -> InterruptedRunError:
        return InterruptedRunError(
            f"stopped at step {step} of {self.config.training.steps}; "
            f"go on with: gtp-vision train --resume {self.folder}"
        )

    def finish(self) -> dict[str, Any]:
        """results.json and report.html, on the main process."""
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
            "train_seconds": self.train_seconds,
            "feature_seconds": self.parts.feature_seconds,
            "eval_seconds": sum(found["seconds"] for found in self.evaluations),
            **trained.counts(agent),
            "device": str(self.parts.accelerator.device),
            "processes": self.parts.accelerator.num_processes,
            "versions": {name: version(name) for name in ("gtp-vision", "torch", "accelerate", "ogbench", "mujoco")},
            "evaluations": self.evaluations,
        }
        if self.evaluations:
            recent = self.evaluations[-3:]
            results["last"] = self.evaluations[-1]
            results["mean_last_3"] = {
                key: sum(e[key] for e in recent) / len(recent) for key in ("success", "return", "length")
            }
            results["best"] = max(self.evaluations, key=lambda e: e["success"])
        if self.watch:
            results["probe"] = self.watch.probe()
        if self.parts.accelerator.is_main_process:
            (self.folder / "results.json").write_text(json.dumps(results, indent=1))
            build_report([self.folder], self.folder / "report.html", title=f"{results['agent']} on {config.task.name}")
        return results

    def _read(self, pending: list[dict[str, torch.Tensor]], done: int) -> dict[str, float]:
        """Means over the steps since the last reading that have them; only here the host waits for the device."""
        names = list(dict.fromkeys(name for m in pending for name in m))  # a stage may end between two readings
        none = next(iter(pending[0].values())).new_zeros(()).float()
        table = torch.stack([torch.stack([m[name].float() if name in m else none for name in names]) for m in pending])
        table = self.parts.accelerator.reduce(table, "mean")
        finite = table.isfinite()
        if not bool(finite.all()):
            row, column = (int(i) for i in (~finite).nonzero()[0])
            raise self._diverged(done - len(pending) + row + 1, f"{names[column]} is not finite")
        counts = [sum(name in m for m in pending) for name in names]
        return {name: total / count for name, total, count in zip(names, table.sum(0).tolist(), counts, strict=True)}

    def _diverged(self, step: int, what: str) -> GtpVisionError:
        kept = checkpoint.newest(self.folder / "checkpoints")
        return GtpVisionError(
            f"step {step}: {what}; the last good checkpoint is {kept or 'none'}; "
            f"lower training.learning_rate or set training.clip_gradient"
        )


def _read_evaluations(folder: Path, until: int) -> list[dict[str, Any]]:
    """What a run that goes on from step `until` had evaluated by then."""
    try:
        stored = json.loads((folder / _EVALUATIONS).read_text())
        return [found for found in stored if found["step"] <= until]
    except FileNotFoundError:
        return []
    except (ValueError, TypeError, KeyError) as error:
        raise GtpVisionError(f"{folder / _EVALUATIONS} is damaged ({error}); remove it to go on without it") from error


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
            shutil.rmtree(folder)
        with written_aside(folder / "config.yaml") as aside:
            aside.write_text(to_yaml(config))
    except OSError as error:
        raise GtpVisionError(
            f"the run folder {folder} cannot be written ({error}); choose another run_dir=..."
        ) from error


@contextmanager
def _stop_requested() -> Iterator[Callable[[], bool]]:
    """Turns SIGINT and SIGTERM into a question that the loop asks after every step; a second SIGINT kills."""
    asked = False

    def note(number: int, frame: FrameType | None) -> None:
        nonlocal asked
        if asked and number == signal.SIGINT:
            raise KeyboardInterrupt
        asked = True

    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
