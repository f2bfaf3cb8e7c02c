"""One process or many: what Accelerate is told, and which rows of the global batch each process takes."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs, InitProcessGroupKwargs

from gtp_vision.config.schema import TrainingConfig
from gtp_vision.core.errors import GtpVisionError

_BUCKET_MB = 24  # an agent of states fits one, and two ResNets' gradients travel while the next ones are computed
_LOST = ("connection closed", "connection reset", "broken pipe", "gloo", "nccl", "timed out", "peer")
_PATIENCE = timedelta(hours=3)  # the others wait while one of each machine converts a data set or computes features


def accelerator_of(training: TrainingConfig) -> Accelerator:
    """The processes that a launcher has started, or this one alone, as Accelerate sees them.

    Raises:
        GtpVisionError: no CUDA device where one was asked for, or fewer than processes.
    """
    _check_devices(training.device)
    warnings.filterwarnings("ignore", "`broadcast_buffers` is deprecated", FutureWarning)  # Accelerate knows no other
    accelerator = Accelerator(
        cpu=training.device == "cpu",
        mixed_precision="no",  # precision is the encoders' own, see `Encoder.bf16`
        kwargs_handlers=[
            # A size that is asked for holds for the first bucket, too, which is 1 MB by default.
            DistributedDataParallelKwargs(
                broadcast_buffers=False, gradient_as_bucket_view=True, bucket_cap_mb=_BUCKET_MB
            ),
            InitProcessGroupKwargs(timeout=_PATIENCE),
        ],
    )
    if training.device == "cuda" and accelerator.device.type != "cuda":
        raise GtpVisionError("training.device=cuda, but torch finds no CUDA device here; set training.device=auto")
    return accelerator


def _check_devices(device: str) -> None:
    if device == "cpu" or not torch.cuda.is_available():
        return
    asked, there = int(os.environ.get("LOCAL_WORLD_SIZE", 1)), torch.cuda.device_count()
    if asked > there:
        raise GtpVisionError(
            f"{asked} processes were started on this machine, and it has {there} CUDA device{'s' * (there > 1)}; start "
            f"as many processes as there are devices, or set training.device=cpu"
        )


def global_batch(training: TrainingConfig, processes: int) -> int:
    """Rows of a step over all processes.

    Raises:
        GtpVisionError: the processes cannot share them equally.
    """
    if training.batch_per == "process":
        return training.batch_size * processes
    if training.batch_size % processes:
        raise GtpVisionError(
            f"training.batch_size={training.batch_size} cannot be divided over {processes} processes; make it a "
            f"multiple, or set training.batch_per=process to give each of them so many rows"
        )
    return training.batch_size


def batch_shares(processes: int, batch: int) -> str:
    """A sentence about who takes what of `batch` rows; empty if there is one process."""
    return f"{processes} processes, {batch // processes} rows each: {batch} a step" if processes > 1 else ""


def is_first() -> bool:
    """Whether this is the one process, or the first of those that a launcher has started."""
    return os.environ.get("RANK", "0") == "0"


@contextmanager
def report_lost_ranks(folder: Path) -> Iterator[None]:
    """Tells in a sentence that another of several processes is gone: what the others then meet is a closed connection.

    Args:
        folder: of the run.

    Raises:
        GtpVisionError: it is.
    """
    try:
        yield
    except RuntimeError as error:
        said = str(error)
        if not torch.distributed.is_initialized() or not any(word in said.lower() for word in _LOST):
            raise
        raise GtpVisionError(
            f"another of the {torch.distributed.get_world_size()} processes has ended or cannot be reached "
            f"({said.splitlines()[0][-100:]}); start them again with --resume, which goes on from the newest "
            f"checkpoint in {folder / 'checkpoints'}"
        ) from error
