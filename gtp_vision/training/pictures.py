"""Contact sheets: what the encoder really sees, the cheapest check there is."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch

from gtp_vision.datasets.pictures import write_sheet
from gtp_vision.datasets.sampler import Batch

if TYPE_CHECKING:
    from gtp_vision.training.parts import Parts

_SAMPLES = 8


def first_batch(path: Path, batch: Batch, parts: Parts) -> None:
    """The first samples of a batch as PNG, augmented as in training: a row a sample, observation then next.

    Cameras stand abreast.
    """
    batch = batch.to(parts.accelerator.device)
    agent = parts.agent
    draws = agent.augment.draw(len(batch), parts.stream(0))
    now = agent.augment(batch.observation(), draws)
    then = agent.augment(batch.next_observation(), draws)
    both = {name: torch.cat([now[name], then[name]], dim=1)[:_SAMPLES] for name, x in now.items() if x.ndim == 5}
    if both:
        frames = [images.permute(0, 1, 3, 4, 2).cpu().numpy() for images in both.values()]  # (B, 2T, H, W, C)
        rows = [[image for images in frames for image in images[sample]] for sample in range(len(frames[0]))]
        write_sheet(path, rows, heads=[f"{name}: observation, then next" for name in both])
