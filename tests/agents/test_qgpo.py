import math
from dataclasses import replace

import pytest
import torch
from small import make, observation, states_of

from gtp_vision.agents.qgpo import EnergyGuidance, contrastive_loss
from gtp_vision.core.random import RandomStream
from gtp_vision.datasets.batch import Batch

Q = torch.tensor([[0.0, math.log(2) / 2, math.log(4) / 2]])  # alpha 2: weights 1/7, 2/7 and 4/7


def test_the_contrastive_loss_of_three_actions() -> None:
    energy = torch.tensor([[0.0, math.log(3), 0.0]])  # softmax 0.2, 0.6, 0.2
    expected = -(1 / 7 * math.log(0.2) + 2 / 7 * math.log(0.6) + 4 / 7 * math.log(0.2))
    assert expected == pytest.approx(1.29555, abs=1e-5)
    assert contrastive_loss(energy, Q, 2.0).tolist() == pytest.approx([expected])


def test_the_contrastive_loss_is_minimal_where_the_energy_is_alpha_q_plus_a_constant() -> None:
    energy = (2 * Q + 5).requires_grad_()
    loss = contrastive_loss(energy, Q, 2.0)
    (gradient,) = torch.autograd.grad(loss.sum(), energy)
    torch.testing.assert_close(gradient, torch.zeros(1, 3), atol=1e-6, rtol=0)
    entropy = -sum(p * math.log(p) for p in (1 / 7, 2 / 7, 4 / 7))
    assert loss.item() == pytest.approx(entropy, rel=1e-5)
    for direction in torch.eye(3):
        assert contrastive_loss(energy + 0.3 * direction, Q, 2.0).item() > entropy


def test_without_guidance_an_agent_acts_as_its_behaviour() -> None:
    plain, guided = (make("qgpo", f"agent.improvement.guidance_scale={scale}") for scale in (0, 5))
    seen = observation()
    behaviour = plain.policy.sample(seen["state"].flatten(1), 2, RandomStream(0, 0))
    torch.testing.assert_close(plain.act(seen, RandomStream(0, 0)), behaviour, atol=1e-5, rtol=0)
    assert not torch.allclose(guided.act(seen, RandomStream(0, 0)), behaviour, atol=1e-4)


def test_the_energys_loss_trains_no_encoder_and_no_policy(batch: Batch) -> None:
    learner = make("qgpo")
    seen = learner.loss_inputs(states_of(batch), RandomStream(0, 0), 0)
    together, _ = learner.actor_loss(seen)
    together.backward()
    policy = [p.grad.clone() for p in learner.policy.parameters() if p.grad is not None]
    learner.zero_grad()
    noise = RandomStream(0, 0)
    learner.augment.draw(12, noise)
    cloning, _ = learner.policy.loss(learner.policy.rows(seen.actor, seen.action, noise, learner.policy_target))
    cloning.mean().backward()
    for of_both, of_cloning in zip(policy, learner.policy.parameters(), strict=True):
        torch.testing.assert_close(of_both, of_cloning.grad)


def test_guidance_acts_under_inference_mode(batch: Batch) -> None:
    learner, few = make("qgpo"), states_of(batch).observation
    expected = learner.act(few, RandomStream(0, 0))
    with torch.inference_mode():
        acted = learner.act(few, RandomStream(0, 0))
    torch.testing.assert_close(acted, expected)


def test_the_energy_learns_the_critics_order_of_the_behaviours_actions(
    batch: Batch, monkeypatch: pytest.MonkeyPatch
) -> None:
    learner = make("qgpo", "agent.improvement.alpha=10")
    few = states_of(batch)
    monkeypatch.setattr(learner.critic, "forward", lambda features, action: action[:, 0].expand(2, -1))
    monkeypatch.setattr(
        learner.policy_target,
        "sample",
        lambda features, steps, noise, draws: 2 * noise.uniform(len(features) * draws, 2) - 1,
    )
    guidance = learner.improvement
    assert isinstance(guidance, EnergyGuidance)
    optimizer = torch.optim.Adam(guidance.parameters(), lr=2e-2)
    seen = learner.loss_inputs(few, RandomStream(0, 0), 0)
    for step in range(100):
        loss, _ = guidance.loss(learner, replace(seen, noise=RandomStream(0, step)), torch.zeros(()))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    action = torch.tensor([[-0.9, 0.0], [0.0, 0.0], [0.9, 0.0]]).repeat(12, 1)
    features, t = seen.actor.detach().repeat_interleave(3, 0), torch.full((36,), 0.05)
    energy = guidance.of(learner.policy, features, action, t).view(12, 3)
    assert bool((energy.diff(dim=1) > 0).all()), "its order is Q's"
    low, middle, high = energy.mean(0).tolist()
    assert high - low > 5, f"10 x 1.8 in the limit; found {low}, {middle}, {high}"


def test_guidance_moves_actions_up_the_energy(monkeypatch: pytest.MonkeyPatch) -> None:
    learner = make("qgpo")
    seen = observation(batch=64)
    plain = make("qgpo", "agent.improvement.guidance_scale=0").act(seen, RandomStream(0, 0))
    monkeypatch.setattr(learner.improvement, "of", lambda policy, features, x, t: 3 * x[:, 0])
    steered = learner.act(seen, RandomStream(0, 0))
    assert float((steered - plain)[:, 0].mean()) > 0.1
    assert bool((steered[:, 0] >= plain[:, 0] - 1e-5).all())
