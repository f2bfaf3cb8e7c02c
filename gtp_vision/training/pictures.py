"""Contact sheets of the frames that the encoder gets."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from gtp_vision.datasets.batch import Batch
from gtp_vision.datasets.pictures import write_sheet

if TYPE_CHECKING:
    from gtp_vision.training.build import Components

_SAMPLES = 8
_FRAMES, _DRAWS = 4, 7  # of the sheet of the augmentation: its rows, and its columns but the first


def first_batch(path: Path, batch: Batch, parts: Components) -> None:
    """Write the first samples of a batch as PNG, augmented as in training; one row a sample, observation then next.

    Cameras are side by side.
    """
    batch = batch.to(parts.accelerator.device)
    agent = parts.agent
    draws = agent.augment.draw(len(batch), parts.stream(0), 0)
    first, second = batch.observation, batch.next_observation
    if parts.augmented:
        first, second = agent.augment(first, draws), agent.augment(second, draws)
    both = {name: torch.cat([x, second[name]], dim=1)[:_SAMPLES] for name, x in first.items() if x.ndim == 5}
    if both:
        frames = [images.permute(0, 1, 3, 4, 2).cpu().numpy() for images in both.values()]  # (B, 2T, H, W, C)
        rows = [[image for images in frames for image in images[sample]] for sample in range(len(frames[0]))]
        write_sheet(path, rows, heads=[f"{name}: observation, then next" for name in both])


def augmentation(path: Path, batch: Batch, parts: Components) -> None:
    """Write a few frames as PNG, one row each: as recorded, then augmented at full strength.

    Cameras are side by side. Nothing is written without augmentation.
    """
    augment = parts.agent.augment
    if not parts.augmented:
        return
    observation = batch.to(parts.accelerator.device).observation
    frames = {name: observation[name][:_FRAMES, -1:] for name in augment.cameras}
    count = len(next(iter(frames.values())))
    draws = augment.draw(count * _DRAWS, parts.stream(0))
    changed = augment({name: x.repeat_interleave(_DRAWS, 0) for name, x in frames.items()}, draws)
    rows: list[list[np.ndarray]] = [[] for _ in range(count)]
    for name, x in frames.items():
        for row, recorded, drawn in zip(rows, x, changed[name].split(_DRAWS), strict=True):
            row += [image.permute(1, 2, 0).cpu().numpy() for image in (recorded[0], *drawn[:, 0])]
    write_sheet(
        path,
        rows,
        heads=list(frames),
        captions=[["as recorded", *["augmented"] * _DRAWS] * len(frames)] * count,
    )
