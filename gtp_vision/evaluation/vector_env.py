"""The simulators of an evaluation, with a time limit on each answer and an error that names the one that failed."""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Callable, Sequence
from multiprocessing import connection
from typing import Any

import numpy as np

from gtp_vision.core.errors import GtpVisionError
from gtp_vision.envs import EnvSpec, make_vector

_EXIT_TIMEOUT = 2.0  # seconds
_START_TIMEOUT = 60.0  # seconds at least, whatever the patience: processes, imports, a first image


class FaultyError(Exception):
    """A simulator hung, died or raised: which slots, what they did as a predicate, and whether more time could help."""

    def __init__(self, slots: Sequence[int], what: str, *, late: bool = False) -> None:
        super().__init__(what)
        self.slots, self.what, self.late = list(slots), what, late


class Simulators:
    """Environments side by side, one process each; see `make_vector`. Raises FaultyError: they did not start.

    A step or reset may take `patience` seconds; a start may take a minute, or `patience` if that is longer.
    """

    def __init__(self, spec: EnvSpec, count: int, patience: float) -> None:
        self._patience, self._faulty = patience, False
        start = max(patience, _START_TIMEOUT)
        try:
            self._vector = make_vector(spec, count, start)
        except multiprocessing.TimeoutError as error:
            raise FaultyError([], f"gave no answer for {start:g} s while it started", late=True) from error
        except (EOFError, ConnectionError) as error:
            raise FaultyError([], "ended while it started") from error
        self.num_envs: int = self._vector.num_envs
        self.single_observation_space: Any = self._vector.single_observation_space
        self.action_space: Any = self._vector.action_space

    def reset(self, seeds: list[int | None], mask: np.ndarray) -> tuple[Any, dict[str, Any]]:
        """Reset the environments in `mask`, each with its seed; returns observations and infos of all.

        Raises FaultyError: one of them failed.
        """
        self._send(lambda: self._vector.reset_async(seed=seeds, options={"reset_mask": mask}))
        return self._receive(self._vector.reset_wait)

    def step(self, actions: np.ndarray) -> tuple[Any, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        """Take an action in each; returns observations, rewards, terminated, truncated and infos.

        Raises FaultyError: one of them failed.
        """
        self._send(lambda: self._vector.step_async(actions))
        return self._receive(self._vector.step_wait)

    def close(self) -> None:
        """End the processes, and kill those that do not exit in time."""
        processes = self._vector.processes
        if not self._faulty and all(process.is_alive() for process in processes):
            self._vector.close()
            return
        for process in processes:
            process.terminate()
        deadline = time.monotonic() + _EXIT_TIMEOUT
        for process in processes:
            process.join(max(0.0, deadline - time.monotonic()))
            if process.is_alive():
                process.kill()
                process.join()
        self._vector.closed = True

    def _send(self, send: Callable[[], None]) -> None:
        try:
            send()
        except OSError as error:
            self._faulty = True
            raise FaultyError(self._dead(), "has ended") from error

    def _receive(self, wait: Callable[..., Any]) -> Any:
        pipes = list(self._vector.parent_pipes)  # Gymnasium replaces those of environments that raise by None
        try:
            return wait(timeout=self._patience)
        except Exception as error:
            self._faulty = True
            if isinstance(error, multiprocessing.TimeoutError):
                late = [slot for slot, pipe in enumerate(pipes) if not pipe.poll(0)]
                raise FaultyError(late, f"gave no answer for {self._patience:g} s", late=True) from error
            if isinstance(error, EOFError | ConnectionError):
                raise FaultyError(self._dead(), "has ended") from error
            if isinstance(error, GtpVisionError):
                raise
            raised = [slot for slot, pipe in enumerate(self._vector.parent_pipes) if pipe is None]
            reason = (str(error).splitlines() or [""])[0][:200]
            raise FaultyError(raised, f"raised {type(error).__name__} ({reason})") from error

    def _dead(self) -> list[int]:
        processes = self._vector.processes
        # A pipe may close a moment before its process ends: wait for the sentinel of one of them.
        ended = connection.wait([process.sentinel for process in processes], _EXIT_TIMEOUT)
        return [slot for slot, process in enumerate(processes) if process.sentinel in ended]
