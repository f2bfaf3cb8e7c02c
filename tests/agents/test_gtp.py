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
    arrays(np.float32, st.integers(2, 40), elements=st.floats(-10, 10, width=32)), st.floats(0, 10), st.floats(1, 200)
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


EXPONENTIAL = {"form": "exponential"}
IQL = {"form": "exponential", "standardize": False}


@pytest.mark.parametrize(
    ("advantage", "eta", "clip", "how", "expected"),
    [
        ([-5, 0, 3, 1e6], 0, 100, {}, [1, 1, 1, 1]),
        ([-5, 0, 3, 1e6], 0, 100, EXPONENTIAL, [1, 1, 1, 1]),
        ([-5, -1, 0, 50], 10, 20, {}, [1, 1, 1, 20]),  # no advantage, and the clip
        ([-2, 0, 2, 4], 1, 100, EXPONENTIAL, [0.40884, 1, 2.44593, 5.98258]),  # of deviation sqrt(5)
        ([-1, 0, 0.5, 2], 3, 100, IQL, [0.0497871, 1, 4.4816891, 100]),  # e to eta times the advantage
        ([2, 2, 2, 2], 3, 100, {}, [100] * 4),  # of deviation 0
        ([0, 0, 0, 0], 3, 100, {}, [1] * 4),
    ],
)
def test_weights_of_known_advantages(
    advantage: list[float], eta: float, clip: float, how: dict[str, Any], expected: list[float]
) -> None:
    weight = advantage_weights(torch.tensor(advantage, dtype=torch.float32), eta, clip, **how)
    assert weight.tolist() == pytest.approx(expected, rel=1e-4)


UNDERFLOWING = {
    "far below": [-1000.0, -1001.0, -1000.5],
    "spread": [-1e4, -300.0, -299.0],
    "one value": [-5e3, -5e3, -5e3],
    "huge": [-3e38, -1e30, -2e38],
    "just below": [-1e-3, -2e-3, -5.0],
}


@pytest.mark.parametrize("how", [{"standardize": False}, {"standardize": True}], ids=lambda how: str(how))
@pytest.mark.parametrize("advantage", UNDERFLOWING.values(), ids=UNDERFLOWING)
def test_exponential_weights_are_right_up_to_a_factor_where_all_would_underflow(
    advantage: list[float], how: dict[str, Any]
) -> None:
    exact = np.array(advantage) / (np.std(advantage) + 1e-6 if how["standardize"] else 1)
    expected = np.exp(3 * (exact - exact.max()))
    weight = advantage_weights(torch.tensor(advantage), 3, 10, form="exponential", **how)
    np.testing.assert_allclose(weight, expected, rtol=2e-3, atol=1e-30)


def test_weights_have_the_same_bits_as_before_where_none_underflows() -> None:
    advantage = torch.randn(256, generator=torch.Generator().manual_seed(0))
    for form, positive in (("exponential", advantage), ("positive", advantage.clamp_min(0))):
        plain = (3 * (positive / (advantage.double().std(correction=0).float() + 1e-6))).exp().clamp_max(10)
        assert torch.equal(advantage_weights(advantage, 3, 10, form=form), plain)


def test_without_any_weight_nothing_is_cloned_and_all_is_finite(batch: Batch, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gtp_vision.agents.gtp.advantage_weights", lambda *_, **__: torch.zeros(12))
    _, metrics = make()(states_of(batch), RandomStream(0, 0), 0)
    assert float(metrics["actor/loss"]) == float(metrics["weight/effective_share"]) == 0
    assert all(bool(value.isfinite()) for value in metrics.values())


def test_the_advantage_is_the_value_above_the_mean_over_policy_samples(
    batch: Batch, monkeypatch: pytest.MonkeyPatch
) -> None:
    learner = make("gtp", "agent.improvement.value_steps=2")
    seen = learner.loss_inputs(states_of(batch), RandomStream(0, 0), 0)
    seen = replace(seen, critic=torch.randn(12, 6), actor=torch.randn(12, 6))
    seen = replace(seen, q=learner.critic(seen.critic, seen.action).detach())
    samples = torch.rand(36, 2)
    asked: list[tuple[torch.Tensor, int, int]] = []

    def sample(features: torch.Tensor, steps: int, noise: RandomStream, draws: int = 1) -> torch.Tensor:
        asked.append((features, steps, draws))
        return samples

    monkeypatch.setattr(learner.policy_target, "sample", sample)
    assert isinstance(learner.improvement, AdvantageWeighting)
    advantage = learner.improvement.advantage(learner, seen)
    for row in range(12):
        one = seen.critic[row : row + 1]

        def values(a: torch.Tensor, one: torch.Tensor = one) -> list[float]:
            return learner.critic(one, a[None])[:, 0].tolist()

        judged = [values(samples[3 * row + k])[k % 2] for k in range(3)]
        expected = np.mean(values(seen.action[row])) - np.mean(judged)
        assert float(advantage[row]) == pytest.approx(expected, abs=1e-5)
    ((features, steps, draws),) = asked
    assert (steps, draws) == (2, 3)
    assert torch.equal(features, seen.actor)


def test_the_advantage_is_over_v_where_the_critic_learns_it(batch: Batch) -> None:
    learner, few = make("iql"), states_of(batch)
    seen = learner.loss_inputs(few, RandomStream(0, 0), 0)
    assert isinstance(learner.improvement, AdvantageWeighting)
    advantage = learner.improvement.advantage(learner, replace(seen, q=learner.critic(seen.critic, seen.action)))
    expected = learner.critic(seen.critic, few.action).min(0).values - learner.critic.value(seen.critic)
    torch.testing.assert_close(advantage, expected.detach())
    assert not advantage.requires_grad


def test_the_actors_loss_is_the_weighted_mean_at_any_scale_of_the_weights(
    batch: Batch, monkeypatch: pytest.MonkeyPatch
) -> None:
    learner, few = make(), states_of(batch)
    monkeypatch.setattr(learner.policy, "loss", lambda rows: (torch.arange(12.0) ** 2, {}))
    for scale in (1.0, 40.0):
        weight = scale * torch.arange(12.0)
        monkeypatch.setattr("gtp_vision.agents.gtp.advantage_weights", lambda *_, weight=weight, **__: weight)
        loss = float(learner(few, RandomStream(0, 0), 0)[1]["actor/loss"])
        assert loss == pytest.approx(sum(i**3 for i in range(12)) / sum(range(12)), rel=1e-5)
