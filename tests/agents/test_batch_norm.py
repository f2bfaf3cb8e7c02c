"""Acting uses the statistics of batch normalisation, training moves them."""

import pytest
import torch
from small import PIXELS, observation, preset

from gtp_vision import agents
from gtp_vision.agents import Agent
from gtp_vision.core.random import RandomStream
from gtp_vision.encoders import EncoderConfig


@pytest.fixture(params=["gtp_bc", "idql"])
def agent(request: pytest.FixtureRequest) -> Agent:
    torch.manual_seed(0)
    encoder = EncoderConfig(name="resnet18", pooling="average", batch_norm="train", features=8)
    return agents.create(PIXELS, 2, preset(request.param), encoder)


def test_acting_uses_the_statistics_and_training_moves_them(agent: Agent) -> None:
    seen = observation(PIXELS)
    before = {name: value.clone() for name, value in agent.state_dict().items()}
    planned = agent.plan(seen, RandomStream(0, 0))
    assert all(torch.equal(value, before[name]) for name, value in agent.state_dict().items())
    assert all(module.training for module in agent.modules()), "its mode is restored"
    agent.actor_encoder(seen)
    means = [name for name in before if name.startswith("actor_encoder.") and "running_mean" in name]
    assert means
    assert not any(torch.equal(agent.state_dict()[name], before[name]) for name in means)
    agent.load_state_dict(before)
    assert torch.equal(agent.eval().plan(seen, RandomStream(0, 0)), planned)
