"""Arrays in pieces: what lies in several places of a file, or in several files, indexed as one array."""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from typing import Any

import numpy as np

_THREADS = min(4, os.cpu_count() or 1)
_WORTH_THREADS = 1 << 20  # bytes below which handing out the work costs more than it saves
_pool: ThreadPoolExecutor | None = None


def gather(array: np.ndarray, rows: np.ndarray, capacity: int | None = None) -> np.ndarray:
    """`array[rows]` along the first axis, copied by a few threads of our own.

    NumPy uses one thread. torch's OpenMP threads are as fast alone, but wait for each other at a barrier: beside a busy
    process they took four times as long as one thread.

    Args:
        array: (N, ...).
        rows: integers in [0, N), one axis.
        capacity: ask for memory of this many rows, so that calls with about as many rows fit each other's leavings
            (with sizes that vary by a percent a process grew by 80 MB).
    """
    out = np.empty((max(len(rows), capacity or 0), *array.shape[1:]), array.dtype)[: len(rows)]
    if out.nbytes < _WORTH_THREADS or _THREADS == 1:
        return np.take(array, rows, axis=0, out=out, mode="clip")  # clip: any other mode copies through a buffer
    cuts = np.linspace(0, len(rows), _THREADS + 1).astype(int)
    spans = [slice(start, stop) for start, stop in pairwise(cuts)]
    waiting = [_workers().submit(np.take, array, rows[span], 0, out[span], "clip") for span in spans[1:]]
    np.take(array, rows[spans[0]], axis=0, out=out[spans[0]], mode="clip")
    for each in waiting:
        each.result()
    return out


def _workers() -> ThreadPoolExecutor:
    global _pool
    if _pool is None:
        _pool = ThreadPoolExecutor(_THREADS - 1, thread_name_prefix="gtp-vision-gather")
    return _pool


def _forget() -> None:
    """Threads do not survive a fork."""
    global _pool
    _pool = None


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
        home = np.searchsorted(self.starts, flat, side="right") - 1
        if flat.size > 1 and np.all(home[1:] >= home[:-1]):  # sorted rows, the sampler's case: each part's are together
            edges = np.flatnonzero(np.diff(home)) + 1
            for first, last in zip([0, *edges], [*edges, flat.size], strict=True):
                part = home[first]
                np.take(self.parts[part], flat[first:last] - self.starts[part], axis=0, out=out[first:last])
        else:
            for part in np.unique(home):
                here = home == part
                out[here] = self.parts[part][flat[here] - self.starts[part]]
        return out.reshape(*rows.shape, *self.shape[1:])

    def view(self, start: int, stop: int) -> Segmented:
        """Rows `start` to `stop - 1`, not copied."""
        cuts = [
            part[max(0, start - int(begin)) : stop - int(begin)]
            for part, begin in zip(self.parts, self.starts[:-1], strict=True)
            if start < begin + len(part) and stop > begin
        ]
        return Segmented(cuts or [self.parts[0][:0]])

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        if copy is False:
            raise ValueError("an array in pieces cannot be seen as one without copying it")
        whole = self._run(0, len(self))
        return whole if dtype is None else whole.astype(dtype, copy=False)

    def _run(self, start: int, stop: int) -> np.ndarray:
        out = np.empty((stop - start, *self.shape[1:]), self.dtype)
        for part, begin in zip(self.parts, self.starts[:-1], strict=True):
            low, high = max(start, int(begin)), min(stop, int(begin) + len(part))
            if low < high:
                out[low - start : high - start] = part[low - begin : high - begin]
        return out


Array = np.ndarray | Segmented
"""What a store's fields are: mapped, in memory or in pieces."""


def view(array: Array, start: int, stop: int) -> Array:
    """Rows `start` to `stop - 1`, not copied."""
    return array.view(start, stop) if isinstance(array, Segmented) else array[start:stop]
