"""Ways of acting on the bandit: what the actions of one trained agent are worth, and how far from the data they lie."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from gtp_vision.agents import ActingConfig, Agent
from gtp_vision.core.random import RandomStream
from gtp_vision.experiments.bandit_problem import CONTEXTS, DEVIATION, MODES, exact_q, shares_of

LABEL = "gtp"  # the row of `bandit_rows` whose agent acts
_SALT = 0xBA2D17
_ROUNDS, _BATCH = 10, 600  # 2000 actions in each context
_BEAM = ActingConfig(steps=1, candidates=4, beam=2, rounds=3, branch=2)  # 4 + 3 * 2 * 2 = 16 jumps
WAYS = {
    "single": ActingConfig(steps=1),
    "half the noise": ActingConfig(steps=1, noise=0.5),
    "best of 4": ActingConfig(steps=1, candidates=4),
    "best of 16": ActingConfig(steps=1, candidates=16),
    "best of 64": ActingConfig(steps=1, candidates=64),
    "beam of 16, t'=0.25": replace(_BEAM, renoise=0.25),
    "beam of 16, t'=0.5": replace(_BEAM, renoise=0.5),
    "beam of 16, t'=1": replace(_BEAM, renoise=1.0),
    "beam, half the noise": replace(_BEAM, renoise=0.5, noise=0.5),
    "step of 0.1, best of 4": ActingConfig(steps=1, candidates=4, gradient_step=0.1),
    "step of 0.1, beam of 16": replace(_BEAM, renoise=0.5, gradient_step=0.1),
}


def evaluation_actions(agent: Agent, seed: int, acting: ActingConfig | None = None) -> np.ndarray:
    """Actions (C, N, 2) as in an evaluation, chosen as `acting` says; None takes the agent's own settings."""
    contexts = torch.eye(CONTEXTS).repeat(_BATCH // CONTEXTS, 1)[:, None]  # (B, 1, C), a stack of one frame
    rounds = [
        agent.act({"context": contexts}, RandomStream(seed, _SALT + turn), acting=acting).double().numpy()
        for turn in range(_ROUNDS)
    ]
    return np.concatenate([actions.reshape(-1, CONTEXTS, 2) for actions in rounds]).swapaxes(0, 1)


def ways_of_acting(agent: Agent, seed: int) -> dict[str, dict[str, float]]:
    """Act in each of `WAYS`, from the same noise.

    Returns:
        By way: `exact_q`, the mean expected reward; `learned_q`, the mean of the slow critic; `outside`, the share
        outside the data's support; `distance`, the mean distance from the nearest mode, and `farthest`, that of one
        action in a hundred, both in deviations of a mode.
    """
    results, encoder = {}, agent.actor_encoder_target if agent.shared else agent.critic_encoder_target
    for name, acting in WAYS.items():
        actions = evaluation_actions(agent, seed, acting)
        contexts = torch.eye(CONTEXTS).repeat_interleave(actions.shape[1], 0)[:, None]
        with torch.no_grad():
            features = encoder({"context": contexts})
            learned = agent.critic_target.worth(features, torch.from_numpy(actions).float().flatten(0, 1))
        far = np.linalg.norm(actions[:, :, None] - MODES, axis=-1).min(-1) / DEVIATION
        results[name] = {
            "exact_q": float(exact_q(actions).mean()),
            "learned_q": float(learned.mean()),
            "outside": float(shares_of(actions)[1].mean()),
            "distance": float(far.mean()),
            "farthest": float(np.quantile(far, 0.99)),
        }
    return results


def table(ways: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """The results as text."""
    lines = [f"{'acting of ' + LABEL + ', K=1':26}{'E Q':>7}{'its Q':>7}{'outside %':>11}{'distance':>10}{'99 %':>7}"]
    lines += [
        f"{name:26}{way['exact_q']:7.3f}{way['learned_q']:7.3f}{100 * way['outside']:11.2f}{way['distance']:10.2f}"
        f"{way['farthest']:7.2f}"
        for name, way in ways.items()
    ]
    return lines
