"""Tiny data sets of random numbers."""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np

from gtp_vision.datasets.store import Store


def make_store(
    lengths: Sequence[int] = (5, 7),
    *,
    terminals: Collection[int] = (),
    timeouts: Collection[int] | None = None,
    cameras: Mapping[str, tuple[int, int, int]] | None = None,
    state: int | None = 3,
    actions: int = 2,
    seed: int = 0,
    **replaced: Any,
) -> Store:
    """A store of random episodes.

    Args:
        lengths: frames of each episode.
        terminals: rows that are terminal.
        timeouts: rows that are timeouts; None is the last row of each episode that is not terminal.
        cameras: name to (H, W, C).
        state: width of the observation `state`, whose first number is the row's own; None for no states.
        actions: dimensions of the action.
        seed: of all random contents.
        replaced: fields of `Store` instead of the made ones.
    """
    random = np.random.default_rng(seed)
    ends = np.cumsum(lengths).astype(np.int64)
    frames = int(ends[-1])
    observations = {
        name: random.integers(0, 256, (frames, *shape), np.uint8) for name, shape in (cameras or {}).items()
    }
    if state is not None:
        observations["state"] = random.normal(size=(frames, state)).astype(np.float32)
        observations["state"][:, 0] = np.arange(frames)
    flag = np.zeros((2, frames), np.uint8)
    flag[0, sorted(terminals)] = 1
    flag[1, [end - 1 for end in ends if end - 1 not in terminals] if timeouts is None else sorted(timeouts)] = 1
    fields: dict[str, Any] = {
        "observations": observations,
        "actions": random.uniform(-1, 1, (frames, actions)).astype(np.float32),
        "rewards": random.normal(size=frames).astype(np.float32),
        "terminals": flag[0],
        "timeouts": flag[1],
        "episode_ends": ends,
        "attributes": {"made_by": "the tests"},
    }
    return Store(**(fields | replaced))
