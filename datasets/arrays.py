"""Arrays in pieces: what lies in several places of a file, or in several files, indexed as one array."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np

_THREADS = min(4, os.cpu_count() or 1)
_WORTH_THREADS = 1 << 20  # bytes below which handing out the work costs more than it saves
_pool: ThreadPoolExecutor | None = None


def gather(array: Array, rows: np.ndarray, capacity: int | None = None) -> np.ndarray:
    """`array[rows]` along the first axis, copied by a few threads of our own.

    NumPy uses one thread. torch's OpenMP threads are as fast alone, but wait for each other at a barrier: beside a busy
    process they took three times as long as one thread.

    Args:
        array: (N, ...).
        rows: integers in [0, N), one axis; of an array in pieces they must not decrease.
        capacity: ask for memory of this many rows, so that calls with about as many rows use each other's memory.
    """
    shape = (max(len(rows), capacity or 0), *array.shape[1:])
    out = _memory.array(shape, array.dtype)[: len(rows)]
    take = array.take if isinstance(array, Segmented) else partial(_take, array)
    if out.nbytes < _WORTH_THREADS or _THREADS == 1:
        take(rows, out)
        return out
    cuts = np.linspace(0, len(rows), _THREADS + 1).astype(int)
    spans = [slice(start, stop) for start, stop in pairwise(cuts)]
    waiting = [_workers().submit(take, rows[span], out[span]) for span in spans[1:]]
    take(rows[spans[0]], out[spans[0]])
    for each in waiting:
        each.result()
    return out


def _take(array: np.ndarray, rows: np.ndarray, out: np.ndarray) -> None:
    np.take(array, rows, axis=0, out=out, mode="clip")  # clip: any other mode copies through a buffer


class _Memory:
    """Memory for large arrays that is used again once nobody looks at the array that it was handed out as.

    Fresh memory comes from the operating system page by page, and the C library gives it back with every batch: one
    with both windows stacked took 9.9 ms so, and 3.5 ms with memory used again.
    """

    _FREE = 6  # blocks that are kept without a user

    def __init__(self) -> None:
        self._blocks: list[np.ndarray] = []
        self._lock = threading.Lock()

    def array(self, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
        """An array of undefined content."""
        size = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
        if size < _WORTH_THREADS:
            return np.empty(shape, dtype)
        with self._lock:
            return self._block(size)[:size].view(dtype).reshape(shape)

    def _block(self, size: int) -> np.ndarray:
        # Every array made of a block refers to it, so one that only this list refers to is free.
        free = [i for i in range(len(self._blocks)) if sys.getrefcount(self._blocks[i]) == _ALONE]
        for i in free:
            if size <= len(self._blocks[i]) <= 2 * size:
                return self._blocks[i]
        for i in reversed(free[: max(0, len(free) - self._FREE + 1)]):
            del self._blocks[i]
        self._blocks.append(np.empty(size, np.uint8))
        return self._blocks[-1]


_ALONE = 2  # references: the list's and the one that asks
_memory = _Memory()


def _workers() -> ThreadPoolExecutor:
    global _pool
    if _pool is None:
        _pool = ThreadPoolExecutor(_THREADS - 1, thread_name_prefix="gtp-vision-gather")
    return _pool


def _forget() -> None:
    """Threads do not survive a fork, and a lock may be held in it."""
    global _pool, _memory
    _pool, _memory = None, _Memory()


os.register_at_fork(after_in_child=_forget)


class Segmented:
    """Arrays of one dtype and one row shape, one after another along the first axis.

    Nothing is joined: indexing copies the rows asked for out of the parts they lie in. What NumPy is asked to see as
    an array (`np.asarray`) is a copy of everything.

    Args:
        parts: at least one array (N_i, ...).
    """

    def __init__(self, parts: Sequence[np.ndarray | Segmented]) -> None:
        flat: list[np.ndarray] = []
        for part in parts:
            flat += part.parts if isinstance(part, Segmented) else [part]
        self.parts: list[np.ndarray] = [part for part in flat if len(part)] or flat[:1]
        first = self.parts[0]
        for part in self.parts:
            if part.dtype != first.dtype or part.shape[1:] != first.shape[1:]:
                raise ValueError(f"{part.dtype} {part.shape} cannot follow {first.dtype} {first.shape} in one array")
        self.starts = np.concatenate([[0], np.cumsum([len(part) for part in self.parts])]).astype(np.int64)
        self.dtype, self.shape = first.dtype, (int(self.starts[-1]), *first.shape[1:])

    @property
    def ndim(self) -> int:
        """Number of dimensions."""
        return len(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes of all parts."""
        return int(np.prod(self.shape, dtype=np.int64)) * self.dtype.itemsize

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: Any) -> np.ndarray:
        """The rows of an integer, a slice or an integer array of any shape, copied."""
        if isinstance(rows, slice):
            start, stop, step = rows.indices(len(self))
            return self[np.arange(start, stop, step)] if step != 1 else self._run(start, max(start, stop))
        rows = np.asarray(rows)
        if rows.dtype == bool:
            rows = np.flatnonzero(rows)
        flat = np.where(rows < 0, rows + len(self), rows).ravel()
        if flat.size and not 0 <= flat.min() <= flat.max() < len(self):
            raise IndexError(f"a row of {len(self)} is out of range")
        out = np.empty((flat.size, *self.shape[1:]), self.dtype)
        order = np.argsort(flat, kind="stable")
        if np.array_equal(order, np.arange(flat.size)):
            self.take(flat, out)
        else:
            sorted_rows = np.empty_like(out)
            self.take(flat[order], sorted_rows)
            out[order] = sorted_rows
        return out.reshape(*rows.shape, *self.shape[1:])

    def take(self, rows: np.ndarray, out: np.ndarray) -> None:
        """Copy rows, integers in [0, N) that do not decrease, one axis, into `out` (rows, ...)."""
        home = np.searchsorted(self.starts, rows, side="right") - 1
        edges = [0, *(np.flatnonzero(np.diff(home)) + 1).tolist(), len(rows)]
        for first, last in pairwise(edges):
            if last > first:
                part = int(home[first])
                _take(self.parts[part], rows[first:last] - self.starts[part], out[first:last])

    def view(self, start: int, stop: int) -> Segmented:
        """Rows `start` to `stop - 1`, not copied."""
        cuts = [self.parts[part][low:high] for part, low, high in self._spans(start, stop)]
        return Segmented(cuts or [self.parts[0][:0]])

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        if copy is False:
            raise ValueError("an array in pieces cannot be seen as one without copying it")
        whole = self._run(0, len(self))
        return whole if dtype is None else whole.astype(dtype, copy=False)

    def _run(self, start: int, stop: int) -> np.ndarray:
        out = np.empty((stop - start, *self.shape[1:]), self.dtype)
        at = 0
        for part, low, high in self._spans(start, stop):
            out[at : at + high - low] = self.parts[part][low:high]
            at += high - low
        return out

    def _spans(self, start: int, stop: int) -> Iterator[tuple[int, int, int]]:
        """The parts that hold rows `start` to `stop - 1`: number, and first and exclusive last row in it."""
        start, stop = max(0, start), min(stop, len(self))
        part = int(np.searchsorted(self.starts, start, side="right")) - 1  # not from the first: there may be thousands
        while start < stop:
            begin, end = int(self.starts[part]), min(stop, int(self.starts[part + 1]))
            yield part, start - begin, end - begin
            start, part = end, part + 1


Array = np.ndarray | Segmented
"""What a store's fields are: mapped, in memory or in pieces."""


def view(array: Array, start: int, stop: int) -> Array:
    """Rows `start` to `stop - 1`, not copied."""
    return array.view(start, stop) if isinstance(array, Segmented) else array[start:stop]
