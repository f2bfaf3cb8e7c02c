"""One process or several: Accelerate's settings, and the rows of the global batch of each process."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs, InitProcessGroupKwargs

from gtp_vision.config.compose import checked
from gtp_vision.config.schema import Config, TrainingConfig
from gtp_vision.core.errors import GtpVisionError

_ACCUMULATION = "ACCELERATE_GRADIENT_ACCUMULATION_STEPS"
_BUCKET_MB = 24  # an agent of states fits one, and two ResNets' gradients travel while the next ones are computed
_LOST = ("connection closed", "connection reset", "broken pipe", "gloo", "nccl", "timed out", "peer")
_PATIENCE = timedelta(hours=3)  # the others wait while one of each machine converts a data set or computes features


def accelerator_of(training: TrainingConfig, *, has_unused: bool = False) -> Accelerator:
    """Accelerate's view of the processes that a launcher has started, or of this one alone.

    `has_unused` says that some steps leave parameters without a gradient, for which processes would wait.

    Raises:
        GtpVisionError: training.device=cuda or mps without such a device, or fewer devices than processes.
    """
    _check_devices(training.device)
    warnings.filterwarnings("ignore", "`broadcast_buffers` is deprecated", FutureWarning)  # Accelerate sets it
    accelerator = Accelerator(
        cpu=training.device == "cpu",
        gradient_accumulation_steps=training.accumulate,  # `backward` divides by it
        mixed_precision="no",  # precision is the encoders' own, see `Encoder.bf16`
        kwargs_handlers=[
            # A given size holds for the first bucket, too, which is 1 MB by default.
            DistributedDataParallelKwargs(
                broadcast_buffers=False,
                gradient_as_bucket_view=True,
                bucket_cap_mb=_BUCKET_MB,
                find_unused_parameters=has_unused,
            ),
            InitProcessGroupKwargs(timeout=_PATIENCE),
        ],
    )
    if training.device == "mps" and accelerator.device.type != "mps":
        raise GtpVisionError(
            "training.device=mps, but torch finds no GPU of Apple's here (macOS 14 or later on Apple silicon); set "
            "training.device=auto"
        )
    if training.device == "cuda" and accelerator.device.type != "cuda":
        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        among = "" if visible is None else f" among CUDA_VISIBLE_DEVICES={visible}"
        raise GtpVisionError(
            f"training.device=cuda, but torch finds no CUDA device here{among}; set training.device=auto"
        )
    return accelerator


def with_launcher(config: Config) -> Config:
    """The settings with those that Accelerate reads from the environment: mixed precision, gradient accumulation.

    Raises GtpVisionError: they contradict the settings, or are not supported.
    """
    training = config.training
    mixed = os.environ.get("ACCELERATE_MIXED_PRECISION", "no").lower()
    if mixed not in ("no", "bf16", ""):
        raise GtpVisionError(
            f"accelerate launch --mixed_precision {mixed} is not supported: gradients are float32 and losses are not "
            f"scaled; give bf16, or set training.precision"
        )
    if mixed == "bf16" and training.precision != "bf16":
        if training.precision != "float32":
            raise GtpVisionError(
                f"training.precision={training.precision} contradicts accelerate launch --mixed_precision bf16; "
                f"leave one of them out"
            )
        training = replace(training, precision="bf16")
    given = os.environ.get(_ACCUMULATION, "1")
    parts = int(given) if given.isdecimal() else 1
    if parts > 1 and training.accumulate not in (1, parts):
        raise GtpVisionError(
            f"training.accumulate={training.accumulate} contradicts {_ACCUMULATION}={parts}, which Accelerate reads; "
            f"leave one of them out"
        )
    training = replace(training, accumulate=max(parts, training.accumulate))
    return config if training == config.training else checked(replace(config, training=training))


def _check_devices(device: str) -> None:
    if device == "cpu" or not torch.cuda.is_available():
        return
    processes, devices = int(os.environ.get("LOCAL_WORLD_SIZE", 1)), torch.cuda.device_count()
    if processes > devices:
        raise GtpVisionError(
            f"{processes} processes were started on this machine, which has {devices} CUDA "
            f"device{'s' * (devices > 1)}; start as many processes as devices, or set training.device=cpu"
        )


def global_batch(training: TrainingConfig, processes: int) -> int:
    """Rows of a step over all processes, which must share them equally."""
    parts, total = training.accumulate, training.batch_size
    if training.batch_per == "process":
        total, processes = total * processes, 1
    if training.batch_size % processes == 0 and training.batch_size // processes % parts:
        raise GtpVisionError(
            f"the {training.batch_size // processes} rows of each process cannot be divided into training.accumulate="
            f"{parts} micro-batches; make training.batch_size={training.batch_size} a multiple"
        )
    if training.batch_size % processes:
        raise GtpVisionError(
            f"training.batch_size={training.batch_size} cannot be divided over {processes} processes; make it a "
            f"multiple, or set training.batch_per=process to give so many rows to each"
        )
    return total


def batch_shares(processes: int, batch: int) -> str:
    """A sentence about the rows of each process; empty if there is only one."""
    return f"{processes} processes, {batch // processes} rows each: {batch} a step" if processes > 1 else ""


def is_first() -> bool:
    """Whether this is the only process, or the first of those that a launcher has started."""
    return os.environ.get("RANK", "0") == "0"


@contextmanager
def report_lost_ranks(folder: Path) -> Iterator[None]:
    """Turn the closed connection that the end of another process leaves into an error message."""
    try:
        yield
    except RuntimeError as error:
        message = str(error)
        if not torch.distributed.is_initialized() or not any(word in message.lower() for word in _LOST):
            raise
        raise GtpVisionError(
            f"another of the {torch.distributed.get_world_size()} processes has ended or cannot be reached "
            f"({message.splitlines()[0][-100:]}); start them again with --resume, from the newest "
            f"checkpoint in {folder / 'checkpoints'}"
        ) from error
