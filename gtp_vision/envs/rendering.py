"""Rendering: the OpenGL library, and the quality of frames."""

from __future__ import annotations

import ctypes.util
import os
from dataclasses import asdict, dataclass
from typing import Any

from gtp_vision.core.errors import GtpVisionError

_LIBRARIES = {"egl": "EGL", "osmesa": "OSMesa"}
_PACKAGES = "libegl1 and libgl1-mesa-dri (or libosmesa6, with MUJOCO_GL=osmesa)"


@dataclass(frozen=True)
class Rendering:
    """Rendering quality. A policy must be evaluated with the quality its data were made with.

    Attributes:
        shadow_size: side of the shadow map in texels; None leaves the simulator's own (OGBench: 4096).
        multisamples: samples a pixel; None leaves the simulator's own (OGBench: 4).
    """

    shadow_size: int | None = None
    multisamples: int | None = None

    @classmethod
    def of(cls, attributes: Any) -> Rendering:
        """The rendering in a data set's attributes, with the simulator's own for what they leave out."""
        recorded = dict(attributes.get("rendering") or {})
        return cls(**{name: recorded[name] for name in ("shadow_size", "multisamples") if name in recorded})

    def record(self) -> dict[str, int | None]:
        """The attributes of a data set that record its rendering."""
        return asdict(self)


def choose_backend(*, required: bool = True) -> str:
    """Set MUJOCO_GL, before mujoco is imported, and return it: egl, osmesa, or its present value.

    Args:
        required: False for simulators without cameras, which run without any OpenGL ("" is returned then).

    Raises:
        GtpVisionError: neither EGL nor OSMesa is installed, or the library that MUJOCO_GL names is not.
    """
    chosen = os.environ.get("MUJOCO_GL", "").lower()
    if chosen:
        library = _LIBRARIES.get(chosen)
        if library and ctypes.util.find_library(library) is None:
            raise GtpVisionError(
                f"MUJOCO_GL={chosen} needs lib{library}, which this machine lacks; install Debian's {_PACKAGES}"
            )
        return chosen
    for backend, library in _LIBRARIES.items():
        if ctypes.util.find_library(library):
            os.environ["MUJOCO_GL"] = backend
            return backend
    if not required:
        return ""
    raise GtpVisionError(f"no OpenGL library for rendering without a display; install Debian's {_PACKAGES}")
