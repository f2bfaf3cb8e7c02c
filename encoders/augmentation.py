"""Augmentation on the device: all random changes of camera frames in training."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch

from gtp_vision.core.errors import GtpVisionError
from gtp_vision.core.random import NoiseSource
from gtp_vision.encoders.distortions import Blur, Color, Erasing
from gtp_vision.encoders.encoder import GOAL
from gtp_vision.encoders.settings import CameraConfig, EncoderConfig
from gtp_vision.encoders.shift import RandomShift, window


@dataclass(frozen=True)
class Change:
    """What happens to the frames of B samples; None where nothing does.

    Attributes:
        shift: int64 (B, 2), see `RandomShift.draw`.
        crop: float32 (B, 2), the window's place between top and bottom, left and right, within [0, 1).
        color: float32 (B, 4), see `Color.draw`.
        blur: float32 (B, 1), see `Blur.draw`.
        erased: float32 (B, 4), see `Erasing.draw`.
    """

    shift: torch.Tensor | None
    crop: torch.Tensor | None
    color: torch.Tensor | None
    blur: torch.Tensor | None
    erased: torch.Tensor | None


Draws = Mapping[str, Change]
"""What happens to each camera, by its name."""


class Augmentation:
    """Shift and crop, colour, blur, erasing, in this order.

    What is drawn once is applied to all frames of a stack, to the observation, the next observation and the goal, or
    the critic would see a jump. Shift and crop commute and are one gather of uint8; colour and blur go through float
    and are rounded to uint8 together. What is off draws nothing, except the shift, which is drawn in any case: the
    numbers that are drawn after it do not depend on whether it is used.

    Args:
        config: see `AugmentationConfig`, and `CameraConfig.crop`.
        shapes: observation name to the shape of one stacked observation: (T, C, H, W) or (T, D).

    Attributes:
        cameras: their names; a goal's frames are changed as its camera's are.

    Raises:
        GtpVisionError: a camera's frames are too small for a setting, or have not its colours.
    """

    def __init__(self, config: EncoderConfig, shapes: Mapping[str, tuple[int, ...]]) -> None:
        self.config = config.augmentation
        self.shift = RandomShift(self.config.shift, self.config.shift_probability)
        self.color, self.blur, self.erasing = Color(self.config), Blur(self.config), Erasing(self.config)
        self.cameras = [name for name, shape in shapes.items() if len(shape) == 4 and not name.startswith(GOAL)]
        self._crops: dict[str, tuple[int, int]] = {}
        for name in self.cameras:
            _, channels, height, width = shapes[name]
            crop = config.cameras.get(name, CameraConfig()).crop
            if crop is not None and list(crop) != [height, width]:
                height, width = self._crops[name] = (crop[0], crop[1])
            for misfit in self._misfits(name, channels, height, width):
                raise GtpVisionError(misfit)

    @property
    def active(self) -> bool:
        """Whether any camera is ever changed."""
        changes = (self.shift, self.color, self.blur, self.erasing)
        return bool(self.cameras) and (bool(self._crops) or any(change.active for change in changes))

    def stage(self, step: int) -> float:
        """The strength of what changes colours, blurs and erases at training step `step`."""
        graded = any(change.active for change in (self.color, self.blur, self.erasing))
        warmup = self.config.warmup_steps
        return min(1.0, step / warmup) if warmup and graded else 1.0

    def draw(self, rows: int, generator: NoiseSource, step: int | None = None) -> Draws:
        """What happens to each of B = `rows` samples at training step `step` (from 0), or at full strength."""
        strength = 1.0 if step is None else self.stage(step)
        change = self._drawn(rows, generator, strength)
        draws = dict.fromkeys(self.cameras, change)
        if not self.config.same_for_cameras:
            for name in self.cameras[1:]:
                draws[name] = self._drawn(rows, generator, strength)
        return draws

    def __call__(self, observation: Mapping[str, torch.Tensor], draws: Draws) -> dict[str, torch.Tensor]:
        """Cameras, uint8 (B, T, C, H, W), changed and cropped to the same; what is no image stays as it is."""
        changed = {}
        for name, x in observation.items():
            camera = name.removeprefix(GOAL)
            changed[name] = self._changed(x, draws[camera], self._crops.get(camera)) if x.ndim == 5 else x
        return changed

    def _drawn(self, rows: int, generator: NoiseSource, strength: float) -> Change:
        shift = self.shift.draw(rows, generator)
        crop = generator.uniform(rows, 2) if self._crops else None
        # Drawn at strength 0 as well, so that a schedule does not change the numbers that follow.
        drawn = [
            change.draw(rows, generator, strength) if change.active else None
            for change in (self.color, self.blur, self.erasing)
        ]
        color, blur, erased = drawn if strength else (None, None, None)
        return Change(shift if self.shift.active else None, crop, color, blur, erased)

    def _changed(self, images: torch.Tensor, change: Change, size: tuple[int, int] | None) -> torch.Tensor:
        images = self._moved(images, change, size)
        if change.color is not None or change.blur is not None:
            with torch.autocast(images.device.type, enabled=False):  # half precision would change what is left alone
                x = images.float() / 255
                x = x if change.color is None else self.color(x, change.color)
                x = x if change.blur is None else self.blur(x, change.blur)
                images = (x * 255).round_().to(torch.uint8)
        return images if change.erased is None else self.erasing(images, change.erased)

    def _moved(self, images: torch.Tensor, change: Change, size: tuple[int, int] | None) -> torch.Tensor:
        if size is None or change.crop is None:
            return images if change.shift is None else self.shift(images, change.shift)
        room = [whole - part + 1 for whole, part in zip(images.shape[3:], size, strict=True)]
        corner = torch.stack([change.crop[:, axis] * room[axis] for axis in range(2)], 1).long()
        return window(images, corner if change.shift is None else corner + change.shift, *size)

    def _misfits(self, name: str, channels: int, height: int, width: int) -> Iterator[str]:
        """Sentences about settings that a camera's (cropped) frames do not allow."""
        place, c = "encoder.augmentation", self.config
        seen = f"the camera '{name}' shows {height}x{width} pixels of {channels} channel(s)"
        side = min(height, width)
        if c.shift >= side:
            yield f"{place}.shift={c.shift} moves everything out of sight, and {seen}; take less than {side}"
        if self.blur.active and self.blur.reach >= side:
            yield f"{place}.blur={c.blur:g} reaches {self.blur.reach} pixels far, and {seen}; take a smaller one"
        for key, able in (("brightness", (1, 3)), ("contrast", (1, 3)), ("saturation", (3,)), ("hue", (3,))):
            if getattr(c, key) and channels not in able:
                frames = "RGB frames" if able == (3,) else "frames that are RGB or grey"
                yield f"{place}.{key}={getattr(c, key):g} is for {frames}, and {seen}; set {place}.{key}=0"
