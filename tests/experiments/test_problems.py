import numpy as np
import pytest
from scipy.stats import norm

from gtp_vision.core.random import counter_rng
from gtp_vision.experiments.problems import Mixture, four_modes, gaussian, two_modes


def test_the_solver_agrees_with_the_closed_form_of_one_mode() -> None:
    known = gaussian()
    twice = Mixture(np.repeat(known.means, 2, axis=0), known.deviation)  # two equal modes are solved numerically
    x = known.draw(50, counter_rng(0)) + 5 * counter_rng(1).standard_normal((50, 2))
    for t, s in ((5.0, 0.0), (5.0, 0.3), (0.3, 0.01)):
        np.testing.assert_allclose(twice.flow_map(x, t, s), known.flow_map(x, t, s), atol=1e-6)


def test_in_one_dimension_the_flow_map_keeps_quantiles() -> None:
    known = two_modes()

    def quantile(x: np.ndarray, t: float) -> np.ndarray:
        return np.mean([norm.cdf(x[:, 0], m[0], np.hypot(known.deviation, t)) for m in known.means], axis=0)

    x = known.draw(200, counter_rng(0)) + 10 * counter_rng(1).standard_normal((200, 1))
    for s in (1.0, 0.1, 0.0):
        np.testing.assert_allclose(quantile(known.flow_map(x, 10.0, s), s), quantile(x, 10.0), atol=1e-5)


def test_jumps_compose_and_a_jump_of_length_0_is_the_identity() -> None:
    known = four_modes()
    x = known.draw(50, counter_rng(0)) + 2 * counter_rng(1).standard_normal((50, 2))
    np.testing.assert_allclose(
        known.flow_map(known.flow_map(x, 2.0, 0.4), 0.4, 0.0), known.flow_map(x, 2.0, 0.0), atol=1e-5
    )
    np.testing.assert_array_equal(known.flow_map(x, 2.0, 2.0), x)


def test_the_denoiser_is_the_mean_of_the_data_given_the_noised() -> None:
    known, t = two_modes(), 0.4
    data = known.draw(200_000, counter_rng(0))
    for x in (-0.8, 0.0, 0.1, 0.7):
        weight = np.exp(-0.5 * np.square((x - data) / t))
        expected = (weight * data).sum() / weight.sum()
        assert known.denoise(np.array([[x]]), t)[0, 0] == pytest.approx(expected, abs=0.015)
