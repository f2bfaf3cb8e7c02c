"""Online fine-tuning: a run learns from its data set and from what its policy collects meanwhile.

    gradient steps   learn from rounds   while this round is collected, by the weights of
    0 to U           0                   1                              step 0
    U to 2U          0, 1                2                              step U
    ...

Round 0 is collected before the first step. The lag of a round is what makes a run a function of its seed: at a round's
first step the learner waits for the round that it needs, and writes the weights that collect the next one. Nothing
depends on which process is faster, so a run that was killed equals one that was not: rounds that its checkpoint does
not need are collected again, and the one that was in the making by the weights that were written for it.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import resource
import time
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_EXCEPTION, Future, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.torch import save_file

from gtp_vision.config.compose import acting_while_collecting
from gtp_vision.config.schema import Config, OnlineConfig
from gtp_vision.core.errors import GtpVisionError
from gtp_vision.core.files import atomic_write
from gtp_vision.core.tied import stored_tensors
from gtp_vision.core.worker_pool import WorkerPool
from gtp_vision.datasets.loader import Loader
from gtp_vision.datasets.replay_store import ReplayStore
from gtp_vision.datasets.sources import batch_source
from gtp_vision.datasets.store import Store, difference_of_tasks, mix
from gtp_vision.datasets.success import MARKS
from gtp_vision.evaluation.evaluator import StoppedError
from gtp_vision.training import collector
from gtp_vision.training.build import Components
from gtp_vision.training.evaluate import env_spec
from gtp_vision.training.run_lock import remove_leftovers
from gtp_vision.training.tracking import Meters

REPLAY = "replay"
"""Folder of a run: the replay store."""
_START_TIMEOUT = 60.0  # seconds at least until the first step: processes, imports, a first image
_POLL = 0.2
_PLAN = ("start", "round", "updates", "collectors")  # which steps learn from which files


def check(config: Config, parts: Components, past: Config | None) -> None:
    """Refuse what online fine-tuning cannot do, before anything is written; `past` are the settings of a resumed run.

    Raises:
        GtpVisionError: several processes; an offline run, or one with other rounds, is resumed.
    """
    online = config.online
    if parts.accelerator.num_processes > 1 and online.steps:
        raise GtpVisionError(
            f"online.steps={online.steps} trains in one process, and {parts.accelerator.num_processes} were started; "
            f"start one, which collects by online.collectors processes of its own"
        )
    if past is None:
        return
    if bool(past.online.steps) != bool(online.steps):
        raise GtpVisionError(
            f"{config.run_dir} is a run with online.steps={past.online.steps} and cannot be resumed with "
            f"online.steps={online.steps}; start a new run from it: gtp-vision train --init {config.run_dir} "
            f"online.steps=... run_dir=..."
        )
    for name in _PLAN if online.steps else ():
        before, now = getattr(past.online, name), getattr(online, name)
        if before != now:
            raise GtpVisionError(
                f"{config.run_dir} was collected with online.{name}={before}, which numbers its rounds, and cannot be "
                f"resumed with {now}; restore it"
            )


def sentence(config: Config) -> str:
    """What a run will collect, for whoever starts it; empty if it is offline."""
    online = config.online
    if not online.steps:
        return ""
    return (
        f"online: {online.steps:,} steps of {config.task.env} in {online.rounds:,} rounds, {online.gradient_steps:,} "
        f"gradient steps, {online.ratio:.0%} of each batch from the simulator"
    )


class OnlineLoader:
    """A `Loader` of the steps `start` to the last of a run that collects; use it once, as a context manager.

    At a round's first step, `parts.sampler` is replaced by one that draws from all rounds before it, too.

    Args:
        config: of the run.
        folder: of the run.
        parts: of the run; the agent's weights are those after `start` steps.
        start: first step.
        stop: whether to stop while it waits for a round.
        meters: get the time of waiting as `collect_wait`.
    """

    def __init__(
        self, config: Config, folder: Path, parts: Components, *, start: int, stop: Callable[[], bool], meters: Meters
    ) -> None:
        self._config, self._parts, self._start, self._stop, self._meters = config, parts, start, stop, meters
        self._replay = ReplayStore(folder / REPLAY)
        self._rounds: list[list[Store]] = []  # those that batches hold, each the files of its collectors
        self._running: dict[int, list[Future[None]]] = {}
        self._batches: Iterator[Any] = self._generated()
        self._folder = folder

    def __enter__(self) -> OnlineLoader:
        online, (_, most) = self._config.online, resource.getrlimit(resource.RLIMIT_NOFILE)
        with contextlib.suppress(ValueError, OSError):  # a round's mapped frames are an open file
            resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
        self._replay.folder.mkdir(exist_ok=True)
        remove_leftovers(self._folder)
        self._forget()
        self._beats = multiprocessing.get_context("spawn").RawValue("Q", 0)
        collection = collector.Collection(
            self._config,
            self._parts.record,
            {name: array.dtype.str for name, array in self._parts.store.observations.items()},
            env_spec(self._config, self._parts.record),
            acting_while_collecting(self._parts.agent.config.acting, online),
            self._replay.folder,
        )
        self._pool = WorkerPool(online.collectors, collector.begin, collection, self._beats)
        self._pool.__enter__()
        return self

    def __exit__(self, *failure: Any) -> None:
        self._batches.close()  # type: ignore[attr-defined]
        self._pool.__exit__(*failure)

    def __iter__(self) -> Iterator[Any]:
        return self._batches

    def metrics(self) -> dict[str, float]:
        """Steps and episodes of the rounds that batches hold; return and success of the newest one's episodes."""
        files = [store for number in self._rounds for store in number]
        found = {
            "online/steps": float(sum(len(store.transitions) for store in files)),
            "online/episodes": float(sum(store.episodes for store in files)),
        }
        newest = next((number for number in reversed(self._rounds) if number), [])
        returns = [np.add.reduceat(np.asarray(store.rewards, np.float64), store.episode_starts) for store in newest]
        marks = [mark for store in newest for mark in store.attributes.get(MARKS) or ()]
        if newest:
            found["online/return"] = float(np.concatenate(returns).mean())
        if marks:
            found["online/success"] = float(np.mean(np.asarray(marks, bool)))
        return found

    def _generated(self) -> Iterator[Any]:
        online, accelerator = self._config.online, self._parts.accelerator
        for number in range(self._start // online.round_updates, online.rounds):
            first = max(self._start, number * online.round_updates)
            self._reach(number, first)
            source, stop = batch_source(self._parts.sampler, accelerator.device), (number + 1) * online.round_updates
            with Loader(source, start=first, stop=stop, device=accelerator.device) as loader:
                yield from loader

    def _reach(self, number: int, step: int) -> None:
        """Wait for round `number`, have the next one collected, and let batches hold what is collected, at `step`."""
        for each in range(len(self._rounds), number + 1):
            self._order(each, step)
            with self._meters.measure("collect_wait"):
                self._wait(self._running.pop(each))
            self._rounds.append([self._opened(file) for file in self._files(each)])
            self._weights(each).unlink(missing_ok=True)
        if number + 1 < self._config.online.rounds:
            self._order(number + 1, step)
        self._parts.sampler = replace(self._parts.frames, store=self._mixed())

    def _order(self, number: int, step: int) -> None:
        """Have what is missing of a round collected, by the weights that were written for it or those of now."""
        if number in self._running:
            return
        online, weights = self._config.online, self._weights(number)
        missing = [file for file in self._files(number) if not self._replay.path(file).exists()]
        self._running[number] = []
        if not missing:
            return
        if not weights.exists():
            planned, extended = (max(0, each) * online.round_updates for each in (number - 1, number))
            if step not in (planned, extended):  # a finished run that gets more steps collects by its last weights
                raise GtpVisionError(
                    f"{self._replay.path(missing[0])} is missing, which the steps after {step} of "
                    f"{self._config.run_dir} learn from; restore it, or start over with --overwrite"
                )
            with atomic_write(weights) as aside:
                save_file(stored_tensors(self._parts.agent), aside)
        share = -(-self._wanted(number) // online.collectors)
        self._running[number] = [
            self._pool.submit(collector.collect, collector.Order(file, weights, share)) for file in missing
        ]

    def _wait(self, running: list[Future[None]]) -> None:
        """Wait for collectors.

        Raises:
            StoppedError: `stop` returned True.
            GtpVisionError: one failed, died or hung.
        """
        seen, since = self._beats.value, time.monotonic()
        while True:
            done, pending = wait(running, _POLL, FIRST_EXCEPTION)
            if pending and self._stop():
                raise StoppedError
            try:
                for future in done:
                    future.result()
            except BrokenProcessPool as error:
                if self._stop():  # the signal that stops the run also ended the collectors
                    raise StoppedError from None
                raise GtpVisionError(
                    "a process that collects has ended: it was killed or ran out of memory; no gradient step is lost: "
                    "continue with --resume"
                ) from error
            if not pending:
                return
            now, patience = time.monotonic(), self._config.training.eval_timeout
            if self._beats.value != seen:
                seen, since = self._beats.value, now
            elif now - since > (patience if seen else max(patience, _START_TIMEOUT)):
                raise GtpVisionError(
                    f"collecting: the simulator of {self._config.task.env} gave no answer for {now - since:.0f} s; "
                    f"raise training.eval_timeout, or fix the simulator, then continue with --resume"
                )

    def _wanted(self, number: int) -> int:
        """Steps of a round: what makes the sum of all the planned one; earlier rounds ended with whole episodes."""
        held = sum(len(store.transitions) for earlier in self._rounds[:number] for store in earlier)
        return self._config.online.start + number * self._config.online.round - held

    def _files(self, number: int) -> list[int]:
        """Numbers of the files of a round, which are none if episodes before it were long."""
        collectors = self._config.online.collectors
        return [number * collectors + each for each in range(collectors)] if self._wanted(number) > 0 else []

    def _opened(self, file: int) -> Store:
        """A file whose states and flags are in memory."""
        store = self._replay.open(file)
        if fault := difference_of_tasks(self._parts.store, store):
            raise GtpVisionError(f"{self._replay.folder} is the replay store of another task: {fault}")
        shown = {name: array if array.ndim == 4 else np.asarray(array) for name, array in store.observations.items()}
        return replace(store, observations=shown)

    def _mixed(self) -> Store:
        files, ratio = [store for number in self._rounds for store in number], self._config.online.ratio
        replay = mix(files, [float(len(store.transitions)) for store in files])
        if ratio in (0, 1):
            return replay if ratio else self._parts.store
        return mix([self._parts.store, replay], [1 - ratio, ratio])

    def _weights(self, number: int) -> Path:
        return self._replay.folder / f"weights_{number:06d}.safetensors"

    def _forget(self) -> None:
        """Remove rounds that the first step does not need, and that later steps collect again."""
        online: OnlineConfig = self._config.online
        number, done = divmod(self._start, online.round_updates)
        kept = 0 if self._start == 0 else number + 1 + (done > 0)  # rounds
        if held := self._replay.numbers():
            self._opened(held[0])  # of another task: nothing is removed
        self._replay.forget_from(kept * online.collectors)
        for path in self._replay.folder.glob("weights_*.safetensors"):
            if path.name >= self._weights(kept).name:
                path.unlink()
