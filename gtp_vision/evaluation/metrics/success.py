"""Share of episodes that succeed, with its 95 % Wilson interval, and by task where there are several.

Both are None where the environment does not say which episodes succeed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from gtp_vision.evaluation.metrics import Metric

if TYPE_CHECKING:
    from gtp_vision.evaluation.evaluator import Episode


def _success(episodes: Sequence[Episode], _: str) -> dict[str, Any]:
    if all(episode.success is None for episode in episodes):
        return {"success": None, "success_interval": None}
    from scipy.stats import binomtest

    successes = sum(bool(episode.success) for episode in episodes)
    interval = binomtest(successes, len(episodes)).proportion_ci(method="wilson")
    return {"success": successes / len(episodes), "success_interval": [float(interval.low), float(interval.high)]}


def _tasks(episodes: Sequence[Episode], _: str) -> dict[str, Any]:
    by_task: dict[int | str, list[bool]] = {}
    for episode in episodes:
        if episode.task is not None and episode.success is not None:
            by_task.setdefault(episode.task, []).append(episode.success)
    means = {str(task): float(np.mean(by_task[task])) for task in sorted(by_task, key=str)}
    return {"tasks": means} if means else {}


def success_text(found: Mapping[str, Any]) -> str:
    """The success of an evaluation's summary in words."""
    count = found["episodes"]
    if found["success"] is None:
        return f"success unknown (the environment reported none in {count} episodes; see task.success_reward)"
    low, high = found["success_interval"]
    rule = f", {found['success_rule']}" if "success_rule" in found else ""
    return f"success {found['success']:.0%} of {count} episodes (95 % interval {low:.0%} to {high:.0%}{rule})"


SUCCESS = Metric("success", _success, ("success",))
TASKS = Metric("tasks", _tasks)
