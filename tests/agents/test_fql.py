from dataclasses import replace

import pytest
import torch
from small import make, observation, states_of

from gtp_vision.agents.base import Agent
from gtp_vision.agents.diffusion_ql import q_term
from gtp_vision.agents.fql import Distillation
from gtp_vision.agents.improvement import LossInputs
from gtp_vision.core.random import RandomStream
from gtp_vision.datasets.batch import Batch


def distilling(*overrides: str) -> tuple[Agent, Distillation]:
    learner = make("fql", *overrides)
    assert isinstance(learner.improvement, Distillation)
    return learner, learner.improvement


def inputs_of(learner: Agent, batch: Batch) -> LossInputs:
    return learner.loss_inputs(states_of(batch), RandomStream(0, 0), 0)


def test_the_loss_is_the_flows_plus_the_distance_for_the_same_noise_and_q_by_their_weights(batch: Batch) -> None:
    learner, distillation = distilling("agent.improvement.distill_weight=3", "agent.improvement.q_weight=0.5")
    loss, metrics = learner.actor_loss(inputs_of(learner, batch))
    noise = RandomStream(0, 0)
    learner.augment.draw(12, noise)
    inputs = inputs_of(learner, batch)
    cloning, _ = learner.policy.loss(learner.policy.rows(inputs.actor, inputs.action, noise, learner.policy_target))
    terms = cloning.mean() / 2 + 3 * metrics["actor/distill_loss"] + 0.5 * metrics["actor/q_term"]
    assert loss.item() == pytest.approx(float(terms), rel=1e-5)
    z, one_step = noise.normal(12, 2), distillation.one_step
    expected = q_term(learner.critic(inputs.critic, one_step.sample_from(inputs.actor, z, 1)), normalize=False)
    assert float(metrics["actor/q_term"]) == pytest.approx(expected.item(), rel=1e-4)
    answer = one_step.integrate(one_step.observe(inputs.actor), z, 1)
    distance = (answer - learner.policy.sample_from(inputs.actor, z, 2)).square().mean()  # type: ignore[union-attr, operator]
    assert float(metrics["actor/distill_loss"]) == pytest.approx(distance.item(), rel=1e-5)


def test_the_flow_learns_from_the_data_alone(batch: Batch) -> None:
    learner, distillation = distilling("agent.improvement.distill_weight=1000", "agent.improvement.q_weight=1000")
    gradients = []
    for weights in ((1000.0, 1000.0), (0.0, 0.0)):
        distillation.config = replace(distillation.config, distill_weight=weights[0], q_weight=weights[1])
        learner.zero_grad()
        learner.actor_loss(inputs_of(learner, batch))[0].backward()
        gradients.append([p.grad.clone() for p in learner.policy.parameters() if p.grad is not None])
    assert len(gradients[0]) == len(list(learner.policy.parameters()))
    for heavy, none in zip(*gradients, strict=True):
        torch.testing.assert_close(heavy, none)


def test_the_targets_action_is_of_the_current_one_step_policy(batch: Batch) -> None:
    learner, distillation = distilling()
    inputs, actions = inputs_of(learner, batch), list[torch.Tensor]()
    learner.critic_target.register_forward_pre_hook(lambda _, arguments: actions.append(arguments[1]))
    with torch.no_grad():
        for parameter in distillation.one_step.parameters():  # a slow copy would not follow
            parameter.add_(0.3)
    learner.next_value(replace(inputs, noise=RandomStream(5, 0)))
    following = inputs.next_observation["state"].flatten(1)
    torch.testing.assert_close(actions[0], distillation.one_step.sample(following, 1, RandomStream(5, 0)))


def test_it_acts_by_the_one_step_policy_whatever_k() -> None:
    learner, distillation = distilling()
    seen = observation()
    one = distillation.one_step.sample(seen["state"].flatten(1), 1, RandomStream(0, 0))
    assert torch.equal(learner.act(seen, RandomStream(0, 0)), one)
    assert torch.equal(learner.act(seen, RandomStream(0, 0), 7), one)
