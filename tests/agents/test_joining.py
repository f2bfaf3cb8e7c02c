"""Plans that continue the plan before: exact where frozen, in its mode, and for every family that inpaints."""

import itertools
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from small import make, observation

from gtp_vision.agents import ActingConfig
from gtp_vision.agents.joining import Known, draws_of, joined, weights
from gtp_vision.core.random import EpisodeNoise, NoiseSource, RandomStream
from gtp_vision.models import FAMILIES, PolicyConfig, Renoisable
from gtp_vision.models.policy import Losses, Rows

CHUNK = 6
CHUNKED = [f"agent.action_chunk={CHUNK}", "agent.acting.execute=3"]
RENOISABLE = [name for name, kind in FAMILIES.items() if issubclass(kind, Renoisable)]
M, DEVIATION = 0.6, 0.1  # of the two modes


@pytest.mark.parametrize(("frozen", "overlap"), [(0, 1), (0, 6), (2, 4), (3, 3), (1, 6)])
def test_weights_are_1_for_frozen_actions_and_fall_to_0(frozen: int, overlap: int) -> None:
    found = weights(frozen, overlap, CHUNK)
    assert found[:frozen] == [1.0] * frozen
    assert found[overlap:] == [0.0] * (CHUNK - overlap)
    falling = [1.0, *found[frozen:overlap], 0.0]
    assert all(high > low for high, low in itertools.pairwise(falling))


class TwoModes(Renoisable):
    """Exact for actions around (M, ..., M) or (-M, ..., -M), whatever is observed: all of a plan are in one mode."""

    def loss(self, batch: Rows) -> Losses:
        raise NotImplementedError

    def generate(self, observed: torch.Tensor, steps: int, noise: NoiseSource) -> torch.Tensor:
        mode = M * noise.uniform(len(observed), 1).sub(0.5).sign()
        return mode + DEVIATION * noise.normal(len(observed), self.actions)

    def renoised(self, observed: torch.Tensor, action: torch.Tensor, level: float, z: torch.Tensor) -> torch.Tensor:
        a_t, t = action + level * z, level
        for s in [level * 0.8**k for k in range(1, 30)]:
            variance = DEVIATION**2 + t**2
            mode = M * torch.tanh(M * a_t.sum(1, keepdim=True) / variance)
            denoised = (t**2 * mode + DEVIATION**2 * a_t) / variance
            a_t, t = torch.lerp(denoised, a_t, s / t), s
        return denoised


@pytest.mark.parametrize(("frozen", "overlap"), [(2, 8), (1, 4)])
def test_inpainted_plans_stay_in_the_mode_that_blended_ones_leave(frozen: int, overlap: int) -> None:
    rows, chunk, noise = 1000, 16, RandomStream(0, 0)
    policy = TwoModes(3, chunk, PolicyConfig(hidden=[8]))
    features = torch.zeros(rows, 3)
    before = Known.of((M + DEVIATION * noise.normal(rows, overlap, 1)), frozen, chunk)
    share, between = {}, {}
    for join in ("blend", "rtc"):
        acting = ActingConfig(join=join)
        drawn = policy.sample(features, 1, noise, draws_of(acting))
        agent: Any = SimpleNamespace(policy=policy)
        made = joined(agent, features, drawn, before.actions.flatten(1), before.weight, acting, noise)
        share[join] = float((made[:, overlap:] > M / 2).all(1).float().mean())
        between[join] = float((made.abs() < M / 2).any(1).float().mean())
    assert 0.4 < share["blend"] < 0.6
    assert between["blend"] > 0.4
    assert share["rtc"] > 0.98
    assert between["rtc"] < 0.02


@pytest.mark.parametrize("join", ["blend", "rtc"])
@pytest.mark.parametrize("family", RENOISABLE)
def test_frozen_actions_come_out_exactly_and_others_are_drawn_to_what_is_known(family: str, join: str) -> None:
    agent, seen = make("gtp_bc", f"agent.policy.family={family}", *CHUNKED, f"agent.acting.join={join}"), observation()
    rest = 2 * RandomStream(3, 0).uniform(4, 5, 2) - 1
    known = Known.of(rest, 2, CHUNK)
    plain = agent.plan(seen, RandomStream(0, 0))
    plan = agent.plan(seen, RandomStream(0, 0), known=known)
    assert torch.equal(plan[:, :2], rest[:, :2])
    assert plan.abs().max() <= 1
    assert ((plan - rest[:, -1:])[:, 2:].abs() > 0).any(), "what follows is new"
    assert (plan[:, 2] - rest[:, 2]).abs().mean() < (plain[:, 2] - rest[:, 2]).abs().mean()


def test_without_weights_a_blended_plan_is_the_plain_one() -> None:
    agent, seen = make("gtp_bc", *CHUNKED, "agent.acting.join=blend"), observation()
    known = Known(torch.ones(4, CHUNK, 2), torch.zeros(4, CHUNK))
    assert torch.equal(agent.plan(seen, RandomStream(0, 0), known=known), agent.plan(seen, RandomStream(0, 0)))


def test_a_plan_does_not_depend_on_those_beside_it() -> None:
    agent, seen = make("gtp_bc", *CHUNKED, "agent.acting.join=rtc"), observation()
    known = Known.of(2 * RandomStream(3, 0).uniform(4, 3, 2) - 1, 1, CHUNK)
    noise = EpisodeNoise(0, [0, 1, 2, 3], [3] * 4, torch.device("cpu"))
    together = agent.plan(seen, noise, known=known)
    alone = agent.plan(
        {name: x[2:3] for name, x in seen.items()},
        EpisodeNoise(0, [2], [3], torch.device("cpu")),
        known=Known(known.actions[2:3], known.weight[2:3]),
    )
    torch.testing.assert_close(together[2:3], alone, rtol=1e-4, atol=1e-5)


def test_the_critic_chooses_among_plans_that_continue_the_one_before() -> None:
    chunk = [*CHUNKED, "agent.critic.chunk=true", f"task.n_step={CHUNK}", "agent.acting.candidates=4"]
    agent, seen = make("gtp", *chunk, "agent.acting.join=rtc"), observation()
    rest = 2 * RandomStream(3, 0).uniform(4, 3, 2) - 1
    plan = agent.plan(seen, RandomStream(0, 0), known=Known.of(rest, 3, CHUNK))
    assert torch.equal(plan[:, :3], rest)


def test_known_actions_that_are_relative_to_a_state_are_encoded_for_the_new_one() -> None:
    agent = make("gtp_bc", *CHUNKED, "agent.acting.join=blend", 'agent.representation.relative=["0:2=state[0:2]"]')
    assert agent.representation is not None
    for bound in (agent.representation.low, agent.representation.high):
        bound.mul_(4)
    rest = 2 * RandomStream(3, 0).uniform(4, CHUNK, 2) - 1
    known = Known(rest, torch.full((4, CHUNK), 0.99))
    for seed in range(3):  # wherever the state is
        seen = {"state": 0.5 * observation(seed=seed)["state"]}
        torch.testing.assert_close(agent.plan(seen, RandomStream(0, 0), known=known), rest, atol=0.1, rtol=0)
