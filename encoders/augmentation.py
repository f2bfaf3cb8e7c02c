"""Augmentation on the device, on uint8 frames."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from gtp_vision.datasets.random import NoiseSource
from gtp_vision.encoders.settings import AugmentationConfig


class RandomShift:
    """Moves the image by up to `pad` pixels, repeating the edge (DrQ; Kostrikov et al., 2021).

    All frames of a stack, and the observation and next observation of a transition, move together: draw the
    offsets once with `draw` and apply them to both.

    Args:
        pad: largest shift in pixels; 0 switches the augmentation off.
        probability: of shifting a sample at all.
    """

    def __init__(self, pad: int, probability: float) -> None:
        if pad < 0 or not 0 <= probability <= 1:
            raise ValueError(f"pad={pad} must be at least 0 and probability={probability} within [0, 1]")
        self.pad, self.probability = pad, probability

    def draw(self, rows: int, generator: NoiseSource) -> torch.Tensor:
        """Offsets (dy, dx), int64 (B, 2) within [-pad, pad], (0, 0) for samples left alone."""
        offsets = generator.integers(2 * self.pad + 1, rows, 2) - self.pad
        return offsets * (generator.uniform(rows, 1) < self.probability)

    def __call__(self, images: torch.Tensor, offsets: torch.Tensor) -> torch.Tensor:
        """uint8 (B, T, C, H, W) shifted by `offsets`: pixel (y, x) of the result is (y + dy, x + dx) of the input."""
        if not self.pad or not self.probability:
            return images
        batch, frames, channels, height, width = images.shape
        x = images.permute(0, 1, 3, 4, 2).reshape(batch, frames, height, width * channels)
        y = (torch.arange(height, device=x.device) + offsets[:, :1]).clamp(0, height - 1)
        x = x.gather(2, y[:, None, :, None].expand_as(x))
        column = (torch.arange(width, device=x.device) + offsets[:, 1:]).clamp(0, width - 1)
        byte = column[:, :, None] * channels + torch.arange(channels, device=x.device)
        x = x.gather(3, byte.reshape(batch, 1, 1, -1).expand_as(x))
        return x.view(batch, frames, height, width, channels).permute(0, 1, 4, 2, 3)


Draws = Mapping[str, torch.Tensor]
"""What happens to the cameras of each sample of a batch."""


class Augmentation:
    """All random changes of camera frames.

    What is drawn once is applied to the observation and to the next observation, or the critic would see a jump.

    Args:
        config: see `AugmentationConfig`.
        cameras: their names.
    """

    def __init__(self, config: AugmentationConfig, cameras: Sequence[str]) -> None:
        self.cameras = list(cameras)
        self.shift = RandomShift(config.shift, config.shift_probability)

    def draw(self, rows: int, generator: NoiseSource, step: int = 0) -> Draws:
        """What happens to each of B = `rows` samples at training step `step`."""
        offsets = self.shift.draw(rows, generator)
        return dict.fromkeys(self.cameras, offsets)

    def __call__(self, observation: Mapping[str, torch.Tensor], draws: Draws) -> dict[str, torch.Tensor]:
        """Cameras, uint8 (B, T, C, H, W), changed; what is no image stays as it is."""
        return {name: self.shift(x, draws[name]) if x.ndim == 5 else x for name, x in observation.items()}
