"""Best of N, beam search and steps along Q's gradient, where the answer is known."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace
from types import MethodType

import numpy as np
import pytest
import torch
from small import PIXELS, STATE, make, observation
from torch import nn

from gtp_vision.agents import ActingConfig, Agent
from gtp_vision.core.random import RandomStream
from gtp_vision.experiments.bandit_problem import CONTEXTS, DEVIATION, MODES, REWARDS, SHARES, shares_of
from gtp_vision.models import GTPPolicy

COUNT = 10_000
BEAM = ["agent.acting.candidates=6", "agent.acting.beam=3", "agent.acting.rounds=2", "agent.acting.branch=2"]
CHUNKED = ["agent.action_chunk=3", "agent.critic.chunk=true", "task.n_step=3"]


def known(policy_map: object, worth: object, shapes: dict[str, tuple[int, ...]]) -> Agent:
    """A GTP whose map and slow critic are given functions of the observation; its features are the observation."""
    agent = make("gtp", shapes=shapes)
    assert isinstance(agent.policy, GTPPolicy)
    agent.policy.observe = nn.Identity()  # type: ignore[assignment]
    agent.policy.lower.fill_(-1e9), agent.policy.upper.fill_(1e9)
    agent.policy._phi = MethodType(policy_map, agent.policy)  # type: ignore[arg-type, method-assign]
    agent.critic_target.worth = worth  # type: ignore[assignment, method-assign]
    return agent


# One normal distribution, N(0.3, 0.2^2) in each of two dimensions, and Q the first of them -----------------------

MEAN, WIDTH = 0.3, 0.2


def gaussian() -> Agent:
    def jump(self: GTPPolicy, observed: torch.Tensor, a_t: torch.Tensor, t: float, s: float) -> torch.Tensor:
        return MEAN + WIDTH / math.hypot(WIDTH, t) * (a_t - MEAN)

    return known(jump, lambda features, action: action[:, 0], {"state": (1, 3)})


def values(agent: Agent, acting: ActingConfig) -> np.ndarray:
    """In units of the deviation, of one-jump candidates."""
    agent.policy.config.sigma_max = 1e3  # from where the map leaves no trace of the mean
    seen = {"state": torch.zeros(COUNT, 1, 3)}
    return ((agent.act(seen, RandomStream(0, 0), 1, acting)[:, 0] - MEAN) / WIDTH).numpy()


@pytest.mark.parametrize("level", [0.1, 0.4])
@pytest.mark.parametrize("noise", [1.0, 0.5])
def test_a_renoised_action_is_distributed_as_before_and_the_better_of_the_two_is_taken(
    level: float, noise: float
) -> None:
    shrink = WIDTH / math.hypot(WIDTH, level)
    assert shrink * math.hypot(1, level / WIDTH) == pytest.approx(1), "with all of the noise the deviation stays"
    spread = np.array([noise, shrink * noise * math.hypot(1, level / WIDTH)])
    apart = math.sqrt(spread @ spread - 2 * shrink * noise**2)  # deviation of the difference of the two
    found = values(gaussian(), ActingConfig(rounds=1, branch=1, renoise=level, noise=noise))
    assert found.mean() == pytest.approx(apart / math.sqrt(2 * math.pi), abs=0.03), "E max of two normals"


@pytest.mark.parametrize(
    ("acting", "order_statistic"),
    [
        (ActingConfig(candidates=4), 1.0294),
        (ActingConfig(candidates=16), 1.7660),
        (ActingConfig(candidates=16, beam=16), 1.7660),
        (ActingConfig(rounds=1, branch=3, renoise=1000), 1.0294),  # from so far the branches are new candidates
        (ActingConfig(candidates=8, beam=2, rounds=1, branch=4, renoise=1000), 1.7660),
    ],
)
def test_the_best_of_n_has_the_mean_of_the_largest_of_n(acting: ActingConfig, order_statistic: float) -> None:
    assert values(gaussian(), acting).mean() == pytest.approx(order_statistic, abs=0.03)


def test_a_step_along_the_gradient_has_its_length() -> None:
    acting = ActingConfig(candidates=2)
    before, after = (values(gaussian(), replace(acting, gradient_step=step)) for step in (0.0, 0.05))
    np.testing.assert_allclose(after - before, 0.05 / WIDTH, atol=1e-4)


# The bandit: four modes in each context, and the exact Q = E[r | context, action] ---------------------------------


PLACES, CHANCES, WORTH = (torch.tensor(x, dtype=torch.float32) for x in (MODES, SHARES, REWARDS))


def posterior(contexts: torch.Tensor, actions: torch.Tensor, t: float) -> torch.Tensor:
    """P(mode | context, noised action), (B, M)."""
    near = (actions @ PLACES.T - PLACES.square().sum(1) / 2) / (DEVIATION**2 + t**2)
    return torch.softmax((contexts @ CHANCES).log() + near, 1)


def bandit() -> Agent:
    def jump(self: GTPPolicy, observed: torch.Tensor, a_t: torch.Tensor, t: float, s: float) -> torch.Tensor:
        """Down the ODE by the exact denoiser, in 16 steps."""
        levels = torch.logspace(math.log10(t), -2, 16).tolist()
        for high, low in itertools.pairwise([*levels, 0.0]):
            nearest = posterior(observed, a_t, high) @ PLACES
            denoised = nearest + DEVIATION**2 / (DEVIATION**2 + high**2) * (a_t - nearest)
            a_t = torch.lerp(denoised, a_t, low / high)
        return a_t

    def worth(features: torch.Tensor, action: torch.Tensor) -> torch.Tensor:
        return (posterior(features, action, 0.0) * (features @ WORTH)).sum(1)

    return known(jump, worth, {"context": (1, CONTEXTS)})


def test_on_the_bandit_more_of_everything_is_better_up_to_the_best_mode_within_the_support() -> None:
    agent, rows = bandit(), 150
    seen = {"context": torch.eye(CONTEXTS).repeat(rows, 1)[:, None]}

    def expected(candidates: int, beam: int, rounds: int, branch: int) -> float:
        acting = ActingConfig(candidates=candidates, beam=beam, rounds=rounds, branch=branch, renoise=0.7)
        actions = agent.act(seen, RandomStream(0, 0), 1, acting)
        _, outside = shares_of(actions.double().numpy().reshape(rows, CONTEXTS, 2).swapaxes(0, 1))
        assert outside.mean() < 0.01, "jumps of the exact map end in the support"
        q = agent.critic_target.worth(seen["context"][:, 0], actions)
        return float(q.mean())

    behaviour = float((SHARES * REWARDS).sum(1).mean())
    assert expected(1, 1, 0, 1) == pytest.approx(behaviour, abs=0.04)
    for grow in (
        [(4, 1, rounds, 2) for rounds in (0, 1, 2, 4)],
        [(4, beam, 2, 1) for beam in (1, 2, 4)],
        [(4, 1, 2, branch) for branch in (1, 2, 8)],
    ):
        q = [expected(*each) for each in grow]
        assert all(more > less + 0.005 for less, more in itertools.pairwise(q)), q
    assert expected(8, 4, 4, 4) > 0.96, "1 is the best mode's reward"


# Networks as they are ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "overrides", "camera"),
    [
        ("gtp", CHUNKED, False),
        ("gtp", ["agent.action_chunk=3"], True),
        ("gtp", ["improvement=q_gradient", "agent.improvement.q_steps=2", "agent.acting.steps=2"], False),
        ("consistency_ac", ["agent.acting.renoise=1"], False),
        ("gtp", ["agent.policy.family=shortcut"], False),
        ("gtp", ["agent.policy.family=meanflow"], False),
    ],
)
def test_no_beam_is_worse_than_the_best_of_its_candidates(name: str, overrides: list[str], camera: bool) -> None:
    shapes = PIXELS if camera else STATE
    agent = make(name, *BEAM, "agent.acting.choose=argmax", *overrides, shapes=shapes, share=camera)
    seen, acting = observation(shapes, batch=16), agent.config.acting
    wide = replace(acting, rounds=0, beam=6)
    plans = {key: agent.plan(seen, RandomStream(0, 0), acting=way) for key, way in (("beam", acting), ("wide", wide))}
    assert torch.equal(plans["wide"], agent.plan(seen, RandomStream(0, 0), acting=replace(wide, beam=1)))
    features = (agent.actor_encoder_target if camera else agent.critic_encoder_target)(seen)
    q = {key: agent.critic_target.worth(features, agent.critic_action(plan.flatten(1))) for key, plan in plans.items()}
    assert (q["beam"] >= q["wide"] - 1e-6).all()
    assert (q["beam"] > q["wide"] + 1e-6).any()


def test_a_step_changes_what_the_critic_sees_of_a_chunk_even_without_candidates() -> None:
    agent, seen = make("td3_bc", "agent.action_chunk=3"), observation()
    before = agent.plan(seen, RandomStream(0, 0))
    after = agent.plan(seen, RandomStream(0, 0), acting=replace(agent.config.acting, gradient_step=0.01))
    assert torch.equal(before[:, 1:], after[:, 1:])
    torch.testing.assert_close((after - before)[:, 0].norm(dim=1), torch.full((4,), 0.01))
    with torch.inference_mode():
        same = agent.plan(seen, RandomStream(0, 0), acting=replace(agent.config.acting, gradient_step=0.01))
    torch.testing.assert_close(same, after)
