"""What a data set holds, and what is wrong with it, for a person."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from gtp_vision.datasets.arrays import Array
from gtp_vision.datasets.formats import detect, open_store
from gtp_vision.datasets.store import Store
from gtp_vision.datasets.validation import problems

_SHOWN_EPISODES = 6


def inspect(path: Path, env: str | None = None) -> tuple[dict[str, Any], torch.Tensor | None]:
    """Describe a file of any known format.

    Args:
        path: the file.
        env: environment name, for formats whose rewards depend on the task.

    Returns:
        JSON-able facts, and uint8 (episodes, 3, C, H, W): first, middle and last frames of some episodes of the
        first camera, or None without cameras.

    Raises:
        GtpVisionError: the file cannot be read at all; faults inside are listed under `problems`.
    """
    store = open_store(path, env)
    found: dict[str, Any] = {"path": str(path), "format": detect(path), "problems": problems(store)}
    cameras: dict[str, Array] = {name: array for name, array in store.observations.items() if array.ndim == 4}
    found |= {
        "episodes": store.episodes,
        "frames": len(store),
        "cameras": {name: list(array.shape[1:]) for name, array in cameras.items()},
        "states": {name: list(array.shape[1:]) for name, array in store.observations.items() if array.ndim != 4},
        "attributes": dict(store.attributes),
    }
    if found["problems"]:
        return found, None
    lengths = np.diff(np.concatenate([[0], store.episode_ends]))
    last = store.episode_ends - 1
    found |= {
        "episode_length": _spread(lengths),
        "transitions": len(store.transitions),
        "action_min": np.asarray(store.actions).min(0).round(4).tolist(),
        "action_max": np.asarray(store.actions).max(0).round(4).tolist(),
        "reward": _spread(np.asarray(store.rewards)),
        "terminals": int(np.sum(store.terminals)),
        "timeouts": int(np.sum(store.timeouts)),
        "episodes_with_terminal": _episodes_with(store),
        "episodes_that_end_in_terminal": int(np.sum(np.asarray(store.terminals)[last])),
    }
    return found, _frames(store, next(iter(cameras.values()))) if cameras else None


def told(found: dict[str, Any]) -> str:
    """The facts as lines of text."""
    shapes = [f"{name} {'x'.join(map(str, shape))}" for name, shape in (found["cameras"] | found["states"]).items()]
    lines = [
        f"{found['path']}: {found['format']}, {found['episodes']} episodes, {found['frames']} frames",
        f"  observations   {', '.join(shapes)}",
    ]
    if "reward" in found:
        length, reward = found["episode_length"], found["reward"]
        lines += [
            f"  episode length {length['min']:g} to {length['max']:g}, mean {length['mean']:.1f}",
            f"  actions        {len(found['action_min'])} dimensions, "
            f"min {found['action_min']}, max {found['action_max']}",
            f"  reward         {reward['min']:g} to {reward['max']:g}, mean {reward['mean']:.3f}",
            f"  terminals      {found['terminals']} in {found['episodes_with_terminal']} episodes (success rate "
            f"{found['episodes_with_terminal'] / found['episodes']:.0%} where a terminal means success)",
            f"  timeouts       {found['timeouts']}",
            f"  transitions    {found['transitions']} can be sampled",
        ]
    lines += [f"  {key:<14} {value}" for key, value in found["attributes"].items()]
    lines += [f"  PROBLEM        {problem}" for problem in found["problems"]] or ["  nothing wrong was found"]
    return "\n".join(lines)


def _spread(values: np.ndarray) -> dict[str, float]:
    return {
        "min": float(values.min()),
        "max": float(values.max()),
        "mean": float(values.mean(dtype=np.float64)),
    }


def _episodes_with(store: Store) -> int:
    return len(np.unique(store.episode_of(np.flatnonzero(store.terminals))))


def _frames(store: Store, camera: Array) -> torch.Tensor:
    picked = np.linspace(0, store.episodes - 1, min(_SHOWN_EPISODES, store.episodes)).astype(int)
    first, last = store.episode_starts[picked], store.episode_ends[picked] - 1
    rows = np.stack([first, (first + last) // 2, last], axis=1)
    return torch.from_numpy(np.asarray(camera[rows.ravel()])).permute(0, 3, 1, 2).unflatten(0, rows.shape)
