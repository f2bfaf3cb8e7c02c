"""Frames as they are imported: cropped and resized once, when a data set is read, and alike when the policy acts."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from PIL import Image

from gtp_vision.core.errors import GtpVisionError

FRAMES = "frames"
"""Attribute of a data set whose frames were cropped or resized: see `Framing.record`."""
ALL = "*"
_SIZE = re.compile(r"(\d{1,5})(?:x(\d{1,5}))?")
_MAX_SIDE = 8192
_DISTANCES = 2  # channels of a depth camera

Size = tuple[int, int]


@dataclass(frozen=True)
class Framing:
    """Crop and size of the cameras' frames.

    Attributes:
        sizes: camera, or `*` for all others, to the height and width to which its frames are resized after the crop.
        crop: height and width that are cut out of the middle of all frames; None: nothing is cut off.
        shrinks: whether a camera that is not larger than its size stays as it is.
        recorded: camera to the shape (H, W, C) of its frames before; of frames that were imported so.
    """

    sizes: Mapping[str, Size] = field(default_factory=dict)
    crop: Size | None = None
    shrinks: bool = False
    recorded: Mapping[str, tuple[int, int, int]] = field(default_factory=dict)

    def shape(self, camera: str, shape: tuple[int, ...]) -> tuple[int, int, int]:
        """Return the shape (H, W, C) that frames of a shape get.

        Raises GtpVisionError: the crop is larger than the frames.
        """
        _, _, height, width = self.window(camera, shape)
        wanted = self.sizes.get(camera, self.sizes.get(ALL, (height, width)))
        if self.shrinks and wanted[0] >= height and wanted[1] >= width:
            wanted = (height, width)
        return *wanted, shape[2]

    def window(self, camera: str, shape: tuple[int, ...]) -> tuple[int, int, int, int]:
        """Return top, left, height and width of what is cut out of frames of a shape; errors as `shape`."""
        height, width, _ = shape
        if self.crop is None:
            return 0, 0, height, width
        if self.crop[0] > height or self.crop[1] > width:
            raise GtpVisionError(
                f"the crop {text_of(self.crop)} is larger than the frames of camera '{camera}', {height}x{width}; "
                f"make the crop at most that (task.image_crop, --image-crop)"
            )
        return round((height - self.crop[0]) / 2), round((width - self.crop[1]) / 2), *self.crop

    def __call__(self, camera: str, frames: np.ndarray) -> np.ndarray:
        """Crop frames, uint8 (..., H, W, C), and resize them bilinearly, with antialiasing; each channel on its own.

        Of two channels, the bytes of distances (see `core.depth`), the nearest pixel is taken.
        """
        height, width, channels = self.shape(camera, frames.shape[-3:])
        if self.crop is not None:
            top, left, *cut = self.window(camera, frames.shape[-3:])
            frames = frames[..., top : top + cut[0], left : left + cut[1], :]
        if frames.shape[-3:-1] == (height, width):
            return frames
        flat = frames.reshape(-1, *frames.shape[-3:])
        resized = np.empty((len(flat), height, width, channels), np.uint8)
        method = Image.Resampling.NEAREST if channels == _DISTANCES else Image.Resampling.BILINEAR
        for frame, out in zip(flat, resized, strict=True):
            for channel in range(channels):
                image = Image.fromarray(np.ascontiguousarray(frame[..., channel]))
                out[..., channel] = np.asarray(image.resize((width, height), method))
        return resized.reshape(*frames.shape[:-3], height, width, channels)

    def record(self) -> dict[str, Any]:
        """As JSON-able values; `of` reads them."""
        return {
            "sizes": {name: list(size) for name, size in self.sizes.items()},
            "crop": None if self.crop is None else list(self.crop),
            "shrinks": self.shrinks,
            "recorded": {name: list(shape) for name, shape in self.recorded.items()},
        }

    @staticmethod
    def of(stored: Any) -> Framing | None:
        """Return the framing of untrusted values that `record` wrote, None of None; else raise a GtpVisionError."""
        if stored is None:
            return None
        try:
            crop = stored["crop"]
            return Framing(
                {str(name): _pair(size) for name, size in stored["sizes"].items()},
                None if crop is None else _pair(crop),
                bool(stored["shrinks"]),
                {str(name): (*_pair(shape[:2]), int(shape[2])) for name, shape in stored["recorded"].items()},
            )
        except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
            raise GtpVisionError(
                f"the attribute '{FRAMES}' is invalid ({type(error).__name__}: {error}); import the data set again"
            ) from error


def size_of(text: str, key: str) -> Size:
    """Return height and width of `96x128`, or of `96` for both; else a GtpVisionError that names the setting `key`."""
    found = _SIZE.fullmatch(str(text).strip())
    try:
        return _pair((int(found[1]), int(found[2] or found[1]))) if found else _pair(())
    except ValueError as error:
        raise GtpVisionError(
            f"{key}={text} is not a height and width in pixels; write e.g. {key}=96x128, or {key}=96 for both"
        ) from error


def text_of(size: Size) -> str:
    """Return `96x128` of a height and a width."""
    return f"{size[0]}x{size[1]}"


def _pair(size: Any) -> Size:
    height, width = (int(side) for side in size)
    if not (0 < height <= _MAX_SIDE and 0 < width <= _MAX_SIDE):
        raise ValueError(f"{height}x{width} pixels")
    return height, width
