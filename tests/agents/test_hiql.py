from dataclasses import replace

import chain
import pytest
import torch
from small import AIMED, JUDGED, owner

from gtp_vision.agents.hiql import Hierarchy, SubgoalValue, joined
from gtp_vision.core.random import RandomStream


@pytest.mark.parametrize("name", [name for name in JUDGED if name in AIMED])
def test_the_critic_learns_from_its_goals_and_the_policy_from_others(name: str) -> None:
    agent, seen = chain.learner(name), chain.batch()
    assert seen.policy_goal is not None
    other = {"goal/state": torch.zeros_like(seen.policy_goal["goal/state"])}

    def losses(batch: chain.Batch) -> tuple[float, float]:
        metrics = agent(batch, RandomStream(0, 0), 0)[1]
        return float(metrics["critic/loss"]), float(metrics["actor/loss"])

    (critic, actor), policys = losses(seen), losses(replace(seen, policy_goal=other))
    critics = losses(
        replace(seen, observation=seen.observation | other, next_observation=seen.next_observation | other)
    )
    assert critic == policys[0] != critics[0]
    assert actor == critics[1] != policys[1]


def test_the_low_policy_sees_the_way_point_and_not_the_goal() -> None:
    agent, seen = chain.learner("hiql"), chain.batch()
    inputs = agent.aimed(agent.loss_inputs(seen, RandomStream(0, 0), 0))
    improvement, critic = agent.improvement, agent.critic
    assert isinstance(improvement, Hierarchy)
    assert isinstance(critic, SubgoalValue)
    shown = improvement.policy_features(agent, inputs)
    direction = critic.represent(agent.actor_encoder({**seen.observation, **(seen.way_point or {})}))
    torch.testing.assert_close(direction.norm(dim=1), torch.ones(len(seen)))
    torch.testing.assert_close(shown[:, 1:], 4 * direction.detach(), rtol=1e-5, atol=1e-6)  # sqrt(16)
    assert torch.equal(shown[:, :1], seen.observation["state"][:, 0])
    loss, _ = agent.actor_loss(inputs)
    loss.backward()
    reached = {owner(name) for name, x in agent.named_parameters() if x.grad is not None and bool(x.grad.any())}
    assert reached == {"policy", "improvement"}, "no gradient of a policy reaches the representation"


def test_acting_is_the_low_policys_action_to_the_way_point_that_the_high_one_chooses() -> None:
    agent, seen = chain.learner("hiql"), chain.batch()
    improvement, features = agent.improvement, agent.actor_encoder(seen.observation)
    assert isinstance(improvement, Hierarchy)
    with torch.no_grad():
        point = torch.nn.functional.normalize(improvement.high.sample(features, 1, RandomStream(0, 0)), dim=1)
        expected = agent.policy.sample(joined(features, point), 1, RandomStream(0, 0))
    assert torch.equal(agent.act(seen.observation, RandomStream(0, 0)), expected)


def test_both_levels_may_be_generative() -> None:
    agent = chain.learner("gtp_hiql")
    agent(chain.batch(), RandomStream(0, 0), 0)[0].backward()
    assert all(x.grad is not None for x in agent.parameters() if x.requires_grad)
    first, second = (agent.act(chain.batch().observation, RandomStream(seed, 0)) for seed in (0, 1))
    assert not torch.equal(first, second)


def test_data_bounds_are_those_of_actions_alone() -> None:
    agent = chain.learner("hiql")
    improvement = agent.improvement
    assert isinstance(improvement, Hierarchy)
    for policy in (agent.policy, improvement.high):
        policy.hold(torch.tensor([[0.25], [0.25]]))
    assert float(agent.policy.upper[0]) == 0.25
    assert float(improvement.high.upper.min()) == 1
