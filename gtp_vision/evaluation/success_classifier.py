"""Whether a frame shows success: kernel logistic regression on frozen features, fitted to a few labelled episodes.

    f(x) = sum_i a_i k(x_i, x) + b,   P(success | x) = 1 / (1 + exp(-f(x)))

over the frames x_i of labelled episodes. k is a mean of Gaussian kernels, one for each observation (a camera's vector
of a backbone, or a state), each of a width of the median distance between frames, so that none of them decides by its
length. The loss is the negative log-likelihood, both classes of equal weight, plus ridge / 2 f's squared norm. It is
convex, so nothing is random but the folds of the cross-validation.

The last frame of an episode decides about it. Axes in names: N frames, W width of a block of features.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from scipy.optimize import minimize
from scipy.special import expit

from gtp_vision.core.errors import GtpVisionError
from gtp_vision.core.random import counter_rng

Blocks = Mapping[str, np.ndarray]
"""Name of an observation to its features (N, W)."""
_RIDGES = (1e-4, 1e-3, 1e-2)
_FOLDS = 10
_FLOOR = 1e-2  # of the largest deviation of a block: features that change less are left out
_EARLIER = (0.3, 0.7)  # places in an episode, of its frames before success, that show none
_SALT = 0x5C  # separates the folds from other draws of the same seed


@dataclass(frozen=True)
class SuccessClassifier:
    """A fitted classifier: the frames that it compares with, and their weights."""

    frames: Blocks
    scales: Mapping[str, tuple[np.ndarray, np.ndarray, float]]
    weights: np.ndarray
    bias: float

    def probability(self, frames: Blocks) -> np.ndarray:
        """P(success) of frames, float64 (N,)."""
        kernel = np.mean([_kernel(frames[name], self.frames[name], *self.scales[name]) for name in self.frames], 0)
        return expit(kernel @ self.weights + self.bias)


@dataclass(frozen=True)
class Validation:
    """Cross-validation over labelled episodes: `accuracy` of their last frames, each judged without its episode."""

    accuracy: float
    episodes: int
    ridge: float


def frames_of(start: int, end: int, success: bool, frame: int | None) -> tuple[list[int], list[bool]]:
    """Return the rows of a labelled episode from `start` to `end` that are learned, and what they show.

    Of a success the last one, and the labelled `frame`; earlier ones, before 0.7 of the time until then, show none.
    """
    last = end - 1
    reached = start + frame if success and frame is not None else last
    earlier = sorted({start + int(share * (reached - start)) for share in _EARLIER} - {reached, last})
    later = sorted({reached, last}) if success else [last]
    return [*earlier, *later], [False] * len(earlier) + [success] * len(later)


def fit(frames: Blocks, shows: np.ndarray, ridge: float) -> SuccessClassifier:
    """Fit a classifier to frames and to whether they show success, bool (N,)."""
    scales = {name: _scale(block) for name, block in frames.items()}
    kernel = np.mean([_kernel(block, block, *scales[name]) for name, block in frames.items()], 0)
    counts = np.where(shows, 0.5 / max(1, shows.sum()), 0.5 / max(1, (~shows).sum()))
    signs = np.where(shows, 1.0, -1.0)

    def loss(parameters: np.ndarray) -> tuple[float, np.ndarray]:
        weights, bias = parameters[:-1], parameters[-1]
        smooth = kernel @ weights
        value = smooth + bias
        slope = -counts * signs * expit(-signs * value)
        total = counts @ np.logaddexp(0, -signs * value) + ridge / 2 * weights @ smooth
        return total, np.append(kernel @ (slope + ridge * weights), slope.sum())

    found = minimize(loss, np.zeros(len(shows) + 1), jac=True, method="L-BFGS-B", options={"maxiter": 1000})
    return SuccessClassifier(dict(frames), scales, found.x[:-1], float(found.x[-1]))


def cross_validated(frames: Blocks, shows: np.ndarray, episodes: np.ndarray, last: np.ndarray, seed: int) -> Validation:
    """Choose the ridge by cross-validation over episodes.

    Args:
        frames: features of all learned frames.
        shows: bool (N,), whether each shows success.
        episodes: int64 (N,), the episode of each.
        last: bool (N,), the frames that decide about their episodes.
        seed: of the folds.

    Raises:
        GtpVisionError: fewer than two episodes succeed, or fail.
    """
    outcomes = {int(episode): bool(shown) for episode, shown in zip(episodes[last], shows[last], strict=True)}
    counts = [sum(outcomes.values()), len(outcomes) - sum(outcomes.values())]
    if min(counts) < 2:
        raise GtpVisionError(
            f"a classifier learns from labelled successes and failures, and {counts[0]} episodes are labelled a "
            f"success and {counts[1]} a failure; label at least 2 of each first, better 20: gtp-vision data label"
        )
    fold_of: dict[int, int] = {}
    for wanted in (True, False):  # the folds hold about as many of both
        own = counter_rng(seed, _SALT, wanted).permutation([n for n, outcome in outcomes.items() if outcome is wanted])
        fold_of |= {int(episode): place % min(_FOLDS, *counts) for place, episode in enumerate(own)}
    fold = np.array([fold_of[int(episode)] for episode in episodes])
    results = []
    for ridge in _RIDGES:
        chance = np.zeros(len(shows))
        for held_out in range(max(fold) + 1):
            train, test = fold != held_out, (fold == held_out) & last
            made = fit({name: block[train] for name, block in frames.items()}, shows[train], ridge)
            chance[test] = made.probability({name: block[test] for name, block in frames.items()})
        likelihood = np.log(np.where(shows, chance, 1 - chance)[last].clip(1e-12)).mean()
        results.append((likelihood, ridge, float(np.mean((chance > 0.5)[last] == shows[last]))))
    _, ridge, accuracy = max(results)
    return Validation(accuracy, len(outcomes), ridge)


def _scale(block: np.ndarray) -> tuple[np.ndarray, np.ndarray, float]:
    """Offset and divisor of each feature, and the median squared distance between two frames after them."""
    deviation = block.std(0, dtype=np.float64)
    divisor = np.where(deviation > _FLOOR * deviation.max(initial=0), deviation, np.inf)
    offset = block.mean(0, dtype=np.float64)
    distances = _squares(block, block, offset, divisor)
    return offset, divisor, float(np.median(distances[np.triu_indices(len(block), 1)])) if len(block) > 1 else 1.0


def _kernel(one: np.ndarray, other: np.ndarray, offset: np.ndarray, divisor: np.ndarray, width: float) -> np.ndarray:
    return np.exp(-_squares(one, other, offset, divisor) / max(width, 1e-12))


def _squares(one: np.ndarray, other: np.ndarray, offset: np.ndarray, divisor: np.ndarray) -> np.ndarray:
    """Squared distances between all frames of one and of the other, (N, N')."""
    a, b = (one - offset) / divisor, (other - offset) / divisor
    return np.maximum(np.square(a).sum(1)[:, None] + np.square(b).sum(1)[None] - 2 * a @ b.T, 0)
