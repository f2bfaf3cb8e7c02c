"""Metrics of an evaluation, one a file: each adds its values to the summary."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from gtp_vision.core.registry import Registry

if TYPE_CHECKING:
    from gtp_vision.evaluation.evaluator import Episode


@dataclass(frozen=True)
class Metric:
    """A metric that the registry finds at the top of a file.

    Attributes:
        name: unique among metrics.
        values: (episodes, environment name) to what the summary shows, by key: numbers, or lists or objects of
            numbers; empty where the metric is not defined.
        averaged: the keys whose mean over evaluations and over seeds means something.
    """

    name: str
    values: Callable[[Sequence[Episode], str], dict[str, Any]]
    averaged: tuple[str, ...] = ()


METRICS: Registry[Metric] = Registry(__name__, "gtp_vision.metrics", Metric)


def averaged(evaluation: Mapping[str, Any]) -> list[str]:
    """The keys of an evaluation whose mean over evaluations and over seeds means something."""
    return [key for metric in METRICS.values() for key in metric.averaged if key in evaluation]
