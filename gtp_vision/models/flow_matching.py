"""Flow matching on straight paths x_r = (1 - r) a + r z, r in [0, 1], and its two few-step relatives.

Axes in names: B batch, A action dimensions.
"""

from __future__ import annotations

import torch

from gtp_vision.core.random import NoiseSource
from gtp_vision.models.abilities import Guidable, Integrable, Pull, Renoisable, over_rows
from gtp_vision.models.networks import UnitTimeEmbedding
from gtp_vision.models.policy import Losses, PolicyConfig, Rows, check_steps
from gtp_vision.models.timed import Time, TimedPolicy


class FlowMatchingPolicy(TimedPolicy, Integrable, Guidable):
    """Learns the velocity v(x_r, r) = E[z - a | x_r] (Lipman et al., 2023), and follows it. Arguments as `Policy`."""

    family = "flow_matching"
    unused = TimedPolicy.unused | {"grid"}

    def __init__(self, features: int, actions: int, config: PolicyConfig) -> None:
        super().__init__(features, actions, config, embed=UnitTimeEmbedding())

    def draw_time(self, rows: int, noise: NoiseSource) -> torch.Tensor:
        """Uniform times r: (B,)."""
        return noise.uniform(rows)

    def diffuse(self, action: torch.Tensor, t: torch.Tensor, z: torch.Tensor) -> torch.Tensor:
        """The noised x_r = (1 - r) a + r z."""
        return torch.lerp(action, z, over_rows(t, action))

    def loss(self, batch: Rows) -> Losses:
        """||v(x_r, r) - (z - a)||^2, r uniform."""
        action, rows, noise = batch.action, len(batch.action), batch.noise
        r, z = self.draw_time(rows, noise), noise.normal(rows, self.actions)
        x = self.diffuse(action, r, z)
        each = (self.evaluate(batch.observed, x, r).float() - (z - action)).square().sum(1)
        return each, {"flow_loss": each.mean()}

    def integrate(self, observed: torch.Tensor, z: torch.Tensor, steps: int) -> torch.Tensor:
        """K equal Euler steps from r = 1 to 0."""
        x = z
        for k in range(steps, 0, -1):
            x = torch.sub(x, self.evaluate(observed, x, k / steps).float(), alpha=1 / steps)
        return x

    def guided(self, observed: torch.Tensor, steps: int, noise: NoiseSource, pull: Pull) -> torch.Tensor:
        """As `integrate`, towards the guided mean D + r^2 / (1 - r) pull(x_r, r) of the action, held to [-1, 1].

        D = x - r v is E[a | x_r], and the score is ((1 - r) D - x) / r^2. At r = 1, where x is noise alone, the pull
        is 0 and its factor infinite, while the product has a limit: there both are taken in the middle of the step.
        """
        check_steps(steps)
        rows = len(observed)
        x = noise.normal(rows, self.actions)
        for k in range(steps, 0, -1):
            r, at = k / steps, min(k / steps, 1 - 0.5 / steps)
            denoised = x - r * self.evaluate(observed, x, r).float()
            denoised = denoised + at**2 / (1 - at) * pull(x, x.new_full((rows,), at))
            x = torch.lerp(denoised.clamp(-1, 1), x, (k - 1) / k)
        return x


class ShortcutPolicy(TimedPolicy, Integrable, Renoisable):
    """Learns steps of any size h = 1, 1/2, 1/4, ...: one step is as two of half the size (Frans et al., 2025).

    Arguments as `Policy`. The smallest step is the smallest power of 1/2 that is not below 1 / `grid`; the network gets
    it as 0.
    """

    family = "shortcut"

    has_teacher = True
    flow_share = 0.75  # of the rows learn the velocity (h = 0), the others to compose; the paper's share

    def __init__(self, features: int, actions: int, config: PolicyConfig) -> None:
        super().__init__(features, actions, config, times=2, embed=UnitTimeEmbedding())
        self.halvings = config.grid.bit_length() - 1
        self._smallest = 1.5 * 0.5**self.halvings  # the network gets smaller steps as 0

    def velocity(self, observed: torch.Tensor, x: torch.Tensor, r: Time, h: Time) -> torch.Tensor:
        """The mean velocity of the step from r to r - h: (B, A)."""
        return self.evaluate(observed, x, r, h).float()

    def loss(self, batch: Rows) -> Losses:
        """||v(x_r, r, h) - target||^2: z - a for h = 0, the teacher's two half steps for the others."""
        teacher = batch.teacher
        assert isinstance(teacher, ShortcutPolicy)
        action, rows, noise = batch.action, len(batch.action), batch.noise
        z, r = noise.normal(rows, self.actions), noise.uniform(rows)
        h = 0.5 ** noise.integers(self.halvings, rows).float()  # 1, 1/2, ...; two halves make it
        composes = noise.uniform(rows) >= self.flow_share
        r = torch.where(composes, (r / h).floor() * h + h, r)  # such steps start at multiples of their size
        x = torch.lerp(action, z, r[:, None])
        with torch.no_grad():
            half = self._step_input(h / 2)
            first = teacher.velocity(batch.teacher_observed, x, r, half)
            second = teacher.velocity(batch.teacher_observed, x - h[:, None] / 2 * first, r - h / 2, half)
            target = torch.where(composes[:, None], (first + second) / 2, z - action)
        each = (self.velocity(batch.observed, x, r, torch.where(composes, h, 0.0)) - target).square().sum(1)
        return each, {"flow_loss": _mean(each, ~composes), "consistency_loss": _mean(each, composes)}

    def integrate(self, observed: torch.Tensor, z: torch.Tensor, steps: int) -> torch.Tensor:
        """K equal steps of size 1 / K; other sizes than powers of 1/2 are interpolated by the network."""
        x, h = z, 1 / steps if 1 / steps > self._smallest else 0.0
        for k in range(steps, 0, -1):
            x = torch.sub(x, self.velocity(observed, x, k / steps, h), alpha=1 / steps)
        return x

    def renoised(self, observed: torch.Tensor, action: torch.Tensor, level: float, z: torch.Tensor) -> torch.Tensor:
        """One step from the time r at which noise and action are in this ratio."""
        r = _time_of(level)
        x = torch.lerp(action, z, r)
        return torch.sub(x, self.velocity(observed, x, r, r if r > self._smallest else 0.0), alpha=r)

    def _step_input(self, h: torch.Tensor) -> torch.Tensor:
        """The step size that the network gets: 0, the velocity itself, for the smallest and any below."""
        return torch.where(h > self._smallest, h, 0.0)


class MeanFlowPolicy(TimedPolicy, Integrable, Renoisable):
    """Learns the mean velocity m(x_r, r, q) between two times from an identity (Geng et al., 2025).

    m = v - (r - q) dm/dr, with the total derivative along the path by forward-mode differentiation, and the data's
    velocity z - a for v. Arguments as `Policy`.
    """

    family = "meanflow"
    unused = TimedPolicy.unused | {"grid"}

    flow_share = 0.5  # of the rows have q = r, where m is the velocity
    damping = 1e-2  # of the adaptive weight 1 / (error + damping)

    def __init__(self, features: int, actions: int, config: PolicyConfig) -> None:
        super().__init__(features, actions, config, times=2, embed=UnitTimeEmbedding())

    def loss(self, batch: Rows) -> Losses:
        """||m - sg(v - (r - q) dm/dr)||^2, weighted by 1 / (its own value + damping)."""
        action, rows, noise = batch.action, len(batch.action), batch.noise
        z, pair = noise.normal(rows, self.actions), noise.uniform(rows, 2)
        flows = noise.uniform(rows) < self.flow_share
        r = pair.amax(1)
        q = torch.where(flows, r, pair.amin(1))
        x, v = torch.lerp(action, z, r[:, None]), z - action

        def mean_velocity(x: torch.Tensor, r: torch.Tensor) -> torch.Tensor:
            return self.evaluate(batch.observed, x, r, q).float()

        m, slope = torch.func.jvp(mean_velocity, (x, r), (v, torch.ones_like(r)))[:2]
        target = (v - (r - q)[:, None] * slope).detach()
        error = (m - target).square().sum(1)
        metrics = {"flow_loss": _mean(error, flows), "consistency_loss": _mean(error, ~flows)}
        return error / (error.detach() + self.damping), metrics

    def integrate(self, observed: torch.Tensor, z: torch.Tensor, steps: int) -> torch.Tensor:
        """K equal jumps x_q = x_r - (r - q) m(x_r, r, q)."""
        x = z
        for k in range(steps, 0, -1):
            mean_velocity = self.evaluate(observed, x, k / steps, (k - 1) / steps).float()
            x = torch.sub(x, mean_velocity, alpha=1 / steps)
        return x

    def renoised(self, observed: torch.Tensor, action: torch.Tensor, level: float, z: torch.Tensor) -> torch.Tensor:
        """The jump to q = 0 from the time r at which noise and action are in this ratio."""
        r = _time_of(level)
        x = torch.lerp(action, z, r)
        return torch.sub(x, self.evaluate(observed, x, r, 0.0).float(), alpha=r)


def _time_of(level: float) -> float:
    """The time r of a path whose noise is `level` times its action: r / (1 - r) = level."""
    return level / (1 + level)


def _mean(values: torch.Tensor, chosen: torch.Tensor) -> torch.Tensor:
    """The mean of the chosen values, 0 if there are none, without asking the device how many there are."""
    return (values * chosen).sum() / chosen.sum().clamp_min(1)
