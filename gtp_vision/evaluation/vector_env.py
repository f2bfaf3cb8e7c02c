"""The simulators of an evaluation: each answers in time, or it is told which one did not and why."""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Callable, Sequence
from multiprocessing import connection
from typing import Any

import numpy as np

from gtp_vision.core.errors import GtpVisionError
from gtp_vision.envs import EnvSpec, make_vector

_FAREWELL = 2.0  # seconds to end by oneself
_START = 60.0  # seconds that a start may take however short the patience: processes, imports, a first picture


class FaultyError(Exception):
    """A simulator hung, died or raised.

    Args:
        slots: which of them.
        what: it did, to follow its name.
        late: whether more time could help.
    """

    def __init__(self, slots: Sequence[int], what: str, *, late: bool = False) -> None:
        super().__init__(what)
        self.slots, self.what, self.late = list(slots), what, late


class Simulators:
    """Environments side by side, a process each; see `make_vector`.

    Args:
        spec: the environment.
        count: how many.
        patience: seconds that a step or a reset may take; a start may take a minute, or as long if that is longer.

    Raises:
        FaultyError: they could not be started.
    """

    def __init__(self, spec: EnvSpec, count: int, patience: float) -> None:
        self._patience, self._faulty = patience, False
        start = max(patience, _START)
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
        """Observations and infos after a reset of those in `mask`, each with its seed.

        Raises:
            FaultyError: see there.
        """
        self._asked(lambda: self._vector.reset_async(seed=seeds, options={"reset_mask": mask}))
        return self._answered(self._vector.reset_wait)

    def step(self, actions: np.ndarray) -> tuple[Any, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        """Observations, rewards, terminated, truncated and infos after an action in each.

        Raises:
            FaultyError: see there.
        """
        self._asked(lambda: self._vector.step_async(actions))
        return self._answered(self._vector.step_wait)

    def close(self) -> None:
        """End them; one that does not end by itself is killed."""
        processes = self._vector.processes
        if not self._faulty and all(process.is_alive() for process in processes):
            self._vector.close()
            return
        for process in processes:
            process.terminate()
        ends = time.monotonic() + _FAREWELL
        for process in processes:
            process.join(max(0.0, ends - time.monotonic()))
            if process.is_alive():
                process.kill()
                process.join()
        self._vector.closed = True

    def _asked(self, ask: Callable[[], None]) -> None:
        try:
            ask()
        except OSError as error:
            self._faulty = True
            raise FaultyError(self._dead(), "has ended") from error

    def _answered(self, wait: Callable[..., Any]) -> Any:
        pipes = list(self._vector.parent_pipes)
        try:
            return wait(timeout=self._patience)
        except multiprocessing.TimeoutError as error:
            self._faulty = True
            late = [slot for slot, pipe in enumerate(pipes) if not pipe.poll(0)]
            raise FaultyError(late, f"gave no answer for {self._patience:g} s", late=True) from error
        except (EOFError, ConnectionError) as error:
            self._faulty = True
            raise FaultyError(self._dead(), "has ended") from error
        except GtpVisionError:
            self._faulty = True
            raise
        except Exception as error:  # whatever an environment raises; Gymnasium has told its traceback
            self._faulty = True
            gone = [slot for slot, pipe in enumerate(self._vector.parent_pipes) if pipe is None]
            told = (str(error).splitlines() or [""])[0][:200]
            raise FaultyError(gone, f"raised {type(error).__name__} ({told})") from error

    def _dead(self) -> list[int]:
        processes = self._vector.processes
        # Pipes close a moment before a process can be seen to have ended; its sentinel is one of them.
        ended = connection.wait([process.sentinel for process in processes], _FAREWELL)
        return [slot for slot, process in enumerate(processes) if process.sentinel in ended]
