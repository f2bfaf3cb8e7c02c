"""What training from two cameras takes: time, the wait for data, and memory."""

from __future__ import annotations

import tempfile
import threading
import time
from pathlib import Path

import torch

from gtp_vision.bench.loader import anonymous_mb
from gtp_vision.bench.recordings import noise_store
from gtp_vision.config.compose import from_command_line
from gtp_vision.config.overrides import quoted
from gtp_vision.core.timing import synchronize
from gtp_vision.datasets.formats import native
from gtp_vision.datasets.loader import Loader
from gtp_vision.datasets.sources import batch_source
from gtp_vision.training.build import build
from gtp_vision.training.eager import Eager

OPTIONS = (
    *("agent=gtp", "task.frame_stack=1", "training.batch_size=64"),
    *("encoder=resnet18", "encoder.share=true", "encoder.recompute=16"),
)
SIDE, STEPS = 224, 2
"""Of frames as `task.image_size=224` stores those of 640x480, and measured steps."""


def two_cameras(side: int = SIDE, options: tuple[str, ...] = OPTIONS, frames: int = 600) -> dict[str, float]:
    """Train a few steps in this process, which should be a new one.

    Returns:
        `step_ms`; `data_wait`, the share of the time that waits for data; `private_mb`, the largest memory that no
        file backs, libraries included.
    """
    with tempfile.TemporaryDirectory() as folder:
        shapes = dict.fromkeys(("front", "wrist"), (side, side, 3))
        path = native.write(Path(folder) / "data.h5", noise_store(frames, cameras=shapes, state=7, actions=7))
        fixed = [
            "task=own",
            "task.validation=0",
            quoted("task.dataset", path),
            "training.eval_episodes=0",
            "run_dir=unused",
        ]
        config = from_command_line([*fixed, *options])
        parts = build(config)
        device = parts.accelerator.device
        engine = Eager(batch_source(parts.sampler, device), config, parts)
        largest, ended = [0.0], threading.Event()

        def watch() -> None:
            while not ended.wait(0.02):
                largest[0] = max(largest[0], anonymous_mb())

        watcher = threading.Thread(target=watch)
        watcher.start()
        try:
            with Loader(engine.source, start=0, stop=STEPS + 1, device=device) as loader:
                began = waited = 0.0
                for step, fetched in enumerate(loader):
                    if step == 1:  # the first step makes what the others use
                        synchronize(device)
                        began, waited = time.perf_counter(), loader.waited
                    engine.step(step, fetched)
                synchronize(device)
                took, waited = time.perf_counter() - began, loader.waited - waited
        finally:
            ended.set()
            watcher.join()
    return {
        "step_ms": round(took / STEPS * 1e3, 1),
        "data_wait": round(waited / took, 4),
        "private_mb": round(largest[0], 1),
        "threads": torch.get_num_threads(),
    }
