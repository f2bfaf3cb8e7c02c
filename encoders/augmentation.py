"""Augmentation on the device: random changes of camera frames in training."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch

from gtp_vision.core.errors import GtpVisionError
from gtp_vision.core.names import GOAL
from gtp_vision.core.random import NoiseSource
from gtp_vision.encoders.distortions import Blur, Color, Erasing, RandomShift, window
from gtp_vision.encoders.settings import CameraConfig, EncoderConfig


@dataclass(frozen=True)
class Change:
    """Parameters of the changes of B samples, as their `draw` makes them; None for a change that is off."""

    shift: torch.Tensor | None
    crop: torch.Tensor | None
    color: torch.Tensor | None
    blur: torch.Tensor | None
    erased: torch.Tensor | None


Draws = Mapping[str, Change]
"""The changes of each camera, by its name."""


class Augmentation:
    """Shift and crop, color, blur, erasing, in this order.

    One draw changes all frames of a stack, the observation, the next observation and the goal alike; otherwise the
    critic would see a jump. Shift and crop are one gather of uint8; color and blur use float and are rounded to uint8
    together. The shift is drawn even where it is off, all others only where they are on.

    Args:
        config: see `AugmentationConfig`, and `CameraConfig.crop`.
        shapes: observation name to the shape of one stacked observation: (T, C, H, W) or (T, D).

    Attributes:
        cameras: their names; frames of a goal are changed as those of its camera.

    Raises:
        GtpVisionError: a camera's frames are too small for a setting, or lack its colors.
    """

    def __init__(self, config: EncoderConfig, shapes: Mapping[str, tuple[int, ...]]) -> None:
        self.config = config.augmentation
        self.shift = RandomShift(self.config.shift, self.config.shift_probability)
        self.color, self.blur, self.erasing = Color(self.config), Blur(self.config), Erasing(self.config)
        self.cameras = [name for name, shape in shapes.items() if len(shape) == 4 and not name.startswith(GOAL)]
        self._has_colors = any(shapes[name][1] == 3 for name in self.cameras)
        self._crops: dict[str, tuple[int, int]] = {}
        self._depth = {name for name in self.cameras if config.cameras.get(name, CameraConfig()).depth}
        for name in self.cameras:
            _, channels, height, width = shapes[name]
            crop = config.cameras.get(name, CameraConfig()).crop
            if crop is not None and list(crop) != [height, width]:
                height, width = self._crops[name] = (crop[0], crop[1])
            self._check(name, channels, height, width)

    @property
    def active(self) -> bool:
        """Whether it ever changes a frame."""
        changes = (self.shift, self.color, self.blur, self.erasing)
        return bool(self.cameras) and (bool(self._crops) or any(change.active for change in changes))

    def stage(self, step: int) -> float:
        """Strength of color, blur and erasing at training step `step`."""
        is_graded = any(change.active for change in (self.color, self.blur, self.erasing))
        warmup = self.config.warmup_steps
        return min(1.0, step / warmup) if warmup and is_graded else 1.0

    def draw(self, rows: int, generator: NoiseSource, step: int | None = None) -> Draws:
        """Draw the changes of B = `rows` samples at training step `step` (from 0); None is full strength."""
        strength = 1.0 if step is None else self.stage(step)
        change = self._draw_change(rows, generator, strength)
        draws = dict.fromkeys(self.cameras, change)
        if not self.config.same_for_cameras:
            for name in self.cameras[1:]:
                draws[name] = self._draw_change(rows, generator, strength)
        return draws

    def __call__(self, observation: Mapping[str, torch.Tensor], draws: Draws) -> dict[str, torch.Tensor]:
        """Change and crop the cameras, uint8 (B, T, C, H, W); other observations are returned as they are."""
        changed = {}
        for name, x in observation.items():
            camera = name.removeprefix(GOAL)
            if x.ndim == 5:
                change = draws[camera]
                if camera in self._depth:  # bytes are not colors
                    change = replace(change, color=None, blur=None)
                x = self._changed(x, change, self._crops.get(camera))
            changed[name] = x
        return changed

    def _draw_change(self, rows: int, generator: NoiseSource, strength: float) -> Change:
        shift = self.shift.draw(rows, generator)
        crop = generator.uniform(rows, 2) if self._crops else None
        # Also drawn at strength 0, so that a schedule does not change the numbers that follow.
        drawn = [
            change.draw(rows, generator, strength) if change.active else None
            for change in (self.color, self.blur, self.erasing)
        ]
        color, blur, erased = drawn if strength else (None, None, None)
        return Change(shift if self.shift.active else None, crop, color, blur, erased)

    def _changed(self, images: torch.Tensor, change: Change, size: tuple[int, int] | None) -> torch.Tensor:
        images = self._shift_and_crop(images, change, size)
        if change.color is not None or change.blur is not None:
            with torch.autocast(images.device.type, enabled=False):  # half precision would change all samples
                x = images.float() / 255
                x = x if change.color is None else self.color(x, change.color)
                x = x if change.blur is None else self.blur(x, change.blur)
                images = (x * 255).round_().to(torch.uint8)
        return images if change.erased is None else self.erasing(images, change.erased)

    def _shift_and_crop(self, images: torch.Tensor, change: Change, size: tuple[int, int] | None) -> torch.Tensor:
        if size is None or change.crop is None:
            return images if change.shift is None else self.shift(images, change.shift)
        positions = [whole - part + 1 for whole, part in zip(images.shape[3:], size, strict=True)]
        corner = torch.stack([change.crop[:, axis] * positions[axis] for axis in range(2)], 1).long()
        return window(images, corner if change.shift is None else corner + change.shift, *size)

    def _check(self, name: str, channels: int, height: int, width: int) -> None:
        """Refuse settings that a camera's (cropped) frames do not allow."""
        prefix, c = "encoder.augmentation", self.config
        frames = f"the camera '{name}' has {height}x{width} pixels of {channels} channel(s)"
        side = min(height, width)
        if c.shift >= side:
            raise GtpVisionError(
                f"{prefix}.shift={c.shift} moves everything out of the frame: {frames}; set it below {side}"
            )
        if name in self._depth:  # neither blurred nor colored
            return
        if self.blur.active and self.blur.reach >= side:
            raise GtpVisionError(
                f"{prefix}.blur={c.blur:g} needs {self.blur.reach} pixels on each side: {frames}; set a smaller one"
            )
        for key in ("brightness", "contrast", "saturation", "hue"):
            allows_gray = key in ("brightness", "contrast") or self._has_colors  # a gray camera keeps the others
            if getattr(c, key) and channels not in ((1, 3) if allows_gray else (3,)):
                kind = "RGB or gray" if allows_gray else "RGB"
                raise GtpVisionError(
                    f"{prefix}.{key}={getattr(c, key):g} needs {kind} frames: {frames}; set {prefix}.{key}=0"
                )
