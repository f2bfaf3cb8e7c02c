"""Pools of worker processes that end with their parent."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import signal
from collections.abc import Callable
from concurrent.futures import Future, ProcessPoolExecutor
from multiprocessing.reduction import ForkingPickler
from typing import Any

from gtp_vision.core.processes import end_with_parent


class WorkerPool(ProcessPoolExecutor):
    """Worker processes that call functions; an error in its block ends them at once, as does the end of this process.

    They ignore Ctrl-C, which is for this process to handle. `initializer` is called in each first; `options` are those
    of `ProcessPoolExecutor`, with `mp_context` `spawn` if not given: a fork would inherit threads and CUDA contexts.
    """

    def __init__(
        self, workers: int, initializer: Callable[..., None] | None = None, *arguments: Any, **options: Any
    ) -> None:
        options.setdefault("mp_context", multiprocessing.get_context("spawn"))
        super().__init__(workers, initializer=_begin_worker, initargs=(_Deferred((initializer, arguments)),), **options)

    def submit(self, function: Callable[..., Any], /, *arguments: Any, **named: Any) -> Future[Any]:
        """As the base class; a worker that this starts inherits blocked interrupts, so that it never handles one."""
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            return super().submit(function, *arguments, **named)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)

    def __exit__(self, kind: type[BaseException] | None, *rest: Any) -> bool | None:
        if kind is not None:
            for process in list((self._processes or {}).values()):  # kill_workers() exists from Python 3.14 on
                process.kill()
        return super().__exit__(kind, *rest)


class _Deferred:
    """An object that a new process unpickles when it needs it, and not while it starts.

    What it is made of may take seconds to import, in which a process would outlive its parent.
    """

    def __init__(self, held: Any) -> None:
        self._held = held

    def held(self) -> Any:
        """The object itself, in a process that was forked."""
        return self._held

    def __reduce__(self) -> tuple[type[_Delivered], tuple[bytes]]:
        return _Delivered, (bytes(ForkingPickler.dumps(self._held)),)


class _Delivered:
    def __init__(self, data: bytes) -> None:
        self._data = data

    def held(self) -> Any:
        return pickle.loads(self._data)  # of the parent, through the pipe that the process began with


def _begin_worker(deferred: _Deferred | _Delivered) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    end_with_parent(os.getppid())  # which is the fork server, if there is one
    parent = multiprocessing.parent_process()
    if parent is None or not parent.is_alive():
        os._exit(1)
    initializer, arguments = deferred.held()
    if initializer is not None:
        initializer(*arguments)
