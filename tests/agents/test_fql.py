"""Distillation: the same noise for both, and the current one-step policy in the target."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from small import make, observation, states_of

from gtp_vision.agents.base import Agent, LossInputs
from gtp_vision.agents.diffusion_ql import q_term
from gtp_vision.agents.fql import Distillation
from gtp_vision.core.random import RandomStream
from gtp_vision.datasets.batch import Batch


def distilling(*overrides: str) -> tuple[Agent, Distillation]:
    learner = make("fql", *overrides)
    assert isinstance(learner.improvement, Distillation)
    return learner, learner.improvement


def seen_by(learner: Agent, batch: Batch) -> LossInputs:
    return learner.loss_inputs(states_of(batch), RandomStream(0, 0), 0)


def test_both_policies_answer_the_same_noise(batch: Batch, monkeypatch: pytest.MonkeyPatch) -> None:
    learner, distillation = distilling()
    used: dict[str, torch.Tensor] = {}
    flow, one_step = learner.policy.sample_from, distillation.one_step.integrate  # type: ignore[union-attr]

    def of_flow(features: torch.Tensor, z: torch.Tensor, steps: int) -> Any:
        used["flow"] = z
        assert steps == 2
        return flow(features, z, steps)

    def of_one_step(observed: torch.Tensor, z: torch.Tensor, steps: int) -> Any:
        used["one_step"] = z
        return one_step(observed, z, steps)

    monkeypatch.setattr(learner.policy, "sample_from", of_flow)
    monkeypatch.setattr(distillation.one_step, "integrate", of_one_step)
    seen = seen_by(learner, batch)
    _, metrics = distillation.loss(learner, seen)
    assert used["flow"] is used["one_step"]
    assert used["flow"].shape == (12, 2)
    monkeypatch.undo()
    z = used["flow"]
    answer = distillation.one_step.integrate(distillation.one_step.observe(seen.actor), z, 1)
    distance = (answer - learner.policy.sample_from(seen.actor, z, 2)).square().mean()  # type: ignore[union-attr]
    assert float(metrics["actor/distill_loss"]) == pytest.approx(distance.item(), rel=1e-5)


def test_the_loss_is_the_flows_plus_the_distance_and_q_by_their_weights(batch: Batch) -> None:
    learner, distillation = distilling("agent.improvement.distill_weight=3", "agent.improvement.q_weight=0.5")
    loss, metrics = distillation.loss(learner, seen_by(learner, batch))
    noise = RandomStream(0, 0)
    learner.augment.draw(12, noise)
    seen = seen_by(learner, batch)
    cloning, _ = learner.policy.loss(seen.actor, seen.action, torch.ones(12), noise, learner.policy_target)
    parts = cloning.mean() / 2 + 3 * metrics["actor/distill_loss"] + 0.5 * metrics["actor/q_term"]
    assert loss.item() == pytest.approx(float(parts), rel=1e-5)
    z = noise.normal(12, 2)
    action = distillation.one_step.sample_from(seen.actor, z, 1)
    expected = q_term(learner.critic(seen.critic, action), normalize=False)
    assert float(metrics["actor/q_term"]) == pytest.approx(expected.item(), rel=1e-4)


def test_the_flow_learns_from_the_data_alone(batch: Batch) -> None:
    learner, distillation = distilling("agent.improvement.distill_weight=1000", "agent.improvement.q_weight=1000")
    gradients = []
    for weights in ((1000.0, 1000.0), (0.0, 0.0)):
        distillation.config = replace(distillation.config, distill_weight=weights[0], q_weight=weights[1])
        learner.zero_grad()
        distillation.loss(learner, seen_by(learner, batch))[0].backward()
        gradients.append([p.grad.clone() for p in learner.policy.parameters() if p.grad is not None])
    assert len(gradients[0]) == len(list(learner.policy.parameters()))
    for heavy, none in zip(*gradients, strict=True):
        torch.testing.assert_close(heavy, none)


def test_the_targets_action_is_of_the_current_one_step_policy(batch: Batch, monkeypatch: pytest.MonkeyPatch) -> None:
    learner, distillation = distilling()
    seen = seen_by(learner, batch)
    judged: list[torch.Tensor] = []
    compute = learner.critic_target.forward

    def noted(features: torch.Tensor, action: torch.Tensor) -> torch.Tensor:
        judged.append(action)
        return compute(features, action)

    monkeypatch.setattr(learner.critic_target, "forward", noted)
    with torch.no_grad():
        for parameter in distillation.one_step.parameters():  # a slow copy would not follow
            parameter.add_(0.3)
    learner.next_value(replace(seen, generator=RandomStream(5, 0)))
    following = seen.next_observation["state"].flatten(1)
    torch.testing.assert_close(judged[0], distillation.one_step.sample(following, 1, RandomStream(5, 0)))


def test_it_acts_by_the_one_step_policy_whatever_k() -> None:
    learner, distillation = distilling()
    seen = observation()
    one = distillation.one_step.sample(seen["state"].flatten(1), 1, RandomStream(0, 0))
    assert torch.equal(learner.act(seen, RandomStream(0, 0)), one)
    assert torch.equal(learner.act(seen, RandomStream(0, 0), 7), one)
