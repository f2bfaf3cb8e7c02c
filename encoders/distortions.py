"""Random shift, color, blur and erasing of frames, with separate parameters for each sample.

Each draws numbers that are independent of the frame's size, so that cameras of several sizes can share them. Color and
blur use Kornia's operations, which take one value a sample and never synchronize with the device. All frames of a
sample are changed alike. Samples that are not changed stay bit-equal.
"""

from __future__ import annotations

import math

import torch
from einops import rearrange

from gtp_vision.core.random import NoiseSource
from gtp_vision.encoders.settings import AugmentationConfig

ERASED_ASPECT = 0.3  # of the longest erased rectangles, Zhong et al.'s r_1
BLUR_REACH = 3  # radius of the blur's kernel in standard deviations, which holds 99.7 % of a Gaussian


def window(images: torch.Tensor, corner: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """Cut a window out of each sample's frames (B, T, C, H, W), repeating their edge where it reaches beyond them.

    `corner`, int64 (B, 2), is row and column of the window's first pixel, which may be outside the frame: pixel (y, x)
    of the result (B, T, C, height, width) is (y + row, x + column) of the input.
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
    """Shifts frames by up to `pad` pixels, repeating the edge (DrQ; Kostrikov et al., 2021)."""

    def __init__(self, pad: int, probability: float) -> None:
        if pad < 0 or not 0 <= probability <= 1:
            raise ValueError(f"pad={pad} must be at least 0 and probability={probability} within [0, 1]")
        self.pad, self.probability = pad, probability

    @property
    def active(self) -> bool:
        """Whether it ever changes a frame."""
        return self.pad > 0 and self.probability > 0

    def draw(self, rows: int, generator: NoiseSource) -> torch.Tensor:
        """Offsets (dy, dx), int64 (B, 2) within [-pad, pad], (0, 0) for samples that are not shifted."""
        offsets = generator.integers(2 * self.pad + 1, rows, 2) - self.pad
        return offsets * (generator.uniform(rows, 1) < self.probability)

    def __call__(self, images: torch.Tensor, offsets: torch.Tensor) -> torch.Tensor:
        """uint8 (B, T, C, H, W) shifted by `offsets`: pixel (y, x) of the result is (y + dy, x + dx) of the input."""
        return window(images, offsets, *images.shape[3:]) if self.active else images


class Color:
    """Brightness, contrast, saturation, hue, in this order, as torchvision's `ColorJitter` defines them.

    Contrast is relative to each frame's own mean gray. Frames of one channel, beside a
    camera of three, have neither saturation nor hue.
    """

    def __init__(self, config: AugmentationConfig) -> None:
        self.config = config
        self.largest = [config.brightness, config.contrast, config.saturation, 2 * math.pi * config.hue]

    @property
    def active(self) -> bool:
        """Whether it ever changes a frame."""
        return max(self.largest) > 0 and self.config.color_probability > 0

    def draw(self, rows: int, generator: NoiseSource, strength: float) -> torch.Tensor:
        """float32 (B, 4): factors of brightness, contrast and saturation, and the hue's rotation in radians."""
        numbers = generator.uniform(rows, 5)
        amount = (2 * numbers[:, 1:] - 1) * (numbers[:, :1] < self.config.color_probability)
        changes = [amount[:, i] * (strength * largest) for i, largest in enumerate(self.largest)]
        return torch.stack([*(1 + change for change in changes[:3]), changes[3]], 1)

    def __call__(self, images: torch.Tensor, drawn: torch.Tensor) -> torch.Tensor:
        """Float frames (B, T, C, H, W) in [0, 1] to the same."""
        from kornia import enhance  # a slow import that few runs need

        operations = (
            enhance.adjust_brightness_accumulative,
            enhance.adjust_contrast_with_mean_subtraction,
            enhance.adjust_saturation_with_gray_subtraction,
            enhance.adjust_hue,
        )
        for operation, largest, values in zip(operations, self.largest, drawn.unbind(1), strict=True):
            needs_colors = operation in (enhance.adjust_saturation_with_gray_subtraction, enhance.adjust_hue)
            if largest and (images.shape[2] == 3 or not needs_colors):
                images = operation(images, values)
        return images


class Blur:
    """A Gaussian blur of a standard deviation up to `blur` pixels, reflected at the frame's edge."""

    def __init__(self, config: AugmentationConfig) -> None:
        self.config = config
        self.reach = math.ceil(BLUR_REACH * config.blur)

    @property
    def active(self) -> bool:
        """Whether it ever changes a frame."""
        return self.config.blur > 0 and self.config.blur_probability > 0

    def draw(self, rows: int, generator: NoiseSource, strength: float) -> torch.Tensor:
        """Standard deviations in pixels, float32 (B, 1); 0 for no change."""
        numbers = generator.uniform(rows, 2)
        return strength * self.config.blur * numbers[:, 1:] * (numbers[:, :1] < self.config.blur_probability)

    def __call__(self, images: torch.Tensor, drawn: torch.Tensor) -> torch.Tensor:
        """Float frames (B, T, C, H, W) in [0, 1] to the same."""
        # Not `gaussian_blur2d`, which synchronizes with the device to refuse deviations of 0.
        from kornia.filters import filter2d_separable, get_gaussian_kernel1d

        kernel = get_gaussian_kernel1d(2 * self.reach + 1, drawn)
        blurred = filter2d_separable(rearrange(images, "b t c h w -> b (t c) h w"), kernel, kernel, "reflect")
        return rearrange(blurred, "b (t c) h w -> b t c h w", c=images.shape[2])


class Erasing:
    """Blackens one rectangle (Zhong et al., 2020) that covers a share up to `erase` of the frame.

    The ratio of its height and width, as shares of the frame's, is between `ERASED_ASPECT` and its inverse, and closer
    to 1 where the rectangle would not fit otherwise.
    """

    def __init__(self, config: AugmentationConfig) -> None:
        self.config = config

    @property
    def active(self) -> bool:
        """Whether it ever changes a frame."""
        return self.config.erase > 0 and self.config.erase_probability > 0

    def draw(self, rows: int, generator: NoiseSource, strength: float) -> torch.Tensor:
        """Rectangles, float32 (B, 4): height and width as shares of the frame's, then y and x position in [0, 1)."""
        numbers = generator.uniform(rows, 5)
        share = strength * self.config.erase * numbers[:, 1] * (numbers[:, 0] < self.config.erase_probability)
        ratio = (math.log(ERASED_ASPECT) * (2 * numbers[:, 2] - 1)).exp()
        height = (share * ratio).sqrt().clamp(max=1).maximum(share)
        width = share / height.clamp_min(1e-12)
        return torch.stack([height, width, numbers[:, 3], numbers[:, 4]], 1)

    def __call__(self, images: torch.Tensor, drawn: torch.Tensor) -> torch.Tensor:
        """(B, T, C, H, W) of any dtype to the same; pixels rounded down."""
        inside = []
        for axis, length in enumerate(images.shape[3:]):
            side = (drawn[:, axis] * length).floor()
            first = (drawn[:, 2 + axis] * (length - side + 1)).floor()
            pixel = torch.arange(length, device=images.device)
            inside.append((pixel >= first[:, None]) & (pixel < (first + side)[:, None]))
        erased = inside[0][:, :, None] & inside[1][:, None, :]
        return images.masked_fill(rearrange(erased, "b h w -> b 1 1 h w"), 0)
