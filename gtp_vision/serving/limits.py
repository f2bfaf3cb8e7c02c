"""Limits of a robot's actions: position, speed, acceleration and jerk of each dimension, in the robot's units.

Speed, acceleration and jerk are derivatives of the action itself: differences of consecutive actions times the control
rate. Of positions they are those of the joint or gripper. Of actions that are displacements or velocities the position
limit bounds the robot's speed, the speed limit its acceleration, and so on.

An action within the limits is executed as it is, bit for bit. In place of another one the nearest is taken from which
the robot can stop there: clipped alone, an acceleration limit makes it swing about its goal for ever.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from gtp_vision.core.errors import GtpVisionError, propose

POSITIONS, DERIVATIVES = ("low", "high"), ("speed", "acceleration", "jerk")
CLAMPS = ("position", *DERIVATIVES, "braking", "conflict")
"""What `Limiter` counts: changed numbers by the limit that they were beyond; by none, to stop in time; conflicts."""
AUTO, DATA, OFF = "auto", "data", "off"
_MARGIN = 2.0  # times what the data do; at 2, dimensions that jump from end to end are not limited by derivatives
_ROUNDING = 1e-6  # of the largest magnitude: third differences of float32 round by 5e-7 of it
_REACHES = (1.0, 2.0, 8.0)  # of the span: no action between two ends has more, nor does braking need more
_BRAKES = 0.5  # share of acceleration and jerk that an approach plans with; the rest corrects it
_STOP = 8.0  # a stop from rest to rest over the distance d takes a jerk of v^3 / d^2; planned with an eighth of it
Values = tuple[float | None, ...]


@dataclass(frozen=True)
class Limits:
    """Limits of A action dimensions.

    Attributes:
        low, high: least and largest action.
        speed, acceleration, jerk: largest magnitude of the derivatives, per second, s^2, s^3; None is without a limit.
        rate: actions a second; None is unknown, and derivatives are per step.
    """

    low: tuple[float, ...]
    high: tuple[float, ...]
    speed: Values
    acceleration: Values
    jerk: Values
    rate: float | None = None

    @staticmethod
    def position(low: Sequence[float], high: Sequence[float], rate: float | None = None) -> Limits:
        """Limits of the position alone."""
        none = (None,) * len(low)
        return Limits(tuple(map(float, low)), tuple(map(float, high)), none, none, none, rate)

    @staticmethod
    def of(stored: Any, bounds: tuple[Sequence[float], Sequence[float]]) -> Limits:
        """The limits in untrusted JSON; `bounds` are the least and largest action (A,) that the policy knows.

        Raises:
            GtpVisionError: missing or invalid values, or limits that contradict each other or the bounds.
        """
        try:
            low, high = (tuple(float(x) for x in stored[name]) for name in POSITIONS)
            speed, acceleration, jerk = (
                tuple(None if x is None else float(x) for x in stored[name]) for name in DERIVATIVES
            )
            rate = None if stored["rate"] is None else float(stored["rate"])
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise GtpVisionError(f"its limits are invalid ({type(error).__name__}: {error})") from error
        return Limits(low, high, speed, acceleration, jerk, rate).checked(bounds)

    def checked(self, bounds: tuple[Sequence[float], Sequence[float]]) -> Limits:
        """The same, with positions cut to the bounds; a GtpVisionError if they contradict each other or the bounds."""
        for name in (*POSITIONS, *DERIVATIVES):
            values = getattr(self, name)
            if len(values) != len(bounds[0]):
                raise GtpVisionError(f"the limit {name} has {len(values)} numbers; give one, or {len(bounds[0])}")
            for index, value in enumerate(values):
                if value is not None and not (math.isfinite(value) and (name in POSITIONS or value > 0)):
                    wanted = "a finite number" if name in POSITIONS else "above 0, or off"
                    raise GtpVisionError(f"the limit {name}={value:g} of action {index} must be {wanted}")
        if self.rate is not None and not 0 < self.rate < 1e6:
            raise GtpVisionError(f"the control rate {self.rate:g} must be above 0 and below a million actions a second")
        for index, (low, high, least, most) in enumerate(zip(self.low, self.high, *bounds, strict=True)):
            if low > high or low > most or high < least:
                raise GtpVisionError(
                    f"the limits low={low:g} and high={high:g} of action {index} leave nothing of its range "
                    f"{least:g} to {most:g}; set low below high, within the range"
                )
        low, high = np.clip([self.low, self.high], *bounds).tolist()
        return replace(self, low=tuple(low), high=tuple(high))

    @staticmethod
    def of_data(
        episodes: Callable[[], Iterable[np.ndarray]],
        bounds: tuple[Sequence[float], Sequence[float]],
        rate: float | None,
    ) -> Limits:
        """Twice what the data do: twice their range, within `bounds`, and twice their largest derivatives.

        `episodes` yields the actions (N, A) of each, in the robot's units, as often as it is called. Limits that no
        action within the positions exceeds are left out, and derivatives of a dimension of two values, a gripper.
        """
        ends = [(rows.min(0), rows.max(0)) for rows in episodes()]
        least, most = np.min([low for low, _ in ends], 0), np.max([high for _, high in ends], 0)
        is_switch, largest = np.ones(len(least), bool), np.zeros((len(DERIVATIVES), len(least)))
        for rows in episodes():
            is_switch &= ((rows == least) | (rows == most)).all(0)
            change = rows.astype(np.float64)
            for order in range(len(DERIVATIVES)):
                change = np.diff(change, axis=0)
                largest[order] = np.maximum(largest[order], np.abs(change).max(0, initial=0))
        made = Limits.of_range(least, most, bounds, rate)
        span = np.subtract(made.high, made.low)
        values = dict[str, Any]()
        for order, (name, found) in enumerate(zip(DERIVATIVES, _MARGIN * largest, strict=True)):
            is_free = is_switch | (found >= 2**order * span) | (found <= 0)
            scaled = found * (rate or 1.0) ** (order + 1)
            values[name] = tuple(None if free else float(x) for free, x in zip(is_free, scaled, strict=True))
        return replace(made, **values)

    @staticmethod
    def of_range(least: Any, most: Any, bounds: tuple[Sequence[float], Sequence[float]], rate: float | None) -> Limits:
        """Position limits by the data's least and largest action (A,): twice their range, within `bounds`."""
        least, most = np.asarray(least, np.float64), np.asarray(most, np.float64)
        middle, half = (least + most) / 2, _MARGIN * (most - least) / 2
        low, high = np.clip([middle - half, middle + half], *bounds)
        return Limits.position(low.tolist(), high.tolist(), rate)

    def sentence(self) -> str:
        """What is limited, on one line."""
        counts = {name: sum(x is not None for x in getattr(self, name)) for name in DERIVATIVES}
        parts = ["position", *(f"{name} of {n}" for name, n in counts.items() if n)]
        per = f"at {self.rate:g} actions a second" if self.rate is not None else "per step, as the rate is unknown"
        return f"{', '.join(parts)} of {len(self.low)} numbers" + (f", {per}" if len(parts) > 1 else "")


def read_words(words: Sequence[str], actions: int) -> tuple[str, dict[str, Any]]:
    """Read limits as `export --limits` takes them: where they come from, and values set by hand, by name.

    A word is `auto`, `data`, `off`, or NAME=VALUE[,VALUE...], one for all or one for each action, `off` for none.

    Raises:
        GtpVisionError: an unknown word or name, a value that is not a number, or words that contradict each other.
    """
    sources, values = [word for word in words if "=" not in word], dict[str, Any]()
    for source in sources:
        if source not in (AUTO, DATA, OFF) or source != sources[0]:
            raise GtpVisionError(
                f"--limits {' --limits '.join(sources)}: give one of {AUTO}, {DATA}, {OFF}, and NAME=VALUE for others"
            )
    for word in words:
        name, equals, numbers = word.partition("=")
        if not equals:
            continue
        if name not in (*POSITIONS, *DERIVATIVES) or name in values:
            found = "is set twice" if name in values else propose(name, (*POSITIONS, *DERIVATIVES))
            raise GtpVisionError(f"--limits {word}: {found}")
        try:
            given = [None if x == OFF and name in DERIVATIVES else float(x) for x in numbers.split(",")]
        except ValueError as error:
            raise GtpVisionError(f"--limits {word}: give numbers, e.g. {name}=0.5 or {name}=0.5,0.5,1") from error
        values[name] = tuple(given * actions if len(given) == 1 else given)
    return (sources or [AUTO])[0], values


class Limiter:
    """Limits the actions of one robot, in the order in which they are executed, and counts what it changes.

    An action replaced by another one approaches the wanted one at the speed from which half of the acceleration limit
    and an eighth of the jerk limit stop it there. Where limits exclude each other, position wins over speed, speed over
    acceleration, and that over jerk; an excluded limit is exceeded by as little as possible. The first actions of an
    episode have no derivatives, which are not limited then.

    Attributes:
        clamps: of the last call, `CLAMPS` to the number of numbers. A number that was beyond two limits counts in both;
            `conflict` are those executed beyond a limit, because another one excludes it.
        changed: of the last call, the numbers that were changed, by action dimension: int (A,).
        total: the sum over all calls.
    """

    def __init__(self, limits: Limits) -> None:
        self._low, self._high = np.asarray(limits.low), np.asarray(limits.high)
        span = self._high - self._low
        tolerance = self._tolerance = _ROUNDING * np.maximum(np.abs(self._low), np.abs(self._high))
        self._least, self._greatest = self._low - tolerance, self._high + tolerance
        self._largest = np.array(
            [
                np.array([np.inf if x is None else x for x in getattr(limits, name)]) / (limits.rate or 1.0) ** order
                for order, name in enumerate(DERIVATIVES, 1)
            ]
        )  # of the first three differences, (3, A)
        self._most = self._largest + tolerance
        self._orders = max((n for n, most in enumerate(self._most, 1) if np.isfinite(most).any()), default=0)
        reaches = np.multiply.outer(_REACHES, span)
        self._speed, self._acceleration, self._jerk = np.minimum(self._largest, reaches)
        self.total: Counter[str] = Counter(dict.fromkeys(CLAMPS, 0))
        self.reset()

    def reset(self) -> None:
        """Forget earlier actions: an episode begins."""
        self._executed = np.empty((0, len(self._low)))  # the last three, oldest first
        self._wanted = self._executed
        self._clear()

    def follow(self, executed: np.ndarray) -> None:
        """Continue after these executed actions, (N, A), the newest last, in place of those of earlier calls."""
        self._executed = self._wanted = executed[-len(DERIVATIVES) :].astype(np.float64)

    def __call__(self, actions: np.ndarray) -> np.ndarray:
        """The actions to execute instead of `actions`, float32 (H, A) each, one after another.

        Raises GtpVisionError: a number that is not finite.
        """
        self._clear()
        wanted = actions.astype(np.float64)
        if not self._follows() and self._allows(wanted):
            self._remember(wanted, wanted)
            return actions
        if not np.isfinite(actions).all():
            raise GtpVisionError("the policy answered a number that is not finite, which no limit allows")
        executed = np.stack([self._next(row) for row in wanted])
        self.total.update(self.clamps)
        return executed

    def _clear(self) -> None:
        self.clamps = dict.fromkeys(CLAMPS, 0)
        self.changed = np.zeros(len(self._low), np.int64)

    def _follows(self) -> bool:
        """Whether one of the last actions was changed."""
        return self._executed is not self._wanted

    def _allows(self, wanted: np.ndarray) -> bool:
        """Whether all actions (H, A) are within the limits."""
        is_allowed = not self._leaves(wanted).any()
        differences = np.concatenate([self._executed, wanted]) if self._orders else wanted
        for most in self._most[: self._orders]:
            differences = differences[1:] - differences[:-1]
            is_allowed = is_allowed and not (np.abs(differences[-len(wanted) :]) > most).any()
        return is_allowed

    def _leaves(self, actions: np.ndarray) -> np.ndarray:
        return ~((actions >= self._least) & (actions <= self._greatest))

    def _remember(self, executed: np.ndarray, wanted: np.ndarray) -> None:
        kept, follows = len(DERIVATIVES), self._follows() or executed is not wanted
        before, self._executed = self._wanted, np.concatenate([self._executed, executed])[-kept:]
        self._wanted = np.concatenate([before, wanted])[-kept:] if follows else self._executed
        if follows and np.array_equal(self._executed, self._wanted):
            self._wanted = self._executed

    def _next(self, wanted: np.ndarray) -> np.ndarray:
        """The action to execute instead of `wanted`, both (A,)."""
        known, target = len(self._executed), np.clip(wanted, self._low, self._high)
        newest = [*self._executed[::-1], *[target if known == 0 else self._executed[0]] * 3][:3]
        last, speed = newest[0], newest[0] - newest[1]
        acceleration = speed - (newest[1] - newest[2])
        middles = np.array([last, last + speed, last + speed + acceleration])  # of what each derivative allows
        largest = np.where(np.arange(len(DERIVATIVES))[:, None] < known, self._largest, np.inf)
        beyond = np.concatenate([self._leaves(wanted)[None], self._exceeds(wanted, middles, largest)])
        passes = ~beyond.any(0)
        if known:
            step, goes_on = wanted - last, wanted - self._wanted[-1]
            turn = np.abs(goes_on - step)  # acceleration if both went on steadily
            jerk = np.maximum(turn, np.abs(goes_on - 2 * step + speed))
            lags = (self._executed != self._wanted).any(0)
            passes &= ~lags | ((turn <= largest[1]) & (jerk <= largest[2]))
        executed = self._approach(target, last, speed)
        for middle, most in zip(middles[::-1], largest[::-1], strict=True):
            executed = np.clip(executed, middle - most, middle + most)
        executed = np.clip(executed, self._low, self._high)
        passes |= np.abs(executed - wanted) <= self._tolerance
        executed = np.where(passes, wanted, executed).astype(np.float32)
        changed, conflicts = executed != wanted, self._exceeds(executed, middles, largest).any(0)
        self.changed += changed
        found = [*(changed & beyond), changed & ~beyond.any(0), conflicts]
        for name, numbers in zip(CLAMPS, found, strict=True):
            self.clamps[name] += int(numbers.sum())
        self._remember(executed[None].astype(np.float64), wanted[None])
        return executed

    def _exceeds(self, action: np.ndarray, middles: np.ndarray, largest: np.ndarray) -> np.ndarray:
        return np.abs(action - middles) > largest + self._tolerance

    def _approach(self, target: np.ndarray, last: np.ndarray, speed: np.ndarray) -> np.ndarray:
        """An action on the way to the target, at a speed from which it can stop there."""
        way = np.abs(target - last)
        stops = np.minimum(_stopping(way, _BRAKES * self._acceleration), np.cbrt(self._jerk * way**2 / _STOP))
        change = np.sign(target - last) * np.minimum(stops, self._speed) - speed
        return last + speed + np.sign(change) * _stopping(np.abs(change), _BRAKES * self._jerk)


def _stopping(way: np.ndarray, brake: np.ndarray) -> np.ndarray:
    """The first step s of a way s + (s - brake) + (s - 2 brake) + ..., at most the way itself."""
    return np.minimum(way, (np.sqrt(brake**2 + 8 * brake * way) - brake) / 2)
