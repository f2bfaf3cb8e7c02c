"""What a collected data set records of the machine that made it."""

from __future__ import annotations

import os
from importlib.metadata import version

import gtp_vision


def versions(*packages: str, pixels: bool) -> dict[str, str]:
    """Versions of the given packages, of NumPy and of this one, and the OpenGL that frames are rendered with."""
    found = {name: version(name) for name in (*packages, "numpy")} | {"gtp-vision": gtp_vision.__version__}
    return found | ({"MUJOCO_GL": os.environ.get("MUJOCO_GL", "")} if pixels else {})
