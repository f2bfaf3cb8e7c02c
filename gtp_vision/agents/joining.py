"""How a plan joins the plan before it, parts of which are executed while the new one is computed.

    plan before   a_0 ... a_(e-1) | a_e ... a_(e+d-1) | a_(e+d) ... a_(H-1)
    new plan                      | frozen, weight 1  | overlap, weights 1 > w > 0 | free, weight 0

`blend` moves the new plan towards the one before by these weights. `rtc`, real-time chunking (Black, Galliker and
Levine, 2025), inpaints: the frozen and the overlapping actions are taken as known, and the rest as a sample given them.
The paper guides each of many solver steps by a gradient. A flow map has one or two jumps, and replacing the known part
after each hardly decides between the modes of the rest. So the condition is met by choosing the noise, as rejection
sampling does: of `acting.draws` noises, whose plans cost one batch, the one whose plan is nearest to what is known.
Then the plan is completed by its own denoiser: the known part replaced, a + sigma_last z, one jump (`Renoisable`).
Axes in names: B batch, N candidates, H actions of a chunk, A action dimensions, P the policy's.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

import torch

from gtp_vision import models
from gtp_vision.agents.settings import RTC, ActingConfig
from gtp_vision.core.random import NoiseSource
from gtp_vision.models.policy import repeated

if TYPE_CHECKING:
    from gtp_vision.agents.base import Agent


class Known(NamedTuple):
    """What is known of plans before they are made.

    Attributes:
        actions: (B, H, A) in [-1, 1] of the file, the plan before from the new one's first step on; where its weight
            is 0 an action does not count.
        weight: (B, H); where it is 1, the new plan has the known action, bit for bit.
    """

    actions: torch.Tensor
    weight: torch.Tensor

    @staticmethod
    def of(rest: torch.Tensor, frozen: int, chunk: int) -> Known:
        """The condition of plans of `chunk` actions by what remains of those before, (B, O, A), 0 < O <= chunk."""
        missing = rest[:, -1:].expand(-1, chunk - rest.shape[1], -1)
        weight = torch.tensor(weights(frozen, rest.shape[1], chunk), dtype=rest.dtype, device=rest.device)
        return Known(torch.cat([rest, missing], 1), weight.expand(len(rest), -1).contiguous())


def weights(frozen: int, overlap: int, chunk: int) -> list[float]:
    """The weight of each known action (Black et al., 2025, eq. 5): 1 for `frozen`, then falling to 0 after `overlap`.

    With c = (O - i) / (O - d + 1), i the action, d the frozen and O the overlapping ones, it is c (e^c - 1) / (e - 1).
    """
    falling = ((overlap - i) / (overlap - frozen + 1) for i in range(frozen, overlap))
    return [1.0] * frozen + [c * math.expm1(c) / math.expm1(1) for c in falling] + [0.0] * (chunk - overlap)


def draws_of(acting: ActingConfig) -> int:
    """Actions that the policy draws for a plan that joins another."""
    return acting.candidates * (acting.draws if acting.join == RTC else 1)


def joined(
    agent: Agent,
    features: torch.Tensor,
    drawn: torch.Tensor,
    known: torch.Tensor,
    weight: torch.Tensor,
    acting: ActingConfig,
    noise: NoiseSource,
) -> torch.Tensor:
    """The candidates (B * N, H P) made of the drawn actions, (B * `draws_of`, H P); all in the policy's [-1, 1].

    Args:
        agent: its policy inpaints.
        features: (B, F), the policy's.
        drawn: actions of the policy, those of one observation side by side.
        known: (B, H P), the plans before.
        weight: (B, H P), of their numbers.
        acting: `join`, `candidates` and `draws`.
        noise: of the jump that completes an inpainted plan.

    With w the weights, b the known and x the drawn actions: blend is x + w (b - x). rtc takes of each `draws` x that
    of the least sum of w (x - b)^2, pulls it, y = x + w (b - x), jumps, x' = Phi(y + sigma_last z, sigma_last, 0), and
    returns x' + w (b - x').
    """
    known, weight = repeated(known, acting.candidates), repeated(weight, acting.candidates)
    if acting.join == RTC:
        policy = agent.policy
        assert isinstance(policy, models.Renoisable)
        drawn = drawn.view(len(known), acting.draws, -1)
        distance = (weight[:, None] * (drawn - known[:, None]).square()).sum(2)
        nearest = drawn.take_along_dim(distance.argmin(1)[:, None, None], 1)[:, 0]
        pulled = torch.lerp(nearest, known, weight)
        observed = repeated(policy.observe(features), acting.candidates)
        made = policy.renoised(observed, pulled, policy.config.sigma_last, noise.normal(*pulled.shape))
        drawn = policy.bounded(made)
    return torch.lerp(drawn, known, weight)
