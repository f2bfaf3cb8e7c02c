import chain
import pytest
import torch

from gtp_vision.agents.gcivl import StateValue
from gtp_vision.agents.hiql import SubgoalValue
from gtp_vision.core.random import RandomStream

DISCOUNT = 0.9


@pytest.mark.parametrize(("name", "kind"), [("gcivl", StateValue), ("hiql", SubgoalValue)])
def test_values_of_a_known_world_are_found(name: str, kind: type[StateValue]) -> None:
    agent = chain.learner(name, "agent.critic.expectile=0.95")
    chain.learn(agent, chain.batch(DISCOUNT), 500)
    seen, distance = chain.pairs()
    assert isinstance(agent.critic, kind)
    with torch.no_grad():
        value = agent.critic.value(agent.seen_by_critic(seen)).mean(0)
    optimal = -(1 - DISCOUNT**distance) / (1 - DISCOUNT)
    assert float((value - optimal).abs().mean()) < 0.25, "of values down to -5.2"


def test_the_loss_is_the_expectile_regression_with_slow_weights() -> None:
    agent, seen = chain.learner("gcivl", "agent.critic.expectile=0.8"), chain.batch(DISCOUNT)
    inputs = agent.loss_inputs(seen, RandomStream(0, 0), 0)
    fast, slow = agent.critic, agent.critic_target
    assert isinstance(fast, StateValue)
    assert isinstance(slow, StateValue)
    with torch.no_grad():
        for parameter in slow.parameters():
            parameter.mul_(1.5)
        now, later = (slow.value(agent.actor_encoder(x)) for x in (seen.observation, seen.next_observation))
        v = fast.value(agent.actor_encoder(seen.observation))
        expected = torch.zeros(())
        for row in range(len(seen)):
            better = seen.reward[row] + seen.discount[row] * later[:, row].min() - now[:, row].mean()
            weight = 0.8 if better >= 0 else 0.2
            for member in range(2):
                target = seen.reward[row] + seen.discount[row] * later[member, row]
                expected += weight * (target - v[member, row]) ** 2 / len(seen)
    loss, metrics = fast.loss(agent, inputs)
    torch.testing.assert_close(loss.detach(), expected)
    torch.testing.assert_close(metrics["critic/loss"], expected)
    advantage = fast.advantage(agent, agent.aimed(inputs))
    torch.testing.assert_close(advantage, (fast.value(agent.actor_encoder(seen.next_observation)) - v).mean(0).detach())
