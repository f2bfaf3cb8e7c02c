"""Whatever the variables say, frames are drawn by a backend that works, or a sentence names the variable."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gtp_vision.core.errors import GtpVisionError
from gtp_vision.envs import rendering
from gtp_vision.envs.rendering import choose_backend, frames_checked

pytestmark = pytest.mark.skipif(bool(rendering._missing("egl")), reason="EGL is missing")
VARIABLES = ("MUJOCO_GL", "MUJOCO_EGL_DEVICE_ID", "PYOPENGL_PLATFORM", "DISPLAY", "WAYLAND_DISPLAY")
BOX = """
<mujoco>
  <visual><quality shadowsize="64" offsamples="0"/><headlight active="0"/></visual>
  <asset><material name="m" emission="1" rgba="{0} {0} {0} 1"/></asset>
  <worldbody><geom type="box" size="9 9 .1" material="m"/><camera name="c" pos="0 0 1"/></worldbody>
</mujoco>
"""


@pytest.fixture(autouse=True)
def machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine with EGL, without OSMesa and without a display."""
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("ctypes.util.find_library", lambda name: "libEGL.so.1" if name == "EGL" else None)


@pytest.mark.simulates
@pytest.mark.parametrize(
    ("variables", "said"),
    [
        ({}, ""),
        ({"MUJOCO_GL": ""}, ""),
        ({"MUJOCO_GL": " EGL "}, ""),
        ({"MUJOCO_GL": "on"}, ""),
        ({"MUJOCO_GL": "glfw"}, "MUJOCO_GL=glfw cannot be used here (it needs a display"),
        ({"MUJOCO_GL": "GLX", "DISPLAY": ":99"}, "MUJOCO_GL=glx cannot be used here (it needs a display"),
        ({"MUJOCO_GL": "wgl"}, "MUJOCO_GL=wgl cannot be used here (no backend has this name); using MUJOCO_GL=egl"),
        ({"MUJOCO_GL": "nonsense"}, "MUJOCO_GL=nonsense cannot be used here"),
        ({"MUJOCO_GL": "osmesa"}, "MUJOCO_GL=osmesa cannot be used here (libOSMesa is missing)"),
        ({"MUJOCO_EGL_DEVICE_ID": ""}, ""),
        ({"MUJOCO_EGL_DEVICE_ID": "0"}, ""),
        ({"MUJOCO_EGL_DEVICE_ID": "99"}, "MUJOCO_EGL_DEVICE_ID=99 cannot be used here"),
        ({"MUJOCO_EGL_DEVICE_ID": "-1"}, "MUJOCO_EGL_DEVICE_ID=-1 cannot be used here"),
        ({"MUJOCO_EGL_DEVICE_ID": "GPU-8a1b"}, "MUJOCO_EGL_DEVICE_ID=GPU-8a1b cannot be used here"),
        ({"PYOPENGL_PLATFORM": "osmesa"}, ""),
        ({"DISPLAY": ":99"}, ""),
    ],
    ids=str,
)
def test_a_backend_that_works_is_chosen_and_what_was_replaced_is_said(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], variables: dict[str, str], said: str
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    rendering._render_a_pixel.cache_clear()
    assert choose_backend() == "egl"
    assert (os.environ["MUJOCO_GL"], os.environ["PYOPENGL_PLATFORM"]) == ("egl", "egl")
    assert said in (line := capsys.readouterr().err)
    assert line.count("\n") == bool(said)
    assert choose_backend() == "egl", "a worker process inherits a choice that works"
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("value", ["disable", "OFF", "0"])
def test_rendering_that_is_turned_off_is_refused_where_frames_are_needed(
    monkeypatch: pytest.MonkeyPatch, value: str
) -> None:
    monkeypatch.setenv("MUJOCO_GL", value)
    assert choose_backend(required=False) == ""
    with pytest.raises(GtpVisionError, match=f"MUJOCO_GL={value.lower()} turns rendering off.*unset MUJOCO_GL"):
        choose_backend()


@pytest.mark.parametrize(("asked", "words"), [("", "no OpenGL library"), ("osmesa", "MUJOCO_GL=osmesa .*libOSMesa is")])
def test_a_machine_without_opengl_is_refused_where_frames_are_needed(
    monkeypatch: pytest.MonkeyPatch, asked: str, words: str
) -> None:
    monkeypatch.setattr("ctypes.util.find_library", lambda name: None)
    monkeypatch.setenv("MUJOCO_GL", asked)
    with pytest.raises(GtpVisionError, match=rf"{words}.*install Debian's libegl1"):
        choose_backend()
    assert choose_backend(required=False) == ""
    assert os.environ["MUJOCO_GL"] == ("disable" if asked else ""), "mujoco can be imported"


@pytest.mark.simulates
def test_a_driver_that_opens_no_device_is_refused_in_a_sentence() -> None:
    environment = os.environ | {"__EGL_VENDOR_LIBRARY_DIRS": "/none"}
    script = "from gtp_vision.envs.rendering import *\ntry: choose_backend()\nexcept GtpVisionError as e: print(e)"
    assert "MUJOCO_GL=egl cannot render here (EGL opens no device); install" in _run(script, environment)


@pytest.mark.simulates
@pytest.mark.parametrize("before", ["", "disable", "glfw"])
def test_mujoco_may_be_imported_before(before: str) -> None:
    script = f"""
import os, mujoco
os.environ["MUJOCO_GL"] = "" if os.environ["MUJOCO_GL"] == "disable" else os.environ["MUJOCO_GL"]
from gtp_vision.envs.rendering import choose_backend
choose_backend()
with mujoco.Renderer(mujoco.MjModel.from_xml_string({BOX.format(1)!r}), 4, 4) as renderer:
    renderer.update_scene(mujoco.MjData(renderer.model), "c")
    print(renderer.render().shape)
"""
    assert _run(script, os.environ | {"MUJOCO_GL": before}) == "(4, 4, 3)\n"


@pytest.fixture
def scene() -> Iterator[Any]:
    """Make a renderer of a box that fills the frame, all of whose pixels are 1."""
    choose_backend()
    import mujoco

    with mujoco.Renderer(mujoco.MjModel.from_xml_string(BOX.format(1 / 255)), 4, 6) as renderer:
        data = mujoco.MjData(renderer.model)
        mujoco.mj_forward(renderer.model, data)
        renderer.update_scene(data, "c")
        yield renderer


@pytest.mark.simulates
@pytest.mark.parametrize("kind", ["color", "depth", "both, flat"])
def test_a_frame_that_was_not_drawn_is_refused(scene: Any, kind: str) -> None:
    import mujoco
    from mujoco.egl import egl_ext

    color, depth = np.empty((4, 6, 3), np.uint8), np.empty((4, 6), np.float32)
    if kind == "both, flat":  # as Gymnasium's renderer
        color, depth = color.reshape(-1), depth.reshape(-1)
    arrays = (None if kind == "depth" else color, None if kind == "color" else depth)
    scene.render()
    rendering._render_a_pixel.cache_clear()
    choose_backend()  # whose trial leaves the simulator's context current
    mujoco.mjr_readPixels(*arrays, scene._rect, scene._mjr_context)
    assert kind == "depth" or (color == 1).all(), "also where a pixel is what marks an undrawn one"
    egl_ext.eglReleaseThread()  # as a context does that is freed
    with pytest.raises(GtpVisionError, match=r"frame was not drawn.*MUJOCO_GL=egl"):
        mujoco.mjr_readPixels(*arrays, scene._rect, scene._mjr_context)
    assert (scene.render() == 1).all(), "it makes its context current"


@pytest.mark.simulates
def test_a_simulator_that_fails_because_nothing_can_be_rendered_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    choose_backend()
    with pytest.raises(RuntimeError, match="its own"), frames_checked():
        raise RuntimeError("its own")
    monkeypatch.setenv("MUJOCO_GL", "disable")
    with pytest.raises(GtpVisionError, match="MUJOCO_GL=disable") as raised, frames_checked():
        raise RuntimeError("GLContext")
    assert str(GtpVisionError(raised.value)) == str(raised.value), "Gymnasium raises it again so"


def _run(script: str, environment: dict[str, str]) -> str:
    done = subprocess.run(
        [sys.executable, "-P", "-c", script], capture_output=True, text=True, env=environment, cwd=Path(__file__).parent
    )
    assert done.returncode == 0, done.stderr
    return done.stdout
