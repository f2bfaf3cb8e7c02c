"""A contextual bandit in 2-D whose improved policies are known in closed form.

In every context the behaviour has four narrow modes with shares p_m, and every action of mode m is worth r_m. A policy
is then described by its share on each mode, and a KL-regularized improvement only tilts these shares.
Axes in names: B batch, C contexts, M modes.
"""

from __future__ import annotations

import numpy as np

from gtp_vision.agents import AgentConfig
from gtp_vision.agents.eda import AlignmentSettings
from gtp_vision.agents.gtp import AdvantageSettings
from gtp_vision.agents.gtp_ql import SecondAnswerSettings
from gtp_vision.agents.qgpo import GuidanceSettings
from gtp_vision.datasets.store import Store

MODES = 0.6 * np.array([[-1.0, -1.0], [-1.0, 1.0], [1.0, -1.0], [1.0, 1.0]])  # (M, 2)
DEVIATION = 0.06
SUPPORT = 5 * DEVIATION  # farther from every mode is outside the data's support; 4 samples in a million are
SHARES = np.array([[0.4, 0.3, 0.2, 0.1], [0.1, 0.4, 0.3, 0.2], [0.3, 0.1, 0.4, 0.2]])  # (C, M)
REWARDS = np.array([[0.0, 0.5, 1.0, 0.2], [1.0, 0.2, 0.0, 0.5], [0.2, 0.5, 1.0, 0.0]])  # (C, M): 0.2, 0.1, 0.4 are best
REWARD_NOISE = 0.1
CONTEXTS, COUNT = SHARES.shape


def demonstrations(rows: int, generator: np.random.Generator) -> Store:
    """The behaviour's data: terminal episodes of one step, with one-hot contexts."""
    context = np.arange(rows) % CONTEXTS
    mode = (generator.random(rows)[:, None] > SHARES.cumsum(1)[context][:, :-1]).sum(1)
    actions = MODES[mode] + DEVIATION * generator.standard_normal((rows, 2))
    rewards = REWARDS[context, mode] + REWARD_NOISE * generator.standard_normal(rows)
    return Store(
        observations={"context": np.eye(CONTEXTS, dtype=np.float32)[context]},
        actions=actions.clip(-1, 1).astype(np.float32),
        rewards=rewards.astype(np.float32),
        terminals=np.ones(rows, bool),
        timeouts=np.zeros(rows, bool),
        episode_ends=np.arange(1, rows + 1),
    )


def shares_of(actions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The share of actions (C, N, 2) on each mode, (C, M), and outside the support of all, (C,)."""
    distance = np.linalg.norm(actions[:, :, None] - MODES, axis=-1)
    share = (distance < SUPPORT).mean(1)
    return share, 1 - share.sum(1)


def exact_q(actions: np.ndarray) -> np.ndarray:
    """The expected reward of actions (C, N, 2), E[r | context, action], (C, N): Q of a terminal step."""
    near = -((actions[:, :, None] - MODES) ** 2).sum(-1) / (2 * DEVIATION**2) + np.log(SHARES)[:, None]
    chance = np.exp(near - near.max(-1, keepdims=True))
    return np.asarray((chance * REWARDS[:, None]).sum(-1) / chance.sum(-1))


def tilted(log_weights: np.ndarray) -> np.ndarray:
    """Shares of modes (C, M) of the behaviour times e^log_weights."""
    weighted = SHARES * np.exp(log_weights - log_weights.max(1, keepdims=True))
    return np.asarray(weighted / weighted.sum(1, keepdims=True))


def advantage_optimum(
    eta: float, *, form: str, standardize: bool, clip: float, value: np.ndarray | None = None
) -> np.ndarray:
    """The limit of advantage weighting, p_m w_m / sum, as shares (C, M).

    w = min(clip, exp(eta A / std(A))), with max(0, A) for form=positive. A_m = r_m - V, and V, the improved policy's
    mean reward, and std(A) over all data depend on the result, so it is the fixed point that repetition leads to.

    Args:
        eta: strength.
        form: as `gtp_vision.agents.gtp.advantage_weights`.
        standardize: the same.
        clip: the largest weight.
        value: V of each context (C,) where it is not the policy's mean reward; see `expectile`.
    """
    share = SHARES
    for _ in range(500):
        v = (share * REWARDS).sum(1) if value is None else value
        advantage = REWARDS - v[:, None]
        if standardize:
            mean = (SHARES * advantage).sum() / CONTEXTS
            advantage = advantage / np.sqrt((SHARES * (advantage - mean) ** 2).sum() / CONTEXTS)
        if form == "positive":
            advantage = advantage.clip(0)
        share = (share + tilted(np.minimum(eta * advantage, np.log(clip)))) / 2
    return share


def expectile(level: float) -> np.ndarray:
    """The expectile of each context's rewards over the data's actions, (C,): V of IQL."""
    value = (SHARES * REWARDS).sum(1)
    for _ in range(500):
        weight = SHARES * np.where(value[:, None] > REWARDS, 1 - level, level)
        value = (weight * REWARDS).sum(1) / weight.sum(1)
    return np.asarray(value)


def best_share(share: np.ndarray) -> np.ndarray:
    """The share (C,) on the mode that is worth most, of shares (C, M)."""
    return np.asarray(share[np.arange(CONTEXTS), REWARDS.argmax(1)])


def improved(config: AgentConfig) -> np.ndarray | None:
    """The limit of an agent's policy before it chooses among candidates, as shares (C, M).

    None without a closed form: the limit of Q's gradient and of distillation depends on Q between the modes.
    """
    i, critic = config.improvement, config.critic
    if i.name == "none":
        return SHARES
    if isinstance(i, AdvantageSettings) and not isinstance(i, SecondAnswerSettings):
        value = expectile(critic.expectile) if critic.backup == "expectile" else None
        return advantage_optimum(i.eta, form=i.form, standardize=i.standardize, clip=i.weight_clip, value=value)
    if isinstance(i, GuidanceSettings) and i.guidance_scale == 1:
        return tilted(i.alpha * REWARDS)
    if isinstance(i, AlignmentSettings):
        return tilted(i.alpha / i.beta * REWARDS)
    return None
