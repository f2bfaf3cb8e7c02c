"""Episodes rebuilt from recorded transitions: model-free Monte Carlo (Fonteneau et al., AISTATS 2010).

The policy acts in the state in which an episode starts; the recorded transition that is nearest to this state and
action leads to a recorded state, in which the policy acts again. A value is the mean return of such episodes. Nothing
is fitted: a policy that turns in circles is seen to do so, which a fitted Q smooths over. But every hop moves the state
a little, and where transitions are few an episode hops to places that the policy would not reach.

Axes in names: N transitions, S starts, M actions of the policy, F features, A action dimensions, P compared dimensions.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch

from gtp_vision.core.random import counter_rng
from gtp_vision.evaluation.fqe import Recorded

_COMPARED = 32  # P; of more dimensions, random projections are compared
_STARTS = 64
_TAIL = 0.03  # weight of later rewards at which an episode is left


@torch.no_grad()
def rebuilt(data: Recorded, features: torch.Tensor, plans: torch.Tensor, *, seed: int) -> np.ndarray:
    """The returns of episodes from at most 64 of the starts (S, F) and the policy's actions there (S, M, A).

    In distances, features and actions have an equal say, and each dimension of either. An episode uses a transition
    once. The mean recorded return stands for what follows where it is left.

    Returns:
        float64 (min(S, 64),).
    """
    generator, device = counter_rng(seed, 5), data.features.device
    compare = _comparison(data.features, data.actions, generator)
    known = compare(data.features[data.rows], data.actions)
    length = known.square().sum(1) / 2

    chosen = torch.from_numpy(np.sort(generator.permutation(len(features))[:_STARTS])).to(device)
    at, may = features[chosen], plans[chosen]
    worth, weight = torch.zeros(len(at), device=device), torch.ones(len(at), device=device)
    used = torch.zeros(len(at), len(known), dtype=torch.bool, device=device)
    while len(going := torch.nonzero(weight > _TAIL)[:, 0]):
        drawn = torch.from_numpy(generator.integers(0, may.shape[1], len(going))).to(device)
        asked = compare(at[going], may[going, drawn])
        # Half of the squared distance, but for the length of what is asked, which is the same for all.
        nearest = torch.addmm(length, asked, known.T, alpha=-1).masked_fill_(used[going], math.inf).argmin(1)
        used[going, nearest] = True
        worth[going] += weight[going] * data.reward[nearest]
        weight[going] *= data.discount[nearest]
        after = data.following[nearest]
        at[going], may[going] = data.features[after], data.policy[after]
    return (worth + weight * data.returns.mean()).cpu().double().numpy()


def _comparison(
    features: torch.Tensor, actions: torch.Tensor, generator: np.random.Generator
) -> Callable[[torch.Tensor, torch.Tensor], torch.Tensor]:
    """A function of features (B, F) and actions (B, A) to (B, P), in which distances are measured."""

    def divisor(values: torch.Tensor) -> torch.Tensor:
        """Infinite for dimensions that do not move."""
        deviation = values.std(0, correction=0)
        moves = deviation > 1e-6 * deviation.max()
        return torch.where(moves, deviation * moves.sum().sqrt(), math.inf)

    scale, width = torch.cat([divisor(features), divisor(actions)]), features.shape[1] + actions.shape[1]
    mixed = torch.eye(width)
    if width > _COMPARED:
        mixed = torch.from_numpy(generator.normal(size=(width, _COMPARED)) / math.sqrt(_COMPARED))
    into = mixed.to(features) / scale[:, None]
    return lambda observed, acted: torch.cat([observed, acted], 1) @ into
