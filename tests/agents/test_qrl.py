import math
from itertools import pairwise

import chain
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gtp_vision.agents.qrl import COMPONENT, MARGIN, Quasimetric, interval_quasimetric

latents = st.lists(st.floats(-4, 4, width=32), min_size=2 * COMPONENT, max_size=2 * COMPONENT).map(torch.tensor)
mixes = st.floats(0, 1, width=32).map(torch.tensor)


@settings(max_examples=80, deadline=None, derandomize=True)
@given(latents, latents, latents, mixes)
def test_the_distance_is_a_quasimetric(x: torch.Tensor, y: torch.Tensor, z: torch.Tensor, mix: torch.Tensor) -> None:
    def d(one: torch.Tensor, other: torch.Tensor) -> float:
        return float(interval_quasimetric(one, other, mix))

    assert d(x, x) == 0
    assert d(x, y) >= 0
    assert d(x, z) <= d(x, y) + d(y, z) + 1e-4


@settings(max_examples=60, deadline=None, derandomize=True)
@given(latents, latents)
def test_a_component_is_the_length_of_the_union_of_its_intervals(x: torch.Tensor, y: torch.Tensor) -> None:
    lengths = []
    for part in range(2):
        own = slice(part * COMPONENT, (part + 1) * COMPONENT)
        intervals = [(float(a), float(max(a, b))) for a, b in zip(x[own], y[own], strict=True)]
        edges = sorted({edge for interval in intervals for edge in interval})
        lengths.append(
            math.fsum(high - low for low, high in pairwise(edges) if any(a <= low and high <= b for a, b in intervals))
        )
    for mix, expected in ((0.0, max(lengths)), (1.0, sum(lengths) / 2)):
        torch.testing.assert_close(
            interval_quasimetric(x, y, torch.tensor(mix)), torch.tensor(expected), rtol=1e-5, atol=1e-5
        )


def test_distances_of_a_known_world_are_its_steps() -> None:
    agent = chain.learner("qrl")
    chain.learn(agent, chain.batch(), 600)
    seen, steps = chain.pairs()
    critic = agent.critic
    assert isinstance(critic, Quasimetric)
    with torch.no_grad():
        observation, goal = (critic.phi(half) for half in agent.actor_encoder(seen).chunk(2, 1))
        distance = critic.distance(observation, goal)[0]
        toward, away = (critic(agent.actor_encoder(seen), way * torch.sign(goal_of(seen))) for way in (1.0, -1.0))
    assert float(torch.corrcoef(torch.stack([distance, steps]))[0, 1]) > 0.97
    assert float((distance[steps == 1] - 1).clamp_min(0).square().mean()) < 3 * MARGIN
    assert float(distance[steps == 7].mean()) > 5
    assert bool((toward > away)[0, steps > 1].all()), "the dynamics say where a step leads"


def goal_of(seen: dict[str, torch.Tensor]) -> torch.Tensor:
    """The way to the goal, (B, 1)."""
    return (seen["goal/state"] - seen["state"])[:, 0]
