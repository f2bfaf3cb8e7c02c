"""The store: arrays over all frames plus episode ends. Everything after the readers is format-blind."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from gtp_vision.datasets.arrays import Array


@dataclass
class Store:
    """Recorded episodes, one after another; every frame stands once.

    Row i holds the observation o_i, the action taken in it, and the reward and terminal flag of taking it.
    The next observation of row i is row i + 1 of the same episode; the last row of an episode has none.

    Attributes:
        observations: name to array (N, ...), mapped or in pieces. Images are uint8 (N, H, W, C), states float32 (N, D).
        actions: float32 (N, A) in [-1, 1].
        rewards: float32 (N,).
        terminals: bool (N,). The MDP ends at this row: do not bootstrap from what follows. May stand inside an
            episode (OGBench goes on recording after success).
        timeouts: bool (N,). The recording ends here without the MDP ending: this row's action has no outcome.
        episode_ends: int64 (E,), exclusive row number of each episode's end, increasing, the last one N.
        attributes: provenance and rendering settings as JSON-able values.
        path: file that the arrays come from, for messages.
    """

    observations: dict[str, Array]
    actions: np.ndarray
    rewards: np.ndarray
    terminals: np.ndarray
    timeouts: np.ndarray
    episode_ends: np.ndarray
    attributes: Mapping[str, Any] = field(default_factory=dict)
    path: Path | None = None

    def __len__(self) -> int:
        return len(self.actions)

    @property
    def episodes(self) -> int:
        """Number of episodes."""
        return len(self.episode_ends)

    @property
    def action_dim(self) -> int:
        """Number of action dimensions."""
        return int(self.actions.shape[1])

    @cached_property
    def episode_starts(self) -> np.ndarray:
        """int64 (E,), first row of each episode."""
        return np.concatenate([[0], self.episode_ends[:-1]]).astype(np.int64)

    @cached_property
    def has_outcome(self) -> np.ndarray:
        """Bool (N,): the row has a next observation, or the MDP ends at it. The others are never sampled."""
        known = np.ones(len(self), dtype=bool)
        last = self.episode_ends - 1
        known[last] = np.asarray(self.terminals[last], bool) & ~np.asarray(self.timeouts[last], bool)
        return known

    @cached_property
    def transitions(self) -> np.ndarray:
        """int64 (M,), the rows with an outcome."""
        return np.flatnonzero(self.has_outcome)

    def episode_of(self, rows: np.ndarray) -> np.ndarray:
        """The episode number of each row."""
        return np.searchsorted(self.episode_ends, rows, side="right")

    def nbytes(self) -> int:
        """Bytes of all observation arrays, mapped or not."""
        return sum(int(array.nbytes) for array in self.observations.values())
