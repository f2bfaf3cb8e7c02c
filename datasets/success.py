"""What a data set says about the success of its episodes: marks that the recorder wrote, or a named rule."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from gtp_vision.datasets.store import Store

MARKS, WORDS, FRAMES = "episode_success", "success_marks", "success_frame"
"""Attributes: of each episode true, false or null; the words for what was counted; the first frame that shows it."""


def attributes_of(marks: Sequence[bool | None], words: str, filters: Any = None) -> dict[str, Any]:
    """Return the attributes of marks; `filters` gains the groups `success` and `failed`. Nothing if none is known."""
    if all(mark is None for mark in marks):
        return {}
    groups = {
        name: [episode for episode, mark in enumerate(marks) if mark is wanted]
        for name, wanted in (("success", True), ("failed", False))
    }
    held = filters if isinstance(filters, dict) else {}
    return {MARKS: list(marks), WORDS: words, "filters": {name: own for name, own in groups.items() if own} | held}


def marks_of(store: Store) -> list[bool | None]:
    """Return whether each episode succeeds, by labels or the recorder's marks; None where that is unknown."""
    marks = store.attributes.get(MARKS)
    if not isinstance(marks, list) or len(marks) != store.episodes:
        return [None] * store.episodes
    return [mark if isinstance(mark, bool) else None for mark in marks]


def counted(store: Store) -> dict[str, Any] | None:
    """Count the episodes that the recorder marked; None if it marked none."""
    known = [mark for mark in marks_of(store) if mark is not None]
    if not known:
        return None
    unmarked = store.episodes - len(known)
    words = str(store.attributes.get(WORDS, "episodes marked so"))
    return rate(sum(known), len(known), f"{words}, {unmarked} more are not marked" if unmarked else words)


def by_last_rewards(store: Store) -> dict[str, Any] | None:
    """Count the episodes whose last reward is above 0; None if there are other rewards, or none."""
    rewards = np.asarray(store.rewards[store.transitions])
    is_last = np.isin(store.transitions, store.last_outcomes)
    if not rewards.any() or rewards[~is_last].any() or (rewards < 0).any():
        return None
    return rate(int(np.sum(rewards > 0)), store.episodes, "episodes with a last reward above 0, the only rewards")


def rate(solved: int, of: int, because: str) -> dict[str, Any]:
    """Return a known rate: what was counted is the end of the sentence `SOLVED of OF ...`."""
    return {"rate": solved / of, "solved": solved, "of": of, "because": because}


def unknown(because: str) -> dict[str, Any]:
    """Return an unknown rate and the reason."""
    return {"rate": None, "because": because}


def episodes_with(store: Store, marked: np.ndarray) -> int:
    """Count the episodes that have a marked row."""
    return len(np.unique(store.episode_of(np.flatnonzero(marked))))
