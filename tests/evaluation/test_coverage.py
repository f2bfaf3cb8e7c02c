"""Support coverage where the answer is known."""

from __future__ import annotations

import pytest
import torch

from gtp_vision.evaluation.coverage import coverage


def _recorded(rows: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Observations of two dimensions, one of them constant, and actions that are the other's half, with noise."""
    generator = torch.Generator().manual_seed(seed)
    moving = torch.rand(rows, 1, generator=generator)
    features = torch.cat([moving, torch.full((rows, 1), 7.0)], 1)
    return features, moving / 2 + 0.05 * torch.randn(rows, 1, generator=generator)


@pytest.mark.parametrize(("shift", "share"), [(0.0, 0.95), (3.0, 0.0)])
def test_share_is_the_quantile_for_recorded_actions_and_0_far_away(shift: float, share: float) -> None:
    features, actions = _recorded(1000, 0)
    held_features, held_actions = _recorded(400, 1)
    found = coverage(features, actions, held_features, held_actions, held_actions[:, None] + shift)
    assert found.share == pytest.approx(share, abs=0.01)
    assert found.trust == pytest.approx(float(share > 0))
    assert found.distance.shape == (400, 1)


def test_distance_does_not_depend_on_units() -> None:
    features, actions = _recorded(200, 0)
    held, taken = _recorded(50, 1)
    plain = coverage(features, actions, held, taken, taken[:, None] + 0.2)
    scaled = coverage(1000 * features, actions, 1000 * held, taken, taken[:, None] + 0.2)
    torch.testing.assert_close(plain.distance, scaled.distance, rtol=1e-3, atol=1e-4)
