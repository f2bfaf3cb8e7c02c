"""Independent trainings side by side: a process and a thread each."""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Callable, Mapping
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
    with context.Pool(workers, initializer=_quiet) as pool:  # leaving it ends all that still runs
        work = pool.imap_unordered(_run, [(name, *job) for name, job in jobs.items()])
        for name, result in tqdm(work, "training", len(jobs), unit="job", disable=not progress):
            results[name] = result
    return {name: results[name] for name in jobs}


def _quiet() -> None:
    """One thread, and Ctrl-C is the main process's business."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(1)


def _run(job: tuple[str, Callable[..., Any], Mapping[str, Any]]) -> tuple[str, Any]:
    name, function, arguments = job
    return name, function(**arguments)
