"""The classifier of success: where the answer is known, and what its cross-validation may see."""

import numpy as np
import pytest

from gtp_vision.core.errors import GtpVisionError
from gtp_vision.evaluation.success_classifier import cross_validated, fit, frames_of


def ring(count: int, seed: int) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Points inside and outside of a circle, which no line separates, beside a block of noise and a constant."""
    random = np.random.default_rng(seed)
    points = random.normal(size=(count, 2))
    blocks = {"points": points, "noise": 100 * random.normal(size=(count, 50)), "still": np.full((count, 1), 3.0)}
    return blocks, np.square(points).sum(1) < 1.2


def test_a_boundary_that_is_not_linear_is_learned() -> None:
    train, shows = ring(120, 0)
    test, truth = ring(400, 1)
    chance = fit(train, shows, 1e-3).probability(test)
    assert np.mean((chance > 0.5) == truth) > 0.85
    assert ((chance > 0) & (chance < 1)).all()


def test_the_fit_is_a_minimum_of_its_loss() -> None:
    """At the minimum, d loss / d b = 0: the weighted residuals of both classes cancel."""
    frames, shows = ring(60, 2)
    chance = fit(frames, shows, 1e-2).probability(frames)
    assert np.mean(1 - chance[shows]) == pytest.approx(np.mean(chance[~shows]), abs=1e-3)


def test_units_of_a_feature_do_not_matter() -> None:
    frames, shows = ring(60, 3)
    scaled = {name: 7 * block - 2 for name, block in frames.items()}
    one, other = fit(frames, shows, 1e-3).probability(frames), fit(scaled, shows, 1e-3).probability(scaled)
    np.testing.assert_allclose(one, other, atol=1e-3)


def test_cross_validation_of_noise_promises_nothing() -> None:
    """Frames of an episode are alike, so an estimate that splits frames instead of episodes would be near 1."""
    random = np.random.default_rng(0)
    episodes = np.repeat(np.arange(60), 3)
    shows = np.repeat(random.random(60) < 0.5, 3)
    frames = {"x": np.repeat(random.normal(size=(60, 8)), 3, 0) + 1e-3 * random.normal(size=(180, 8))}
    found = cross_validated(frames, shows, episodes, np.arange(180) % 3 == 2, seed=0)
    assert found.episodes == 60
    assert found.accuracy < 0.7


def test_learned_frames_of_an_episode() -> None:
    assert frames_of(10, 21, True, None) == ([13, 17, 20], [False, False, True])
    assert frames_of(10, 21, False, None) == ([13, 17, 20], [False, False, False])
    assert frames_of(10, 31, True, 10) == ([13, 17, 20, 30], [False, False, True, True])
    assert frames_of(4, 5, True, 0) == ([4], [True]), "one frame is no earlier one"


def test_too_few_labels_are_one_sentence() -> None:
    frames, shows = {"x": np.zeros((3, 1))}, np.array([True, True, False])
    with pytest.raises(GtpVisionError, match=r"2 episodes are labelled a success and 1 a failure; label at least 2"):
        cross_validated(frames, shows, np.arange(3), np.ones(3, bool), seed=0)
