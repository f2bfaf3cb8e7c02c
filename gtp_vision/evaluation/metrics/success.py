"""Share of episodes that succeed, with its 95 % Wilson interval, and by task where there are several."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy.stats import binomtest

from gtp_vision.evaluation.metrics import Metric

if TYPE_CHECKING:
    from gtp_vision.evaluation.evaluator import Episode


def _success(episodes: Sequence[Episode], _: str) -> dict[str, Any]:
    successes = sum(episode.success for episode in episodes)
    interval = binomtest(successes, len(episodes)).proportion_ci(method="wilson")
    return {"success": successes / len(episodes), "success_interval": [float(interval.low), float(interval.high)]}


def _tasks(episodes: Sequence[Episode], _: str) -> dict[str, Any]:
    by_task: dict[int, list[bool]] = {}
    for episode in episodes:
        if episode.task is not None:
            by_task.setdefault(episode.task, []).append(episode.success)
    means = {str(task): float(np.mean(by_task[task])) for task in sorted(by_task)}
    return {"tasks": means} if means else {}


SUCCESS = Metric("success", _success, ("success",))
TASKS = Metric("tasks", _tasks)
