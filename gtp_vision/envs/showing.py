"""What the environments of benchmarks show: states and frames by name, in the shapes of a data set."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import gymnasium
import numpy as np

from gtp_vision.core.errors import GtpVisionError, propose
from gtp_vision.envs.rendering import Rendering, choose_backend

Shown = Mapping[str, tuple[int, ...]]
"""Names of observations and their shapes, of one frame."""


def has_frames(shown: Shown) -> bool:
    """Whether there are frames among the observations; where there are none, nothing is rendered."""
    return any(len(shape) == 3 for shape in shown.values())


def space_of(
    env: str, shown: Shown, states: Mapping[str, Sequence[int]], cameras: Collection[str]
) -> gymnasium.spaces.Dict:
    """Return the space of the observations: frames uint8 (H, W, 3) of any size, states float64 (D,).

    Args:
        env: its name, for messages.
        shown: what is to be shown.
        states: names of the simulator's states and the lengths that each can have.
        cameras: names of the simulator's cameras.

    Raises:
        GtpVisionError: the simulator does not have an observation, or not in this shape.
    """
    spaces: dict[str, gymnasium.Space] = {}
    for name, shape in shown.items():
        if name in cameras and len(shape) == 3 and shape[2] == 3:
            spaces[name] = gymnasium.spaces.Box(0, 255, shape, np.uint8)
        elif len(shape) == 1 and shape[0] in states.get(name, ()):
            spaces[name] = gymnasium.spaces.Box(-np.inf, np.inf, shape, np.float64)
        elif name in states or name in cameras:
            fits = " or ".join(f"({width},)" for width in states[name]) if name in states else "(height, width, 3)"
            raise GtpVisionError(
                f"{env} shows '{name}' in the shape {fits}, and the data set holds {tuple(shape)}; leave it out of "
                f"task.observations"
            )
        else:
            raise GtpVisionError(
                f"{env} has no observation '{name}'; set task.observations to those that it has: "
                f"{propose(name, [*states, *cameras])}"
            )
    return gymnasium.spaces.Dict(list(spaces.items()))


class Cameras:
    """Draws frames by the named cameras of a MuJoCo model, the highest row first.

    Args:
        model: of the mujoco package, before it is first drawn.
        rendering: quality of the frames.
    """

    def __init__(self, model: Any, rendering: Rendering) -> None:
        choose_backend()
        quality = model.vis.quality
        if rendering.shadow_size is not None:
            quality.shadowsize = rendering.shadow_size
        if rendering.multisamples is not None:
            quality.offsamples = rendering.multisamples
        self._model = model
        self._renderers: dict[tuple[int, int], Any] = {}

    def frame(self, data: Any, camera: str, height: int, width: int) -> np.ndarray:
        """Draw the simulator's present state: uint8 (height, width, 3)."""
        renderer = self._renderers.get((height, width))
        if renderer is None:
            import mujoco

            largest = self._model.vis.global_
            largest.offheight, largest.offwidth = max(largest.offheight, height), max(largest.offwidth, width)
            renderer = self._renderers[height, width] = mujoco.Renderer(self._model, height, width)
        renderer.update_scene(data, camera=camera)
        return renderer.render()

    def close(self) -> None:
        """Free the OpenGL contexts, which would fail at the interpreter's exit."""
        for renderer in self._renderers.values():
            renderer.close()
        self._renderers.clear()
