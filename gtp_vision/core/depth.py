"""Depth cameras: distances of 16 bits as two bytes, the high one first, so that frames stay uint8 everywhere.

Such a camera is uint8 (N, H, W, 2) of millimeters, 0 where nothing was measured; the attribute `depth` of a store lists
its depth cameras. The encoder computes the distances, scaled by the farthest one of the data (`CameraConfig.depth`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

ATTRIBUTE = "depth"
BYTES = 2
"""Channels of a depth camera."""


def is_depth(name: str, shape: tuple[int, ...], dtype: np.dtype) -> bool:
    """Whether images of a shape and dtype are distances: 16 bits, signed ones too, or floats that are called so.

    `name` begins with those of its groups; segments of a depth camera are not distances.
    """
    is_plane = len(shape) == 2 or (len(shape) == 3 and 1 in (shape[0], shape[2]))
    is_called = "depth" in name.lower() and "segment" not in name.lower()
    return is_plane and is_called and (dtype in (np.uint16, np.int16) or dtype.kind == "f")


def to_bytes(distances: np.ndarray) -> np.ndarray:
    """Convert distances (..., H, W) to uint8 (..., H, W, 2), see the module.

    Integers are millimeters and floats meters, as LeRobot and robomimic have them; floats are rounded to millimeters.
    What is not finite or below 0 becomes 0.
    """
    if distances.dtype.kind == "f":
        distances = np.rint(np.nan_to_num(1000 * distances.astype(np.float64), nan=0, posinf=0, neginf=0))
    if distances.dtype != np.uint16:
        distances = np.clip(distances, 0, np.iinfo(np.uint16).max)
    return distances.astype(">u2")[..., None].view(np.uint8)


def millimeters(frames: np.ndarray) -> np.ndarray:
    """Compute the distances uint16 (..., H, W) of frames uint8 (..., H, W, 2)."""
    return np.ascontiguousarray(frames).view(">u2")[..., 0].astype(np.uint16)


def quantized(distances: np.ndarray, step: int) -> np.ndarray:
    """Convert millimeters, uint16, to LeRobot's codes of `step` millimeters, which `unquantized` inverts."""
    return np.rint(distances / step).astype("<u2")


def unquantized(bits: int, near: float, far: float, shift: float, *, is_logarithmic: bool) -> np.ndarray:
    """Compute the millimeters, uint16 (2^bits,), of each code of LeRobot's depth videos (its `dequantize_depth`).

    `near`, `far` and `shift` are meters: the codes are spread evenly over distances, or over log(distance + shift).
    """
    low, high = np.log([near + shift, far + shift]) if is_logarithmic else (near, far)
    found = np.linspace(low, high, 1 << bits)
    found = np.exp(found) - shift if is_logarithmic else found
    return np.clip(np.rint(1000 * np.clip(found, near, far)), 0, np.iinfo(np.uint16).max).astype(np.uint16)


def cameras(attributes: Mapping[str, Any]) -> list[str]:
    """Return the names of the depth cameras that a store's attributes list."""
    held = attributes.get(ATTRIBUTE)
    return [name for name in held if isinstance(name, str)] if isinstance(held, list) else []


def attribute(names: Iterable[str]) -> dict[str, list[str]]:
    """Return the attribute that lists depth cameras; nothing without one."""
    held = list(names)
    return {ATTRIBUTE: held} if held else {}
