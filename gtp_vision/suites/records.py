"""Scores of a run of a suite, and which of them counts."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

SELECTIONS: Mapping[str, Callable[[Sequence[float]], float]] = {
    "last": lambda scores: float(scores[-1]),
    "mean_last_3": lambda scores: float(np.mean(scores[-3:])),
    "best": lambda scores: max((float(score) for score in scores if not math.isnan(score)), default=math.nan),
}
"""By name: the score that counts, of a run's evaluations in order; `best` selects by the judged score itself."""


@dataclass(frozen=True)
class Record:
    """One training run of one agent on one task."""

    task: str  # the data set's published name, e.g. hopper-medium-replay-v2
    agent: str  # the label, e.g. gtp+n
    seed: int
    steps: tuple[int, ...]  # gradient steps at each evaluation, ascending
    # at each evaluation: percent of successes (NaN where the simulator reports none), or D4RL's normalised return
    scores: tuple[float, ...]
    unfinished: bool = False  # whether more evaluations are to come
    seconds: tuple[float, ...] = ()  # of training until each evaluation, without evaluations; empty if not recorded
