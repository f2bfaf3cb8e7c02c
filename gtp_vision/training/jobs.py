"""Independent trainings side by side, in a process and a thread each."""

from __future__ import annotations

import itertools
import os
import queue
import subprocess
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any

import torch

from gtp_vision.config.compose import from_command_line, from_run
from gtp_vision.config.overrides import quoted
from gtp_vision.config.schema import Config
from gtp_vision.core.errors import GtpVisionError
from gtp_vision.core.processes import start
from gtp_vision.core.progress import Progress
from gtp_vision.core.worker_pool import WorkerPool
from gtp_vision.training.segments import changes

TrainingJob = tuple[Callable[..., Any], Mapping[str, Any]]
"""A function of a module and its arguments."""


def run_parallel(jobs: Mapping[str, TrainingJob], *, progress: bool = True) -> dict[str, Any]:
    """Return the results of all jobs by name; as many run at once as there are cores. The first error ends them all."""
    with WorkerPool(min(len(jobs), os.cpu_count() or 1), torch.set_num_threads, 1) as pool:
        futures = {name: pool.submit(function, **arguments) for name, (function, arguments) in jobs.items()}
        done = as_completed(futures.values())
        for future in Progress(done, "training", len(jobs), unit="job", disable=not progress):
            future.result()
        return {name: future.result() for name, future in futures.items()}


def train_all(runs: Mapping[Path, Sequence[str]], *, progress: bool = True) -> None:
    """Run `gtp-vision train` for each run folder, as many at once as there are cores; resume those that have begun.

    Raises GtpVisionError: a folder holds a run of other settings, or a run failed; its own message is in the log beside
    its folder.
    """
    for folder, overrides in runs.items():
        require_same_settings(folder, from_command_line([*overrides, quoted("run_dir", folder)]))
    for _, failure in train_runs(runs, progress=progress):
        if failure:
            raise GtpVisionError(failure)


def require_same_settings(folder: Path, config: Config) -> None:
    """Refuse a folder with a run of other settings; one that was moved is still the same run."""
    if not (folder / "config.yaml").exists():
        return
    old = from_run(folder)
    if differ := changes(old, config, free=False) | changes(old, config, free=True):
        listed = "; ".join(f"{key}: {change}" for key, change in differ.items())
        raise GtpVisionError(f"{folder} holds a run of other settings ({listed}); remove it, or choose another folder")


def train_runs(
    runs: Mapping[Path, Sequence[str]],
    *,
    workers: int | None = None,
    threads: int = 1,
    launcher: Sequence[str] = (),
    progress: bool = True,
) -> Iterator[tuple[Path, str]]:
    """Yield each run folder as its `gtp-vision train` ends, with an error message or "". Closing it stops the rest.

    Where there are GPUs, each run sees one, and all of them are used in turn. A run that has begun is resumed.
    `workers` at once are as many as cores if None; `launcher` are Hydra's settings of one
    (hydra/launcher=submitit_slurm ...), which then starts the runs.
    """
    processes: list[subprocess.Popen] = []
    is_stopped = threading.Event()
    workers = workers or os.cpu_count() or 1
    gpus: queue.SimpleQueue[str | None] = queue.SimpleQueue()
    for _, gpu in zip(range(workers), itertools.cycle(_gpus()), strict=False):
        gpus.put(gpu)

    def train(folder: Path, overrides: Sequence[str]) -> tuple[Path, str]:
        gpu = gpus.get()
        try:
            return folder, train_on(gpu, folder, overrides)
        finally:
            gpus.put(gpu)

    def train_on(gpu: str | None, folder: Path, overrides: Sequence[str]) -> str:
        folder.parent.mkdir(parents=True, exist_ok=True)
        log = folder.with_name(f"{folder.name}.log")
        has_begun = (folder / "config.yaml").exists()
        settings = ["--resume", str(folder)] if has_begun else [*overrides, quoted("run_dir", folder)]
        environment = {"OMP_NUM_THREADS": str(threads)}
        if launcher:  # its jobs may run on other machines
            settings = [*(["--resume"] if has_begun else []), "-m", *launcher, *overrides, quoted("run_dir", folder)]
        elif gpu is not None:
            environment["CUDA_VISIBLE_DEVICES"] = gpu
        if is_stopped.is_set():
            return "stopped"
        # In a session of its own: Ctrl-C is for this process, which then stops that one.
        process = start("gtp_vision", "train", *settings, environment=environment, log=log, start_new_session=True)
        processes.append(process)
        status = process.wait()
        return f"the run {folder} ended with status {status}; its error message is in {log}" if status else ""

    with ThreadPoolExecutor(workers) as pool:
        try:
            futures = [pool.submit(train, folder, overrides) for folder, overrides in runs.items()]
            for future in Progress(as_completed(futures), "training", len(futures), unit="run", disable=not progress):
                yield future.result()
        finally:
            is_stopped.set()
            pool.shutdown(wait=False, cancel_futures=True)
            for process in processes:
                if process.poll() is None:
                    process.terminate()  # a run ends after a checkpoint


def _gpus() -> list[str | None]:
    """Names of the GPUs that may be used; [None] if there are none.

    CUDA ignores the names from the first one that does not exist (-1, NoDevFiles), and all if one stands twice.
    """
    count = torch.cuda.device_count()
    names = [name.strip() for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name.strip()]
    return [*(names or map(str, range(count)))][:count] or [None]
