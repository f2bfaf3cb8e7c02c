from dataclasses import replace

import pytest
import torch
from small import make, observation, states_of

from gtp_vision.agents.base import Agent
from gtp_vision.agents.gtp_ql import SecondAnswer
from gtp_vision.agents.improvement import LossInputs
from gtp_vision.core.random import RandomStream
from gtp_vision.datasets.batch import Batch
from gtp_vision.models import GTPPolicy


def learning(*overrides: str) -> tuple[Agent, SecondAnswer, GTPPolicy]:
    learner = make("gtp_ql", *overrides)
    assert isinstance(learner.improvement, SecondAnswer)
    assert isinstance(learner.policy, GTPPolicy)
    return learner, learner.improvement, learner.policy


def inputs_of(learner: Agent, batch: Batch) -> LossInputs:
    return learner.loss_inputs(states_of(batch), RandomStream(0, 0), 0)


@pytest.mark.parametrize("step", [0.0, 0.1])
def test_the_loss_is_the_maps_plus_the_distance_for_the_same_noise_minus_q(batch: Batch, step: float) -> None:
    learner, second, policy = learning("agent.improvement.q_weight=0.5", f"agent.improvement.step={step}")
    loss, metrics = learner.actor_loss(inputs_of(learner, batch))
    noise = RandomStream(0, 0)
    learner.augment.draw(12, noise)
    inputs = inputs_of(learner, batch)
    cloning, _ = policy.loss(policy.rows(inputs.actor, inputs.action, noise, learner.policy_target))
    z = noise.normal(12, 2)
    anchor = learner.policy_target.sample_from(inputs.actor, z, 2)  # type: ignore[operator]
    wanted = second.stepped(learner, inputs.critic, anchor) if step else anchor
    answer = policy.answer(policy.observe(inputs.actor), z)
    q = learner.critic(inputs.critic, policy.bounded(answer)).mean()
    assert float(metrics["actor/guide_loss"]) == pytest.approx((answer - wanted).square().mean().item(), rel=1e-4)
    assert float(metrics["actor/q"]) == pytest.approx(q.item(), rel=1e-4)
    expected = cloning.mean().detach() / 2 + metrics["actor/guide_loss"] - 0.5 * metrics["actor/q"]
    assert loss.item() == pytest.approx(float(expected), rel=1e-5)


def test_the_step_follows_the_mean_critic_and_is_shorter_where_members_disagree(batch: Batch) -> None:
    learner, second, _ = learning("agent.improvement.step=0.1", "agent.improvement.caution=2")
    inputs = inputs_of(learner, batch)
    anchor = (0.5 * inputs.action).requires_grad_()  # so that no step is cut at the bounds
    q = learner.critic(inputs.critic.detach(), anchor)
    (slope,) = torch.autograd.grad(q.mean(0).sum(), anchor)
    moved = second.stepped(learner, inputs.critic.detach(), anchor.detach()) - anchor.detach()
    torch.testing.assert_close(torch.nn.functional.normalize(moved), torch.nn.functional.normalize(slope))
    disagreement = (q[0] - q[1]).abs().detach() / 2
    expected = 0.1 / (1 + 2 * disagreement / disagreement.mean())
    torch.testing.assert_close(moved.square().mean(1).sqrt(), expected, rtol=1e-4, atol=1e-6)


def test_without_its_weight_q_is_not_evaluated_for_the_answer(batch: Batch) -> None:
    learner, _, _ = learning("agent.improvement.q_weight=0", "agent.improvement.step=0.1")
    evaluated = list[object]()
    learner.critic.register_forward_hook(lambda *_: evaluated.append(None))
    _, metrics = learner.actor_loss(inputs_of(learner, batch))
    assert len(evaluated) == 1  # at the anchor
    assert "actor/q" not in metrics


def test_cloning_is_weighted_only_with_eta(batch: Batch) -> None:
    learner, second, _ = learning()
    inputs = inputs_of(learner, batch)
    inputs = replace(inputs, q=learner.critic(inputs.critic, inputs.action).detach())
    torch.testing.assert_close(second.weights(learner, inputs)[0], torch.ones(12))
    second.config = replace(second.config, eta=2.0)
    weights, _ = second.weights(learner, inputs)
    assert weights is not None
    assert weights.std() > 0
    assert 0 < weights.min() < 1 < weights.max()  # exponential: worse actions count less


def test_acting_takes_the_second_answer_and_no_jump_ends_at_its_place() -> None:
    learner, _, policy = learning()
    features, z = learner.actor_encoder(observation()), RandomStream(3, 0).normal(4, 2)
    for noise in (0, 1):
        acting = replace(learner.config.acting, noise=noise) if noise else None  # the preset's is 0
        expected = policy.bounded(policy.answer(policy.observe(features), noise * z)).detach()
        torch.testing.assert_close(learner.act(observation(), RandomStream(3, 0), acting=acting), expected)
    assert not torch.allclose(expected, policy.sample_from(features, z, 1), atol=1e-3)
    levels = policy.level(torch.linspace(0, 9, 100))
    assert policy.embed(levels)[:, 1].min() > -1e-5  # sin(pi c), -1 at the second answer's place
