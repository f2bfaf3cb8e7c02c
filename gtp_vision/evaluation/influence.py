"""How much each recorded episode helps an agent, judged by other episodes and by its critic.

    agreement_i = median_j <g_i, g_j> / median_j <g_j, g_j>

with g_i the gradient of the policy's own loss on episode i, g_j that on held-out episode j, of the policy's parameters.
A small step down the loss of episode i changes that of j by -<g_i, g_j> (TracIn with one checkpoint; Pruthi et al.,
NeurIPS 2020, eq. 1): below 0, it raises the loss of most held-out episodes. Medians, because some held-out episodes may
be bad themselves, and those have the largest gradients.

Axes in names: B batch, E episodes, J held-out episodes, P parameters.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch

from gtp_vision.agents import Agent
from gtp_vision.agents.base import evaluating
from gtp_vision.core.random import RandomStream
from gtp_vision.datasets.sampler import Sampler
from gtp_vision.evaluation.held_out import batch_of

_BATCH = 64
_DRAWS = 16  # of noise, for each row
HELD_OUT = 1
"""Seed of the noise on held-out episodes; with the same on the others, all gradients would seem to agree."""


def agreements(
    agent: Agent,
    sampler: Sampler,
    episodes: Sequence[np.ndarray],
    held_out: Sampler,
    others: Sequence[np.ndarray],
    device: torch.device | str,
) -> np.ndarray:
    """The agreement of each episode's gradient with those of the held-out ones, float64 (E,).

    Args:
        agent: with a policy that learns from data.
        sampler: of the episodes.
        episodes: rows of each, int64; not all of them need be given.
        held_out: of the held-out episodes.
        others: rows of each of those.
        device: of the agent.

    Raises:
        GtpVisionError: a policy without a loss of its own.
    """
    with evaluating(agent):
        target = torch.stack([_gradient(agent, held_out, rows, HELD_OUT, device) for rows in others])
        size = target.square().sum(1).median().clamp_min(torch.finfo(torch.float32).tiny)
        found = [(target @ _gradient(agent, sampler, rows, 0, device)).median() for rows in episodes]
    return (torch.stack(found).cpu().double() / size.cpu()).numpy()


def _gradient(agent: Agent, sampler: Sampler, rows: np.ndarray, seed: int, device: torch.device | str) -> torch.Tensor:
    """The gradient of the policy's mean loss on rows, float32 (P,), on the CPU."""
    parameters = [parameter for parameter in agent.policy.parameters() if parameter.requires_grad]
    total = [torch.zeros_like(parameter) for parameter in parameters]
    for part in loss_parts(agent, sampler, rows, seed, device):
        for held, slope in zip(total, torch.autograd.grad(part, parameters, allow_unused=True), strict=True):
            if slope is not None:
                held += slope
    return torch.cat([held.flatten() for held in total]).cpu()


def loss_parts(
    agent: Agent, sampler: Sampler, rows: np.ndarray, seed: int, device: torch.device | str
) -> Iterator[torch.Tensor]:
    """Parts, (), whose sum is the policy's mean loss on rows, as a function of its parameters alone."""
    for start in range(0, len(rows), _BATCH):
        batch = batch_of(sampler, rows[start : start + _BATCH], start).to(torch.device(device))
        with torch.no_grad():
            features, action = agent.actor_encoder(batch.observation), agent.chunk(batch)
        features, action = features.repeat(_DRAWS, 1), action.repeat(_DRAWS, 1)
        noise = RandomStream(seed, start, device=device)
        losses, _ = agent.policy.loss(agent.policy.rows(features, action, noise, agent.policy_target))
        yield agent.policy.per_sample(losses).mean() * len(batch) / len(rows)


@torch.no_grad()
def advantages(agent: Agent, sampler: Sampler, rows: np.ndarray, device: torch.device | str) -> np.ndarray:
    """Q(o, a) - E Q(o, a'), a recorded and a' the policy's, by the mean of the critic's members, float64 (N,)."""
    found = []
    with evaluating(agent):
        for start in range(0, len(rows), _BATCH):
            batch = batch_of(sampler, rows[start : start + _BATCH], start).to(torch.device(device))
            actor = agent.actor_encoder(batch.observation)
            critic = actor if agent.shared else agent.critic_encoder(batch.observation)
            noise = RandomStream(0, start, device=device)
            drawn = agent.improvement.act(agent, actor, agent.config.acting.steps, noise, _DRAWS)
            own = agent.critic(critic.repeat_interleave(_DRAWS, 0), agent.critic_action(drawn)).mean(0)
            recorded = agent.critic(critic, agent.critic_action(agent.chunk(batch))).mean(0)
            found.append((recorded - own.view(-1, _DRAWS).mean(1)).cpu().double())
    return torch.cat(found).numpy()
