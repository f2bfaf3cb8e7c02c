"""One answer to one observation, with everything that it is a function of: what a recording must hold to replay it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from gtp_vision.core.errors import GtpVisionError

if TYPE_CHECKING:
    from gtp_vision.serving.policy import Session  # the recording process needs no torch

PLAN, ACTION = "chunk", "action"
"""What is answered: the plan (H, A) of every observation, or one action (1, A), executing plans as configured."""


@dataclass(frozen=True)
class Answered:
    """An answer, and besides the observations of its episode all that it depends on.

    Attributes:
        actions: float32 (H, A), as sent: in the robot's units, within its limits.
        seed, episode, step: of which its noise is a function; `step` counts the observations of the episode.
        steps: K that was requested.
        executed: actions of the plan before that were carried out when the observation was taken; None is unknown.
        delay: actions more that were expected to be carried out before the answer arrived.
        clamps: numbers that limits changed, see `Session.clamps`.
        doubt: see `Doubt.numbers`; empty of a policy that does not know its data.
    """

    actions: np.ndarray
    seed: int
    episode: int
    step: int
    steps: int
    executed: int | None = None
    delay: int = 0
    clamps: Mapping[str, int] = field(default_factory=dict)
    doubt: Mapping[str, float] = field(default_factory=dict)


def answer(
    session: Session,
    observation: Mapping[str, Any],
    kind: str,
    *,
    steps: int | None = None,
    executed: int | None = None,
    delay: int = 0,
) -> Answered:
    """Answer an observation by a `PLAN` or an `ACTION`, by K = `steps`; None is the policy's.

    `executed` and `delay` are of plans, see `Session.plan`. Server and replay call it alike, so equal arguments give
    equal bits. Raises as `Session.act` and `Session.plan`.
    """
    episode, step = session.place
    if kind == PLAN:
        actions = session.plan(observation, steps=steps, executed=executed, delay=delay)
    elif executed is None and not delay:
        actions = session.act(observation, steps=steps)[None]
    else:
        raise GtpVisionError("'executed' and 'delay' are of plans, and actions are answered; leave them out")
    k = steps or session.policy.schema.steps
    doubt = {} if session.doubt is None else session.doubt.numbers()
    return Answered(actions, session.seed, episode, step, k, executed, delay, clamps=session.clamps, doubt=doubt)
