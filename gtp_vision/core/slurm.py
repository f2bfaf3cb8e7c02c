"""What a job of SLURM knows about itself: whether it was restarted, and how a sweep's job is requeued."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess


def was_restarted() -> bool:
    """Whether SLURM has started this job before: it was requeued, by hand, by preemption or after a node's failure."""
    return os.environ.get("SLURM_RESTART_COUNT", "0") != "0"


def requeue_sweep_job() -> None:
    """In a job that submitit runs on SLURM, end this process so that the job is started again; else return.

    To be called after a stop signal and its checkpoint. SLURM sends SIGTERM both before it preempts a job, with the
    job still running, and when it ends one; a job that it ends is left to it: requeued if preempted, not if cancelled.
    Returns, too, where submitit refuses, because the job reached its time limit more than `max_num_timeout` times.
    """
    if os.environ.get("SUBMITIT_EXECUTOR") != "slurm":
        return
    job, array, task = (os.environ.get(f"SLURM_{name}") for name in ("JOB_ID", "ARRAY_JOB_ID", "ARRAY_TASK_ID"))
    name = f"{array}_{task}" if array else job  # the number of an array's last job is also that of the array
    command = ["squeue", "--noheader", "--format=%T", f"--jobs={name}"]
    state = subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()
    if state == "RUNNING":
        with contextlib.suppress(Exception):
            signal.raise_signal(signal.SIGUSR2)  # submitit's handler requeues the job and exits
        return
    raise SystemExit(1)  # without the result by which submitit would count the job as done
