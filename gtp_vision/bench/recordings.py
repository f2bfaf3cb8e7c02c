"""Data sets of noise: the time of a step does not depend on what was recorded."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from gtp_vision.datasets.arrays import Array
from gtp_vision.datasets.formats import native
from gtp_vision.datasets.store import Store


def noise_store(
    frames: int,
    *,
    cameras: Mapping[str, tuple[int, int, int]] | None = None,
    state: int = 0,
    actions: int = 5,
    episode: int = 200,
    is_terminal: bool = False,
) -> Store:
    """A recording of noise in memory: cameras (H, W, C) by name; `frames` is a multiple of `episode`."""
    rng = np.random.default_rng(0)
    ends = np.arange(episode, frames + 1, episode)
    is_last = np.zeros(frames, bool)
    is_last[ends - 1] = True
    observations: dict[str, Array] = {
        name: rng.integers(0, 256, (frames, *shape), np.uint8) for name, shape in (cameras or {}).items()
    }
    if state:
        observations["state"] = rng.standard_normal((frames, state), np.float32)
    return Store(
        observations=observations,
        actions=rng.uniform(-1, 1, (frames, actions)).astype(np.float32),
        rewards=rng.standard_normal(frames, np.float32),
        terminals=is_last & is_terminal,
        timeouts=is_last & (not is_terminal),
        episode_ends=ends,
    )


def write_noise(path: Path, *, frames: int = 4000, side: int = 64, state: int = 0, actions: int = 5) -> Path:
    """Write a data set of noise with one square camera of `side` pixels; other arguments as `noise_store`."""
    return native.write(path, noise_store(frames, cameras={"camera": (side, side, 3)}, state=state, actions=actions))
