from typing import Any

import numpy as np
import pytest
import torch

from gtp_vision.core.random import counter_rng
from gtp_vision.experiments.fitting import fit, unconditional
from gtp_vision.experiments.measures import draw, map_error, modes_hit, wasserstein
from gtp_vision.experiments.problems import Mixture, four_modes, gaussian
from gtp_vision.models import GTPPolicy, PolicyConfig


class Exact(GTPPolicy):
    """The exact flow map of a problem, with phi times a factor."""

    known: Mixture = gaussian()
    factor = 1.0

    def _phi(self, observed: torch.Tensor, a_t: torch.Tensor, t: torch.Tensor, s: torch.Tensor) -> torch.Tensor:
        rows = []
        for x, high, low in zip(a_t.double().numpy(), t.tolist(), s.tolist(), strict=True):
            end = self.known.flow_map(x[None], high, low)
            rows.append((end - low / high * x) / (1 - low / high))
        return self.factor * torch.from_numpy(np.concatenate(rows)).float()


@pytest.mark.parametrize("factor", [1.0, 1.1])
def test_only_the_exact_map_has_no_error(factor: float) -> None:
    policy = Exact(1, 2, PolicyConfig(hidden=[4]))
    policy.factor = factor
    found = map_error(policy, gaussian(), counter_rng(0))
    is_exact = factor == 1
    assert (found["rel_error"] < 1e-3, found["composition"] < 1e-3) == (is_exact, is_exact)


def test_samples_are_counted_for_the_mode_that_they_are_on() -> None:
    known = four_modes()
    samples = np.concatenate([np.repeat(known.means[:1], 3, 0), known.means[2:3] + 0.1, np.zeros((4, 2))])
    spread = pytest.approx(0.5 * 0.1 / 0.05)
    assert modes_hit(samples, known) == {"on_mode": 50.0, "share": [75.0, 0.0, 25.0, 0.0], "spread": spread}
    assert modes_hit(np.zeros((4, 2)), known) == {"on_mode": 0.0, "share": [0.0] * 4, "spread": 0.0}
    data = modes_hit(known.draw(20_000, counter_rng(0)), known)
    assert (data["on_mode"], data["spread"]) == (pytest.approx(99.97, abs=0.06), pytest.approx(1, abs=0.02))
    assert data["share"] == pytest.approx([25] * 4, abs=2)


def test_the_wasserstein_distance_of_a_shift_is_its_length() -> None:
    x = counter_rng(0).standard_normal((300, 2))
    assert wasserstein(x, counter_rng(1).permutation(x)) == pytest.approx(0, abs=1e-9)
    assert wasserstein(x + np.array([0.3, 0.4]), x) == pytest.approx(0.5)


SMALL: dict[str, Any] = {"hidden": [64, 64], "sigma_max": 5.0}


@pytest.mark.trains
def test_a_few_seconds_of_training_find_the_gaussians_flow_map() -> None:
    known = gaussian()
    policy = fit(PolicyConfig(**SMALL), unconditional(known.draw), steps=1000).policy
    assert isinstance(policy, GTPPolicy)
    assert max(map_error(policy, known, counter_rng(0)).values()) < 0.12
    for steps in (1, 2, 5):
        samples = draw(policy, steps, 2000)
        assert samples.mean(0) == pytest.approx(known.means[0], abs=0.05)
        assert samples.std(0) == pytest.approx(np.full(2, known.deviation), rel=0.25)


def test_training_is_a_function_of_its_seed() -> None:
    def parameters(seed: int) -> torch.Tensor:
        fitted = fit(PolicyConfig(**SMALL), unconditional(gaussian().draw), steps=3, seed=seed)
        return torch.cat([p.flatten() for p in fitted.policy.parameters()])

    assert torch.equal(parameters(0), parameters(0))
    assert not torch.equal(parameters(0), parameters(1))
