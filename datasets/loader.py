"""The loader: gathers the next batches in a thread while the device works on this one."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator

import torch

from gtp_vision.datasets.sampler import Batch, Sampler


class Loader:
    """Iterates over batches `start` to `stop - 1`, gathered ahead by one thread and moved to `device`.

    The stream is the sampler's, so neither the depth of the queue nor a restart changes it. A failure in the
    thread is raised where the batch is asked for.
    """

    def __init__(
        self,
        sampler: Sampler,
        *,
        start: int,
        stop: int,
        device: torch.device | str = "cpu",
        rank: int = 0,
        world_size: int = 1,
        depth: int = 2,
    ) -> None:
        self._sampler, self._device = sampler, torch.device(device)
        self._start, self._stop, self._rank, self._world_size = start, stop, rank, world_size
        self._queue: queue.Queue[Batch | BaseException] = queue.Queue(maxsize=depth)
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._work, name="gtp-vision-loader", daemon=True)

    def __enter__(self) -> Loader:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._closed.set()
        while not self._queue.empty():
            self._queue.get_nowait()
        self._thread.join(timeout=10)

    def __iter__(self) -> Iterator[tuple[int, Batch]]:
        for step in range(self._start, self._stop):
            item = self._next()
            if isinstance(item, BaseException):
                raise item
            yield step, item.to(self._device)

    def _next(self) -> Batch | BaseException:
        while True:
            try:
                return self._queue.get(timeout=1.0)
            except queue.Empty:
                if not self._thread.is_alive() and self._queue.empty():
                    raise RuntimeError("the loader has ended: it can be iterated over once, inside its block") from None

    def _work(self) -> None:
        try:
            for step in range(self._start, self._stop):
                batch = self._sampler.batch(step, self._rank, self._world_size)
                if self._device.type == "cuda":
                    batch = batch.pinned()
                if not self._put(batch):
                    return
        except BaseException as error:  # raised again in the reader's thread
            self._put(error)

    def _put(self, item: Batch | BaseException) -> bool:
        while not self._closed.is_set():
            try:
                self._queue.put(item, timeout=0.1)
                return True
            except queue.Full:
                continue
        return False
