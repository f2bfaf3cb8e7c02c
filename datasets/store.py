"""The store: arrays over all frames plus episode ends. Everything after the readers is independent of the format."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from gtp_vision.core.errors import GtpVisionError, propose
from gtp_vision.datasets.arrays import Array, Segmented, videos_of, view

ACTION_BOUNDS = ("action_low", "action_high")
"""Attributes of a data set whose actions were scaled: low + (action + 1) / 2 (high - low) is the robot's action."""
LABELS = "episode_labels"
"""Attribute of labelled data: the name of each data set to the numbers of its labels, and who set them."""
ACTIONS_BETWEEN = "actions_between"
"""Attribute of recordings of plans: up to so many actions were executed between two observations, which none saw."""
EPISODE_ATTRIBUTES = ("filters", "demonstrations", "tasks", "episode_tasks", "episode_success", "success_frame")
"""Attributes of one data set's episodes."""


@dataclass
class Store:
    """Recorded episodes, one after another; every frame is stored once.

    Row i holds the observation o_i, the action taken in it, and the reward and terminal flag of taking it.
    The next observation of row i is row i + 1 of the same episode; the last row of an episode has none.

    Attributes:
        observations: name to array (N, ...), mapped or segmented. Images are uint8 (N, H, W, C), states float32 (N, D).
        actions: float32 (N, A) in [-1, 1].
        rewards: float32 (N,).
        terminals: bool (N,). The MDP ends at this row: do not bootstrap from what follows. May be inside an episode
            (OGBench records on after success).
        timeouts: bool (N,). The recording ends here without the MDP ending: this row's action has no outcome.
        episode_ends: int64 (E,), exclusive row number of each episode's end, increasing, the last one N.
        attributes: provenance and rendering settings as JSON-able values; `filters` names groups of episodes.
        path: file that the arrays come from, for messages.
        weights: float64 (N,) or None; relative probability of drawing each row (None: all alike).
        numbers: int64 (E,) or None; each episode's number in the file, for messages (None: 0, 1, ...).
    """

    observations: dict[str, Array]
    actions: np.ndarray
    rewards: np.ndarray
    terminals: np.ndarray
    timeouts: np.ndarray
    episode_ends: np.ndarray
    attributes: Mapping[str, Any] = field(default_factory=dict)
    path: Path | None = None
    weights: np.ndarray | None = None
    numbers: np.ndarray | None = None

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
        """Bool (N,): the row has a next observation, or the MDP ends at it. Other rows are never sampled."""
        known = np.ones(len(self), dtype=bool)
        last = self.episode_ends - 1
        known[last] = np.asarray(self.terminals[last], bool) & ~np.asarray(self.timeouts[last], bool)
        return known

    @cached_property
    def last_outcomes(self) -> np.ndarray:
        """int64 (E,), the last row of each episode with an outcome; one before its start if it has none."""
        last = self.episode_ends - 1
        return np.where(self.has_outcome[last], last, last - 1)  # an action without an outcome may be a filler

    @cached_property
    def transitions(self) -> np.ndarray:
        """int64 (M,), the rows with an outcome."""
        return np.flatnonzero(self.has_outcome)

    @cached_property
    def final_observations(self) -> np.ndarray:
        """Bool (N,): the row holds nothing but the observation after its episode's last action.

        Readers append such rows, without an outcome, with action 0 and reward 0. An episode's only row is not one.
        """
        last = self.episode_ends - 1
        last = last[~self.has_outcome[last] & (last > self.episode_starts)]
        found = np.zeros(len(self), bool)
        found[last] = ~np.asarray(self.actions[last]).any(1) & (np.asarray(self.rewards[last]) == 0)
        return found

    @cached_property
    def cumulative_weights(self) -> np.ndarray | None:
        """float64 (M,), running sum of the weights of `transitions`; None if all rows are alike."""
        return None if self.weights is None else np.cumsum(self.weights[self.transitions])

    def draw(self, count: int, rng: np.random.Generator) -> np.ndarray:
        """Draw rows with an outcome, int64 (count,), independently, uniformly or by the weights."""
        transitions, cumulative = self.transitions, self.cumulative_weights
        if cumulative is None:
            return transitions[rng.integers(0, len(transitions), count)]
        drawn = np.searchsorted(cumulative, rng.random(count) * cumulative[-1], side="right")
        return transitions[np.minimum(drawn, len(transitions) - 1)]

    def select(self, names: Sequence[str]) -> Store:
        """Return the same episodes with the named observations only, in this order.

        Raises:
            GtpVisionError: an unknown name.
        """
        for name in names:
            if name not in self.observations:
                raise GtpVisionError(
                    f"{self.path or 'the data set'} has no observation '{name}': {propose(name, self.observations)}"
                )
        return replace(self, observations={name: self.observations[name] for name in names})

    def subset(self, episodes: Sequence[int] | np.ndarray) -> Store:
        """Return some episodes, in the given order; mapped arrays stay mapped.

        Attributes that name episodes by their places are left out: `filters` and `demonstrations`.
        """
        chosen = np.asarray(episodes, np.int64)
        attributes = {key: value for key, value in self.attributes.items() if key not in ("filters", "demonstrations")}
        for name in ("episode_tasks", "episode_success", "success_frame"):
            held = attributes.get(name)
            if isinstance(held, list) and len(held) == self.episodes:
                attributes[name] = [held[episode] for episode in chosen]
        runs = _runs(chosen)
        spans = [(int(self.episode_starts[first]), int(self.episode_ends[last])) for first, last in runs]
        rows = np.concatenate([np.arange(start, stop) for start, stop in spans]) if spans else np.empty(0, np.int64)
        lengths = self.episode_ends[chosen] - self.episode_starts[chosen]
        return Store(
            observations={
                name: Segmented([view(array, start, stop) for start, stop in spans] or [view(array, 0, 0)])
                for name, array in self.observations.items()
            },
            actions=self.actions[rows],
            rewards=self.rewards[rows],
            terminals=self.terminals[rows],
            timeouts=self.timeouts[rows],
            episode_ends=np.cumsum(lengths, dtype=np.int64),
            attributes=attributes,
            path=self.path,
            weights=None if self.weights is None else self.weights[rows],
            numbers=chosen if self.numbers is None else self.numbers[chosen],
        )

    def without_final_observations(self) -> Store:
        """Return the store without the rows of `final_observations`; mapped arrays stay mapped.

        The action before such a row loses its outcome, unless it is a terminal.
        """
        dropped = self.final_observations
        if not dropped.any():
            return self
        rows, ends = np.flatnonzero(~dropped), self.episode_ends - np.cumsum(dropped[self.episode_ends - 1])
        timeouts = np.asarray(self.timeouts[rows]).copy()
        timeouts[ends - 1] |= np.asarray(self.terminals[rows])[ends - 1] == 0
        spans = [(first, last + 1) for first, last in _runs(rows)]
        return replace(
            self,
            observations={
                name: Segmented([view(array, start, stop) for start, stop in spans])
                for name, array in self.observations.items()
            },
            actions=self.actions[rows],
            rewards=self.rewards[rows],
            terminals=self.terminals[rows],
            timeouts=timeouts,
            episode_ends=ends,
            weights=None if self.weights is None else self.weights[rows],
        )

    def filtered(self, name: str) -> Store:
        """Return the episodes of one of the file's own groups, e.g. robomimic's `train`.

        Raises:
            GtpVisionError: the group is missing or empty.
        """
        groups = {key: episodes for key, episodes in (self.attributes.get("filters") or {}).items() if episodes}
        if name not in groups:
            raise GtpVisionError(
                f"{self.path or 'the data set'} has no group of episodes '{name}', or it is empty: "
                f"{propose(name, groups)}"
            )
        return self.subset(sorted(groups[name]))

    def episode_of(self, rows: np.ndarray) -> np.ndarray:
        """Return the episode number of each row."""
        return np.searchsorted(self.episode_ends, rows, side="right")

    @property
    def has_videos(self) -> bool:
        """Whether frames are decoded from videos when they are read."""
        return any(videos_of(array) for array in self.observations.values())

    def nbytes(self) -> int:
        """Return the bytes of all observation arrays, mapped or not."""
        return sum(int(array.nbytes) for array in self.observations.values())


def mix(stores: Sequence[Store], shares: Sequence[float]) -> Store:
    """Join data sets with equal observations and actions into one, of which a batch holds the given shares.

    Only the ratios of shares count. Raises GtpVisionError: other observations, actions or bounds, or a share that is
    not above 0.
    """
    first = stores[0]
    for store, share in zip(stores, shares, strict=True):
        name = store.path or "a data set"
        if not 0 < share < np.inf:
            raise GtpVisionError(f"{name} has the share {share}; shares must be above 0")
        if fault := difference_of_tasks(first, store):
            raise GtpVisionError(fault)
    starts = np.cumsum([0, *(len(store) for store in stores)])
    labels = [store.attributes[LABELS] for store in stores if isinstance(store.attributes.get(LABELS), dict)]
    return Store(
        observations={name: Segmented([store.observations[name] for store in stores]) for name in first.observations},
        actions=np.concatenate([store.actions for store in stores]),
        rewards=np.concatenate([store.rewards for store in stores]),
        terminals=np.concatenate([store.terminals for store in stores]),
        timeouts=np.concatenate([store.timeouts for store in stores]),
        episode_ends=np.concatenate([store.episode_ends + s for store, s in zip(stores, starts, strict=False)]),
        attributes={key: value for key, value in first.attributes.items() if key not in EPISODE_ATTRIBUTES}
        | {"mixed": [{"path": str(s.path), "share": float(share)} for s, share in zip(stores, shares, strict=True)]}
        | ({LABELS: {name: about for held in labels for name, about in held.items()}} if labels else {}),
        path=first.path,
        weights=np.concatenate([_weighted(s, share) for s, share in zip(stores, shares, strict=True)]),
    )


def difference_of_tasks(first: Store, store: Store) -> str:
    """Return why two data sets cannot be one, a sentence; empty if observations, actions and their bounds agree."""
    name, first_name = store.path or "a data set", first.path or "the first"
    if _signature(store) != _signature(first):
        return (
            f"{name} holds {_described(store)}, but {first_name} holds {_described(first)}; mix data sets of the "
            f"same kind, or name the common observations in task.observations"
        )
    if _bounds(store) != _bounds(first):
        return (
            f"the actions of {name} and {first_name} were scaled to [-1, 1] from different bounds (action_low, "
            f"action_high), so equal numbers mean different motions; write both with the same bounds"
        )
    return ""


def _weighted(store: Store, share: float) -> np.ndarray:
    """Return float64 (N,), weights whose sum over the rows that can be drawn is `share`."""
    weights = np.ones(len(store)) if store.weights is None else np.asarray(store.weights, np.float64)
    return weights * (share / max(weights[store.transitions].sum(), np.finfo(np.float64).tiny))


def _bounds(store: Store) -> Any:
    """Return what -1 and 1 of each action dimension stand for."""
    return [
        store.attributes.get(name) or [one] * store.action_dim for name, one in zip(ACTION_BOUNDS, (-1, 1), strict=True)
    ]


def _signature(store: Store) -> Any:
    return {name: (array.shape[1:], array.dtype) for name, array in store.observations.items()}, store.action_dim


def _described(store: Store) -> str:
    shapes = [
        f"{name} {'x'.join(map(str, array.shape[1:]))} {array.dtype}"
        for name, array in sorted(store.observations.items())
    ]
    return f"{', '.join(shapes)} and actions of {store.action_dim}"


def _runs(numbers: np.ndarray) -> list[tuple[int, int]]:
    """Return the first and last of each run of consecutive numbers."""
    breaks = np.flatnonzero(np.diff(numbers) != 1) + 1
    return [(int(run[0]), int(run[-1])) for run in np.split(numbers, breaks) if len(run)]
