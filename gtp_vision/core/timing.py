"""Interleaved timing: every piece of work has its turn in every round, and the median over rounds counts."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import torch

from gtp_vision.core.progress import Progress

_CPU = torch.device("cpu")
_LEAST_ROUNDS = 2

Key = TypeVar("Key")


@dataclass(frozen=True)
class Work:
    """A function to time.

    Attributes:
        run: receives what `prepare` returned.
        prepare: called before each `run`, outside the time.
        untimed: calls at the beginning of each turn that do not count: caches fill again after the work before.
        timed: calls of each turn that count.
        units: parts that one call consists of; the time of one part counts.
    """

    run: Callable[[Any], object]
    prepare: Callable[[], Any] = lambda: None
    untimed: int = 0
    timed: int = 1
    units: int = 1


def median_ms(
    works: Mapping[Key, Work],
    rounds: int,
    *,
    device: torch.device = _CPU,
    max_seconds: float = math.inf,
    label: str = "",
    progress: bool = False,
) -> dict[Key, float]:
    """Median milliseconds of each work over interleaved rounds, after one round that warms up.

    `device` is the one whose queue is emptied before and after each call. A work that has taken longer than
    `max_seconds` in total sits out the rounds after the second.
    """
    times: dict[Key, list[float]] = {key: [] for key in works}
    spent = dict.fromkeys(works, 0.0)
    for turn in Progress(range(rounds + 1), label, unit="round", disable=not progress):
        for key, work in works.items():
            if turn > _LEAST_ROUNDS and spent[key] > max_seconds:
                continue
            for call in range(work.untimed + work.timed):
                argument = work.prepare()
                elapsed = seconds(lambda: work.run(argument), device)  # noqa: B023
                spent[key] += elapsed
                if turn and call >= work.untimed:
                    times[key].append(1e3 * elapsed / work.units)
    return {key: statistics.median(elapsed) for key, elapsed in times.items()}


def seconds(work: Callable[[], object], device: torch.device = _CPU) -> float:
    """The time of one call, including the device's queue."""
    synchronize(device)
    began = time.perf_counter()
    work()
    synchronize(device)
    return time.perf_counter() - began


def synchronize(device: torch.device) -> None:
    """Wait until a GPU has no work left."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
