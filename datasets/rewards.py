"""Rewards made from marks of success: a setting of the task, for demonstrations that were recorded without any.

A successful episode reaches success in its row s, whose action leads to the first frame that shows it: the labelled
frame's predecessor, or the last row with an outcome. From s on every row is a terminal. Failed episodes have no
terminal: their recording stopped (a timeout), and a failure that ended earlier would otherwise be worth more.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import numpy as np

from gtp_vision.core.errors import GtpVisionError
from gtp_vision.datasets.store import Store
from gtp_vision.datasets.success import FRAMES, marks_of

MODES = ("file", "sparse", "steps", "dense")


def rewarded(store: Store, mode: str, discount: float) -> Store:
    """Return the data set with the rewards of a mode of `MODES`.

    With i the row and s that of success: `sparse`, 1 from s on; `steps`, -1 before s; `dense`, the progress
    Phi(i + 1) - Phi(i) with Phi(i) = discount^(s + 1 - i), whose sum to s is 1 - discount^(length), and 0 after s; in
    failed episodes 0, -1 and 0. `file` leaves the rewards of the file.

    Raises:
        GtpVisionError: an episode without a mark of success.
    """
    if mode == "file":
        return store
    check_marked(store, mode)
    marks = marks_of(store)
    succeeds = np.array(marks, bool)
    frames = store.attributes.get(FRAMES) or [None] * store.episodes
    reached = np.array(store.last_outcomes)
    for episode, frame in enumerate(frames):
        if frame is not None:
            first = int(store.episode_starts[episode])
            reached[episode] = np.clip(first + frame - 1, first, reached[episode])
    rows, of = np.arange(len(store)), store.episode_of(np.arange(len(store)))
    left = (reached[of] - rows).astype(np.float64)  # rows until that of success
    has_reached = succeeds[of] & (left <= 0) & (rows <= store.last_outcomes[of])
    if mode == "sparse":
        rewards = np.where(has_reached, 1, 0)
    elif mode == "steps":
        rewards = np.where(has_reached, 0, -1)
    else:
        rewards = np.where(succeeds[of] & (left >= 0), (1 - discount) * discount ** np.maximum(left, 0), 0)
    rewards = np.where(store.final_observations, 0, rewards).astype(np.float32)
    timeouts = np.array(store.timeouts)
    last = store.episode_ends - 1
    timeouts[last] |= ~has_reached[last]
    return replace(store, rewards=rewards, terminals=has_reached.astype(store.terminals.dtype), timeouts=timeouts)


def check_marked(store: Store, mode: str) -> None:
    """Refuse a mode that is made from labels for a data set that has an episode without one."""
    unknown = marks_of(store).count(None)
    if mode != "file" and unknown:
        advice = ", or train on the others: task.filter=labelled" if unknown < store.episodes else ""
        raise GtpVisionError(
            f"task.rewards={mode} is made from labels, and {unknown} of {store.episodes} episodes of "
            f"{store.path or 'the data set'} have none; label them with gtp-vision data label{advice}"
        )


def check_contrast(stores: Iterable[Store], agent: str) -> None:
    """Refuse rewards from labels that all say the same, from which a critic learns nothing about actions."""
    stores = list(stores)
    found = {mark for store in stores for mark in marks_of(store)}
    if len(found) == 1:
        kind = "succeed" if True in found else "fail"
        wanted = "failed" if True in found else "successful"
        raise GtpVisionError(
            f"all labelled episodes of {stores[0].path or 'the data set'} {kind}, so agent={agent}, which learns from "
            f"rewards, has nothing to compare: add {wanted} episodes, or clone these with agent=gtp_bc"
        )


def returns(store: Store) -> np.ndarray:
    """Return the sum of each episode's rewards up to its first terminal, float64 (E,), not discounted."""
    rows = np.arange(len(store))
    ends = np.flatnonzero(np.asarray(store.terminals, bool) & store.has_outcome)
    first = np.append(ends, len(store))[np.searchsorted(ends, store.episode_starts)]
    last = np.minimum(first, store.last_outcomes)
    counts = rows <= last[store.episode_of(rows)]
    return np.add.reduceat(np.where(counts, np.asarray(store.rewards, np.float64), 0), store.episode_starts)


def sentence(store: Store) -> str:
    """Return what an episode's rewards add up to, for whoever starts a training; empty if all are 0."""
    found = returns(store)
    if not found.any():
        return ""
    marks = marks_of(store)
    counts = {"successful": marks.count(True), "failed": marks.count(False), "not labelled": marks.count(None)}
    known = f" ({', '.join(f'{count} {name}' for name, count in counts.items() if count)})"
    return (
        f"returns of {store.episodes} episodes{known if counts['not labelled'] < store.episodes else ''}: "
        f"{found.min():.4g} to {found.max():.4g}, mean {found.mean():.4g}"
    )
