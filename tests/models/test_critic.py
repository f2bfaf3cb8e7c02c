import pytest
import torch

from gtp_vision.models.critic import Critic, CriticConfig, expectile_loss, td_target


def test_after_a_terminal_the_next_value_counts_for_nothing() -> None:
    reward, value = torch.tensor([1.0, -2.0]), torch.tensor([1e6, -1e6])
    assert torch.equal(td_target(reward, torch.zeros(2), value), reward)


def test_the_target_is_the_return_plus_the_discounted_next_value() -> None:
    target = td_target(torch.tensor([1.0, -2.0]), torch.tensor([0.9, 0.5]), torch.tensor([10.0, 4.0]))
    assert target.tolist() == pytest.approx([10.0, 0.0])


@pytest.mark.parametrize("members", [1, 2, 5])
def test_the_worth_of_an_action_is_the_least_of_the_members_or_their_mean(members: int) -> None:
    torch.manual_seed(0)
    critic = Critic(3, 2, CriticConfig(members=members, hidden=[8]))
    features, action = torch.randn(6, 3), torch.randn(6, 2)
    values = critic(features, action)
    assert values.shape == (members, 6)
    rows = values.detach().T.tolist()
    assert critic.worth(features, action).tolist() == pytest.approx([min(row) for row in rows])
    critic.config.aggregate = "mean"
    assert critic.worth(features, action).tolist() == pytest.approx([sum(row) / members for row in rows])


def test_values_depend_on_the_features_and_on_the_action() -> None:
    critic = Critic(3, 2, CriticConfig(hidden=[8]))
    features, action = torch.randn(4, 3), torch.randn(4, 2)
    before = critic(features, action)
    assert not torch.allclose(critic(features + 1, action), before)
    assert not torch.allclose(critic(features, action + 1), before)


def test_members_begin_apart() -> None:
    critic = Critic(3, 2, CriticConfig(members=2, hidden=[8]))
    first, second = critic(torch.randn(4, 3), torch.randn(4, 2))
    assert not torch.allclose(first, second)


def test_the_expectile_loss_weighs_what_lies_above_v_by_tau_and_the_rest_by_1_minus_tau() -> None:
    difference = torch.tensor([2.0, -2.0, 0.0, 0.5, -0.5])
    assert expectile_loss(difference, 0.7).tolist() == pytest.approx([2.8, 1.2, 0, 0.175, 0.075])
    assert expectile_loss(difference, 0.5).tolist() == pytest.approx([2, 2, 0, 0.125, 0.125])


def test_the_least_expectile_loss_is_at_the_expectile() -> None:
    # Of the values 0 and 1, the 0.9 expectile: 0.9 (1 - v) = 0.1 v, so v = 0.9.
    v = torch.linspace(0, 1, 101)
    loss = sum(expectile_loss(value - v, 0.9) for value in (0.0, 1.0))
    assert float(v[loss.argmin()]) == pytest.approx(0.9)


def test_only_an_expectile_critic_learns_a_v() -> None:
    assert Critic(3, 2, CriticConfig(hidden=[8])).v is None
    critic = Critic(3, 2, CriticConfig(backup="expectile", hidden=[8]))
    assert critic.value(torch.randn(4, 3)).shape == (4,)


# What Q bootstraps from -----------------------------------------------------------------------------------------

THREE = torch.tensor([[[1.0, 5.0, 2.0]], [[4.0, 2.0, 3.0]]])  # two members, one observation, three actions


def backed_up(**chosen: object) -> float:
    return float(Critic(1, 1, CriticConfig(hidden=[4], **chosen)).backed_up(THREE))  # type: ignore[arg-type]


def test_the_max_backup_is_the_least_of_the_members_best() -> None:
    assert backed_up(backup="max") == 4, "min of 5 and 4, not the best of the least, 2"
    assert backed_up(backup="max", aggregate="mean") == 4.5


def test_the_mean_backup_is_the_mean_of_the_least() -> None:
    assert backed_up(backup="mean") == pytest.approx((1 + 2 + 2) / 3)
    assert backed_up(backup="mean", aggregate="mean") == pytest.approx((2.5 + 3.5 + 2.5) / 3)


def test_the_softmax_backup_weighs_each_value_by_its_own_softmax() -> None:
    # Least values 1, 2, 2; with alpha = ln 3 the odds are 3, 9, 9.
    assert backed_up(backup="softmax", softmax_alpha=1.0986123) == pytest.approx((3 * 1 + 9 * 2 + 9 * 2) / 21)
    assert backed_up(backup="softmax", softmax_alpha=0.0) == pytest.approx(5 / 3)
    assert backed_up(backup="softmax", softmax_alpha=50.0) == pytest.approx(2)


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
