import math

import pytest
import torch
from small import PIXELS, make, states_of

from gtp_vision.agents.eda import Alignment, alignment_loss
from gtp_vision.core.random import RandomStream
from gtp_vision.datasets.batch import Batch

Q = torch.tensor([[0.0, 0.0, math.log(2)]])  # alpha 1: weights 1/4, 1/4 and 1/2


def test_the_alignment_loss_of_three_actions() -> None:
    log_density, log_behaviour = torch.tensor([[-1.0, 0.0, 1.0]]), torch.tensor([[-1.0, 1.0, 0.0]])
    # beta 0.5: exponents 0, -0.5 and 0.5, whose softmax is 0.307196, 0.186324 and 0.506480.
    expected = -(0.25 * math.log(0.307196) + 0.25 * math.log(0.186324) + 0.5 * math.log(0.506480))
    assert expected == pytest.approx(1.05527, abs=1e-5)
    assert alignment_loss(log_density, log_behaviour, Q, 1.0, 0.5).tolist() == pytest.approx([expected], rel=1e-5)


def test_the_alignment_loss_is_minimal_at_behaviour_times_e_to_alpha_q_over_beta() -> None:
    log_behaviour = torch.tensor([[-1.0, 1.0, 0.0]])
    log_density = (log_behaviour + 3.0 * Q / 0.5 - 2).requires_grad_()
    loss = alignment_loss(log_density, log_behaviour, Q, 3.0, 0.5)
    (gradient,) = torch.autograd.grad(loss.sum(), log_density)
    torch.testing.assert_close(gradient, torch.zeros(1, 3), atol=1e-6, rtol=0)


def test_it_clones_until_the_behaviour_is_frozen_and_then_aligns(batch: Batch) -> None:
    learner, few = make("bdm", "agent.improvement.pretrain_steps=2"), states_of(batch)
    aligning = learner.improvement
    assert isinstance(aligning, Alignment)
    optimizer = torch.optim.Adam([p for p in learner.parameters() if p.requires_grad], lr=1e-2)

    def step(number: int) -> dict[str, torch.Tensor]:
        learner.begin(number)
        loss, metrics = learner(few, RandomStream(0, number), number)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        learner.update_targets()
        return metrics

    for number in range(2):
        assert "actor/alignment_loss" not in step(number)
    learned = [parameter.clone() for parameter in learner.policy.parameters()]
    first = float(step(2)["actor/alignment_loss"])
    assert first == pytest.approx(math.log(4), rel=1e-5), "the policy is its behaviour: all four ratios are alike"
    for frozen, behaviour in zip(learned, aligning.behaviour.parameters(), strict=True):
        assert torch.equal(frozen, behaviour)
    step(3)
    assert all(torch.equal(a, b) for a, b in zip(learned, aligning.behaviour.parameters(), strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(learned, learner.policy.parameters(), strict=True))


def test_the_behaviours_encoder_is_frozen_with_it(batch: Batch) -> None:
    learner = make("bdm", shapes=PIXELS)
    aligning = learner.improvement
    assert isinstance(aligning, Alignment)
    with torch.no_grad():
        for parameter in learner.actor_encoder.parameters():
            parameter.add_(0.1)
    learner.begin(0)
    seen = batch.observation
    assert not torch.equal(aligning.behaviour_encoder(seen), learner.actor_encoder(seen))
    learner.begin(2)
    assert torch.equal(aligning.behaviour_encoder(seen), learner.actor_encoder(seen))


@pytest.mark.parametrize("family", ["bottleneck", "gaussian"])
def test_the_policys_density_rises_where_q_is_high(batch: Batch, monkeypatch: pytest.MonkeyPatch, family: str) -> None:
    changed = ["agent.improvement.pretrain_steps=1", f"agent.policy.family={family}", "agent.improvement.alpha=5"]
    learner, few = make("bdm", *changed), states_of(batch)
    monkeypatch.setattr(learner.critic, "forward", lambda features, action: action[:, 0].expand(2, -1))
    learner.begin(1)
    optimizer = torch.optim.Adam(learner.policy.parameters(), lr=1e-2)
    for number in range(40):
        loss, _ = learner.actor_loss(learner.loss_inputs(few, RandomStream(0, number), 1))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    features, noise = few.observation["state"].flatten(1), RandomStream(1, 0)
    before = learner.improvement.behaviour.sample(features, 5, RandomStream(1, 0), 20)  # type: ignore[union-attr, operator]
    after = learner.policy.sample(features, 5, noise, 20)
    assert float((after - before)[:, 0].detach().mean()) > 0.03
