"""Independent trainings side by side: a process and a thread each."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor, as_completed
from typing import Any

import torch
from tqdm import tqdm

Job = tuple[Callable[..., Any], Mapping[str, Any]]
"""A function of a module and its arguments."""


def side_by_side(jobs: Mapping[str, Job], *, progress: bool = True) -> dict[str, Any]:
    """The results of all jobs by name; as many run at once as there are cores. The first error ends them all."""
    context = multiprocessing.get_context("spawn")
    workers = min(len(jobs), os.cpu_count() or 1)
    results: dict[str, Any] = {}
    with ProcessPoolExecutor(workers, mp_context=context, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        running = {pool.submit(function, **arguments): name for name, (function, arguments) in jobs.items()}
        try:
            for job in tqdm(as_completed(running), "training", len(running), unit="job", disable=not progress):
                results[running[job]] = job.result()
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    return {name: results[name] for name in jobs}
