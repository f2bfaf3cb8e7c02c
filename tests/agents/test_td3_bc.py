"""TD3's clipped noise and ReBRAC's penalty."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from small import make, states_of

from gtp_vision.core.random import RandomStream
from gtp_vision.datasets.batch import Batch
from gtp_vision.datasets.sampler import Sampler
from gtp_vision.datasets.store import Store


@pytest.mark.parametrize("noise", [0.2, 5.0])
def test_noise_on_the_next_action_stays_within_its_clip_and_the_box(
    batch: Batch, monkeypatch: pytest.MonkeyPatch, noise: float
) -> None:
    learner = make("td3_bc", f"agent.critic.next_noise={noise}", "agent.critic.next_noise_clip=0.3")
    policy = torch.linspace(-1, 1, 24).view(12, 2)
    judged: list[torch.Tensor] = []

    def noted(features: torch.Tensor, action: torch.Tensor) -> torch.Tensor:
        judged.append(action)
        return torch.zeros(2, len(action))

    monkeypatch.setattr(learner.policy_target, "sample", lambda *_: policy)
    monkeypatch.setattr(learner.critic_target, "forward", noted)
    learner.next_value(learner.loss_inputs(states_of(batch), RandomStream(0, 0), 0))
    (action,) = judged
    assert float(action.abs().max()) <= 1
    away = (action - policy).abs()
    assert 0 < float(away.max()) <= 0.3 + 1e-6
    inside = (policy.abs() < 0.7) & (away > 0)
    bound = torch.isclose(away[inside], torch.tensor(0.3))
    assert float(bound.float().mean()) > 0.5 if noise == 5.0 else not bound.all()


def test_td3s_own_noise_is_0_2_clipped_at_0_5() -> None:
    critic = make("td3_bc").config.critic
    assert (critic.next_noise, critic.next_noise_clip) == (0.2, 0.5)
    assert make("gtp").config.critic.next_noise == 0


def test_rebracs_penalty_is_the_squared_distance_from_the_datas_next_action_and_0_where_none_follows(
    make_store: Callable[..., Store], monkeypatch: pytest.MonkeyPatch
) -> None:
    store = make_store((4, 3), terminals={6})  # rows 0 to 3 time out; row 6 is terminal
    rows = np.array([0, 1, 2, 4, 5, 6])
    batch = Sampler(store, 6, 0, frame_stack=2, action_chunk=2).gather(rows)
    learner = make("rebrac", "agent.critic.next_penalty=0.5", "agent.critic.next_noise=0")
    action = torch.rand(6, 2)
    monkeypatch.setattr(learner.policy_target, "sample", lambda *_: action)
    monkeypatch.setattr(learner.critic_target, "forward", lambda features, _: torch.full((2, len(features)), 10.0))
    value = learner.next_value(learner.loss_inputs(batch, RandomStream(0, 0), 0))
    expected = []
    for position, row in enumerate(rows):
        follows = row in (0, 1, 4, 5)  # row 2's next frame is the last of a recording that timed out
        following = store.actions[row + 1] if follows else action[position].numpy()
        expected.append(10 - 0.5 * sum((float(action[position, k]) - float(following[k])) ** 2 for k in range(2)))
    assert value.tolist() == pytest.approx(expected, rel=1e-5)
    assert min(expected) < 10


def test_rebracs_penalty_over_several_steps_compares_with_the_action_after_them(
    make_store: Callable[..., Store], monkeypatch: pytest.MonkeyPatch
) -> None:
    store = make_store((8,))
    batch = Sampler(store, 2, 0, frame_stack=2, n_step=3, action_chunk=4).gather(np.array([0, 2]))
    learner = make("rebrac", "agent.critic.next_penalty=1", "agent.critic.next_noise=0")
    action = torch.rand(2, 2)
    monkeypatch.setattr(learner.policy_target, "sample", lambda *_: action)
    monkeypatch.setattr(learner.critic_target, "forward", lambda features, _: torch.zeros(2, len(features)))
    value = learner.next_value(learner.loss_inputs(batch, RandomStream(0, 0), 0))
    following = torch.from_numpy(store.actions[[3, 5]])
    torch.testing.assert_close(value, -(action - following).square().sum(1))


def test_the_policy_itself_is_cloned_by_squared_error_and_acts_without_noise(batch: Batch) -> None:
    learner, few = make("td3_bc"), states_of(batch)
    features = few.observation["state"].flatten(1)
    action = learner.act(few.observation, RandomStream(0, 0))
    assert torch.equal(action, learner.act(few.observation, RandomStream(7, 7)))
    _, metrics = learner(few, RandomStream(0, 0), 0)
    expected = (learner.policy.sample(features, 1, RandomStream(0, 0)) - few.action).square().mean()
    assert float(metrics["actor/cloning"]) == pytest.approx(expected.item(), rel=1e-5)
