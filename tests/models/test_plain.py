"""Families without noise or times in the network, and the one-step actor, which has no times."""

from typing import Any

import pytest
import torch

from gtp_vision import models
from gtp_vision.core.errors import GtpVisionError
from gtp_vision.core.random import RandomStream
from gtp_vision.models import PolicyConfig
from gtp_vision.models.one_step import OneStepPolicy
from gtp_vision.models.plain import DeterministicPolicy, GaussianPolicy

F, A = 3, 2


def config(**settings: Any) -> PolicyConfig:
    return PolicyConfig(**{"hidden": [16, 16], "activation": "mish"} | settings)


def gaussian(log_deviation: tuple[float, ...] = (-1.5, 0.3)) -> GaussianPolicy:
    torch.manual_seed(0)
    actor = GaussianPolicy(F, A, config())
    with torch.no_grad():
        actor.log_deviation.copy_(torch.tensor(log_deviation))
    return actor


def test_a_gaussians_loss_is_torchs_negative_log_likelihood() -> None:
    actor, noise = gaussian(), RandomStream(0, 0)
    features, action, weight = noise.normal(8, F), 2 * noise.uniform(8, A) - 1, noise.uniform(8)
    each, metrics = actor.loss(features, action, weight, noise, actor)
    observed = actor.observe(features)
    known = torch.distributions.Normal(actor.mean(observed), torch.tensor([-1.5, 0.3]).exp())
    torch.testing.assert_close(each, -weight * known.log_prob(action).sum(1))
    torch.testing.assert_close(metrics["negative_log_likelihood"], -known.log_prob(action).sum(1).mean())
    torch.testing.assert_close(actor.log_density(observed, action, torch.ones(8)), known.log_prob(action).sum(1))


def test_a_gaussians_likelihood_by_hand() -> None:
    """Two standard deviations off in one dimension: -log sqrt(2 pi) - log 0.5 - 2 = -2.225791."""
    actor = GaussianPolicy(1, 1, config())
    with torch.no_grad():
        actor.log_deviation.fill_(-0.693147181)
    observed = actor.observe(torch.zeros(1, 1))
    found = actor.log_density(observed, actor.mean(observed) + 1.0, torch.zeros(1))
    assert float(found.detach()) == pytest.approx(-2.225791, abs=1e-5)


@pytest.mark.parametrize(("asked", "held"), [(-9.0, -5.0), (4.0, 2.0)])
def test_a_gaussians_deviation_is_held_between_bounds(asked: float, held: float) -> None:
    actor, z = gaussian((asked, asked)), torch.ones(1, A)
    observed = actor.observe(torch.zeros(1, F))
    spread = actor.integrate(observed, z, 1) - actor.integrate(observed, 0 * z, 1)
    torch.testing.assert_close(spread, torch.full((1, A), held).exp())


def test_a_gaussian_is_as_wide_as_its_deviation_and_held_to_the_box() -> None:
    actor, features = gaussian((-2.0, 1.0)), torch.zeros(4000, F)
    actions = actor.sample(features, 3, RandomStream(0, 0)).detach()
    assert float(actions[:, 0].std()) == pytest.approx(0.1353, rel=0.05)
    assert float(actions[:, 1].abs().max()) == 1
    middle = actor.mean(actor.observe(features))
    assert torch.equal(actor.sample_from(features, torch.zeros(4000, A), 1), middle)


def test_what_a_gaussian_is_asked_about_are_the_actions_themselves() -> None:
    action = torch.rand(5, 4, A)
    a_t, t = gaussian().noised(action, RandomStream(0, 0))
    assert torch.equal(a_t, action)
    assert torch.equal(t, torch.zeros(5))


def test_a_deterministic_policys_loss_is_the_squared_error_of_its_action() -> None:
    actor, noise = DeterministicPolicy(F, A, config()), RandomStream(0, 0)
    features, action, weight = noise.normal(8, F), 2 * noise.uniform(8, A) - 1, noise.uniform(8)
    each, _ = actor.loss(features, action, weight, noise, actor)
    acts = actor.sample(features, 1, noise)
    torch.testing.assert_close(each, weight * (acts - action).square().sum(1))


def test_a_deterministic_policy_draws_nothing() -> None:
    features = torch.randn(4, F)
    actor: Any = DeterministicPolicy(F, A, config())
    assert torch.equal(actor.sample(features, 1, None), actor.sample_from(features, torch.randn(4, A), 7))


@pytest.mark.parametrize("kind", [GaussianPolicy, DeterministicPolicy])
def test_plain_policies_carry_nothing_of_times(kind: type[GaussianPolicy] | type[DeterministicPolicy]) -> None:
    names = set(kind(F, A, config()).state_dict())
    assert {name.split(".")[0] for name in names} <= {"observe", "network", "log_deviation"}
    kind(F, A, config(sigma_min=5.0))  # levels of noise do not concern them


def test_a_one_step_policy_has_no_loss_from_data() -> None:
    actor = OneStepPolicy(F, A, config())
    with pytest.raises(GtpVisionError, match=r"one_step learns from another policy only \(agent=fql"):
        actor.loss(torch.zeros(2, F), torch.zeros(2, A), torch.ones(2), RandomStream(0, 0), actor)


def test_a_one_step_policy_is_a_linear_output_of_noise_and_observation() -> None:
    actor = OneStepPolicy(F, A, config(input_gain=2.0))
    features, z = torch.randn(4, F), torch.randn(4, A)
    expected = actor.network(actor.observe(features) + actor.locate(2 * z))
    torch.testing.assert_close(actor.integrate(actor.observe(features), z, 1), expected)
    torch.testing.assert_close(actor.sample_from(features, z, 1), expected.clamp(-1, 1))


def test_a_one_step_policy_learns_what_another_makes_of_the_same_noise() -> None:
    torch.manual_seed(0)
    teacher = models.create(F, A, config(family="flow_matching"))
    assert isinstance(teacher, models.Integrable)
    student = OneStepPolicy(F, A, config(hidden=[64, 64], input_gain=1.0))
    optimizer, errors = torch.optim.Adam(student.parameters(), lr=3e-3), []
    for step in range(400):
        noise = RandomStream(0, step)
        features, z = noise.normal(128, F), noise.normal(128, A)
        with torch.no_grad():
            target = teacher.sample_from(features, z, 10)
        error = (student.integrate(student.observe(features), z, 1) - target).square().sum(1).mean()
        optimizer.zero_grad()
        error.backward()
        optimizer.step()
        errors.append(float(error.detach()))
    assert sum(errors[-20:]) / 20 < 0.05 * errors[0]
