"""What a run of a suite has scored, and which of its scores counts."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

SELECTIONS: Mapping[str, Callable[[Sequence[float]], float]] = {
    "last": lambda scores: float(scores[-1]),
    "mean_last_3": lambda scores: float(np.mean(scores[-3:])),
    "best": lambda scores: float(max(scores)),
}
"""By name: of the scores of a run's evaluations, in order, what counts; `best` looks at what it is judged by."""


@dataclass(frozen=True)
class Record:
    """One training run of one agent on one task.

    Attributes:
        task: the data set's published name, e.g. hopper-medium-replay-v2.
        agent: the label, e.g. gtp+n.
        seed: of the run.
        steps: gradient steps at each evaluation, ascending.
        scores: at each evaluation: percent of successes, or D4RL's normalised return.
        unfinished: whether more evaluations are to come.
    """

    task: str
    agent: str
    seed: int
    steps: tuple[int, ...]
    scores: tuple[float, ...]
    unfinished: bool = False
