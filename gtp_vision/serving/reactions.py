"""What is done about doubt in a policy's answers, and when.

    none    it is answered, nothing else
    steps   twice as many jumps
    slow    a share of the way: of motions, or from the last executed action to an absolute one
    hold    no motion, or the last executed action again
    stop    an error, until the episode is reset

A reaction begins after several doubtful answers, one after another, and ends after as many others: one frame does not
stop the arm.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from gtp_vision.core.errors import GtpVisionError, propose

OBSERVED, DRAWN = ("features", "states", "still"), ("map", "spread")
SIGNALS = (*OBSERVED, *DRAWN)
"""See `doubt`."""
OFF = "off"
"""In place of signals: doubt is not measured."""
REACTIONS = ("none", "steps", "slow", "hold", "stop")
ABSOLUTE, DELTA = "absolute", "delta"
_REACTION = "reaction"
_MOST_AFTER = 1000


@dataclass(frozen=True)
class Doubt:
    """Doubt in one answer.

    Attributes:
        signals: each signal divided by its threshold, by name, e.g. `camera front`.
        reaction: what was done, of `REACTIONS`.
    """

    signals: Mapping[str, float]
    reaction: str

    @property
    def because(self) -> str:
        """The name of the largest signal."""
        return max(self.signals, key=self.signals.__getitem__)

    @property
    def value(self) -> float:
        """The largest signal; above 1 the answer is doubtful."""
        return self.signals[self.because]

    def numbers(self) -> dict[str, float]:
        """The same as numbers, for recordings."""
        return {_REACTION: float(REACTIONS.index(self.reaction))} | dict(self.signals)

    @staticmethod
    def of(numbers: Mapping[str, float]) -> Doubt:
        """What `numbers` returned."""
        signals = {name: value for name, value in numbers.items() if name != _REACTION}
        return Doubt(signals, REACTIONS[int(numbers[_REACTION])])


@dataclass(frozen=True)
class OnDoubt:
    """What is done about doubt.

    Attributes:
        reaction: `none`; `steps`, twice as many jumps; `slow`, a share of the way; `hold`, no motion; `stop`, an error
            until the episode is reset.
        after: doubtful answers, one after another, until it begins, and others until it ends.
        share: of the way that `slow` goes.
        actions: of each dimension, or one for all: `absolute`, a goal, or `delta`, a motion or velocity that rests at
            0. Empty is not known, and `slow` and `hold` have no meaning.
        signals: of `SIGNALS`, which are measured.
    """

    reaction: str = "none"
    after: int = 3
    share: float = 0.5
    actions: tuple[str, ...] = ()
    signals: tuple[str, ...] = OBSERVED

    @staticmethod
    def of(stored: Any) -> OnDoubt:
        """The settings in untrusted JSON, which `check` checks; the default of an artifact without.

        Raises:
            GtpVisionError: unknown or missing names.
        """
        try:
            lists = {name: tuple(str(x) for x in stored[name]) for name in ("actions", "signals")} if stored else {}
            return OnDoubt(**{**(stored or {}), **lists})
        except (KeyError, TypeError) as error:
            raise GtpVisionError(f"its settings of doubt are invalid ({type(error).__name__}: {error})") from error

    def check(self) -> None:
        """Refuse values that are out of range, by a GtpVisionError; `doubt.check` also asks the policy."""
        for given, known in (((self.reaction,), REACTIONS), (self.signals, SIGNALS), (self.actions, (ABSOLUTE, DELTA))):
            for name in given:
                if name not in known:
                    raise GtpVisionError(f"doubt: '{name}' is unknown: {propose(str(name), known)}")
        is_count = isinstance(self.after, int) and not isinstance(self.after, bool)
        if not is_count or not 1 <= self.after <= _MOST_AFTER:
            raise GtpVisionError(f"doubt: after={self.after} must be an integer from 1 to {_MOST_AFTER}")
        if not isinstance(self.share, float) or not 0 < self.share < 1:
            raise GtpVisionError(f"doubt: share={self.share} must be above 0 and below 1")


TELLS = OnDoubt()
"""Doubt is measured and answered, and nothing is done about it."""


class DoubtError(GtpVisionError):
    """The policy stopped because of doubt; its episode has to be reset."""

    cause = "doubt"
