from dataclasses import replace

import pytest
import torch
from small import PIXELS, make, owner, states_of
from stores import make_store
from torch import nn

from gtp_vision.agents.base import Agent
from gtp_vision.agents.diffusion_ql import q_term
from gtp_vision.agents.improvement import Metrics
from gtp_vision.core.random import RandomStream
from gtp_vision.datasets.batch import Batch
from gtp_vision.datasets.sampler import Sampler

Q = torch.tensor([[1.0, -3.0], [2.0, 4.0]])  # means -1 and 3, mean sizes 2 and 3


THREE = torch.cat([Q, torch.tensor([[7.0, 7.0]])])  # mean sizes 2, 3 and 7


@pytest.mark.parametrize(
    ("q", "normalize", "expected"),
    [
        (Q, True, (1 / 3 - 3 / 2) / 2),  # the mean of the published coin: Q_1 over the size of Q_2, or the reverse
        (THREE, True, -((-1 / 5) + 3 / 4.5 + 7 / 2.5) / 3),  # each over the mean size of the others
        (Q[:1], True, 1 / 2),  # a single member over its own size
        (Q, False, -1),
    ],
)
def test_the_q_term_divides_each_member_by_the_size_of_the_others(
    q: torch.Tensor, normalize: bool, expected: float
) -> None:
    assert float(q_term(q, normalize=normalize)) == pytest.approx(expected)


def test_the_normalized_q_term_does_not_depend_on_the_scale_of_rewards() -> None:
    gradients = []
    for scale in (1.0, 1000.0):
        action = Q.clone().requires_grad_()
        q_term(scale * action, normalize=True).backward()
        gradients.append(action.grad)
    torch.testing.assert_close(*gradients)
    assert float(q_term(torch.zeros(2, 3), normalize=True)) == 0


def actor_loss(learner: Agent, batch: Batch) -> tuple[torch.Tensor, Metrics]:
    inputs = learner.loss_inputs(batch, RandomStream(0, 0), 0)
    q = learner.critic(inputs.critic, learner.critic_action(inputs.action)).detach()
    return learner.actor_loss(replace(inputs, q=q))


@pytest.mark.parametrize("name", ["diffusion_ql", "consistency_ac", "fql", "td3_bc"])
def test_the_actors_loss_leaves_the_critic_and_its_encoder_alone(batch: Batch, name: str) -> None:
    learner = make(name, shapes=PIXELS)
    actor_loss(learner, batch)[0].backward()
    touched = {owner(key) for key, parameter in learner.named_parameters() if parameter.grad is not None}
    assert touched == {"policy", "actor_encoder"} | ({"improvement"} if name == "fql" else set())


@pytest.mark.parametrize("name", ["diffusion_ql", "consistency_ac", "fql"])
def test_a_shared_encoder_follows_q_through_the_action_only(batch: Batch, name: str) -> None:
    # Features that the critic evaluates actions with give no gradient: a policy that ignores the observation has none.
    weights = [] if name == "fql" else ["agent.improvement.bc_weight=0"]
    learner = make(name, *weights, shapes=PIXELS, share=True)
    for part in learner.modules():
        if isinstance(part, nn.Linear) and part is getattr(learner.policy, "observe", None):
            nn.init.zeros_(part.weight)
    if name == "fql":
        nn.init.zeros_(learner.improvement.one_step.observe.weight)  # type: ignore[union-attr, arg-type]
    actor_loss(learner, batch)[0].backward()
    assert all(p.grad is None or not p.grad.any() for p in learner.actor_encoder.parameters())


@pytest.mark.parametrize(
    ("agent", "more"),
    [
        ("diffusion_ql", ["agent.policy.grid=3", "agent.critic.next_steps=3"]),
        ("consistency_ac", []),
        ("gtp", ["improvement=q_gradient"]),
        ("gtp", ["improvement=q_gradient", "agent.policy.family=flow_matching"]),
    ],
)
def test_qs_gradient_reaches_the_policy_through_all_of_its_steps(agent: str, more: list[str]) -> None:
    steps = ["agent.improvement.q_steps=3", "agent.acting.steps=3"]
    learner = make(agent, *steps, "agent.improvement.bc_weight=0", *more)
    store = make_store((300,))
    outputs: list[torch.Tensor] = []

    def kept(_: nn.Module, __: object, output: torch.Tensor) -> None:
        if output.requires_grad:
            output.retain_grad()
            outputs.append(output)

    learner.policy.network.register_forward_hook(kept)  # type: ignore[union-attr, operator]
    loss, metrics = actor_loss(learner, Sampler(store, 256, 0, frame_stack=2).gather(store.transitions[:256]))
    assert loss.item() == pytest.approx(float(metrics["actor/q_term"]), rel=1e-5), "the Q term alone"
    loss.backward()
    assert len(outputs) >= 3
    assert all(output.grad is not None and bool(output.grad.any()) for output in outputs[-3:]), "cloning comes first"


def test_the_loss_is_cloning_per_dimension_and_the_q_term_by_their_weights(batch: Batch) -> None:
    weights = ["agent.improvement.bc_weight=0.25", "agent.improvement.q_weight=3"]
    clonings = []
    for more in ("agent.improvement.per_dimension=true", "agent.improvement.per_dimension=false"):
        learner = make("diffusion_ql", *weights, more)
        loss, metrics = actor_loss(learner, states_of(batch))
        cloning, term = float(metrics["actor/cloning"]), float(metrics["actor/q_term"])
        assert loss.item() == pytest.approx(0.25 * cloning + 3 * term, rel=1e-5)
        clonings.append(cloning)
    assert clonings[1] == pytest.approx(2 * clonings[0]), "two action dimensions"
