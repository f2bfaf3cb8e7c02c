"""Advantage weighting: GTP's form, IQL's, and V."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from small import make, states_of

from gtp_vision.agents.gtp import AdvantageWeighting, advantage_weights
from gtp_vision.core.random import RandomStream
from gtp_vision.datasets.batch import Batch


def plain_weights(advantage: np.ndarray, eta: float, clip: float) -> np.ndarray:
    with np.errstate(over="ignore"):
        return np.minimum(np.exp(eta * np.maximum(advantage, 0) / (advantage.std() + 1e-6)), clip)


@settings(max_examples=100, deadline=None, derandomize=True)
@given(
    arrays(np.float32, st.integers(2, 40), elements=st.floats(-10, 10, width=32)),
    st.floats(0, 10),
    st.floats(1, 200),
)
def test_weights_are_exponential_in_the_positive_advantage_over_its_deviation_and_clipped(
    advantage: np.ndarray, eta: float, clip: float
) -> None:
    exact = advantage.astype(np.float64)
    assume(exact.std() > 0.1 * np.abs(exact).max() > 1e-3)
    weight = advantage_weights(torch.from_numpy(advantage), eta, clip)
    np.testing.assert_allclose(weight, plain_weights(exact, eta, clip), rtol=2e-3)


def test_the_deviation_keeps_its_digits_far_from_zero() -> None:
    advantage = 300 + 0.05 * torch.randn(256, generator=torch.Generator().manual_seed(0))
    eta = 3e-4  # so that the weights stay far below the clip
    expected = plain_weights(advantage.double().numpy(), eta, 100)
    np.testing.assert_allclose(advantage_weights(advantage, eta, 100), expected, rtol=1e-2)


@pytest.mark.parametrize("form", ["positive", "exponential"])
def test_weights_at_eta_0_are_all_1(form: str) -> None:
    weight = advantage_weights(torch.tensor([-5.0, 0.0, 3.0, 1e6]), 0.0, 100.0, form=form)
    assert weight.tolist() == [1, 1, 1, 1]


def test_no_advantage_weighs_1_and_the_clip_is_the_most() -> None:
    weight = advantage_weights(torch.tensor([-5.0, -1.0, 0.0, 50.0]), 10.0, 20.0)
    assert weight.tolist() == [1, 1, 1, 20]


def test_the_exponential_form_lets_bad_actions_weigh_less() -> None:
    advantage = torch.tensor([-2.0, 0.0, 2.0, 4.0])  # of deviation sqrt(5)
    weight = advantage_weights(advantage, 1.0, 100.0, form="exponential")
    assert weight.tolist() == pytest.approx([0.40884, 1, 2.44593, 5.98258], rel=1e-4)


def test_iqls_weights_are_e_to_beta_times_the_advantage_and_at_most_100() -> None:
    advantage = torch.tensor([-1.0, 0.0, 0.5, 2.0])
    weight = advantage_weights(advantage, 3.0, 100.0, form="exponential", standardize=False)
    assert weight.tolist() == pytest.approx([0.0497871, 1, 4.4816891, 100])


def test_equal_advantages_stay_finite() -> None:
    assert advantage_weights(torch.full((4,), 2.0), 3.0, 100.0).tolist() == [100] * 4
    assert advantage_weights(torch.zeros(4), 3.0, 100.0).tolist() == [1] * 4


def test_the_advantage_is_the_value_above_the_mean_over_policy_samples(
    batch: Batch, monkeypatch: pytest.MonkeyPatch
) -> None:
    learner = make("gtp", "agent.improvement.value_steps=2")
    seen = learner.loss_inputs(states_of(batch), RandomStream(0, 0), 0)
    seen = replace(seen, critic=torch.randn(12, 6), actor=torch.randn(12, 6))
    seen = replace(seen, q=learner.critic(seen.critic, seen.action).detach())
    samples = torch.rand(36, 2)
    asked: list[tuple[torch.Tensor, int, int]] = []

    def sample(features: torch.Tensor, steps: int, generator: RandomStream, draws: int = 1) -> torch.Tensor:
        asked.append((features, steps, draws))
        return samples

    monkeypatch.setattr(learner.policy_target, "sample", sample)
    assert isinstance(learner.improvement, AdvantageWeighting)
    advantage = learner.improvement.advantage(learner, seen)
    for row in range(12):
        one = seen.critic[row : row + 1]

        def value(a: torch.Tensor, one: torch.Tensor = one) -> float:
            return min(learner.critic(one, a[None])[:, 0].tolist())

        expected = value(seen.action[row]) - np.mean([value(samples[3 * row + k]) for k in range(3)])
        assert float(advantage[row]) == pytest.approx(expected, abs=1e-5)
    ((features, steps, draws),) = asked
    assert (steps, draws) == (2, 3)
    assert torch.equal(features, seen.actor)


def test_where_the_critic_learns_a_v_the_advantage_is_over_it(batch: Batch) -> None:
    learner, few = make("iql"), states_of(batch)
    seen = learner.loss_inputs(few, RandomStream(0, 0), 0)
    assert isinstance(learner.improvement, AdvantageWeighting)
    advantage = learner.improvement.advantage(learner, replace(seen, q=learner.critic(seen.critic, seen.action)))
    expected = learner.critic(seen.critic, few.action).min(0).values - learner.critic.value(seen.critic)
    torch.testing.assert_close(advantage, expected.detach())
    assert not advantage.requires_grad


def test_eta_0_weighs_every_action_1(batch: Batch) -> None:
    _, metrics = make("gtp", "agent.improvement.eta=0")(states_of(batch), RandomStream(0, 0))
    assert float(metrics["weight/mean"]) == 1
    assert float(metrics["weight/effective_share"]) == pytest.approx(1)


def test_the_actors_loss_is_the_weighted_mean_whatever_the_scale_of_the_weights(
    batch: Batch, monkeypatch: pytest.MonkeyPatch
) -> None:
    learner, few = make(), states_of(batch)
    used: list[torch.Tensor] = []
    losses: list[float] = []
    compute = learner.policy.loss

    def noted(*arguments: Any) -> Any:
        used.append(arguments[2])
        return compute(*arguments)

    monkeypatch.setattr(learner.policy, "loss", noted)
    for scale in (1.0, 40.0):
        weight = scale * torch.arange(12.0)
        monkeypatch.setattr("gtp_vision.agents.gtp.advantage_weights", lambda *_, weight=weight, **__: weight)
        losses.append(float(learner(few, RandomStream(0, 0), 0)[1]["actor/loss"]))
        torch.testing.assert_close(used[-1], weight / weight.mean())
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
