"""Colour, blur and erasing of frames, with parameters of its own for each sample.

Each distortion draws numbers that know no frame's size, so that they may be shared by cameras of several sizes, and
applies them by Kornia's operations, which take one value a sample and never wait for the device. All frames of a
sample are changed alike. A sample that is left alone comes out bit for bit.
"""

from __future__ import annotations

import math

import torch
from einops import rearrange

from gtp_vision.core.random import NoiseSource
from gtp_vision.encoders.settings import AugmentationConfig

ERASED_ASPECT = 0.3  # of the longest erased rectangles, Zhong et al.'s r_1
BLUR_REACH = 3  # deviations at which the blur's kernel ends; 99.7 % of a Gaussian lie within


class Color:
    """Brightness, contrast, saturation, hue, in this order, as torchvision's `ColorJitter` defines them.

    Contrast is about each frame's own mean grey. Frames of one channel have neither saturation nor hue.
    """

    def __init__(self, config: AugmentationConfig) -> None:
        self.config = config
        self.largest = [config.brightness, config.contrast, config.saturation, 2 * math.pi * config.hue]

    @property
    def active(self) -> bool:
        """Whether it ever changes anything."""
        return max(self.largest) > 0 and self.config.color_probability > 0

    def draw(self, rows: int, generator: NoiseSource, strength: float) -> torch.Tensor:
        """float32 (B, 4): factors of brightness, contrast and saturation around 1, and the hue's turn in radians."""
        numbers = generator.uniform(rows, 5)
        amount = (2 * numbers[:, 1:] - 1) * (numbers[:, :1] < self.config.color_probability)
        changes = [amount[:, i] * (strength * largest) for i, largest in enumerate(self.largest)]
        return torch.stack([*(1 + change for change in changes[:3]), changes[3]], 1)

    def __call__(self, images: torch.Tensor, drawn: torch.Tensor) -> torch.Tensor:
        """Float frames (B, T, C, H, W) in [0, 1] to the same."""
        from kornia import enhance  # takes long, and few runs need it

        operations = (
            enhance.adjust_brightness_accumulative,
            enhance.adjust_contrast_with_mean_subtraction,
            enhance.adjust_saturation_with_gray_subtraction,
            enhance.adjust_hue,
        )
        for operation, largest, values in zip(operations, self.largest, drawn.unbind(1), strict=True):
            if largest:
                images = operation(images, values)
        return images


class Blur:
    """A Gaussian blur of a deviation up to `blur` pixels, mirrored at the frame's edge."""

    def __init__(self, config: AugmentationConfig) -> None:
        self.config = config
        self.reach = math.ceil(BLUR_REACH * config.blur)

    @property
    def active(self) -> bool:
        """Whether it ever changes anything."""
        return self.config.blur > 0 and self.config.blur_probability > 0

    def draw(self, rows: int, generator: NoiseSource, strength: float) -> torch.Tensor:
        """Deviations in pixels, float32 (B, 1); 0 leaves a sample alone."""
        numbers = generator.uniform(rows, 2)
        return strength * self.config.blur * numbers[:, 1:] * (numbers[:, :1] < self.config.blur_probability)

    def __call__(self, images: torch.Tensor, drawn: torch.Tensor) -> torch.Tensor:
        """Float frames (B, T, C, H, W) in [0, 1] to the same."""
        # Not `gaussian_blur2d`, which waits for the device to refuse deviations of 0.
        from kornia.filters import filter2d_separable, get_gaussian_kernel1d

        kernel = get_gaussian_kernel1d(2 * self.reach + 1, drawn)
        blurred = filter2d_separable(rearrange(images, "b t c h w -> b (t c) h w"), kernel, kernel, "reflect")
        return rearrange(blurred, "b (t c) h w -> b t c h w", c=images.shape[2])


class Erasing:
    """Blackens one rectangle (Zhong et al., 2020) of a share up to `erase` of the frame.

    Its height and width, as shares of the frame's, are in a ratio between `ERASED_ASPECT` and its inverse, and nearer
    to 1 where it would not fit otherwise.
    """

    def __init__(self, config: AugmentationConfig) -> None:
        self.config = config

    @property
    def active(self) -> bool:
        """Whether it ever changes anything."""
        return self.config.erase > 0 and self.config.erase_probability > 0

    def draw(self, rows: int, generator: NoiseSource, strength: float) -> torch.Tensor:
        """Rectangles, float32 (B, 4).

        Height and width as shares of the frame's, then the place between top and bottom, left and right, in [0, 1).
        """
        numbers = generator.uniform(rows, 5)
        share = strength * self.config.erase * numbers[:, 1] * (numbers[:, 0] < self.config.erase_probability)
        ratio = (math.log(ERASED_ASPECT) * (2 * numbers[:, 2] - 1)).exp()
        height = (share * ratio).sqrt().clamp(max=1).maximum(share)
        width = share / height.clamp_min(1e-12)
        return torch.stack([height, width, numbers[:, 3], numbers[:, 4]], 1)

    def __call__(self, images: torch.Tensor, drawn: torch.Tensor) -> torch.Tensor:
        """(B, T, C, H, W) of any dtype to the same; whole pixels, rounded down."""
        inside = []
        for axis, length in enumerate(images.shape[3:]):
            side = (drawn[:, axis] * length).floor()
            first = (drawn[:, 2 + axis] * (length - side + 1)).floor()
            place = torch.arange(length, device=images.device)
            inside.append((place >= first[:, None]) & (place < (first + side)[:, None]))
        erased = inside[0][:, :, None] & inside[1][:, None, :]
        return images.masked_fill(rearrange(erased, "b h w -> b 1 1 h w"), 0)
