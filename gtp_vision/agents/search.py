"""Which action is taken: candidates of the policy, compared by the slow critic, and improved by it.

    N candidates -> best M -> R times: B new noises each, one jump, best M of M + M B -> one of them

The Q-guided beam search of flow-map policies (FMQ, arXiv 2605.12416): an action is noised again to a level t', that is
a + t' z, and the policy jumps from there to another action of its own, the nearer the smaller t'. Actions that were
renoised stay in the comparison, so the best Q never falls. Every new action may take a step of a given length along the
normalized gradient of Q, which can lead out of the policy's support.
Axes in names: B batch, N candidates, A all numbers of an action chunk.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch.nn.functional import normalize

from gtp_vision import models
from gtp_vision.agents.settings import ActingConfig
from gtp_vision.core.random import NoiseSource
from gtp_vision.models.policy import repeated

if TYPE_CHECKING:
    from gtp_vision.agents.base import Agent


def search(
    agent: Agent,
    features: torch.Tensor,
    critic_features: torch.Tensor,
    actions: torch.Tensor,
    acting: ActingConfig,
    noise: NoiseSource,
) -> torch.Tensor:
    """The action that is taken for each observation, (B, A).

    Args:
        agent: its policy renoises, its slow critic compares.
        features: (B, F), the policy's.
        critic_features: (B, F), the slow critic's.
        actions: (B * N, A), the candidates, those of one observation side by side.
        acting: how to search.
        noise: of the search and of the choice.
    """
    found, q = _valued(agent, critic_features, actions, acting)
    if acting.rounds:
        policy, scaled = agent.policy, scaled_noise(noise, acting.noise)
        assert isinstance(policy, models.Renoisable)
        observed = repeated(policy.observe(features), acting.beam * acting.branch)
        found, q = _best(found, q, acting.beam)
        for _ in range(acting.rounds):
            parents = found.repeat_interleave(acting.branch, 1).flatten(0, 1)
            children = policy.renoised(observed, parents, acting.renoise, scaled.normal(*parents.shape))
            new, new_q = _valued(agent, critic_features, policy.bounded(children), acting)
            found, q = _best(torch.cat([found, new], 1), torch.cat([q, new_q], 1), acting.beam)
    return found[torch.arange(len(q), device=q.device), choose(q, acting, noise)]


def _valued(
    agent: Agent, features: torch.Tensor, actions: torch.Tensor, acting: ActingConfig
) -> tuple[torch.Tensor, torch.Tensor]:
    """Actions (B * N, A), after their step along Q's gradient, as (B, N, A), and their slow Q, (B, N)."""
    each = len(actions) // len(features)
    rows = features.repeat_interleave(each, 0)

    def worth(actions: torch.Tensor) -> torch.Tensor:
        return agent.critic_target.worth(rows, agent.critic_action(actions))

    if acting.gradient_step:
        slope = torch.func.grad(lambda actions: worth(actions).sum())(actions)
        actions = agent.policy.bounded(actions + acting.gradient_step * normalize(slope, dim=1))
    return actions.view(len(features), each, -1), worth(actions).view(-1, each)


def _best(actions: torch.Tensor, q: torch.Tensor, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The `count` actions of most value, (B, count, A), and their Q, (B, count)."""
    most, places = q.topk(count, 1)
    return actions.take_along_dim(places[..., None], 1), most


def choose(q: torch.Tensor, acting: ActingConfig, noise: NoiseSource) -> torch.Tensor:
    """Which candidate is taken, int64 (B,), by its value (B, N): the best, or one drawn by softmax(Q / temperature)."""
    if acting.choose == "argmax":
        return q.argmax(1)
    gumbel = -(-noise.uniform(*q.shape).clamp_min(1e-20).log()).log()
    worse = q - q.amax(1, keepdim=True)  # whose quotient neither overflows nor drowns the noise, however cold it is
    return (worse / acting.temperature + gumbel).argmax(1)


def scaled_noise(noise: NoiseSource, scale: float) -> NoiseSource:
    """The noise with normal draws of deviation `scale`."""
    return noise if scale == 1 else ScaledNoise(noise, scale)


class ScaledNoise:
    """A `NoiseSource` whose normal draws are scaled, so that a policy acts closer to its most likely action."""

    def __init__(self, noise: NoiseSource, scale: float) -> None:
        self._noise, self._scale = noise, scale

    def normal(self, rows: int, *shape: int) -> torch.Tensor:
        """Normal (rows, *shape) of deviation `scale`."""
        return self._scale * self._noise.normal(rows, *shape)

    def uniform(self, rows: int, *shape: int) -> torch.Tensor:
        """Uniform in [0, 1), (rows, *shape)."""
        return self._noise.uniform(rows, *shape)

    def integers(self, high: int, rows: int, *shape: int) -> torch.Tensor:
        """Uniform integers in [0, high), (rows, *shape)."""
        return self._noise.integers(high, rows, *shape)
