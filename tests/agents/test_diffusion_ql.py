"""The Q term, and which parts its gradient reaches."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from small import PIXELS, make, owner, states_of
from torch import nn

from gtp_vision.agents.base import Agent, LossInputs
from gtp_vision.agents.diffusion_ql import q_term
from gtp_vision.core.random import RandomStream
from gtp_vision.datasets.batch import Batch
from gtp_vision.datasets.sampler import Sampler
from gtp_vision.datasets.store import Store

Q = torch.tensor([[1.0, -3.0], [2.0, 4.0]])  # means -1 and 3, mean sizes 2 and 3


def test_the_q_term_is_the_mean_of_the_published_coin() -> None:
    heads, tails = -(-1 / 3), -(3 / 2)  # Q_1 over the size of Q_2, and the other way round
    assert float(q_term(Q, normalize=True)) == pytest.approx((heads + tails) / 2)


def test_each_of_several_members_is_divided_by_the_mean_size_of_the_others() -> None:
    q = torch.cat([Q, torch.tensor([[7.0, 7.0]])])  # sizes 2, 3 and 7
    expected = -((-1 / 5) + 3 / 4.5 + 7 / 2.5) / 3
    assert float(q_term(q, normalize=True)) == pytest.approx(expected)


def test_a_single_member_is_divided_by_its_own_size() -> None:
    assert float(q_term(Q[:1], normalize=True)) == pytest.approx(1 / 2)


def test_without_normalisation_the_q_term_is_the_mean() -> None:
    assert float(q_term(Q, normalize=False)) == -1


def test_the_normalised_q_term_means_the_same_on_every_scale_of_rewards() -> None:
    gradients = []
    for scale in (1.0, 1000.0):
        action = Q.clone().requires_grad_()
        q_term(scale * action, normalize=True).backward()
        gradients.append(action.grad)
    torch.testing.assert_close(*gradients)
    assert float(q_term(torch.zeros(2, 3), normalize=True)) == 0


def seen_by(learner: Agent, batch: Batch) -> LossInputs:
    """What the actor's loss of a batch sees."""
    seen = learner.loss_inputs(batch, RandomStream(0, 0), 0)
    return replace(seen, q=learner.critic(seen.critic, learner.critic_action(seen.action)).detach())


@pytest.mark.parametrize("name", ["diffusion_ql", "consistency_ac", "fql", "td3_bc"])
def test_the_actors_loss_leaves_the_critic_and_its_encoder_alone(batch: Batch, name: str) -> None:
    learner = make(name, shapes=PIXELS)
    loss, _ = learner.improvement.loss(learner, seen_by(learner, batch))
    loss.backward()
    touched = {owner(key) for key, parameter in learner.named_parameters() if parameter.grad is not None}
    assert touched == {"policy", "actor_encoder"} | ({"improvement"} if name == "fql" else set())


@pytest.mark.parametrize("name", ["diffusion_ql", "consistency_ac", "fql"])
def test_a_shared_encoder_follows_q_through_the_action_only(batch: Batch, name: str) -> None:
    # The features that judge the action give no gradient: with a policy that ignores the observation there is none.
    learner = make(name, "agent.improvement.bc_weight=0", shapes=PIXELS, share=True)
    for part in learner.modules():
        if isinstance(part, nn.Linear) and part is getattr(learner.policy, "observe", None):
            nn.init.zeros_(part.weight)
    if name == "fql":
        nn.init.zeros_(learner.improvement.one_step.observe.weight)  # type: ignore[union-attr, arg-type]
    loss, _ = learner.improvement.loss(learner, seen_by(learner, batch))
    loss.backward()
    assert all(p.grad is None or not p.grad.any() for p in learner.actor_encoder.parameters())


@pytest.mark.parametrize(
    ("name", "steps"), [("diffusion_ql", 3), ("consistency_ac", 2), ("gtp", 3), ("flow", 4)], ids=lambda value: value
)
def test_qs_gradient_reaches_the_policy_through_all_of_its_steps(
    make_store: Callable[..., Store], name: str, steps: int
) -> None:
    changed = [f"agent.improvement.q_steps={steps}", "agent.improvement.bc_weight=0"]
    if name == "diffusion_ql":
        changed += [f"agent.policy.grid={steps}", f"agent.acting.steps={steps}", f"agent.critic.next_steps={steps}"]
    if name in ("gtp", "flow"):
        changed += ["improvement=q_gradient", f"agent.acting.steps={steps}"]
    if name == "flow":
        changed.append("agent.policy.family=flow_matching")
    learner = make("gtp" if name == "flow" else name, *changed)
    store = make_store((300,))
    seen = seen_by(learner, Sampler(store, 256, 0, frame_stack=2).gather(store.transitions[:256]))
    outputs: list[torch.Tensor] = []

    def kept(_: nn.Module, __: object, output: torch.Tensor) -> None:
        if output.requires_grad:
            output.retain_grad()
            outputs.append(output)

    learner.policy.network.register_forward_hook(kept)  # type: ignore[union-attr, operator]
    loss, metrics = learner.improvement.loss(learner, seen)
    assert loss.item() == pytest.approx(float(metrics["actor/q_term"]), rel=1e-5), "the Q term alone"
    loss.backward()
    own = outputs[-steps:]  # cloning comes first
    assert len(own) == steps
    assert all(output.grad is not None and bool(output.grad.any()) for output in own)


def test_the_loss_is_cloning_a_dimension_and_the_q_term_by_their_weights(batch: Batch) -> None:
    weights = ["agent.improvement.bc_weight=0.25", "agent.improvement.q_weight=3"]
    seen_twice = []
    for more in ("agent.improvement.per_dimension=true", "agent.improvement.per_dimension=false"):
        learner = make("diffusion_ql", *weights, more)
        loss, metrics = learner.improvement.loss(learner, seen_by(learner, states_of(batch)))
        cloning, term = float(metrics["actor/cloning"]), float(metrics["actor/q_term"])
        assert loss.item() == pytest.approx(0.25 * cloning + 3 * term, rel=1e-5)
        seen_twice.append(cloning)
    assert seen_twice[1] == pytest.approx(2 * seen_twice[0]), "two action dimensions"
