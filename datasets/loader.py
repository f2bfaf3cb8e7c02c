"""The loader: fetches and ships the next steps' batches in a thread while the device works on this one's."""

from __future__ import annotations

import contextlib
import queue
import threading
import time
from collections.abc import Iterator
from typing import Any

import torch
from torch.utils import _pytree as pytree

from gtp_vision.datasets.mapped import check_sizes
from gtp_vision.datasets.sources import BatchSource


class Loader:
    """Iterates over what `source` fetches for steps `start` to `stop - 1`, made ahead by one thread, on `device`.

    The order is the source's, so neither the depth of the queue nor a restart changes it. An exception in the thread
    is raised again where the step is read.

    To a GPU the thread copies from page-locked memory on a stream of its own, so that copies run beside the step; the
    reader's stream waits for the copy that it is given, the host does not.

    Args:
        source: fetches on the host.
        start: first step.
        stop: one behind the last step.
        device: where the batches go.
        rank: index of this process.
        world_size: number of processes.
        depth: steps that are kept ready, beside the one in the making; on a GPU they take its memory.

    Attributes:
        waited: seconds that the reader has waited for the thread so far.
    """

    def __init__(
        self,
        source: BatchSource,
        *,
        start: int,
        stop: int,
        device: torch.device | str = "cpu",
        rank: int = 0,
        world_size: int = 1,
        depth: int = 2,
    ) -> None:
        self.waited = 0.0
        self._source, self._device = source, torch.device(device)
        if self._device.type == "cuda" and self._device.index is None:  # a thread's current device may be another
            self._device = torch.device("cuda", torch.cuda.current_device())
        self._start, self._stop, self._rank, self._world_size = start, stop, rank, world_size
        self._queue: queue.Queue[_Moved | BaseException] = queue.Queue(maxsize=depth)
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

    def __iter__(self) -> Iterator[Any]:
        for _ in range(self._start, self._stop):
            began = time.perf_counter()
            item = self._next()
            self.waited += time.perf_counter() - began
            if isinstance(item, BaseException):
                raise item
            yield item.received()

    def _next(self) -> _Moved | BaseException:
        while True:
            try:
                return self._queue.get(timeout=1.0)
            except queue.Empty:
                if not self._thread.is_alive() and self._queue.empty():
                    raise RuntimeError("the loader has ended: iterate over it once, inside its `with` block") from None

    def _work(self) -> None:
        try:
            with self._beside() as stream:
                for step in range(self._start, self._stop):
                    check_sizes()
                    fetched = self._source.fetch(step, self._rank, self._world_size)
                    if not self._put(_Moved(fetched, self._device, stream)):
                        return
        except BaseException as error:  # raised again in the reader's thread
            self._put(error)

    @contextlib.contextmanager
    def _beside(self) -> Iterator[torch.cuda.Stream | None]:
        """This thread's own stream of a GPU."""
        if self._device.type != "cuda":
            yield None
            return
        stream = torch.cuda.Stream(self._device)
        with torch.cuda.stream(stream):  # and its device, which a thread starts without
            yield stream

    def _put(self, item: _Moved | BaseException) -> bool:
        while not self._closed.is_set():
            try:
                self._queue.put(item, timeout=0.1)
                return True
            except queue.Full:
                continue
        return False


class _Moved:
    """A pytree of tensors on its way to a device, copied on a stream of the GPU."""

    def __init__(self, fetched: Any, device: torch.device, stream: torch.cuda.Stream | None) -> None:
        def moved(tensor: torch.Tensor) -> torch.Tensor:
            return (tensor if stream is None else tensor.pin_memory()).to(device, non_blocking=True)

        self._fetched = pytree.tree_map(moved, fetched)
        self._device, self._copied = device, None if stream is None else stream.record_event()

    def received(self) -> Any:
        """The tensors, which the current stream of the reader may use from here on."""
        if self._copied is not None:
            reader = torch.cuda.current_stream(self._device)
            reader.wait_event(self._copied)
            for tensor in pytree.tree_leaves(self._fetched):
                tensor.record_stream(reader)  # its memory is free for the loader only after the reader's work on it
        return self._fetched
