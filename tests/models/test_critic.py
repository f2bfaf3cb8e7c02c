from typing import Any

import numpy as np
import pytest
import torch

from gtp_vision.models.critic import Critic, CriticConfig, expectile_loss


@pytest.mark.parametrize("members", [1, 2, 5])
def test_the_worth_of_an_action_is_the_minimum_or_lowered_mean_of_the_members(members: int) -> None:
    torch.manual_seed(0)
    critic = Critic(3, 2, CriticConfig(members=members, hidden=[8]))
    features, action = torch.randn(6, 3), torch.randn(6, 2)
    values = critic(features, action)
    assert values.shape == (members, 6)
    rows = values.detach().T.tolist()
    assert critic.worth(features, action).tolist() == pytest.approx([min(row) for row in rows])
    critic.config.aggregate = "mean"
    assert critic.worth(features, action).tolist() == pytest.approx([sum(row) / members for row in rows])
    critic.config.rho = 0.5
    lowered = [np.mean(row) - 0.5 * np.std(row) for row in rows]
    assert critic.worth(features, action).tolist() == pytest.approx(lowered, rel=1e-4)


@pytest.mark.parametrize(("members", "count"), [(2, 4), (2, 1), (3, 2), (3, 7), (1, 2)])
def test_members_judge_in_turn(members: int, count: int) -> None:
    critic = Critic(3, 2, CriticConfig(members=members, hidden=[8], layer_norm=True))
    features, actions = torch.randn(6, 3), torch.randn(6, count, 2)
    wanted = [critic(features, actions[:, n])[n % members] for n in range(count)]
    torch.testing.assert_close(critic.in_turn(features, actions), torch.stack(wanted, 1))


def test_the_gradient_is_finite_where_all_members_agree() -> None:
    q = torch.ones(10, 3, requires_grad=True)
    critic = Critic(1, 1, CriticConfig(members=10, hidden=[4], aggregate="mean", rho=0.5))
    critic.aggregate(q).sum().backward()
    assert q.grad is not None
    torch.testing.assert_close(q.grad, torch.full((10, 3), 0.1))


def test_expectile_loss_weighs_differences_above_v_by_tau_and_below_by_1_minus_tau() -> None:
    difference = torch.tensor([2.0, -2.0, 0.0, 0.5, -0.5])
    assert expectile_loss(difference, 0.7).tolist() == pytest.approx([2.8, 1.2, 0, 0.175, 0.075])
    v = torch.linspace(0, 1, 101)  # of the values 0 and 1, the 0.9 expectile: 0.9 (1 - v) = 0.1 v, so v = 0.9
    loss = sum(expectile_loss(value - v, 0.9) for value in (0.0, 1.0))
    assert float(v[loss.argmin()]) == pytest.approx(0.9)


THREE = torch.tensor([[[1.0, 5.0, 2.0]], [[4.0, 2.0, 3.0]]])  # two members, one observation, three actions


@pytest.mark.parametrize(
    ("chosen", "expected"),
    [
        ({"backup": "max"}, 4),  # the minimum of 5 and 4, not the maximum of the minima, 2
        ({"backup": "max", "aggregate": "mean"}, 3.5),  # of the second action, not 4.5, of 5 and 4 of different ones
        (
            {"backup": "max", "aggregate": "mean", "rho": 1.0},
            2,
        ),  # of 1, 2 and 2: means 2.5, 3.5, 2.5, deviations 1.5, 1.5, 0.5
        ({"backup": "mean"}, (1 + 2 + 2) / 3),
        ({"backup": "mean", "aggregate": "mean"}, (2.5 + 3.5 + 2.5) / 3),
        ({"backup": "mean", "aggregate": "mean", "rho": 0.5}, (1.75 + 2.75 + 2.25) / 3),
        ({"backup": "softmax", "softmax_alpha": 1.0986123}, (3 * 1 + 9 * 2 + 9 * 2) / 21),  # alpha = ln 3
        ({"backup": "softmax", "softmax_alpha": 0.0}, 5 / 3),
        ({"backup": "softmax", "softmax_alpha": 50.0}, 2),
    ],
)
def test_backups_of_several_actions(chosen: dict[str, Any], expected: float) -> None:
    assert float(Critic(1, 1, CriticConfig(hidden=[4], **chosen)).backed_up(THREE)) == pytest.approx(expected)


def test_a_frozen_critic_passes_gradients_to_the_action_alone() -> None:
    torch.manual_seed(0)
    critic = Critic(3, 2, CriticConfig(hidden=[8]))
    features, action = torch.randn(4, 3, requires_grad=True), torch.randn(4, 2, requires_grad=True)
    values = critic.frozen(features, action)
    torch.testing.assert_close(values, critic(features, action))
    values.sum().backward()
    assert features.grad is None
    assert all(parameter.grad is None for parameter in critic.parameters())
    frozen = action.grad
    assert frozen is not None
    assert bool(frozen.any())
    (gradient,) = torch.autograd.grad(critic(features, action).sum(), action)
    torch.testing.assert_close(frozen, gradient)
