"""Independent trainings side by side: a process and a thread each."""

from __future__ import annotations

import itertools
import multiprocessing
import os
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from gtp_vision.config.schema import Config, from_command_line, from_run
from gtp_vision.core.errors import GtpVisionError
from gtp_vision.core.signals import PARENT

TrainingJob = tuple[Callable[..., Any], Mapping[str, Any]]
"""A function of a module and its arguments."""


def run_parallel(jobs: Mapping[str, TrainingJob], *, progress: bool = True) -> dict[str, Any]:
    """The results of all jobs by name; as many run at once as there are cores. The first error ends them all."""
    context = multiprocessing.get_context("spawn")
    workers = min(len(jobs), os.cpu_count() or 1)
    results: dict[str, Any] = {}
    with context.Pool(workers, initializer=_quiet) as pool:  # leaving it ends all that still runs
        work = pool.imap_unordered(_run, [(name, *job) for name, job in jobs.items()])
        for name, result in tqdm(work, "training", len(jobs), unit="job", disable=not progress):
            results[name] = result
    return {name: results[name] for name in jobs}


def train_all(runs: Mapping[Path, Sequence[str]], *, progress: bool = True) -> None:
    """`gtp-vision train` for each run folder, as many at once as there are cores; goes on with those begun before.

    Args:
        runs: run folder to the settings of its run.
        progress: show a bar of runs.

    Raises:
        GtpVisionError: a folder holds a run of other settings, or a run failed; its
            own sentence stands in the log beside the run folder.
    """
    for folder, overrides in runs.items():
        require_same_settings(folder, from_command_line([*overrides, f"run_dir={folder}"]))
    for _, fault in train_runs(runs, progress=progress):
        if fault:
            raise GtpVisionError(fault)


def require_same_settings(folder: Path, asked: Config) -> None:
    """Refuse to go on with a run of other settings; one that was moved is still the same run.

    Raises:
        GtpVisionError: the folder holds one.
    """
    if (folder / "config.yaml").exists() and replace(from_run(folder), run_dir=asked.run_dir) != asked:
        raise GtpVisionError(f"{folder} holds a run of other settings; remove it, or choose another folder")


def train_runs(
    runs: Mapping[Path, Sequence[str]],
    *,
    workers: int | None = None,
    threads: int = 1,
    launcher: Sequence[str] = (),
    progress: bool = True,
) -> Iterator[tuple[Path, str]]:
    """Each run folder as its `gtp-vision train` ends, and a sentence if it failed; what runs ends with the iterator.

    Where there are GPUs, each run sees one, and all of them are used in turn.

    Args:
        runs: run folder to the settings of its run; one that has begun is gone on with.
        workers: how many at once; None is as many as there are cores.
        threads: of each.
        launcher: Hydra's settings of one (hydra/launcher=submitit_slurm ...), which then starts the runs.
        progress: show a bar of runs.
    """
    started: list[subprocess.Popen[bytes]] = []
    over = threading.Event()
    workers = workers or os.cpu_count() or 1
    slots: queue.SimpleQueue[str | None] = queue.SimpleQueue()
    for _, gpu in zip(range(workers), itertools.cycle(_gpus()), strict=False):
        slots.put(gpu)

    def train(folder: Path, overrides: Sequence[str]) -> tuple[Path, str]:
        gpu = slots.get()
        try:
            return folder, on(gpu, folder, overrides)
        finally:
            slots.put(gpu)

    def on(gpu: str | None, folder: Path, overrides: Sequence[str]) -> str:
        folder.parent.mkdir(parents=True, exist_ok=True)
        log = folder.with_name(f"{folder.name}.log")
        begun = (folder / "config.yaml").exists()
        settings = ["--resume", str(folder)] if begun else [*overrides, f"run_dir={folder}"]
        own = {"OMP_NUM_THREADS": str(threads), "TQDM_DISABLE": "1", PARENT: str(os.getpid())}
        if launcher:  # whose jobs may run on other machines, and are no children of this process
            settings = [*(["--resume"] if begun else []), "-m", *launcher, *overrides, f"run_dir={folder}"]
            del own[PARENT]
        elif gpu is not None:
            own["CUDA_VISIBLE_DEVICES"] = gpu
        with log.open("ab") as told:
            if over.is_set():
                return "stopped"
            process = subprocess.Popen(
                [sys.executable, "-m", "gtp_vision", "train", *settings],
                env=os.environ | own,
                stdout=told,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C is for the main process, which then asks this one to end
            )
            started.append(process)
        status = process.wait()
        return f"the run {folder} ended with status {status}; {log} says why" if status else ""

    with ThreadPoolExecutor(workers) as pool:
        try:
            waiting = [pool.submit(train, folder, overrides) for folder, overrides in runs.items()]
            for done in tqdm(as_completed(waiting), "training", len(waiting), unit="run", disable=not progress):
                yield done.result()
        finally:
            over.set()
            pool.shutdown(wait=False, cancel_futures=True)
            for process in started:
                if process.poll() is None:
                    process.terminate()  # a run ends after a checkpoint


def _gpus() -> list[str | None]:
    """The GPUs that may be used, by name; one nothing, where there are none."""
    named = [name for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name]
    return [*(named or map(str, range(torch.cuda.device_count())))] or [None]


def _quiet() -> None:
    """One thread, and Ctrl-C is the main process's business."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(1)


def _run(job: tuple[str, Callable[..., Any], Mapping[str, Any]]) -> tuple[str, Any]:
    name, function, arguments = job
    return name, function(**arguments)
