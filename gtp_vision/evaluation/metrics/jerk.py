"""Jerk of executed action chunks: the mean squared third difference of actions in [-1, 1], and where it is.

Four actions in a row have a third difference; it is `inside` if one plan holds all of them, and else at a `border`.
Grippers, dimensions of two values in the data, are left out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from gtp_vision.evaluation.metrics import Metric

if TYPE_CHECKING:
    from gtp_vision.evaluation.evaluator import Episode

_ORDER = 3


def _jerk(episodes: Sequence[Episode], _: str) -> dict[str, Any]:
    """Jerk of all third differences, of both kinds, and their ratio; None where there are none of a kind."""
    if not any(episode.switches for episode in episodes):
        return {}
    squares, crosses = [], []
    for episode in episodes:
        squares.append(np.diff(np.stack(episode.actions).astype(np.float64), _ORDER, axis=0) ** 2)
        plan = np.isin(np.arange(episode.length), episode.switches).cumsum()
        crosses.append(plan[_ORDER:] != plan[:-_ORDER])
    of_all, is_border = np.concatenate(squares), np.concatenate(crosses)
    kinds = {"jerk": of_all, "jerk_inside": of_all[~is_border], "jerk_border": of_all[is_border]}
    values = {name: float(kind.mean()) if kind.size else None for name, kind in kinds.items()}
    inside, border = values["jerk_inside"], values["jerk_border"]
    ratio = border / inside if inside and border is not None else None
    return values | {"jerk_ratio": ratio, "jerk_dimensions": of_all.shape[1]}


def jerk_text(found: Mapping[str, Any]) -> str:
    """The jerk of an evaluation's summary in words."""
    kinds = {"inside plans": found["jerk_inside"], "between plans": found["jerk_border"]}
    parts = [f"{value:.4g} {where}" for where, value in kinds.items() if value is not None]
    times = "" if found["jerk_ratio"] is None else f", {found['jerk_ratio']:.2f} times as much"
    return f"mean squared third difference {', '.join(parts)}{times} (of {found['jerk_dimensions']} action dimensions)"


JERK = Metric("jerk", _jerk)
