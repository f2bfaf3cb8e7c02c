from typing import Any

import pytest
import torch
from learning import A, F, loss_of

from gtp_vision.core.errors import GtpVisionError
from gtp_vision.core.random import RandomStream
from gtp_vision.models import PolicyConfig
from gtp_vision.models.one_step import OneStepPolicy
from gtp_vision.models.plain import DeterministicPolicy, GaussianPolicy


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
    features, action = noise.normal(8, F), 2 * noise.uniform(8, A) - 1
    each, metrics = loss_of(actor, features, action, noise, actor)
    observed = actor.observe(features)
    known = torch.distributions.Normal(actor.mean(observed), torch.tensor([-1.5, 0.3]).exp())
    torch.testing.assert_close(each, -known.log_prob(action).sum(1))
    torch.testing.assert_close(metrics["negative_log_likelihood"], -known.log_prob(action).sum(1).mean())
    torch.testing.assert_close(actor.log_density(observed, action, torch.ones(8)), known.log_prob(action).sum(1))


@pytest.mark.parametrize(("asked", "held"), [(-9.0, -5.0), (4.0, 2.0)])
def test_a_gaussians_deviation_is_held_between_bounds(asked: float, held: float) -> None:
    actor, z = gaussian((asked, asked)), torch.ones(1, A)
    observed = actor.observe(torch.zeros(1, F))
    spread = actor.integrate(observed, z, 1) - actor.integrate(observed, 0 * z, 1)
    torch.testing.assert_close(spread, torch.full((1, A), held).exp())


def test_gaussian_actions_have_its_deviation_within_the_box() -> None:
    actor, features = gaussian((-2.0, 1.0)), torch.zeros(4000, F)
    actions = actor.sample(features, 3, RandomStream(0, 0)).detach()
    assert float(actions[:, 0].std()) == pytest.approx(0.1353, rel=0.05)
    assert float(actions[:, 1].abs().max()) == 1
    middle = actor.mean(actor.observe(features))
    assert torch.equal(actor.sample_from(features, torch.zeros(4000, A), 1), middle)


def test_a_deterministic_policys_loss_is_the_squared_error_of_its_action() -> None:
    actor, noise = DeterministicPolicy(F, A, config()), RandomStream(0, 0)
    features, action = noise.normal(8, F), 2 * noise.uniform(8, A) - 1
    each, _ = loss_of(actor, features, action, noise, actor)
    sampled = actor.sample(features, 1, None)  # type: ignore[arg-type]
    torch.testing.assert_close(each, (sampled - action).square().sum(1))
    assert torch.equal(sampled, actor.sample_from(features, torch.randn(8, A), 7))


def test_a_one_step_policy_has_no_loss_from_data() -> None:
    actor = OneStepPolicy(F, A, config())
    with pytest.raises(GtpVisionError, match=r"one_step learns from another policy only \(agent=fql"):
        loss_of(actor, torch.zeros(2, F), torch.zeros(2, A), RandomStream(0, 0), actor)


def test_a_one_step_policy_is_a_linear_output_of_noise_and_observation() -> None:
    actor = OneStepPolicy(F, A, config(input_gain=2.0))
    features, z = torch.randn(4, F), torch.randn(4, A)
    expected = actor.network(actor.observe(features) + actor.locate(2 * z))
    torch.testing.assert_close(actor.integrate(actor.observe(features), z, 1), expected)
    torch.testing.assert_close(actor.sample_from(features, z, 1), expected.clamp(-1, 1))
