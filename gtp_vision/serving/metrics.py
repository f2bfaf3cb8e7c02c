"""Counters and times of a server, in Prometheus' format."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np
from prometheus_client import CollectorRegistry, Counter, Gauge, generate_latest
from prometheus_client.core import Metric
from prometheus_client.registry import Collector

from gtp_vision.serving.limits import CLAMPS
from gtp_vision.serving.reactions import Doubt

_WINDOW = 4096  # answers that percentiles are taken over
_QUANTILES = (0.5, 0.9, 0.99)


class Times(NamedTuple):
    """Seconds of one answer: waiting for other clients, in the policy, and from the message's arrival to the answer."""

    waited: float
    acted: float
    total: float


class Metrics(Collector):
    """Counters of a server, and percentiles of the newest 4096 answers; used by the event loop's thread only."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        common: dict[str, Any] = {"registry": self._registry, "namespace": "gtp_vision"}
        self.requests = Counter("requests", "Messages that were answered.", **common)
        self.answers = Counter("answers", "Messages that were answered with actions.", **common)
        self.errors = Counter("errors", "Messages that were answered with an error.", ["why"], **common)
        self.resets = Counter("resets", "New episodes that clients requested.", **common)
        self.refused = Counter("refused", "Connections that were refused.", ["why"], **common)
        self.connections = Counter("connections", "Connections that were admitted.", **common)
        self.clamps = Counter("clamps", "Numbers of actions that limits changed, and conflicts.", ["limit"], **common)
        self.doubts = Counter("doubts", "Answers in doubt, by the largest signal.", ["because"], **common)
        self.reactions = Counter("reactions", "Answers that doubt changed.", ["reaction"], **common)
        self.doubt = Gauge("doubt", "Of the last answer; above 1 it is doubtful.", **common)
        self.clients = Gauge("clients", "Clients that are connected.", **common)
        # Invalid message, newer observation, late answer, failed policy, doubt, stopping server: 0 instead of missing.
        for cause in ("request", "dropped", "timeout", "policy", "doubt", "ending"):
            self.errors.labels(cause)
        for cause in ("token", "full"):
            self.refused.labels(cause)
        for limit in CLAMPS:
            self.clamps.labels(limit)
        self._times: deque[Times] = deque(maxlen=_WINDOW)
        self._sums = np.zeros(len(Times._fields))
        self._count = 0
        self._registry.register(self)

    def answered(self, times: Times) -> None:
        """Count an answer with actions."""
        self.answers.inc()
        self._times.append(times)
        self._sums += times
        self._count += 1

    def doubted(self, doubt: Doubt) -> None:
        """Count the doubt of an answer."""
        self.doubt.set(doubt.value)
        if doubt.value > 1:
            self.doubts.labels(doubt.because).inc()
        if doubt.reaction != "none":
            self.reactions.labels(doubt.reaction).inc()

    def collect(self) -> Iterable[Metric]:
        """The percentiles, for the Prometheus client."""
        summary = Metric("gtp_vision_seconds", "Seconds of an answer: quantiles of the newest 4096.", "summary")
        recent = np.array(self._times).reshape(-1, len(Times._fields))
        for part, values, total in zip(Times._fields, recent.T, self._sums, strict=True):
            for quantile in _QUANTILES if len(values) else ():
                labels = {"part": part, "quantile": str(quantile)}
                summary.add_sample("gtp_vision_seconds", labels, float(np.quantile(values, quantile)))
            summary.add_sample("gtp_vision_seconds_sum", {"part": part}, float(total))
            summary.add_sample("gtp_vision_seconds_count", {"part": part}, self._count)
        yield summary

    def text(self) -> str:
        """All metrics in Prometheus' text format."""
        return generate_latest(self._registry).decode()
