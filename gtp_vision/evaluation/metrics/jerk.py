"""Jerk of executed action chunks: the mean squared third difference of actions in [-1, 1], and where it is.

Four actions in a row have a third difference; it is `inside` if one plan holds all of them, and else at a `border`. As
borders may come when the task needs quick motions, those of the plan before are computed, too, as if it had been
`continued` there: `change` is what its replacement multiplied them by, `ratio` what borders have of inside.
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
    """Jerk of all third differences and of both kinds, ratios and dimensions; None where there are none of a kind."""
    if not any(episode.switches for episode in episodes):
        return {}
    found: dict[str, list[np.ndarray]] = {"": [], "_inside": [], "_border": [], "_replaced": [], "_continued": []}
    for episode in episodes:
        actions = np.stack(episode.actions).astype(np.float64)
        squares, plan = _squares(actions), np.isin(np.arange(len(actions)), list(episode.switches)).cumsum()
        crosses = plan[_ORDER:] != plan[:-_ORDER]
        for name, kept in (("", slice(None)), ("_inside", ~crosses), ("_border", crosses)):
            found[name].append(squares[kept])
        for step, rest in episode.switches.items():
            last = actions[max(0, step - _ORDER) : step]
            count = min(len(rest), len(actions) - step, _ORDER)
            found["_replaced"].append(_squares(np.concatenate([last, actions[step : step + count]])))
            found["_continued"].append(_squares(np.concatenate([last, rest[:count]])))
    kinds = {name: np.concatenate(squares) for name, squares in found.items()}
    mean = {name: float(squares.mean()) if squares.size else None for name, squares in kinds.items()}
    replaced = mean.pop("_replaced")
    ratios = {"ratio": _ratio(mean["_border"], mean["_inside"]), "change": _ratio(replaced, mean["_continued"])}
    values = {f"jerk{name}": value for name, value in mean.items()}
    return values | {f"jerk_{name}": x for name, x in ratios.items()} | {"jerk_dimensions": kinds[""].shape[1]}


def _squares(actions: np.ndarray) -> np.ndarray:
    return np.diff(actions, _ORDER, axis=0) ** 2


def _ratio(over: float | None, under: float | None) -> float | None:
    return over / under if under and over is not None else None


def jerk_text(found: Mapping[str, Any]) -> str:
    """The jerk of an evaluation's summary in words."""
    kinds = {"inside plans": found["jerk_inside"], "between plans": found["jerk_border"]}
    parts = [f"{value:.4g} {where}" for where, value in kinds.items() if value is not None]
    times = "" if found["jerk_ratio"] is None else f", {found['jerk_ratio']:.2f} times as much"
    times += "" if found["jerk_change"] is None else f"; {found['jerk_change']:.2f} times that of plans continued there"
    name = "jerk (mean squared third difference)"
    return f"{name} {', '.join(parts)}{times} (of {found['jerk_dimensions']} action dimensions)"


JERK = Metric("jerk", _jerk)
