"""The thread in which the policy acts, and the requests that wait for it."""

from __future__ import annotations

import asyncio
import contextlib
import os
import queue
import sys
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable
from typing import Any

from gtp_vision.core.errors import GtpVisionError

_NICE = 5


class PendingRequest:
    """A function to run in the worker's thread, and its answer.

    Attributes:
        answer: the function's result or a `GtpVisionError`, set in the event loop's thread.
        received: when the message arrived; times are `time.perf_counter` seconds.
        started: when the function was started; 0 before.
        ended: when it returned; 0 before.
        queued: seconds that other requests were worked on between arrival and start.
        resets: what must run first, in order, even if this request is dropped: new episodes.
        cause: why it was answered with an error, a label of `Metrics.errors`.
    """

    def __init__(
        self,
        function: Callable[[], Any],
        loop: asyncio.AbstractEventLoop,
        received: float,
        reset: Callable[[], None] | None = None,
    ) -> None:
        self.function, self.loop = function, loop
        self.resets = [reset] if reset is not None else []
        self.answer: asyncio.Future[Any] = loop.create_future()
        self.received, self.started, self.ended, self.queued = received, 0.0, 0.0, 0.0
        self.cause = "request"

    def refuse(self, cause: str, message: str) -> None:
        """Answer with an error, in the event loop's thread; a later result is ignored."""
        if not self.answer.done():
            self.cause = cause
            self.answer.set_exception(GtpVisionError(message))

    def run(self) -> None:
        """Call the function, in the worker's thread, and hand its result to the event loop."""
        hand_over: Callable[..., None] = self.refuse
        try:
            for reset in self.resets:
                reset()
            result: tuple[Any, ...] = (self.function(),)
            hand_over = self._resolve
        except GtpVisionError as error:
            result = (getattr(error, "cause", "request"), str(error))
        except Exception:  # a bug: its traceback is for the operator, not for the client
            traceback.print_exc(file=sys.stderr)
            result = ("policy", "the policy failed; see the server's log")
        self.ended = time.perf_counter()
        with contextlib.suppress(RuntimeError):  # the server has closed meanwhile
            self.loop.call_soon_threadsafe(hand_over, *result)

    def _resolve(self, result: Any) -> None:
        if not self.answer.done():
            self.answer.set_result(result)


class Lane:
    """The waiting requests of one client, oldest first, and the resets of those that were dropped."""

    def __init__(self) -> None:
        self.waiting: deque[PendingRequest] = deque()
        self.resets: list[Callable[[], None]] = []


class Worker:
    """One thread that runs requests in the order of their arrival; `depth` of each client may wait.

    A client that sends faster than the policy answers loses its own oldest requests, and none of other clients.
    """

    def __init__(self, depth: int) -> None:
        self._depth = depth
        self._turns: queue.SimpleQueue[Lane | None] = queue.SimpleQueue()  # a turn for each waiting request
        self._lock = threading.Lock()
        self._worked = 0.0  # seconds, of the requests that have ended
        self._current: PendingRequest | None = None
        self._thread = threading.Thread(target=self._run, name="policy", daemon=True)
        self._thread.start()

    def submit(self, lane: Lane, request: PendingRequest) -> PendingRequest | None:
        """Queue a request; returns the one that is dropped for it if too many wait."""
        with self._lock:
            request.queued = -self._work_until_now()  # the work done by its start is added then
            lane.waiting.append(request)
            if len(lane.waiting) > self._depth:
                oldest = lane.waiting.popleft()
                lane.resets += oldest.resets
                return oldest
        self._turns.put(lane)
        return None

    def cancel(self, lane: Lane, request: PendingRequest | None = None) -> None:
        """Remove a waiting request, or all of a lane; one that has started is not stopped."""
        with self._lock:
            if request is None:
                lane.waiting.clear()
            elif request in lane.waiting:
                lane.waiting.remove(request)
                lane.resets += request.resets

    def stop(self, timeout: float) -> bool:
        """End the thread after its current request; whether it ended within `timeout` seconds."""
        self._turns.put(None)
        self._thread.join(timeout)
        return not self._thread.is_alive()

    def _work_until_now(self) -> float:
        current = self._current
        # It may have ended a moment ago, before its thread got the lock.
        return self._worked + ((current.ended or time.perf_counter()) - current.started if current else 0.0)

    def _run(self) -> None:
        # The network thread runs first: its work is short, and Linux would make it wait for a time slice of 4 ms.
        lower_priority(_NICE)
        while (lane := self._turns.get()) is not None:
            with self._lock:
                request = lane.waiting.popleft() if lane.waiting else None
                if request is None:
                    continue
                request.resets, lane.resets = [*lane.resets, *request.resets], []
                request.queued += self._worked
                request.started = time.perf_counter()
                self._current = request
            request.run()
            with self._lock:
                self._worked += request.ended - request.started
                self._current = None


def lower_priority(by: int) -> None:
    """Let other threads run before the calling one, on Linux."""
    if sys.platform == "linux":  # elsewhere the priority is the whole process's
        thread = threading.get_native_id()
        with contextlib.suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, thread, min(19, os.getpriority(os.PRIO_PROCESS, thread) + by))
