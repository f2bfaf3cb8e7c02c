"""Support coverage: how much of what a policy does lies near what was recorded.

Values of actions that were not recorded are guesses, whatever estimates them. A pair of observation and action is near
the data if the k-th of its nearest recorded neighbours is nearer than that of 95 % of the recorded pairs that are held
out. Distances give features and actions an equal say, and each dimension of either. Values of pairs that are not near
are trusted less and less, and no more from one and a half times that distance on.

Axes in names: N recorded rows, H held-out rows, M actions of the policy, F features, A action dimensions.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

NEIGHBOURS = 5
QUANTILE = 0.95
_FADES = 1.5  # times the largest near distance: where trust ends
_PIECE = 512  # pairs whose distances to all recorded ones are held at once


@dataclass(frozen=True)
class Coverage:
    """How near a policy's actions are to the data.

    Attributes:
        share: of the policy's actions that are near; 0.95 where they are as the recorded ones.
        trust: how far values of the policy's actions are to be trusted, from 0 to 1, as those of recorded ones are.
        distance: float32 (H, M), of each action, in units of the largest distance that counts as near.
    """

    share: float
    trust: float
    distance: torch.Tensor


def coverage(
    features: torch.Tensor,
    actions: torch.Tensor,
    held_features: torch.Tensor,
    held_actions: torch.Tensor,
    policy: torch.Tensor,
) -> Coverage:
    """Compare the policy's actions (H, M, A) on held-out rows (H, F), (H, A) with recorded rows (N, F), (N, A)."""

    def scaled(values: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
        deviation = like.std(0, correction=0)
        moves = deviation > 1e-6 * deviation.max()  # others say nothing
        return values[..., moves] / deviation[moves] / max(1, int(moves.sum())) ** 0.5

    def pairs(observed: torch.Tensor, acted: torch.Tensor) -> torch.Tensor:
        return torch.cat([scaled(observed, features), scaled(acted, actions)], -1)

    recorded = pairs(features, actions)
    known = neighbour_distances(pairs(held_features, held_actions), recorded)
    limit = known.quantile(QUANTILE).clamp_min(1e-12)
    count = policy.shape[1]
    taken = pairs(held_features.repeat_interleave(count, 0), policy.flatten(0, 1))
    distance = neighbour_distances(taken, recorded) / limit
    trust = min(1.0, float(_trusted(distance) / _trusted(known / limit)))
    return Coverage(float((distance <= 1).float().mean()), trust, distance.unflatten(0, (-1, count)))


def _trusted(distance: torch.Tensor) -> torch.Tensor:
    """The mean trust in pairs by their distance: 1 up to 1, 0 from `_FADES` on."""
    return ((_FADES - distance) / (_FADES - 1)).clamp(0, 1).mean()


def neighbour_distances(rows: torch.Tensor, recorded: torch.Tensor) -> torch.Tensor:
    """The distance of each row (H, F) to its k-th nearest recorded one of (N, F): (H,)."""
    k = min(NEIGHBOURS, len(recorded))
    return torch.cat([torch.cdist(some, recorded).kthvalue(k, 1).values for some in rows.split(_PIECE)])
