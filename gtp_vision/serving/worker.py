"""The thread in which the policy acts, and the observations that wait for it."""

from __future__ import annotations

import asyncio
import contextlib
import queue
import sys
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable
from typing import Any

from gtp_vision.core.errors import GtpVisionError
from gtp_vision.serving.scheduling import go_after


class PendingRequest:
    """Something to do in the worker's thread, and the answer to come.

    Attributes:
        answer: of what was done, set in the event loop's thread: a result, or a `GtpVisionError`.
        received: when the message came; these are `time.perf_counter`'s seconds.
        started: when it was begun; 0 before.
        ended: when it was done; 0 before.
        behind: seconds of other jobs' work between its arrival and its beginning.
        before: what must be done before, in order, even if this job itself is dropped: new episodes.
        why: why it was answered with a sentence, a label of `Metrics.errors`.
    """

    def __init__(
        self,
        do: Callable[[], Any],
        loop: asyncio.AbstractEventLoop,
        received: float,
        before: Callable[[], None] | None = None,
    ) -> None:
        self.do, self.loop = do, loop
        self.before = [before] if before is not None else []
        self.answer: asyncio.Future[Any] = loop.create_future()
        self.received, self.started, self.ended, self.behind = received, 0.0, 0.0, 0.0
        self.why = "request"

    def refuse(self, why: str, sentence: str) -> None:
        """Answer with a sentence, in the event loop's thread; whatever comes of it later is forgotten."""
        if not self.answer.done():
            self.why = why
            self.answer.set_exception(GtpVisionError(sentence))

    def work(self) -> None:
        """Do it, in the worker's thread, and hand over what comes of it."""
        result, error, why = None, None, "request"
        try:
            for do in self.before:
                do()
            result = self.do()
        except GtpVisionError as mistake:
            error = mistake
        except Exception:  # a defect: its traceback is the operator's, not the client's
            traceback.print_exc(file=sys.stderr)
            error, why = GtpVisionError("the policy failed inside; the server's log says how"), "policy"
        self.ended = time.perf_counter()
        with contextlib.suppress(RuntimeError):  # the server closed meanwhile
            self.loop.call_soon_threadsafe(self._hand_over, result, error, why)

    def _hand_over(self, result: Any, error: GtpVisionError | None, why: str) -> None:
        if self.answer.done():  # it was refused meanwhile, or its client is gone
            return
        if error is None:
            self.answer.set_result(result)
        else:
            self.why = why
            self.answer.set_exception(error)


class Lane:
    """The observations of one client that wait, oldest first, and what jobs that were dropped have left to do."""

    def __init__(self) -> None:
        self.waiting: deque[PendingRequest] = deque()
        self.owed: list[Callable[[], None]] = []


class Worker:
    """One thread that does jobs in the order in which they came, a few of each client's at most.

    A client that asks faster than the policy answers loses its own oldest observations, and nobody else's.

    Args:
        depth: jobs of a client that may wait.

    """

    def __init__(self, depth: int) -> None:
        self._depth = depth
        self._turns: queue.SimpleQueue[Lane | None] = queue.SimpleQueue()  # a turn for every waiting job
        self._lock = threading.Lock()
        self._worked = 0.0  # seconds, of the jobs that are done
        self._current: PendingRequest | None = None
        self._thread = threading.Thread(target=self._run, name="policy", daemon=True)
        self._thread.start()

    def submit(self, lane: Lane, job: PendingRequest) -> PendingRequest | None:
        """Let a job wait for its turn; the job that it takes the turn of, if too many waited."""
        with self._lock:
            job.behind = -self._spent()  # what has been worked by then is added when it begins
            lane.waiting.append(job)
            if len(lane.waiting) > self._depth:
                oldest = lane.waiting.popleft()
                lane.owed += oldest.before
                return oldest
        self._turns.put(lane)
        return None

    def withdraw(self, lane: Lane, job: PendingRequest | None = None) -> None:
        """A job that nobody waits for any more, or all of a lane, will not be done unless it was begun."""
        with self._lock:
            if job is None:
                lane.waiting.clear()
            elif job in lane.waiting:
                lane.waiting.remove(job)
                lane.owed += job.before

    def _spent(self) -> float:
        """Seconds worked until now."""
        current = self._current
        return self._worked + (time.perf_counter() - current.started if current else 0.0)

    def stop(self, patience: float) -> bool:
        """End the thread when it has done what it is doing; whether it did in so many seconds."""
        self._turns.put(None)
        self._thread.join(patience)
        return not self._thread.is_alive()

    def _run(self) -> None:
        go_after()
        while (lane := self._turns.get()) is not None:
            with self._lock:
                job = lane.waiting.popleft() if lane.waiting else None
                if job is None:
                    continue
                job.before, lane.owed = [*lane.owed, *job.before], []
                job.behind += self._worked
                job.started = time.perf_counter()
                self._current = job
            job.work()
            with self._lock:
                self._worked += job.ended - job.started
                self._current = None
