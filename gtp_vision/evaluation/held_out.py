"""Measures of an agent on recorded rows that it was not trained on: its actions beside the recorded ones, its values.

Axes in names: N rows, M draws, H actions of a chunk, A action dimensions.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from gtp_vision.agents import Agent
from gtp_vision.agents.base import evaluating
from gtp_vision.core.random import RandomStream, counter_rng
from gtp_vision.datasets.batch import Batch
from gtp_vision.datasets.goals import ACTOR_GOALS
from gtp_vision.datasets.sampler import Sampler
from gtp_vision.encoders.views import first_view
from gtp_vision.models.timed import TimedPolicy

STEPS = (1, 2, 5)
"""The K in which policies that take any number of steps are measured, beside their own."""
_BATCH = 64
_TAIL = 0.1  # of a return: what lies beyond the recording may have at most this weight


@dataclass(frozen=True)
class Draws:
    """A policy's actions beside the recorded ones, in [-1, 1].

    Attributes:
        drawn: float32 (N, M, H, A), independent draws of the policy for each row.
        recorded: float32 (N, H, A).
        is_real: bool (N, H), False where the episode had no further action.
    """

    drawn: torch.Tensor
    recorded: torch.Tensor
    is_real: torch.Tensor

    def error(self) -> np.ndarray:
        """Mean absolute difference of a draw from the recorded action, float64 (H, A); NaN where none is recorded."""
        difference = (self.drawn - self.recorded[:, None]).abs().mean(1).double()
        counts = self.is_real.sum(0)[:, None].double()
        return ((difference * self.is_real[..., None]).sum(0) / counts.where(counts > 0, torch.nan)).numpy()

    def energy(self) -> np.ndarray:
        """The energy score of each row's chunk, float64 (N,): E|X - a| - E|X - X'| / 2 (Gneiting and Raftery, 2007).

        Its mean is least for the distribution that the recorded actions come from, also one of several modes.
        Distances are root mean squares over the recorded part of the chunk.
        """
        draws = self.drawn.shape[1]
        weight = self.is_real[:, None, :, None].double() / self.is_real.sum(1).clamp_min(1)[:, None, None, None]
        weight = weight / self.drawn.shape[-1]

        def distance(one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
            return ((one - other).double().square() * weight).sum((2, 3)).sqrt()

        to_data = distance(self.drawn, self.recorded[:, None]).mean(1)
        if draws == 1:
            return to_data.numpy()
        pairs = sum((distance(self.drawn, self.drawn.roll(k, 1)).mean(1) for k in range(1, draws)), torch.zeros(()))
        return (to_data - pairs / (draws - 1) / 2).numpy()


def steps_of(agent: Agent) -> tuple[int, ...]:
    """The K in which an agent is measured: its own, and `STEPS` where K is chosen when acting."""
    own = agent.config.acting.steps
    if agent.config.policy.family == "vp_diffusion" or not isinstance(agent.policy, TimedPolicy):
        return (own,)
    return tuple(sorted({own, *STEPS}))


@torch.no_grad()
def draws_of(
    agent: Agent,
    sampler: Sampler,
    rows: np.ndarray,
    steps: Sequence[int],
    device: torch.device | str,
    *,
    draws: int = 4,
    seed: int = 0,
) -> dict[int, Draws]:
    """The policy's actions for recorded rows, int64 (N,), by K; a function of the arguments alone.

    No candidate is chosen by a critic: this is the policy itself.
    """
    parts: dict[int, list[Draws]] = {k: [] for k in steps}
    with evaluating(agent):
        for start in range(0, len(rows), _BATCH):
            batch = batch_of(sampler, rows[start : start + _BATCH], seed + start).to(device)
            features = agent.actor_encoder(batch.observation)
            for k in steps:
                noise = RandomStream(seed, start, device=device)
                drawn = agent.improvement.act(agent, features, k, noise, draws)
                chunks = drawn.view(len(drawn), -1, agent.actions)
                if agent.representation is not None:
                    repeated = {name: x.repeat_interleave(draws, 0) for name, x in batch.observation.items()}
                    chunks = agent.representation.decode(chunks, repeated)
                length = agent.config.action_chunk
                tensors = (
                    chunks.view(len(batch), draws, length, -1),
                    batch.actions[:, :length],
                    batch.action_mask[:, :length],
                )
                parts[k].append(Draws(*(x.cpu() for x in tensors)))
    return {
        k: Draws(*(torch.cat([getattr(part, name) for part in own]) for name in ("drawn", "recorded", "is_real")))
        for k, own in parts.items()
    }


@torch.no_grad()
def values_of(agent: Agent, sampler: Sampler, rows: np.ndarray, device: torch.device | str) -> np.ndarray:
    """The critic's values of the recorded actions, the mean of its members, float64 (N,)."""
    values = []
    with evaluating(agent):
        for start in range(0, len(rows), _BATCH):
            batch = batch_of(sampler, rows[start : start + _BATCH], start).to(device)
            features = (agent.actor_encoder if agent.shared else agent.critic_encoder)(batch.observation)
            action = agent.critic_action(agent.chunk(batch))
            values.append(agent.critic(features, action).mean(0).cpu().double())
    return torch.cat(values).numpy()


def returns_to_go(sampler: Sampler, rows: np.ndarray) -> np.ndarray:
    """The discounted return that was recorded from each row on, float64 (N,), in the sampler's scale of rewards.

    NaN where the recording stops before the MDP ends and what is missing would count a tenth or more.
    """
    store, discount = sampler.store, sampler.discount
    longest = int((store.episode_ends - store.episode_starts).max(initial=1))
    counted = (
        longest if discount == 1 else min(longest, math.ceil(math.log(_TAIL) / math.log(discount)) if discount else 1)
    )
    total, rest, _ = replace(sampler, n_step=counted).returns(rows)
    return np.where(rest < _TAIL, total, np.nan).astype(np.float64)


def rank_correlation(values: np.ndarray, returns: np.ndarray) -> float:
    """Spearman's rank correlation of values with the returns that are known, NaN if these are too few or all equal."""
    known = np.isfinite(returns) & np.isfinite(values)
    if known.sum() < 3 or not np.ptp(returns[known]) or not np.ptp(values[known]):
        return math.nan
    from scipy.stats import spearmanr

    return float(spearmanr(values[known], returns[known]).statistic)


def batch_of(sampler: Sampler, rows: np.ndarray, key: int) -> Batch:
    """The batch of some rows, with later frames as goals if the task has goals, and the unaugmented view."""
    goals = None if sampler.goals is None else ACTOR_GOALS.draw(sampler.store, rows, counter_rng(key))
    batch = sampler.gather(rows, goals)
    return replace(
        batch, observation=first_view(batch.observation), next_observation=first_view(batch.next_observation)
    )
