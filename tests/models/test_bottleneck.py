from typing import Any

import pytest
import torch
from learning import A, F, learn, loss_of

from gtp_vision.core.random import RandomStream
from gtp_vision.models import PolicyConfig
from gtp_vision.models.bottleneck import BottleneckPolicy


def bottleneck(features: int = F, actions: int = A, **settings: Any) -> BottleneckPolicy:
    torch.manual_seed(0)
    return BottleneckPolicy(features, actions, PolicyConfig(**{"hidden": [16, 16], "activation": "mish"} | settings))


def places(rows: int = 6) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Features, noised actions and levels from the lowest to the highest, in double precision."""
    noise = RandomStream(0, 0)
    t = torch.logspace(-2, 1, rows, dtype=torch.float64)
    return noise.normal(rows, F).double(), (1 + t)[:, None] * noise.normal(rows, A).double(), t


def slopes(model: BottleneckPolicy, features: torch.Tensor, a_t: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    """The gradient of f by central differences."""
    observed, columns = model.observe(features), []
    for k in range(A):
        h = torch.zeros(A, dtype=a_t.dtype)
        h[k] = 1e-5
        columns.append(model.log_density(observed, a_t + h, t) - model.log_density(observed, a_t - h, t))
    return torch.stack(columns, 1) / 2e-5


def test_the_score_is_the_gradient_of_the_log_density() -> None:
    model, (features, a_t, t) = bottleneck().double(), places()
    found = model.score(model.observe(features), a_t, t)
    torch.testing.assert_close(found, slopes(model, features, a_t, t), rtol=1e-5, atol=1e-6)
    assert found.requires_grad  # in training


def test_denoiser_and_loss_follow_from_the_density(monkeypatch: pytest.MonkeyPatch) -> None:
    """D = a_t + t^2 grad f and the loss ||-t grad f - z||^2."""
    model, (features, a_t, t) = bottleneck().double(), places()
    action = RandomStream(1, 0).uniform(6, A).double()
    expected = a_t + t[:, None] ** 2 * slopes(model, features, a_t, t)
    torch.testing.assert_close(model.denoise(model.observe(features), a_t, t), expected, rtol=1e-4, atol=1e-4)
    monkeypatch.setattr(model, "draw_time", lambda rows, noise: t)
    each, _ = loss_of(model, features, action, RandomStream(2, 0), model)
    z = RandomStream(2, 0).normal(6, A)
    eps = -t[:, None] * slopes(model, features, action + t[:, None] * z, t)
    torch.testing.assert_close(each, (eps - z).square().sum(1), rtol=1e-4, atol=1e-4)


def test_a_network_of_zeros_gives_the_density_of_a_gaussian() -> None:
    """f = -||a_t||^2 / (2 (t^2 + 0.25)) for actions from N(0, 0.5^2), in numbers: -(0.36 + 0.64) / (2 * 1.25)."""
    model = bottleneck()
    with torch.no_grad():
        for parameter in model.network.parameters():
            parameter.zero_()
    at = (model.observe(torch.zeros(1, F)), torch.tensor([[0.6, -0.8]]), torch.ones(1))
    assert float(model.log_density(*at).detach()) == pytest.approx(-0.4)
    torch.testing.assert_close(model.denoise(*at), torch.tensor([[0.12, -0.16]]))


def test_one_level_for_all_rows_equals_a_level_for_each() -> None:
    model, (features, a_t, _) = bottleneck(), places()
    features, a_t, t = features.float(), a_t.float(), torch.full((6,), 0.7)
    observed = model.observe(features)
    torch.testing.assert_close(model.log_density(observed, a_t, 0.7), model.log_density(observed, a_t, t))
    torch.testing.assert_close(model.denoise(observed, a_t, 0.7), model.denoise(observed, a_t, t))


@pytest.mark.trains
def test_a_short_training_finds_the_density_of_two_modes() -> None:
    """A quarter of the actions at -0.5, the rest at 0.5, deviation 0.05: log mu_t is known in closed form."""
    model, centers = bottleneck(1, 1, hidden=[32, 32]), torch.tensor([[-0.5], [0.5]])

    def samples(noise: RandomStream) -> tuple[torch.Tensor, torch.Tensor]:
        mode = (noise.uniform(256) >= 0.25).long()
        return torch.zeros(256, 1), centers[mode] + 0.05 * noise.normal(256, 1)

    learn(model, samples, 300, 1e-2)
    x = torch.cat([centers, torch.zeros(1, 1)])
    observed = model.observe(torch.zeros(3, 1))
    for level in (0.25, 0.5, 1.0):
        left, right, between = model.log_density(observed, x, torch.full((3,), level)).tolist()
        known = torch.log(
            0.25 * torch.exp(-0.5 * (x + 0.5) ** 2 / (level**2 + 0.05**2))
            + 0.75 * torch.exp(-0.5 * (x - 0.5) ** 2 / (level**2 + 0.05**2))
        ).flatten()
        assert right - left == pytest.approx(float(known[1] - known[0]), abs=0.25)
        assert right - between == pytest.approx(float(known[1] - known[2]), abs=0.25)
