"""Mean of the largest reward of each episode: the score that Diffusion Policy and LeRobot report for PushT."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from gtp_vision.evaluation.metrics import Metric

if TYPE_CHECKING:
    from gtp_vision.evaluation.evaluator import Episode


def _max_reward(episodes: Sequence[Episode], env: str) -> dict[str, Any]:
    if env.partition("/")[0] != "pusht":
        return {}
    return {"max_reward": float(np.mean([max(episode.rewards) for episode in episodes]))}


MAX_REWARD = Metric("max_reward", _max_reward, ("max_reward",))
