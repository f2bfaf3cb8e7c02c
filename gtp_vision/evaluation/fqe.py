"""Fitted Q evaluation: the value of a fixed policy from recorded transitions (Le, Voloshin and Yue, ICML 2019).

Everything but Q is computed once: the features of each row and what the policy does there. Q_e(o, a) is then fitted by
regression on r + gamma^n mask E_{a' ~ pi(o')} Q'_e(o', a'), where Q' follows Q slowly.

    Recorded -> fit -> Evaluated.values -> draws -> doubted -> interval, ranking

Each member e of the ensemble weights the episodes by a bootstrap of its own, so that the members' deviation is the
estimate's. Two choices make a fit of a minute enough for values that lie hundreds of steps ahead:

* values are in units of the deviation of the recorded returns, around their mean: a shift of all values would take
  1 / (1 - gamma) updates of Q' to be forgotten;
* the first steps fit the recorded returns, the value of the policy that recorded them.

Axes in names: U rows of the data set, N transitions, M actions of the policy, E members, B batch, F features, S starts,
D bootstrap draws.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from scipy import stats

from gtp_vision.core.progress import Progress
from gtp_vision.core.random import counter_rng
from gtp_vision.models.critic import Critic, CriticConfig, td_target
from gtp_vision.models.networks import frozen_copy, polyak_

DRAWS = 2000  # of the bootstrap
_PIECE = 1 << 14  # rows that are evaluated at once


@dataclass(frozen=True)
class FQESettings:
    """Settings of a fit.

    Attributes:
        steps: gradient steps.
        warm_share: share of them that fits the recorded returns.
        batch_size: B, transitions a step.
        members: E of the ensemble.
        hidden: widths of the hidden layers.
        learning_rate: of Adam, which falls to 0 by half a cosine.
        tau: rate at which Q' follows Q.
    """

    steps: int = 3000
    warm_share: float = 0.25
    batch_size: int = 256
    members: int = 5
    hidden: tuple[int, ...] = (128, 128)
    learning_rate: float = 1e-3
    tau: float = 0.02


@dataclass(frozen=True)
class Recorded:
    """Recorded transitions as a fixed policy meets them.

    Attributes:
        features: float32 (U, F), of each row's observation.
        policy: float32 (U, M, A), actions or executed chunks that the policy draws there.
        rows: int64 (N,), where each transition begins.
        following: int64 (N,), where it leads; not read where `discount` is 0.
        actions: float32 (N, A), the recorded action or chunk.
        reward: float32 (N,), sum_k gamma^k r_k of the transition.
        discount: float32 (N,), gamma^n mask.
        episodes: int64 (N,), the episode of each.
        returns: float32 (N,), the recorded discounted return from each on.
    """

    features: torch.Tensor
    policy: torch.Tensor
    rows: torch.Tensor
    following: torch.Tensor
    actions: torch.Tensor
    reward: torch.Tensor
    discount: torch.Tensor
    episodes: torch.Tensor
    returns: torch.Tensor


@dataclass(frozen=True)
class Evaluated:
    """A fitted ensemble: Q = mean + scale * critic.

    Attributes:
        critic: E members, of standardized features.
        offset: float32 (F,), subtracted from features.
        divisor: float32 (F,), by which they are then divided.
        mean: of the recorded returns.
        scale: their deviation, the unit of the critic's values.
        error: root mean square TD error of the members' mean on a sample of the transitions, in units of the return.
    """

    critic: Critic
    offset: torch.Tensor
    divisor: torch.Tensor
    mean: float
    scale: float
    error: float

    @torch.no_grad()
    def values(self, features: torch.Tensor, actions: torch.Tensor) -> torch.Tensor:
        """The value of observations under the policy, each member's: (S, F) and (S, M, A) to (E, S)."""
        _, count, width = actions.shape
        features = (features - self.offset) / self.divisor
        pieces = [
            self.critic(some.repeat_interleave(count, 0), of.reshape(-1, width)).unflatten(1, (-1, count)).mean(-1)
            for some, of in zip(features.split(_PIECE), actions.split(_PIECE), strict=True)
        ]
        return self.mean + self.scale * torch.cat(pieces, 1)


def fit(data: Recorded, settings: FQESettings, *, seed: int, progress: bool = False) -> Evaluated:
    """Fit Q of the policy to recorded transitions.

    A step draws one of the M actions of each following row: the regression averages over them.
    """
    c, generator = settings, counter_rng(seed)
    device, count = data.features.device, len(data.rows)
    deviation = data.features.std(0, correction=0)
    offset, divisor = data.features.mean(0), deviation.where(deviation > 1e-6, torch.ones_like(deviation))
    features = (data.features - offset) / divisor
    mean, scale = float(data.returns.mean()), float(data.returns.std(correction=0)) or 1.0
    config = CriticConfig(members=c.members, aggregate="mean", hidden=list(c.hidden), activation="relu")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        critic = Critic(data.features.shape[1], data.actions.shape[1], config).to(device)
    slow = frozen_copy(critic)
    optimizer = torch.optim.Adam(critic.parameters(), c.learning_rate)
    weights = episode_weights(int(data.episodes.max()) + 1, c.members, seed).to(device)
    warm = round(c.warm_share * c.steps)

    def target(batch: torch.Tensor, step: int) -> torch.Tensor:
        """What Q is fitted to, in units of the return: (E, B)."""
        if step < warm:
            return data.returns[batch].expand(c.members, -1)
        following = data.following[batch]
        drawn = torch.from_numpy(generator.integers(0, data.policy.shape[1], len(batch))).to(device)
        after = mean + scale * slow(features[following], data.policy[following, drawn])
        return td_target(data.reward[batch], data.discount[batch], after)

    for step in Progress(range(c.steps), "fitting Q", disable=not progress):
        for group in optimizer.param_groups:
            group["lr"] = c.learning_rate * 0.5 * (1 + math.cos(math.pi * step / c.steps))
        batch = torch.from_numpy(generator.integers(0, count, c.batch_size)).to(device)
        with torch.no_grad():
            wanted = (target(batch, step) - mean) / scale
        q = critic(features[data.rows[batch]], data.actions[batch])
        loss = (weights[:, data.episodes[batch]] * (q - wanted).square()).mean() * c.members
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        polyak_(slow, critic, 1.0 if step < warm else c.tau)
    with torch.no_grad():
        batch = torch.from_numpy(generator.integers(0, count, min(count, _PIECE))).to(device)
        q = mean + scale * slow(features[data.rows[batch]], data.actions[batch])
        error = (q - target(batch, c.steps)).mean(0).square().mean().sqrt()
    return Evaluated(slow, offset, divisor, mean, scale, float(error))


def episode_weights(episodes: int, members: int, seed: int) -> torch.Tensor:
    """Weights of the episodes in each member's bootstrap, float32 (members, episodes), whose mean is 1.

    How often an episode is drawn of as many with replacement. Of policies that are judged on the same recordings, equal
    members see equal weights, so that their difference is measured and not the recordings' luck.
    """
    drawn = counter_rng(seed, 1).multinomial(episodes, [1 / episodes] * episodes, size=members)
    return torch.from_numpy(drawn.astype(np.float32))


def draws(values: np.ndarray, seed: int) -> np.ndarray:
    """Bootstrap draws of the mean value of the starts: (E, S) to (D,).

    Each draw takes a member and as many starts with replacement. Draws are stretched about the mean of all, from the
    normal law's width to Student's with E - 1 degrees of freedom: few members do not show their deviation well. One
    member is an estimate that was not fitted, and is drawn without the stretch.
    """
    members, starts = values.shape
    generator = counter_rng(seed, 2)
    member = generator.integers(0, members, DRAWS)
    chosen = generator.multinomial(starts, [1 / starts] * starts, size=DRAWS) / starts
    drawn = (values[member] * chosen).sum(1)
    stretch = 1.0
    if members > 1:
        stretch = stats.t.ppf(0.95, members - 1) / stats.norm.ppf(0.95) * math.sqrt((members + 1) / (members - 1))
    return values.mean() + stretch * (drawn - values.mean())


def doubted(drawn: np.ndarray, trust: float, worst: float) -> np.ndarray:
    """Draws (D,) of which a share of 1 - trust is the worst value: (D,).

    Fitted Q evaluation errs upwards where nothing was recorded, so a value counts as far as the policy's actions are
    near the data (`coverage.Coverage.trust`). The doubted draws are the first ones: of two policies, the one that is
    trusted less is doubted in the same draws as the other, and more.
    """
    return np.where(np.arange(len(drawn)) < round((1 - trust) * len(drawn)), worst, drawn)


def interval(least: np.ndarray, greatest: np.ndarray, worst: float) -> tuple[float, float]:
    """The 90 % interval of a value of which there are two estimates, by draws (D,) of the lesser and of the greater.

    It reaches from the lower end of the lesser to the upper end of the greater one. Both err upwards, each in its own
    way, and their difference says by how much they may; so it reaches down by the difference of their means as well,
    to the `worst` value at most.
    """
    low, high = float(np.quantile(least, 0.05)), float(np.quantile(greatest, 0.95))
    return min(max(low - float((greatest - least).mean()), worst), high), high


def best_shares(drawn: np.ndarray) -> np.ndarray:
    """How often each of several policies is the best one, ties shared: paired draws (policies, D) to (policies,)."""
    is_best = drawn == drawn.max(0)
    return (is_best / is_best.sum(0)).mean(1)


def better(drawn: np.ndarray) -> np.ndarray:
    """How often each policy is better than each other one, (policies, policies), from paired draws (policies, D)."""
    return (drawn[:, None] > drawn[None]).mean(-1) + 0.5 * (drawn[:, None] == drawn[None]).mean(-1)


def recorded_returns(reward: np.ndarray, terminal: np.ndarray, last: np.ndarray, discount: float) -> np.ndarray:
    """The discounted return of each row as it was recorded: float64 (U,).

    Recordings that stop without the task ending are continued in thought by the mean return of all rows, c: a row's
    return is then G + w c, and c = mean(G) / (1 - mean(w)).

    Args:
        reward: (U,), of each row.
        terminal: bool (U,).
        last: int64 (episodes,), the last row of each episode with an outcome; those behind it count alone.
        discount: gamma, below 1.
    """
    total, weight = np.zeros(len(reward)), np.zeros(len(reward))
    after, weighs, stop = 0.0, 1.0, set(last.tolist())
    for row in range(len(reward) - 1, -1, -1):
        if row in stop:
            after, weighs = 0.0, 1.0
        keeps = 0.0 if terminal[row] else discount
        after, weighs = float(reward[row]) + keeps * after, keeps * weighs
        total[row], weight[row] = after, weighs
    return total + weight * (total.mean() / (1 - weight.mean()))
