"""Fitted Q evaluation against problems whose values are known."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from gtp_vision.evaluation.fqe import (
    FQESettings,
    Recorded,
    best_shares,
    better,
    doubted,
    draws,
    fit,
    interval,
    recorded_returns,
)

SMALL = FQESettings(steps=400, batch_size=64, members=3, hidden=(32,), learning_rate=5e-3, tau=0.1)
GAMMA = 0.9


def _chain(episodes: int, seed: int) -> tuple[Recorded, np.ndarray]:
    """A chain of five cells with a reward of 1 behind the last, walked at random; and V of a policy that goes right.

    That policy goes right in 4 of 5 cases. A step to the left of the first cell stays there.
    """
    rng, cells = np.random.default_rng(seed), 5
    right = 0.8
    leads = np.zeros((cells, cells + 1))
    for cell in range(cells):
        leads[cell, cell + 1] += right
        leads[cell, max(0, cell - 1)] += 1 - right
    value = np.linalg.solve(np.eye(cells) - GAMMA * leads[:, :cells], leads[:, cells])
    at, after, action, episode = [], [], [], []
    for number in range(episodes):
        cell = int(rng.integers(cells))
        for _ in range(20):
            move = int(rng.choice([-1, 1]))
            at.append(cell)
            action.append(move)
            episode.append(number)
            cell = max(0, cell + move)
            after.append(cell)
            if cell == cells:
                break
    reached = np.array(after) == cells
    features = torch.eye(cells)
    policy = torch.tensor([[1.0]] * 4 + [[-1.0]]).expand(cells, 5, 1)
    recorded = Recorded(
        features=features,
        policy=policy,
        rows=torch.tensor(at),
        following=torch.tensor(np.where(reached, 0, after)),
        actions=torch.tensor(action, dtype=torch.float32)[:, None],
        reward=torch.tensor(reached, dtype=torch.float32),
        discount=torch.tensor(np.where(reached, 0, GAMMA), dtype=torch.float32),
        episodes=torch.tensor(episode),
        returns=torch.zeros(len(at)),  # as if nothing had been reached: the fit must find the value by itself
    )
    return recorded, value


def test_values_of_a_chain_are_the_solution_of_bellmans_equation() -> None:
    recorded, value = _chain(40, 0)
    found = fit(recorded, SMALL, seed=0).values(recorded.features, recorded.policy)
    assert found.shape == (3, 5)
    np.testing.assert_allclose(found.mean(0), value, atol=0.05)


def _bandit(rows: int, seed: int, *, noise: float = 0.0) -> Recorded:
    """One step with reward a^2 of uniform actions; the policy's are 0.5 or -0.7: its value is (0.25 + 0.49) / 2."""
    rng = np.random.default_rng(seed)
    action = rng.uniform(-1, 1, rows)
    reward = torch.tensor(action**2 + noise * rng.normal(size=rows), dtype=torch.float32)
    return Recorded(
        features=torch.ones(rows, 1),
        policy=torch.tensor([[0.5], [-0.7]]).expand(rows, 2, 1),
        rows=torch.arange(rows),
        following=torch.zeros(rows, dtype=torch.int64),
        actions=torch.tensor(action, dtype=torch.float32)[:, None],
        reward=reward,
        discount=torch.zeros(rows),
        episodes=torch.arange(rows),
        returns=reward,
    )


def test_value_of_a_bandit_is_the_mean_reward_of_the_policys_actions() -> None:
    recorded = _bandit(1000, 0)
    found = fit(recorded, SMALL, seed=0).values(recorded.features[:1], recorded.policy[:1])
    assert found.mean().item() == pytest.approx(0.37, abs=0.05)


def test_on_policy_the_value_is_the_mean_return() -> None:
    """Two steps, the second with reward a; the policy is the one that recorded."""
    rng, episodes = np.random.default_rng(0), 200
    action = torch.tensor(rng.normal(0.3, 0.5, (2 * episodes, 1)), dtype=torch.float32)
    rows, is_second = torch.arange(2 * episodes), torch.arange(2 * episodes) % 2 == 1
    reward = action[:, 0] * is_second
    recorded = Recorded(
        features=torch.stack([is_second, ~is_second], 1).float(),
        policy=torch.tensor(rng.normal(0.3, 0.5, (2 * episodes, 4, 1)), dtype=torch.float32),
        rows=rows,
        following=(rows + 1) % len(rows),
        actions=action,
        reward=reward,
        discount=torch.where(is_second, 0.0, GAMMA),
        episodes=rows // 2,
        returns=torch.where(is_second, reward, GAMMA * reward.roll(-1)),
    )
    found = fit(recorded, SMALL, seed=0).values(recorded.features[::2], recorded.policy[::2])
    assert found.mean().item() == pytest.approx(recorded.returns[::2].mean().item(), abs=0.05)


def test_intervals_cover_the_truth_in_most_of_repeated_problems() -> None:
    settings = FQESettings(steps=100, batch_size=32, members=5, hidden=(16,), learning_rate=1e-2)
    covered, widths = 0, []
    for seed in range(10):
        recorded = _bandit(100, seed, noise=0.5)
        values = fit(recorded, settings, seed=seed).values(recorded.features, recorded.policy)
        drawn = draws(values.double().numpy(), seed)
        low, high = interval(drawn, drawn, -1.0)
        covered += low <= 0.37 <= high
        widths.append(high - low)
    assert covered >= 7
    assert max(widths) < 0.8  # rewards reach from -1 to 2.5: an interval that covers all says nothing


def test_a_fit_is_a_function_of_its_seed() -> None:
    recorded = _bandit(50, 0)
    few = FQESettings(steps=20, batch_size=16, members=2, hidden=(8,))
    one, same, other = (fit(recorded, few, seed=seed).values(recorded.features, recorded.policy) for seed in (1, 1, 2))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)


def test_recorded_returns_continue_a_recording_that_stopped_by_the_mean() -> None:
    reward, terminal = np.array([0.0, 1, 2, 0]), np.array([False, True, False, False])
    found = recorded_returns(reward, terminal, np.array([1, 3]), 0.5)
    mean = found.mean()
    np.testing.assert_allclose(found, [0.5, 1, 2 + 0.25 * mean, 0.5 * mean])


def test_draws_of_equal_members_and_starts_have_no_width() -> None:
    drawn = draws(np.full((4, 6), 2.0), 0)
    assert interval(drawn, drawn, 0.0) == pytest.approx((2, 2))


def test_the_interval_reaches_down_by_the_difference_of_two_estimates() -> None:
    believed = np.linspace(1, 2, 1001)
    assert interval(believed, believed, 0.0) == pytest.approx((1.05, 1.95))
    assert interval(believed - 0.5, believed, 0.0) == pytest.approx((0.05, 1.95))
    assert interval(believed - 0.9, believed, 0.0) == pytest.approx((0.0, 1.95)), "not below the worst value"
    assert interval(doubted(believed, 1.0, -1.0), believed, 0.0) == interval(believed, believed, 0.0)
    assert interval(doubted(believed, 0.3, -1.0), believed, -1.0) == pytest.approx((-1.0, 1.95))


@pytest.mark.parametrize(("trust", "mean"), [(1.0, 2.0), (0.5, 0.5), (0.0, -1.0)])
def test_values_that_are_not_trusted_are_the_worst_one(trust: float, mean: float) -> None:
    assert doubted(np.full(100, 2.0), trust, -1.0).mean() == pytest.approx(mean)


def test_policies_that_are_equally_good_share_being_the_best() -> None:
    assert best_shares(np.array([[1.0, 2], [1, 0]])).tolist() == [0.75, 0.25]


def test_ranking_counts_paired_draws() -> None:
    drawn = np.array([[1.0, 2, 3, 4], [0, 0, 0, 9]])
    assert best_shares(drawn).tolist() == [0.75, 0.25]
    assert better(drawn).tolist() == [[0.5, 0.75], [0.25, 0.5]]
