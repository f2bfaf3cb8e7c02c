"""Units of actions: a policy acts in [-1, 1], a data set and a simulator in their own, and neither may be guessed.

A data set says what its -1 and 1 stand for by the attributes `action_low` and `action_high`; then the simulator gets
actions as they were recorded. A data set that does not say so was scaled to the simulator's bounds when it was written,
as the native format prescribes. Everything else is refused, or chosen by `task.env_actions`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import gymnasium
import numpy as np

from gtp_vision.core.errors import GtpVisionError
from gtp_vision.core.units import in_units, to_policy

_UNBOUNDED = 1e30  # some spaces write "no bound" as the largest float32
_SLACK = 1e-4  # of a range, by which bounds may differ: statistics are rounded
_MIN_SHARE = 0.05  # of the simulator's range; data that use less in all dimensions are in other units
_SHOWN = 8  # dimensions that a message lists

Bounds = tuple[Sequence[float], Sequence[float]]


@dataclass(frozen=True)
class ActionUnits:
    """The units of a data set's actions.

    Attributes:
        data: its name, for messages.
        reach: least and largest action of each dimension, as the data set holds them in [-1, 1].
        bounds: what -1 and 1 stand for, if the data set says so.
        declared: whether the bounds are those of the recorder's action space; others were measured.
        recorder: the suite or library whose convention the data set follows; empty for the native format.
        choice: `task.env_actions`.
    """

    data: str
    reach: Bounds
    bounds: Bounds | None = None
    declared: bool = False
    recorder: str = ""
    choice: str | None = None


class PolicyActions(gymnasium.ActionWrapper):
    """Takes actions in [-1, 1] and gives the simulator what they stand for.

    Args:
        env: has bounded actions.
        low: what -1 stands for, in the simulator's units.
        high: what 1 stands for.
        meaning: a sentence about units, for the log.
        clips: whether actions are clipped to the simulator's bounds, which are narrower than low and high.
    """

    def __init__(self, env: gymnasium.Env, low: np.ndarray, high: np.ndarray, meaning: str, *, clips: bool) -> None:
        super().__init__(env)
        self._space: Any = env.action_space
        self.low, self.high, self.meaning, self._clips = low, high, meaning, clips
        self.action_space = gymnasium.spaces.Box(-1, 1, self._space.shape, np.float32)

    def action(self, action: Any) -> np.ndarray:
        """Convert [-1, 1] to the simulator's units, of its dtype."""
        sent = in_units(action, self.low, self.high)
        return (np.clip(sent, self._space.low, self._space.high) if self._clips else sent).astype(self._space.dtype)

    def back(self, sent: np.ndarray) -> np.ndarray:
        """Convert the simulator's units to [-1, 1]."""
        return to_policy(sent, self.low, self.high)


def with_policy_actions(env: gymnasium.Env, units: ActionUnits | None, name: str) -> gymnasium.Env:
    """Return the environment with actions in [-1, 1]: a data set's in their units, or for None, its own bounds'.

    Raises:
        GtpVisionError: the actions are not bounded real numbers, or in other units than the data set's.
    """
    space = env.action_space
    if not isinstance(space, gymnasium.spaces.Box) or space.dtype.kind != "f" or not _is_bounded(space):
        raise GtpVisionError(
            f"{name} takes {space}, and only bounded continuous actions are supported; choose another environment"
        )
    if units is not None and np.shape(units.reach[0]) != space.shape:
        units = None  # the caller compares shapes
    low, high = space.low.astype(np.float64), space.high.astype(np.float64)
    ones, takes = np.ones_like(low), _text(low, high)
    if units is None or _is_scaled(units, low, high, name):
        held = _text(*((units and units.bounds) or (-ones, ones)))
        least, most, clips = low, high, True
        meaning = f"-1 and 1 of the policy are {held} in the data and {takes} in {name}"
    else:
        least, most = (np.asarray(bound, np.float64) for bound in units.bounds or (-ones, ones))
        if units.choice is None:
            _refuse_others(units, low, high, name)
        clips = _is_inside(*_reach(units), low, high)  # else the user chose to leave the bounds
        meaning = f"-1 and 1 of the policy are {_text(least, most)} in the data and in {name}, which takes {takes}"
    if np.all(np.array([least, low]) == -1) and np.all(np.array([most, high]) == 1):
        return env
    return PolicyActions(env, least, most, f"actions: {meaning}", clips=clips)


def _is_scaled(units: ActionUnits, low: np.ndarray, high: np.ndarray, name: str) -> bool:
    """Whether -1 and 1 are the simulator's bounds; refuse data that do not say so where both may be."""
    ones = np.ones_like(low)
    if units.choice is not None or units.bounds is not None:
        return units.choice == "scaled"
    moves = high > low  # a dimension of one value gets it, whatever the units
    if _is_same(low[moves], high[moves], -ones[moves], ones[moves]):
        return not moves.all()
    may_be_scaled, may_be_recorded = _is_inside(-ones, ones, low, high), _is_inside(*units.reach, low, high)
    if units.recorder and may_be_recorded and not may_be_scaled:
        return False  # other recorders write what the simulator takes
    if units.recorder or (may_be_recorded and not may_be_scaled):
        raise GtpVisionError(
            f"{units.data} does not say in which units its actions are: they reach {_text(*units.reach)}, and {name} "
            f"takes {_text(low, high)}; set task.env_actions=recorded if they are as the simulator took them, or "
            f"task.env_actions=scaled if -1 and 1 stand for its bounds"
        )
    return True


def _refuse_others(units: ActionUnits, low: np.ndarray, high: np.ndarray, name: str) -> None:
    """Refuse actions that cannot be in the simulator's units."""
    ones = np.ones_like(low)
    bounds: Any = units.bounds or (-ones, ones)
    least, most = _reach(units)
    used = most - least
    moves = (used > 0) & (high > low)
    is_tiny = bool(moves.any()) and bool(np.all(used[moves] < _MIN_SHARE * (high - low)[moves]))
    fits = not units.declared and not is_tiny and _is_inside(least, most, low, high)
    if fits or _is_same(bounds[0], bounds[1], low, high):
        return
    held = f"an action space of {_text(*bounds)}" if units.declared else f"actions of {_text(least, most)}"
    share = f" (they use less than {_MIN_SHARE:.0%} of it)" if is_tiny and not units.declared else ""
    raise GtpVisionError(
        f"{units.data} has {held}, and {name} takes {_text(low, high)}{share}: their units differ; set task.env to the "
        f"data set's simulator or to null, or task.env_actions=recorded if this one takes the actions as they are, "
        f"task.env_actions=scaled if {_text(*bounds)} stands for its bounds"
    )


def _reach(units: ActionUnits) -> tuple[np.ndarray, np.ndarray]:
    """Return the least and largest action in the data set's units."""
    ones = np.ones(np.shape(units.reach[0]))
    low, high = units.bounds or (-ones, ones)
    return in_units(units.reach[0], low, high), in_units(units.reach[1], low, high)


def _is_bounded(space: gymnasium.spaces.Box) -> bool:
    return bool(np.all(np.abs([space.low, space.high]) < _UNBOUNDED))


def _is_inside(low: Any, high: Any, outer_low: Any, outer_high: Any) -> bool:
    low, high, outer_low, outer_high = (np.asarray(bound, np.float64) for bound in (low, high, outer_low, outer_high))
    slack = _SLACK * np.maximum(outer_high - outer_low, 1e-6)
    return bool(np.all(low >= outer_low - slack) and np.all(high <= outer_high + slack))


def _is_same(low: Any, high: Any, other_low: Any, other_high: Any) -> bool:
    return _is_inside(low, high, other_low, other_high) and _is_inside(other_low, other_high, low, high)


def _text(low: Any, high: Any) -> str:
    """Return the bounds as text: one range if all dimensions have the same."""
    ranges = [f"[{a:.4g}, {b:.4g}]" for a, b in zip(np.ravel(low), np.ravel(high), strict=True)]
    if len(set(ranges)) == 1:
        return ranges[0]
    return ", ".join(ranges[:_SHOWN]) + (", ..." if len(ranges) > _SHOWN else "")
