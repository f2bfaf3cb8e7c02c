"""Random shift and crop: windows of frames, as index arithmetic on uint8."""

from __future__ import annotations

import torch

from gtp_vision.core.random import NoiseSource


def window(images: torch.Tensor, corner: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """Cut a window out of each sample's frames; where it reaches beyond them, their edge is repeated.

    Args:
        images: (B, T, C, H, W) of any dtype.
        corner: int64 (B, 2), the row and column of the frame that become the window's first; below 0 or beyond the
            frame too.
        height: of the window.
        width: of the window.

    Returns:
        (B, T, C, height, width): pixel (y, x) is (y + row, x + column) of the input.
    """
    batch, frames, channels, rows, columns = images.shape
    x = images.permute(0, 1, 3, 4, 2).reshape(batch, frames, rows, columns * channels)
    y = (torch.arange(height, device=x.device) + corner[:, :1]).clamp(0, rows - 1)
    x = x.gather(2, y[:, None, :, None].expand(batch, frames, height, columns * channels))
    column = (torch.arange(width, device=x.device) + corner[:, 1:]).clamp(0, columns - 1)
    byte = column[:, :, None] * channels + torch.arange(channels, device=x.device)
    x = x.gather(3, byte.reshape(batch, 1, 1, -1).expand(batch, frames, height, width * channels))
    return x.view(batch, frames, height, width, channels).permute(0, 1, 4, 2, 3)


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

    @property
    def active(self) -> bool:
        """Whether it ever moves anything."""
        return self.pad > 0 and self.probability > 0

    def draw(self, rows: int, generator: NoiseSource) -> torch.Tensor:
        """Offsets (dy, dx), int64 (B, 2) within [-pad, pad], (0, 0) for samples left alone."""
        offsets = generator.integers(2 * self.pad + 1, rows, 2) - self.pad
        return offsets * (generator.uniform(rows, 1) < self.probability)

    def __call__(self, images: torch.Tensor, offsets: torch.Tensor) -> torch.Tensor:
        """uint8 (B, T, C, H, W) shifted by `offsets`: pixel (y, x) of the result is (y + dy, x + dx) of the input."""
        return window(images, offsets, *images.shape[3:]) if self.active else images
