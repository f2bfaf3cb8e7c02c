"""Mean return and length of episodes, and D4RL's normalized score where the environment has one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from gtp_vision.envs.scores import has_reference, normalised
from gtp_vision.evaluation.metrics import Metric

if TYPE_CHECKING:
    from gtp_vision.evaluation.evaluator import Episode


def _returns(episodes: Sequence[Episode], env: str) -> dict[str, Any]:
    mean = float(np.mean([episode.total_reward for episode in episodes]))
    return {"return": mean} | ({"score": normalised(env, mean)} if has_reference(env) else {})


def _length(episodes: Sequence[Episode], _: str) -> dict[str, Any]:
    return {"length": float(np.mean([episode.length for episode in episodes]))}


RETURN = Metric("return", _returns, ("return", "score"))
LENGTH = Metric("length", _length, ("length",))
