"""Recording of served episodes: what robots sent and what they were answered, as a data set.

    policy's thread -> Recorder.add -> queue -> sending thread -> pipe -> recording process -> replay store

    DIR/000000.h5 ...   an episode each: observations as received, actions in [-1, 1], rewards of 0; and whole answers
                        with what they depend on (`recording`), so that they can be replayed bit for bit

An action of the data set is the first of the answer to its row. Of plans a robot executes several actions between two
observations, which were not seen: such recordings can be replayed and labelled, and training refuses them.

The policy's thread only queues references. A process of its own keeps the episodes that are being recorded, and writes
each when it ends; when the server is killed it writes what it has. A fault ends the recording, not the serving.
"""

from __future__ import annotations

import multiprocessing
import os
import queue
import signal
import threading
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np

from gtp_vision.core.errors import GtpVisionError, reason
from gtp_vision.core.files import require_space
from gtp_vision.core.names import ANSWERS, GOAL, INSTRUCTION
from gtp_vision.core.units import to_policy
from gtp_vision.datasets.instructions import TABLE, table_of
from gtp_vision.datasets.replay_store import RecordedEpisode, ReplayStore
from gtp_vision.datasets.store import ACTION_BOUNDS, ACTIONS_BETWEEN
from gtp_vision.serving.answer import PLAN, Answered
from gtp_vision.serving.recording import Served, Step, arrays_of
from gtp_vision.serving.schema import Schema
from gtp_vision.serving.worker import lower_priority

_MOST_PENDING = 256 << 20  # bytes that wait for the recording process
_SPARE = 64 << 10  # bytes of a file beside its arrays
_NICE = 10  # below the policy's thread: what is recorded may wait, robots may not
_ENDING = 60.0  # seconds in which the recording process writes its last episodes


class Recorder:
    """Records the episodes of a server into a folder, until `limit` bytes lie in it; `log` gets a sentence if it stops.

    Args:
        folder: a replay store, new or of the same task.
        schema: of the policy.
        served: how the policy answers.
        limit: bytes.
        log: for a line.
        longest: bytes of an episode in memory; a longer one is written in several files.

    Raises:
        GtpVisionError: the folder cannot be written, or holds recordings of another task.
    """

    def __init__(
        self,
        folder: Path,
        schema: Schema,
        served: Served,
        limit: int,
        log: Callable[[str], None] = lambda line: None,
        longest: int = 128 << 20,
    ) -> None:
        self._log, self._queue, self._lock = log, queue.SimpleQueue[Step | int | None](), threading.Lock()
        self._pending, self._is_stopped = 0, False
        attributes: dict[str, Any] = {"source": "served", "task": schema.task, ANSWERS: asdict(served)}
        attributes |= zip(ACTION_BOUNDS, map(list, (schema.action_low, schema.action_high)), strict=True)
        if schema.instructions is not None:
            attributes[TABLE] = schema.instructions
        if served.answer == PLAN and schema.chunk > 1:
            attributes[ACTIONS_BETWEEN] = schema.chunk
        _check(folder, schema, attributes)
        context = multiprocessing.get_context("spawn")
        self._pipe, other = context.Pipe()
        self._process = context.Process(
            target=_record, args=(other, folder, attributes, limit, longest), name="recording"
        )
        self._process.start()
        other.close()
        self._thread = threading.Thread(target=self._send, name="recording", daemon=True)
        self._thread.start()

    def add(
        self, client: int, observation: Mapping[str, np.ndarray], answered: Answered, received: float, sent: float
    ) -> None:
        """Record an observation and its answer; times are of `time.time`."""
        if self._is_stopped:
            return
        step = Step(client, observation, answered, received, sent)
        with self._lock:
            self._pending += step.nbytes
        if self._pending > _MOST_PENDING:
            self._stop(f"{self._pending >> 20} MB wait for the disk, which is too slow for the robots' frames")
        else:
            self._queue.put(step)

    def end(self, client: int) -> None:
        """End a client's episode."""
        if not self._is_stopped:
            self._queue.put(client)

    def close(self) -> None:
        """Write the episodes that are being recorded, and end."""
        self._queue.put(None)
        self._thread.join(_ENDING)
        self._process.join(_ENDING)
        if self._process.is_alive():
            self._process.kill()

    def _stop(self, fault: str) -> None:
        with self._lock:
            if self._is_stopped:
                return
            self._is_stopped = True
        self._log(f"recording has stopped, serving continues: {fault}")
        self._queue.put(None)

    def _send(self) -> None:
        """Hand what is queued to the recording process, in a thread of its own; stop at its first fault."""
        lower_priority(_NICE)
        try:
            while (item := self._queue.get()) is not None:
                self._pipe.send(item)
                if isinstance(item, Step):
                    with self._lock:
                        self._pending -= item.nbytes
                if self._pipe.poll():
                    break
            self._pipe.send(None)
            fault = self._pipe.recv()
        except (OSError, EOFError):
            self._process.join(_ENDING)
            fault = f"the recording process has ended with status {self._process.exitcode}; see the lines above"
        if fault:
            self._stop(fault)
        self._pipe.close()


def _check(folder: Path, schema: Schema, attributes: Mapping[str, Any]) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not os.access(folder, os.W_OK):
            raise PermissionError("it is not writable")
    except OSError as error:
        raise GtpVisionError(f"--record {folder} cannot be written ({reason(error)}); choose another folder") from error
    store = ReplayStore(folder)
    if numbers := store.numbers():
        held = store.open(numbers[0])
        names = {name for name in (*schema.cameras, *schema.states) if not name.startswith(GOAL)}
        bounds = [list(map(float, held.attributes.get(bound) or ())) for bound in ACTION_BOUNDS]
        if names != held.observations.keys() or bounds != [list(schema.action_low), list(schema.action_high)]:
            raise GtpVisionError(
                f"--record {folder} holds recordings of another task (observations {', '.join(held.observations)}, "
                f"{held.action_dim} actions of other bounds or names than the policy's); choose another folder"
            )
        if held.attributes.get(ACTIONS_BETWEEN) != attributes.get(ACTIONS_BETWEEN):
            raise GtpVisionError(
                f"--record {folder} holds recordings with another --answer, or of plans of another length; choose "
                f"another folder"
            )


# In the recording process -------------------------------------------------------------------------------------------


@dataclass
class _Episode:
    steps: list[Step] = field(default_factory=list)
    nbytes: int = 0

    def add(self, step: Step) -> None:
        self.steps.append(step)
        self.nbytes += step.nbytes

    def fits(self, step: Step) -> bool:
        """Whether a step has the instruction of the episode, and frames of its sizes: policies take some others."""
        first = self.steps[0].observation if self.steps else step.observation
        if INSTRUCTION in first and not np.array_equal(first[INSTRUCTION], step.observation[INSTRUCTION]):
            return False
        return all(first[name].shape == array.shape for name, array in step.observation.items())


def _record(pipe: Connection, folder: Path, attributes: Mapping[str, Any], limit: int, longest: int) -> None:
    """Receive steps and ends of episodes until the server ends; answer with a fault, or "" once all is written."""
    for number in (signal.SIGINT, signal.SIGTERM):  # the server ends it, by closing the pipe
        signal.signal(number, signal.SIG_IGN)
    lower_priority(_NICE)
    episodes, fault = dict[int, _Episode](), ""
    try:
        writer = _Writer(folder, attributes, limit)
        while (item := _received(pipe)) is not None:
            if not isinstance(item, Step):
                writer.write(episodes.pop(item, _Episode()))
                continue
            episode = episodes.setdefault(item.client, _Episode())
            if not episode.fits(item):
                writer.write(episodes.pop(item.client))
                episode = episodes.setdefault(item.client, _Episode())
            episode.add(item)
            if episode.nbytes > longest:
                writer.write(episode)
                episodes[item.client] = _Episode()
                episodes[item.client].add(item)  # whose action has its outcome in the next file
        for episode in episodes.values():
            writer.write(episode)
    except (GtpVisionError, OSError) as error:
        fault = str(error) if isinstance(error, GtpVisionError) else f"{folder} cannot be written ({reason(error)})"
    try:
        pipe.send(fault)
        while _received(pipe) is not None:  # the server may be sending; it reads the fault after that
            pass
    except OSError:
        pass


def _received(pipe: Connection) -> Step | int | None:
    """The next message; None of a server that has ended."""
    try:
        message: Step | int | None = pipe.recv()
    except (EOFError, OSError):
        return None
    return message


class _Writer:
    def __init__(self, folder: Path, attributes: Mapping[str, Any], limit: int) -> None:
        self._folder, self._attributes, self._limit = folder, attributes, limit
        self._store, self._table = ReplayStore(folder), table_of(attributes)
        self._held = sum(path.stat().st_size for path in folder.iterdir() if path.is_file())

    def write(self, episode: _Episode) -> None:
        """Write an episode into a file of its own, unless no action of it has an outcome."""
        steps = episode.steps
        if len(steps) < 2:
            return
        if self._held + episode.nbytes > self._limit:
            raise GtpVisionError(
                f"{self._folder} holds {self._held / 1e9:.3g} GB, and the next episode would exceed --record-limit "
                f"{self._limit / 1e9:g}; raise it, or move recordings elsewhere"
            )
        # HDF5 may crash when a disk is full, so it must not come to that.
        require_space(self._folder, episode.nbytes + _SPARE, "the next episode", "record elsewhere")
        low, high = (self._attributes[bound] for bound in ACTION_BOUNDS)
        actions = to_policy(np.stack([step.answered.actions[0] for step in steps[:-1]]), low, high)
        names = [name for name in steps[0].observation if not name.startswith(GOAL)]
        recorded = RecordedEpisode(
            {name: np.stack([step.observation[name] for step in steps]) for name in names},
            np.clip(actions, -1, 1).astype(np.float32),
            np.zeros(len(actions), np.float32),
            terminal=False,
            task="" if self._table is None else self._table.text(steps[0].observation[INSTRUCTION]) or "",
        )
        beside, columns = arrays_of(steps)
        own = {ANSWERS: self._attributes[ANSWERS] | columns | {"client": steps[0].client}}
        path = self._store.append([recorded], {**self._attributes, **own}, beside=beside)
        self._held += path.stat().st_size
