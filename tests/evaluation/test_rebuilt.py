"""Episodes rebuilt from recorded transitions, where their returns are known."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch

from gtp_vision.evaluation.fqe import Recorded
from gtp_vision.evaluation.rebuilt import rebuilt

GAMMA = 0.9


def _corridor(width: int = 2) -> Recorded:
    """Ten walks along six cells, to a reward of 1 at the end; all observations hold the cell, and noise."""
    rng, cells = np.random.default_rng(0), 6
    walks = [np.arange(cells) + 0.05 * rng.uniform(-1, 1, cells) for _ in range(10)]
    features = torch.zeros(60, width)
    features[:, 0] = torch.tensor(np.concatenate(walks))
    rows = torch.tensor([row for row in range(60) if row % cells < cells - 1])
    back = torch.arange(60) - torch.tensor([min(1, row % cells) for row in range(60)])
    ends = rows % cells == cells - 2
    forth = Recorded(
        features=features,
        policy=torch.ones(60, 1, 1),
        rows=rows,
        following=rows + 1,
        actions=torch.ones(len(rows), 1),
        reward=ends.float(),
        discount=torch.where(ends, 0.0, GAMMA),
        episodes=rows // cells,
        returns=torch.zeros(len(rows)),
    )
    rows = torch.cat([rows, rows + 1])  # and the same way back
    return replace(
        forth,
        rows=rows,
        following=torch.cat([forth.following, back[rows[50:]]]),
        actions=torch.cat([forth.actions, -torch.ones(50, 1)]),
        reward=torch.cat([forth.reward, torch.zeros(50)]),
        discount=torch.cat([forth.discount, torch.full((50,), GAMMA)]),
        episodes=rows // cells,
        returns=torch.zeros(100),
    )


def test_a_policy_that_goes_to_the_end_has_its_discounted_reward() -> None:
    data = _corridor()
    starts = data.features[::6]
    found = rebuilt(data, starts, torch.ones(10, 1, 1), seed=0)
    np.testing.assert_allclose(found, GAMMA**4, rtol=1e-6)


def test_many_dimensions_are_projected_without_losing_the_way() -> None:
    data = _corridor(width=300)
    data = replace(
        data, features=data.features + 0.01 * torch.randn(60, 300, generator=torch.Generator().manual_seed(0))
    )
    found = rebuilt(data, data.features[::6], torch.ones(10, 1, 1), seed=0)
    assert found.shape == (10,)
    assert (found > 0).all()


def test_a_policy_that_turns_back_reaches_nothing_however_rewarding_its_cells_are() -> None:
    data = _corridor()
    cell = data.features[:, 0].round()
    turning = torch.where(cell < 3, 1.0, -1.0)[:, None, None]  # forth to the third cell, and back from there
    data = replace(data, policy=turning, returns=data.returns + 0.5)
    found = rebuilt(data, data.features[::6], turning[::6], seed=0)
    np.testing.assert_allclose(found, 0, atol=0.03)  # but for the tail, for which the mean return stands


def test_it_is_a_function_of_the_seed() -> None:
    data = _corridor()
    either = torch.tensor([1.0, -1.0])[None, :, None]
    data = replace(data, policy=either.expand(60, 2, 1))
    first, again, other = (rebuilt(data, data.features[::6], either.expand(10, 2, 1), seed=seed) for seed in (0, 0, 1))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)
