"""Arrays of a store in another form: segments in several places of files, rows of a small table; see also `videos`."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import groupby, pairwise
from typing import Any

import numpy as np

from gtp_vision.datasets.videos import Videos

_THREADS = min(4, os.cpu_count() or 1)
_MIN_BYTES = 1 << 20  # below, threads and the reuse of memory cost more than they save
_pool: ThreadPoolExecutor | None = None


def gather(array: Array, rows: np.ndarray, capacity: int | None = None) -> np.ndarray:
    """Copy `array[rows]` along the first axis with a few threads.

    NumPy uses one thread. torch's OpenMP threads are as fast alone, but wait for each other at a barrier: beside a busy
    process they took three times as long as one thread. Rows of a segmented array must not decrease. Memory is reserved
    for `capacity` rows, so that calls with about as many rows reuse each other's memory.
    """
    shape = (max(len(rows), capacity or 0), *array.shape[1:])
    out = _memory.array(shape, array.dtype)[: len(rows)]
    take = partial(_take, array) if isinstance(array, np.ndarray) else array.take
    if out.nbytes < _MIN_BYTES or _THREADS == 1:
        take(rows, out)
        return out
    cuts = np.linspace(0, len(rows), _THREADS + 1).astype(int)
    spans = [slice(start, stop) for start, stop in pairwise(cuts)]
    futures = [_workers().submit(take, rows[span], out[span]) for span in spans[1:]]
    take(rows[spans[0]], out[spans[0]])
    for future in futures:
        future.result()
    return out


def _take(array: np.ndarray | Lookup | Videos, rows: np.ndarray, out: np.ndarray) -> None:
    if isinstance(array, Videos):
        return array.take(rows, out)
    if isinstance(array, Lookup):
        return _take(array.table, array.index[rows], out)
    np.take(array, rows, axis=0, out=out, mode="clip")  # clip: any other mode copies through a buffer


class _Memory:
    """Memory for large arrays that is reused once no reference to an earlier array is left.

    Fresh memory comes from the operating system page by page, and the C library returns it after every batch: a batch
    with both windows stacked took 9.9 ms so, and 3.5 ms with reused memory.
    """

    _MAX_FREE = 6  # blocks kept without a user

    def __init__(self) -> None:
        self._blocks: list[np.ndarray] = []
        self._lock = threading.Lock()

    def array(self, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
        """Return an array of undefined content."""
        size = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
        if size < _MIN_BYTES:
            return np.empty(shape, dtype)
        with self._lock:
            return self._block(size)[:size].view(dtype).reshape(shape)

    def _block(self, size: int) -> np.ndarray:
        # Every array made of a block refers to it, so a block that only this list refers to is free.
        free = [i for i in range(len(self._blocks)) if sys.getrefcount(self._blocks[i]) == _UNUSED_REFERENCES]
        for i in free:
            if size <= len(self._blocks[i]) <= 2 * size:
                return self._blocks[i]
        for i in reversed(free[: max(0, len(free) - self._MAX_FREE + 1)]):
            del self._blocks[i]
        self._blocks.append(np.empty(size, np.uint8))
        return self._blocks[-1]


_UNUSED_REFERENCES = 2  # the list's and the argument of getrefcount
_memory = _Memory()


def _workers() -> ThreadPoolExecutor:
    global _pool
    if _pool is None:
        _pool = ThreadPoolExecutor(_THREADS - 1, thread_name_prefix="gtp-vision-gather")
    return _pool


def _reset() -> None:
    """Make new threads and a new lock after a fork: threads do not survive it, and the lock may be held."""
    global _pool, _memory
    _pool, _memory = None, _Memory()


os.register_at_fork(after_in_child=_reset)


class Lookup:
    """An array (N, ...) of which each row is one of a small `table` (K, ...), by its number in `index`, int32 (N,)."""

    def __init__(self, table: np.ndarray, index: np.ndarray) -> None:
        self.table, self.index = table, index
        self.dtype, self.ndim, self.shape = table.dtype, table.ndim, (len(index), *table.shape[1:])
        self.nbytes = table.nbytes + index.nbytes

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, rows: Any) -> np.ndarray:
        return self.table[self.index[rows]]

    def take(self, rows: np.ndarray, out: np.ndarray) -> None:
        """Copy rows, integers in [0, N), into `out` (rows, ...)."""
        _take(self, rows, out)

    def view(self, start: int, stop: int) -> Lookup:
        """Return rows `start` to `stop - 1`, not copied."""
        return Lookup(self.table, self.index[start:stop])

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return self[:].astype(dtype or self.dtype, copy=False)


class Segmented:
    """Arrays (N_i, ...) of one dtype and one row shape (else ValueError), one after another along the first axis.

    Indexing copies rows from their segments; `np.asarray` copies everything.
    """

    def __init__(self, segments: Sequence[np.ndarray | Lookup | Videos | Segmented]) -> None:
        flat: list[np.ndarray | Lookup | Videos] = []
        for segment in segments:
            flat += segment.segments if isinstance(segment, Segmented) else [segment]
        held = [segment for segment in flat if len(segment)] or flat[:1]
        first = held[0]
        for segment in held:
            if segment.dtype != first.dtype or segment.shape[1:] != first.shape[1:]:
                raise ValueError(f"segments are {first.dtype} {first.shape} and {segment.dtype} {segment.shape}")
        self.segments: list[np.ndarray | Lookup | Videos] = []
        for is_video, members in groupby(held, lambda segment: isinstance(segment, Videos)):
            some: list[Any] = list(members)  # videos are one segment, so that their rows are decoded together
            self.segments += [Videos.joined(some)] if is_video and len(some) > 1 else some
        self.starts = np.concatenate([[0], np.cumsum([len(segment) for segment in self.segments])]).astype(np.int64)
        self.dtype, self.shape = first.dtype, (int(self.starts[-1]), *first.shape[1:])

    @property
    def ndim(self) -> int:
        """Number of dimensions."""
        return len(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes of all segments."""
        return int(np.prod(self.shape, dtype=np.int64)) * self.dtype.itemsize

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: Any) -> np.ndarray:
        """Copy the rows of an integer, a slice, or an integer or boolean array."""
        if isinstance(rows, slice):
            start, stop, step = rows.indices(len(self))
            return self[np.arange(start, stop, step)] if step != 1 else self._run(start, max(start, stop))
        rows = np.asarray(rows)
        if rows.dtype == bool:
            rows = np.flatnonzero(rows)
        flat = np.where(rows < 0, rows + len(self), rows).ravel()
        if flat.size and not 0 <= flat.min() <= flat.max() < len(self):
            raise IndexError(f"a row is outside [0, {len(self)})")
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
        """Copy rows, integers in [0, N) in non-decreasing order, into `out` (rows, ...)."""
        home = np.searchsorted(self.starts, rows, side="right") - 1
        edges = [0, *(np.flatnonzero(np.diff(home)) + 1).tolist(), len(rows)]
        for first, last in pairwise(edges):
            if last > first:
                segment = int(home[first])
                _take(self.segments[segment], rows[first:last] - self.starts[segment], out[first:last])

    def view(self, start: int, stop: int) -> Segmented:
        """Return rows `start` to `stop - 1`, not copied."""
        cuts: list[Any] = [view(self.segments[number], low, high) for number, low, high in self._spans(start, stop)]
        return Segmented(cuts or [self.segments[0][:0]])

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        if copy is False:
            raise ValueError("a segmented array is not one array without copying it")
        whole = self._run(0, len(self))
        return whole if dtype is None else whole.astype(dtype, copy=False)

    def _run(self, start: int, stop: int) -> np.ndarray:
        out = np.empty((stop - start, *self.shape[1:]), self.dtype)
        at = 0
        for number, low, high in self._spans(start, stop):
            out[at : at + high - low] = self.segments[number][low:high]
            at += high - low
        return out

    def _spans(self, start: int, stop: int) -> Iterator[tuple[int, int, int]]:
        """Yield the segments of rows `start` to `stop - 1`: number, first and exclusive last row in it."""
        start, stop = max(0, start), min(stop, len(self))
        number = int(np.searchsorted(self.starts, start, side="right")) - 1  # a search: there may be thousands
        while start < stop:
            begin, end = int(self.starts[number]), min(stop, int(self.starts[number + 1]))
            yield number, start - begin, end - begin
            start, number = end, number + 1


Array = np.ndarray | Segmented | Lookup | Videos
"""An array of a store: mapped, in memory, segmented, looked up in a table, or decoded from videos."""


def videos_of(array: Array) -> list[Videos]:
    """Return the parts of an array whose rows are decoded from videos."""
    return [part for part in (array.segments if isinstance(array, Segmented) else [array]) if isinstance(part, Videos)]


def view(array: Array, start: int, stop: int) -> Array:
    """Return rows `start` to `stop - 1`, not copied."""
    return array[start:stop] if isinstance(array, np.ndarray) else array.view(start, stop)
