import pytest
import torch

from gtp_vision.critics import Critic, CriticConfig, td_target


def test_after_a_terminal_the_next_value_counts_for_nothing() -> None:
    reward, value = torch.tensor([1.0, -2.0]), torch.tensor([1e6, -1e6])
    assert torch.equal(td_target(reward, torch.zeros(2), value), reward)


def test_the_target_is_the_return_plus_the_discounted_next_value() -> None:
    target = td_target(torch.tensor([1.0, -2.0]), torch.tensor([0.9, 0.5]), torch.tensor([10.0, 4.0]))
    assert target.tolist() == pytest.approx([10.0, 0.0])


@pytest.mark.parametrize("members", [1, 2, 5])
def test_the_pessimistic_value_is_the_least_of_the_members(members: int) -> None:
    torch.manual_seed(0)
    critic = Critic(3, 2, CriticConfig(members=members, hidden=[8]))
    features, action = torch.randn(6, 3), torch.randn(6, 2)
    values = critic(features, action)
    assert values.shape == (members, 6)
    expected = [min(row) for row in values.detach().T.tolist()]
    assert critic.pessimistic(features, action).tolist() == pytest.approx(expected)


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
