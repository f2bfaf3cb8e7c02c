"""Contact sheets: what the encoder really sees, the cheapest check there is."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import imageio.v3 as iio
import torch
from torchvision.utils import make_grid

from gtp_vision.datasets.sampler import Batch

if TYPE_CHECKING:
    from gtp_vision.training.trainer import Parts

_SAMPLES = 8
_SCALE = 2


def first_batch(path: Path, batch: Batch, parts: Parts) -> None:
    """The first samples of a batch as PNG, augmented as in training: a row a sample, observation then next."""
    batch = batch.to(parts.accelerator.device)
    agent = parts.agent
    offsets = agent.shift.draw(len(batch), parts.stream(0))
    now = agent.augmented(batch.observation(), offsets)
    then = agent.augmented(batch.next_observation(), offsets)
    rows = [torch.cat([now[name], then[name]], dim=1)[:_SAMPLES] for name, x in now.items() if x.ndim == 5]
    if rows:
        write_sheet(path, torch.cat(rows))


def write_sheet(path: Path, images: torch.Tensor) -> None:
    """uint8 (rows, columns, C, H, W) as one PNG."""
    path.parent.mkdir(parents=True, exist_ok=True)
    grid = make_grid(images.flatten(0, 1).cpu(), nrow=images.shape[1], padding=2, pad_value=255)
    iio.imwrite(path, grid.permute(1, 2, 0).repeat_interleave(_SCALE, 0).repeat_interleave(_SCALE, 1).numpy())
