"""Rendering: the OpenGL backend, frames that were not drawn, and the quality of frames."""

from __future__ import annotations

import ctypes.util
import functools
import importlib
import os
import sys
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from gtp_vision.core.errors import GtpVisionError, first_line

_LIBRARIES = {"egl": "EGL", "osmesa": "OSMesa"}
_PACKAGES = "libegl1 and libgl1-mesa-dri (or libosmesa6, with MUJOCO_GL=osmesa)"
# MuJoCo's names of values. Its default and glfw are one backend, which needs a display.
_WINDOW = ("glfw", "glx")
_DEFAULT = ("", "enable", "enabled", "on", "true", "1")
_OFF = ("disable", "disabled", "off", "false", "0")
_DEVICE = "MUJOCO_EGL_DEVICE_ID"
_PIXEL = """
<mujoco>
  <visual><global offwidth="1" offheight="1"/><quality shadowsize="1" offsamples="0"/></visual>
</mujoco>
"""


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
    """Set MUJOCO_GL to an OpenGL backend that works here, and return it: egl, osmesa or glfw.

    A value of MUJOCO_GL or MUJOCO_EGL_DEVICE_ID that cannot be used is replaced, and a line on stderr says so.
    PYOPENGL_PLATFORM follows, and the GPU numbers of training (CUDA_VISIBLE_DEVICES) do not matter. mujoco may have
    been imported before.

    Args:
        required: whether frames are needed. Then a pixel is rendered, once a process, and frames that are not drawn
            are refused from now on (see `_refuse_undrawn`). Otherwise only variables that are set are tried, and ""
            is returned where rendering is turned off or there is no library.

    Raises:
        GtpVisionError: frames are needed, and MUJOCO_GL turns rendering off or no library renders here.
    """
    asked = os.environ.get("MUJOCO_GL", "").strip().lower()
    if asked in _OFF:
        if required:
            raise GtpVisionError(f"MUJOCO_GL={asked} turns rendering off, and frames are needed; unset MUJOCO_GL")
        return ""
    backend = "" if asked in _DEFAULT else "glfw" if asked in _WINDOW else asked
    fault = "" if not backend else _fault(backend) if backend == "glfw" else _missing(backend)
    if fault or not backend:
        backend = next((other for other in _LIBRARIES if not _missing(other)), "")
    if fault and backend:
        _say(f"MUJOCO_GL={asked} cannot be used here ({fault}); using MUJOCO_GL={backend}")
    if not backend:
        if required:
            because = f"MUJOCO_GL={asked} cannot be used here ({fault}), and " if fault else ""
            raise GtpVisionError(f"{because}no OpenGL library renders without a display; install Debian's {_PACKAGES}")
        if fault:
            os.environ["MUJOCO_GL"] = "disable"  # or mujoco could not be imported
        return ""
    _set_backend(backend)
    fault = _fault(backend) if required or (backend == "egl" and _DEVICE in os.environ) else ""
    if fault and required:
        raise GtpVisionError(
            f"MUJOCO_GL={backend} cannot render here ({fault}); install Debian's {_PACKAGES}, or set "
            f"MUJOCO_GL=disable where no frames are needed"
        )
    return backend


def _set_backend(backend: str) -> None:
    os.environ["MUJOCO_GL"] = backend
    if backend in _LIBRARIES:
        os.environ["PYOPENGL_PLATFORM"] = backend  # mujoco refuses another one


def _missing(backend: str) -> str:
    """Say what a backend without a display lacks; empty if it is installed."""
    if backend not in _LIBRARIES:
        return "no backend has this name"
    return "" if ctypes.util.find_library(_LIBRARIES[backend]) else f"lib{_LIBRARIES[backend]} is missing"


def _fault(backend: str) -> str:
    """Say why a backend cannot render here; empty if it can. A device of EGL that cannot be used is replaced."""
    try:
        _render_a_pixel(backend)
    except Exception as error:  # drivers and libraries fail in many ways
        fault = first_line(error)
    else:
        return ""
    device = os.environ.pop(_DEVICE, None) if backend == "egl" else None
    if device is None:
        return fault
    rest = _fault(backend)
    if not rest and device:
        _say(f"{_DEVICE}={device} cannot be used here ({fault}); using the first device that renders")
    return rest


def _say(line: str) -> None:
    print(f"gtp-vision: {line}", file=sys.stderr)


@functools.cache
def _render_a_pixel(backend: str) -> None:
    """Make a backend that of mujoco, which chose one when it was imported, and try it; once a process."""
    _set_backend(backend)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of GLFW
        import mujoco

        opengl = importlib.import_module(f"mujoco.{backend}")
        for name in ("mujoco", "mujoco.gl_context", "mujoco.rendering.classic.gl_context"):
            if name in sys.modules:
                sys.modules[name].GLContext = opengl.GLContext  # type: ignore[attr-defined]
        _refuse_undrawn(mujoco)
        if backend == "glfw":  # GLFW knows the main thread alone
            _try(mujoco, opengl)
            return
        with ThreadPoolExecutor(1) as thread:  # in this one, a simulator's context may be current
            thread.submit(_try, mujoco, opengl).result()


def _try(mujoco: Any, opengl: Any) -> None:
    """Render with one of mujoco's modules of contexts. Its context is tried first: mujoco looks for OpenGL but once."""
    if hasattr(opengl, "EGL") and not opengl.create_initialized_egl_device_display():
        raise RuntimeError("EGL opens no device")
    context = opengl.GLContext(1, 1)
    context.make_current()
    if hasattr(opengl, "glfw") and not opengl.glfw.get_current_context():
        raise RuntimeError("it needs a display, which DISPLAY names")
    context.free()
    with mujoco.Renderer(mujoco.MjModel.from_xml_string(_PIXEL), 1, 1) as renderer:
        renderer.render()


@contextmanager
def frames_checked() -> Iterator[None]:
    """Run a simulator's code that may import mujoco: where it cannot render, say so; then refuse undrawn frames.

    Raises:
        GtpVisionError: the code failed, and so does rendering.
    """
    try:
        yield
    except Exception as error:
        if "mujoco" in sys.modules and not isinstance(error, GtpVisionError):
            choose_backend()
        raise
    if "mujoco" in sys.modules:
        _refuse_undrawn(sys.modules["mujoco"])


def _refuse_undrawn(mujoco: Any) -> None:
    """Make reading a frame fail where OpenGL writes no pixels, e.g. without a current context; it reports no error.

    Renderers would return whatever their memory held: noise, or earlier frames. All of them call this one function.
    """
    read = getattr(mujoco, "mjr_readPixels", None)  # builds without OpenGL lack it
    if read is None or hasattr(read, "__wrapped__"):
        return

    @functools.wraps(read)
    def read_pixels(rgb: np.ndarray | None, depth: np.ndarray | None, viewport: Any, con: Any) -> None:
        images = [image for image in (rgb, depth) if image is not None and image.size]
        width, size = viewport.width, max(1, viewport.width * viewport.height)
        corners = np.array([0, width - 1, size - width, size - 1])
        undrawn = [np.full(4, True) for _ in images]
        for mark in (1, 254):  # a pixel may have one of these values, but not both
            for image in images:
                image.flat[corners * (image.size // size)] = mark
            read(rgb, depth, viewport, con)
            for image, kept in zip(images, undrawn, strict=True):
                kept &= image.flat[corners * (image.size // size)] == mark
            if not np.any(undrawn):
                return
        raise GtpVisionError(
            f"a simulator's frame was not drawn: its OpenGL context is lost, or not current in this thread (MUJOCO_GL="
            f"{os.environ.get('MUJOCO_GL', '')}); make it current before each frame, as mujoco.Renderer does"
        )

    mujoco.mjr_readPixels = read_pixels
