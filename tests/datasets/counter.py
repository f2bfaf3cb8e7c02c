"""Recordings of a counter in the rows of several recorders.

An observation is the sum of the actions before it, the reward is the action, the third episode ends in a terminal and
the others in a time limit.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from gtp_vision.datasets.store import Store
from gtp_vision.datasets.validation import problems

Arrays = dict[str, np.ndarray]
EPISODES, STEPS = 3, 5
ACTIONS = [np.array([0.125, 0.25, 0.5, 0.125, 0.375], np.float32) * (-1) ** e for e in range(EPISODES)]
PLACES = [np.concatenate([[e], e + np.cumsum(actions)]).astype(np.float32) for e, actions in enumerate(ACTIONS)]
TERMINAL = [np.arange(STEPS) == (STEPS - 1 if e == 2 else -1) for e in range(EPISODES)]
PICTURES = [np.zeros((STEPS + 1, 3, 40, 44), np.uint8) + np.uint8(20 * e) for e in range(EPISODES)]


ENDS_WELL = np.arange(EPISODES * STEPS) >= 2 * STEPS  # rows of the episode that ends in a terminal


def with_final(e: int) -> Arrays:
    """An episode as it happened: T + 1 observations, T actions."""
    return {"obs": PLACES[e][:, None], "actions": ACTIONS[e][:, None], "rewards": ACTIONS[e], "dones": TERMINAL[e]}


def led_to(values: np.ndarray, first: float = 0) -> np.ndarray:
    """Rows that hold what led to them; the first has a dummy."""
    return np.concatenate([[first], values]).astype(np.float32)


def dm_env(e: int) -> Arrays:
    return {
        "observation": PLACES[e][:, None],
        "action": led_to(ACTIONS[e])[:, None],
        "reward": led_to(ACTIONS[e])[:, None],
        "discount": led_to(1 - TERMINAL[e], 1),
        "step_type": np.array([0, *[1] * (STEPS - 1), 2]),
    }


def marked(e: int, style: str) -> Arrays:
    rows = np.arange(STEPS + 1)
    taken = np.append(ACTIONS[e], 0.0).astype(np.float32)
    return {
        "observation": PLACES[e][:, None],
        "action": (led_to(ACTIONS[e]) if style == "dreamer2" else taken)[:, None],
        "reward": taken if style == "rlds" else led_to(ACTIONS[e]),
        "is_first": rows == 0,
        "is_last": rows == STEPS,
        "is_terminal": (rows == STEPS) & TERMINAL[e][-1],
    }


def flat(make: Callable[..., Arrays], *arguments: Any) -> Arrays:
    parts = [make(e, *arguments) for e in range(EPISODES)]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def rows_of_d4rl(e: int) -> Arrays:
    """An episode as D4RL's rows, of T: the last action has no outcome unless it is a terminal."""
    return {
        "observations": PLACES[e][:-1, None],
        "next_observations": PLACES[e][1:, None],
        "actions": ACTIONS[e][:, None],
        "rewards": ACTIONS[e],
        "terminals": TERMINAL[e],
        "timeouts": (np.arange(STEPS) == STEPS - 1) & ~TERMINAL[e],
    }


def save(path: Path, arrays: Mapping[str, np.ndarray]) -> Path:
    if path.suffix == ".npz":
        np.savez_compressed(path, **arrays)
        return path
    with h5py.File(path, "w") as file:
        for name, array in arrays.items():
            file[name] = array
    return path


def load(path: Path) -> Arrays:
    if path.suffix == ".npz":
        return dict(np.load(path))
    with h5py.File(path) as file:
        return {name: file[name][:] for name in file}


def assert_right(store: Store, *, has_final: bool) -> None:
    """Each observation is paired with the action taken in it, its reward, its terminal and its successor."""
    assert problems(store) == []
    lengths = np.diff(store.episode_ends, prepend=0)
    assert lengths.tolist() == [STEPS + has_final] * EPISODES
    rows = store.transitions
    states = np.asarray(store.observations["state"])[:, 0]
    expected = [e * (STEPS + has_final) + t for e in range(EPISODES) for t in range(STEPS - 1 + (has_final or e == 2))]
    assert rows.tolist() == expected
    low, high = (
        np.asarray(store.attributes.get(bound, value)) for bound, value in (("action_low", -1), ("action_high", 1))
    )
    taken = (low + (np.asarray(store.actions) + 1) / 2 * (high - low))[:, 0]
    follows = rows[rows + 1 < len(states)]
    follows = follows[~np.isin(follows + 1, store.episode_starts)]
    np.testing.assert_allclose(states[follows] + taken[follows], states[follows + 1], atol=1e-6)
    np.testing.assert_allclose(store.rewards[rows], taken[rows], atol=1e-6)
    assert store.terminals.nonzero()[0].tolist() == [2 * (STEPS + has_final) + STEPS - 1]
