from collections.abc import Callable
from typing import Any

import pytest
import torch
from learning import A, F, loss_of

from gtp_vision import models
from gtp_vision.core.errors import GtpVisionError
from gtp_vision.core.random import RandomStream
from gtp_vision.models import FAMILIES, Guidable, Integrable, PolicyConfig, Renoisable
from gtp_vision.models.bottleneck import BottleneckPolicy
from gtp_vision.models.consistency import ConsistencyPolicy
from gtp_vision.models.diffusion import DiffusionPolicy, VPDiffusionPolicy
from gtp_vision.models.flow_matching import FlowMatchingPolicy
from gtp_vision.models.gtp import GTPPolicy
from gtp_vision.models.timed import Time

INTEGRABLE = sorted(name for name, kind in FAMILIES.items() if issubclass(kind, Integrable))
GUIDABLE = sorted(name for name, kind in FAMILIES.items() if issubclass(kind, Guidable))
RENOISABLE = sorted(name for name, kind in FAMILIES.items() if issubclass(kind, Renoisable))


def policy(family: str, **settings: Any) -> Any:
    torch.manual_seed(0)
    return models.create(F, A, PolicyConfig(family, **{"hidden": [16], "grid": 5, "activation": "mish"} | settings))


@pytest.mark.parametrize("family", INTEGRABLE)
def test_integrated_actions_are_a_function_of_all_the_noise_that_sampling_draws(family: str) -> None:
    actor, features, z = policy(family), torch.randn(8, F), RandomStream(0, 0).normal(8, A)
    for steps in (1, 3):
        actions = actor.sample_from(features, z, steps)
        assert torch.equal(actions, actor.sample(features, steps, RandomStream(0, 0)))
        assert torch.equal(actions, actor.integrate(actor.observe(features), z, steps).clamp(-1, 1))
        torch.testing.assert_close(actor.sample_from(features[3:4], z[3:4], steps), actions[3:4])
    if family != "deterministic":
        z.requires_grad_()
        (slope,) = torch.autograd.grad(actor.integrate(actor.observe(features), z, 2).sum(), z)
        assert bool((slope != 0).any(1).all())
    with pytest.raises(ValueError, match="steps=0"):
        actor.sample_from(features, z, 0)


#
# Actions from N(m, d^2) and the energy b a, whose product is N(m + b d^2, d^2). The mean of the action given the noised
# one is linear in it, and log E[e^(b a) | a_t] is b times this mean plus a constant: the pull is b times its slope.

DEVIATION, ENERGY = 0.1, 20.0  # the energy moves the mean by b d^2 = 0.2


class GaussianDiffusion(DiffusionPolicy):
    mean = 0.1

    def denoise(self, observed: torch.Tensor, a_t: torch.Tensor, t: Time) -> torch.Tensor:
        return (DEVIATION**2 * a_t + t**2 * self.mean) / (DEVIATION**2 + t**2)


class GaussianGTP(GTPPolicy):
    mean = 0.1

    def _phi(self, observed: torch.Tensor, a_t: torch.Tensor, t: Time, s: Time) -> torch.Tensor:
        assert t == s  # guided sampling does not jump
        return (DEVIATION**2 * a_t + t**2 * self.mean) / (DEVIATION**2 + t**2)


class GaussianBottleneck(BottleneckPolicy):
    mean = 0.1

    def log_density(self, observed: torch.Tensor, a_t: torch.Tensor, t: Time) -> torch.Tensor:
        return -0.5 * (a_t - self.mean).square().sum(1) / (DEVIATION**2 + t**2)


class GaussianFlow(FlowMatchingPolicy):
    mean = 0.1

    def evaluate(self, observed: torch.Tensor, x: torch.Tensor, *times: Time) -> torch.Tensor:
        (r,) = times
        return (x - posterior_mean(x, 1 - r, r, self.mean)) / r


class GaussianVP(VPDiffusionPolicy):
    mean = 0.1

    def evaluate(self, observed: torch.Tensor, x: torch.Tensor, *times: Time) -> torch.Tensor:
        abar = self.abar[round(float(times[0]) * self.config.grid)]
        alpha, sigma = abar.sqrt(), (1 - abar).sqrt()
        return (x - alpha * posterior_mean(x, alpha, sigma, self.mean)) / sigma


def posterior_mean(x: torch.Tensor, alpha: Any, sigma: Any, mean: float) -> torch.Tensor:
    """E[a | x] for x = alpha a + sigma z."""
    gain = alpha * DEVIATION**2 / (alpha**2 * DEVIATION**2 + sigma**2)
    return mean + gain * (x - alpha * mean)


def scales(family: str, actor: Any, t: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    if family == "vp_diffusion":
        abar = actor.abar[(t * actor.config.grid).round().long()]
        return abar.sqrt(), (1 - abar).sqrt()
    return (1 - t, t) if family == "flow_matching" else (torch.ones_like(t), t)


EXACT: dict[str, Callable[..., Any]] = {
    "gtp": GaussianGTP,
    "diffusion": GaussianDiffusion,
    "vp_diffusion": GaussianVP,
    "flow_matching": GaussianFlow,
    "bottleneck": GaussianBottleneck,
}


def sampled(actor: Any, rows: int, steps: int) -> torch.Tensor:
    observed = actor.observe(torch.zeros(rows, F))
    if isinstance(actor, GTPPolicy):  # which would jump
        return GaussianDiffusion.integrate(actor, observed, RandomStream(0, 0).normal(rows, A), steps)  # type: ignore[arg-type]
    return actor.generate(observed, steps, RandomStream(0, 0))


@pytest.mark.parametrize("steps", [5, 12])
@pytest.mark.parametrize("family", GUIDABLE)
def test_a_linear_energy_moves_the_mean_of_gaussian_actions_as_in_closed_form(family: str, steps: int) -> None:
    settings = PolicyConfig(family, hidden=[4], activation="mish", grid=steps)
    actor, moved = (EXACT[family](F, A, settings) for _ in range(2))
    moved.mean = actor.mean + ENERGY * DEVIATION**2
    seen = []

    def pull(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        assert t.shape == (len(x),)
        seen.append(t[0])
        alpha, sigma = scales(family, actor, t)
        return (ENERGY * alpha * DEVIATION**2 / (alpha**2 * DEVIATION**2 + sigma**2))[:, None].expand_as(x)

    observed = actor.observe(torch.zeros(2000, F))
    found = actor.guided(observed, steps, RandomStream(0, 0), pull).detach()
    torch.testing.assert_close(found, sampled(moved, 2000, steps).detach(), rtol=1e-3, atol=2e-3)
    assert float(found.mean()) == pytest.approx(0.3, abs=0.02)
    assert len(seen) == steps
    unguided = actor.guided(observed, steps, RandomStream(0, 0), lambda x, t: torch.zeros_like(x))
    torch.testing.assert_close(unguided, sampled(actor, 2000, steps))


@pytest.mark.parametrize("family", GUIDABLE)
def test_guided_actions_stay_in_the_box_and_need_a_step(family: str) -> None:
    for steps in (2, 5):
        actor = policy(family, grid=steps)
        observed = actor.observe(torch.zeros(8, F))
        found = actor.guided(observed, steps, RandomStream(0, 0), lambda x, t: torch.full_like(x, 1e4))
        torch.testing.assert_close(found, torch.ones(8, A))
    with pytest.raises((ValueError, GtpVisionError), match="steps=0"):
        actor.guided(observed, 0, RandomStream(0, 0), lambda x, t: x)


@pytest.mark.parametrize("family", sorted(set(GUIDABLE) - {"gtp"}))
def test_noised_actions_are_those_that_the_family_learns_from(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    actor, seen = policy(family), []
    network = actor.evaluate

    def noted(observed: torch.Tensor, x: torch.Tensor, *times: Time) -> torch.Tensor:
        seen.append((x.detach(), times[0]))
        return network(observed, x, *times)

    monkeypatch.setattr(actor, "evaluate", noted)
    action = 2 * torch.rand(16, A) - 1
    loss_of(actor, torch.zeros(16, F), action, RandomStream(0, 0), actor)
    ((x, t),) = seen
    a_t, time = actor.noised(action, RandomStream(0, 0))
    assert torch.equal(a_t, x)
    assert torch.equal(time, t)


@pytest.mark.parametrize("family", GUIDABLE)
def test_actions_of_one_observation_share_their_time_and_no_noise(family: str) -> None:
    actor, action = policy(family), 0.4 * torch.ones(500, 6, A)
    a_t, t = actor.noised(action, RandomStream(0, 0))
    assert a_t.shape == (500, 6, A)
    assert t.shape == (500,)
    alpha, sigma = (scale[:, None, None] for scale in scales(family, actor, t))
    z = (a_t - alpha * action) / sigma
    assert float(z.std()) == pytest.approx(1, abs=0.03)
    assert float((z[:, 0] * z[:, 1]).mean()) == pytest.approx(0, abs=0.1)
    assert float(z.mean()) == pytest.approx(0, abs=0.05)


@pytest.mark.parametrize("level", [0.05, 0.5, 4.0])
@pytest.mark.parametrize("family", RENOISABLE)
def test_a_renoised_action_is_the_flow_maps_answer(family: str, level: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of N(0.1, d^2), whose flow map from level t is m + d / sqrt(d^2 + t^2) (a_t - m) in every family."""
    actor, noise = policy(family), RandomStream(0, 0)
    action, z = noise.normal(8, A), noise.normal(8, A)
    expected = 0.1 + DEVIATION * (DEVIATION**2 + level**2) ** -0.5 * (action + level * z - 0.1)

    def exact(observed: torch.Tensor, x: torch.Tensor, *times: float) -> torch.Tensor:
        """What the family's network learns of this distribution."""
        if family == "gtp":
            assert times == (level, 0.0)
            return expected
        if isinstance(actor, ConsistencyPolicy):
            above, data = level - actor.config.sigma_min, actor.config.sigma_data
            skip = data**2 / (above**2 + data**2)
            return (expected - skip * x) * (level**2 + data**2) ** 0.5 / (data * above)
        r = times[0]
        torch.testing.assert_close(x / (1 - r), action + level * z)
        assert times[1] in ((0.0,) if family == "meanflow" else (0.0, r)), "the time of arrival, or the step"
        return (x - expected) / r

    monkeypatch.setattr(actor, "evaluate", exact)
    torch.testing.assert_close(actor.renoised(actor.observe(torch.zeros(8, F)), action, level, z), expected)
