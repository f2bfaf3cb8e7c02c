"""Problems with known flow maps: Gaussians in closed form, mixtures of them by an accurate ODE solver.

Forward process x_t = x + t z, z ~ N(0, I); the flow map Phi(x, t, s) carries x along dx/dt = (x - D(x, t)) / t from
level t down to s, where D(x, t) = E[x_0 | x_t = x] is the denoiser. Axes in names: B batch, M modes, D dimensions.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.integrate import solve_ivp

_NEARLY_ZERO = 1e-5  # times the narrowest deviation: below this level the map to 0 is the denoiser


@dataclass(frozen=True)
class Mixture:
    """A mixture of M normal distributions with equal weights and one standard deviation, in D dimensions."""

    means: np.ndarray  # float64 (M, D)
    deviation: float  # of every mode, in every direction; above 0

    @property
    def dimensions(self) -> int:
        """D."""
        return int(self.means.shape[1])

    def draw(self, count: int, generator: np.random.Generator) -> np.ndarray:
        """float64 (count, D)."""
        mode = generator.integers(len(self.means), size=count)
        return self.means[mode] + self.deviation * generator.standard_normal((count, self.dimensions))

    def denoise(self, x: np.ndarray, t: float) -> np.ndarray:
        """D(x, t) = E[x_0 | x_t = x], (B, D) to (B, D)."""
        variance = self.deviation**2 + t**2
        offsets = x[:, None] - self.means  # (B, M, D)
        logits = -0.5 * np.square(offsets).sum(-1) / variance
        weights = np.exp(logits - logits.max(1, keepdims=True))
        weights /= weights.sum(1, keepdims=True)
        nearest = weights @ self.means
        return nearest + self.deviation**2 / variance * (x - nearest)

    def flow_map(self, x: np.ndarray, t: float, s: float) -> np.ndarray:
        """Phi(x, t, s), (B, D) to (B, D), for t >= s >= 0; relative error about 1e-8.

        One mode has a closed form. More are solved by an 8th-order Runge-Kutta method in log t, in which the
        equation dx / d log t = x - D(x, t) is not stiff.
        """
        if t == s:
            return x.copy()
        if len(self.means) == 1:
            shrink = np.sqrt((self.deviation**2 + s**2) / (self.deviation**2 + t**2))
            return np.asarray(self.means[0] + shrink * (x - self.means[0]))
        low = max(s, _NEARLY_ZERO * self.deviation)
        if t > low:

            def slope(log_t: float, flat: np.ndarray) -> np.ndarray:
                at = flat.reshape(x.shape)
                return np.asarray((at - self.denoise(at, np.exp(log_t))).ravel())

            span = (np.log(t), np.log(low))
            solved = solve_ivp(slope, span, x.ravel(), method="DOP853", rtol=1e-9, atol=1e-10)
            x = solved.y[:, -1].reshape(x.shape)
        return x if s >= low else self.denoise(x, low)

    def nearest_mode(self, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Index of, and distance to, the nearest mode: int64 (B,) and float64 (B,)."""
        distance = np.linalg.norm(x[:, None] - self.means, axis=-1)
        return distance.argmin(1), distance.min(1)


def gaussian() -> Mixture:
    """One normal distribution in 2-D, off centre."""
    return Mixture(np.array([[0.3, -0.2]]), 0.2)


def two_modes() -> Mixture:
    """Two modes of standard deviation 0.05 at -0.5 and 0.6, in 1-D."""
    return Mixture(np.array([[-0.5], [0.6]]), 0.05)


def four_modes() -> Mixture:
    """Four narrow modes of standard deviation 0.05 at (+-0.7, +-0.7)."""
    return Mixture(np.array([[x, y] for x in (-0.7, 0.7) for y in (-0.7, 0.7)]), 0.05)
