"""Work of other processes and of libraries without the GIL, done by some threads at a time."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


def workers_for(jobs: int) -> int:
    """The number of threads for so many jobs: at most one for each core that this process may use."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(jobs, cores, 8))


def side_by_side(work: Callable[[Item], Result], items: Sequence[Item]) -> Iterator[Result]:
    """Yield the results of a function for some items, in their order; a few of them are worked on at a time.

    After an error, or when the iterator is closed, items that have not begun are left out.
    """
    pool = ThreadPoolExecutor(workers_for(len(items)))
    try:
        yield from pool.map(work, items)
    finally:
        pool.shutdown(cancel_futures=True)
