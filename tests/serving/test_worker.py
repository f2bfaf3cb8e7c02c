"""The policy's thread, and how long requests wait for it."""

import asyncio
import threading
import time
from typing import Any

from gtp_vision.serving.worker import Lane, PendingRequest, Worker


class SlowLoop:
    """An event loop that takes its time to accept an answer."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.create_future, self.asked = loop.create_future, threading.Event()

    def call_soon_threadsafe(self, *arguments: Any) -> None:
        self.asked.set()
        time.sleep(0.2)


def test_a_request_that_comes_just_when_another_ends_has_not_waited_less_than_nothing() -> None:
    event_loop = asyncio.new_event_loop()
    loop: Any = SlowLoop(event_loop)
    worker = Worker(1)
    first, second = (PendingRequest(lambda: None, loop, time.perf_counter()) for _ in range(2))
    worker.submit(Lane(), first)
    assert loop.asked.wait(5)
    time.sleep(0.1)  # it has ended, and its thread has not counted it yet
    worker.submit(Lane(), second)
    assert worker.stop(5)
    event_loop.close()
    assert 0 <= first.queued <= second.queued + 1e-6
    assert 0 <= second.queued < 0.05
