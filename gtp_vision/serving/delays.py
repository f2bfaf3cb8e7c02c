"""How late answers arrive: the steps that a robot executes from an observation on until it has the answer."""

from __future__ import annotations

import math
from collections import deque

import numpy as np

_KEPT = 100  # answers
_QUANTILE = 0.95  # an answer that is earlier than assumed waits; a later one leaves the robot without it


class Delays:
    """The times of one robot's last answers."""

    def __init__(self) -> None:
        self._seconds: deque[float] = deque(maxlen=_KEPT)

    def add(self, seconds: float) -> None:
        """Add the time from a message's arrival until its answer was sent."""
        self._seconds.append(seconds)

    def steps(self, rate: float | None, round_trip: float) -> int:
        """The delay to assume, in steps of `rate` actions a second.

        It is the 95 % quantile of the last 100 answers' times and `round_trip`, seconds on the network, rounded up; 0
        where the rate is not known or nothing was answered yet.
        """
        if rate is None or not self._seconds:
            return 0
        return math.ceil(rate * (float(np.quantile(self._seconds, _QUANTILE, method="higher")) + round_trip))
