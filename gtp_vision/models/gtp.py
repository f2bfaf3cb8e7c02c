"""Generative trajectory policy: the flow map of the ODE that carries noise to an action.

Forward process a_t = a + t z with z ~ N(0, I). The network phi(o, a_t, t, s) gives the flow map

    Phi(o, a_t, t, s) = (s/t) a_t + (1 - s/t) phi(o, a_t, t, s),        sigma_max >= t >= s >= 0,

so Phi(., t, t) is the identity and phi(., t, t) the denoiser E[a | a_t].
Axes in names: B batch, F features, A action dimensions.
"""

from __future__ import annotations

import itertools
from typing import NamedTuple

import torch

from gtp_vision.core.distributed import all_rows, first_row
from gtp_vision.core.random import NoiseSource
from gtp_vision.models.abilities import Answering, Renoisable
from gtp_vision.models.policy import Losses, PolicyConfig, Rows
from gtp_vision.models.timed import DenoisingPolicy, Time

# In place of the level where a jump ends, for the second answer: sin(pi c) is -1 there, and at least 0 at all levels.
_BEYOND = -0.5
_JUMPS, _ROWS = 5, 8  # with `alternate`, of so many rows so many train by the consistency loss
_CLOSEST = 1e-3  # nearer levels than this share of the way to 0 would be the same in float32


class Division(NamedTuple):
    """Numbers of the rows that train by the consistency loss, of those by the flow loss, and the way back from both."""

    jumps: torch.Tensor
    flows: torch.Tensor
    back: torch.Tensor


class GTPPolicy(DenoisingPolicy, Answering, Renoisable):
    """Acts by K jumps of the flow map. Arguments as `Policy`.

    Guided sampling does not jump: it takes Euler steps with the denoiser phi(., t, t), because an energy changes the
    whole trajectory and a jump has learnt the one without it.
    """

    family = "gtp"
    unused = frozenset()

    has_teacher = True

    def __init__(self, features: int, actions: int, config: PolicyConfig) -> None:
        super().__init__(features, actions, config, times=2)
        if config.residual not in ("plain", "phi"):
            raise ValueError(f"residual is '{config.residual}'; it must be 'plain' or 'phi'")
        if config.teacher not in ("data", "model"):
            raise ValueError(f"teacher is '{config.teacher}'; it must be 'data' or 'model'")
        self._divisions: dict[tuple[int, int, torch.device], Division] = {}

    # The map -------------------------------------------------------------------------------------------------

    def phi(self, features: torch.Tensor, a_t: torch.Tensor, t: torch.Tensor, s: torch.Tensor) -> torch.Tensor:
        """The network's output phi, (B, A), at noise levels (B,), sigma_max >= t >= s >= 0, else ValueError."""
        self._check(t, s)
        return self._phi(self.observe(features), a_t, t, s)

    def flow_map(self, features: torch.Tensor, a_t: torch.Tensor, t: torch.Tensor, s: torch.Tensor) -> torch.Tensor:
        """Phi(o, a_t, t, s): the solution at level s of the ODE that stands at a_t at level t. As `phi`."""
        self._check(t, s)
        return self._flow_map(self.observe(features), a_t, t, s)

    def _check(self, t: torch.Tensor, s: torch.Tensor) -> None:
        high = self.config.sigma_max * (1 + 1e-6)  # float32 levels may round up
        if not bool(((s >= 0) & (s <= t) & (t <= high)).all()):
            raise ValueError(
                f"noise levels must fall from t <= sigma_max = {self.config.sigma_max:g} to s >= 0; got t up to "
                f"{float(t.max()):g} and s in [{float(s.min()):g}, {float(s.max()):g}]"
            )

    def denoise(self, observed: torch.Tensor, a_t: torch.Tensor, t: Time) -> torch.Tensor:
        """D(o, a_t, t) = phi(o, a_t, t, t): (B, A)."""
        return self._phi(observed, a_t, t, t)

    def _phi(self, observed: torch.Tensor, a_t: torch.Tensor, t: Time, s: Time) -> torch.Tensor:
        return self.evaluate(observed, a_t, t, s)

    def _flow_map(self, observed: torch.Tensor, a_t: torch.Tensor, t: torch.Tensor, s: torch.Tensor) -> torch.Tensor:
        ratio = _ratio(s, t)[:, None]
        return ratio * a_t + (1 - ratio) * self._phi(observed, a_t, t, s)

    # The loss ------------------------------------------------------------------------------------------------

    def loss(self, batch: Rows) -> Losses:
        """L_cons + lambda_flow L_flow; with `alternate`, each row has one of them, weighted so that the mean stays.

        The trajectory through a_t meets level u in a_u = (u/t) a_t + (1 - u/t) d, and there the teacher knows the
        rest: Phi(a_t, t, s) should equal Phi'(a_u, u, s). In this difference all noise cancels; with
        c = (1 - s/u) / (1 - s/t) it is

            (1 - s/t) (phi - [c phi' + (1 - c) d]),

        in which no number is larger than an action; the other way loses all precision at sigma_max = 80.
        For the paper's score approximation d is the data action, so that a_u = a + u z shares its noise with a_t:
        a closed form. For an ODE solver d is its mean denoised action from t to u.
        """
        teacher = batch.teacher
        assert isinstance(teacher, GTPPolicy)
        action, rows, noise = batch.action, len(batch.action), batch.noise
        division = self._division(rows, action.device)
        t, u, s = self.triple(rows, noise)
        a_t = action + t[:, None] * noise.normal(rows, self.actions)
        a_flow, t_flow = (a_t, t) if self.config.alternate else self.noised(action, noise)
        observed, seen, d, observed_flow, clean = batch.observed, batch.teacher_observed, action, batch.observed, action
        if division is not None:
            observed, seen, d, a_t, t, u, s = (x[division.jumps] for x in (observed, seen, d, a_t, t, u, s))
            observed_flow, clean, a_flow, t_flow = (x[division.flows] for x in (observed_flow, clean, a_flow, t_flow))

        with torch.no_grad():
            if self.config.teacher == "model":
                d = teacher.denoised_between(seen, a_t, t, u)
            target = teacher.target(seen, a_t, d, t, u, s)
        student = self._phi(
            torch.cat([observed, observed_flow]),
            torch.cat([a_t, a_flow]),
            torch.cat([t, t_flow]),
            torch.cat([s, t_flow]),
        )
        phi_cons, phi_flow = student.float().split([len(t), len(t_flow)])
        l_cons = (phi_cons - target).square().sum(1)
        if self.config.residual == "plain":
            l_cons = (1 - s / t).square() * l_cons
        l_flow = (phi_flow - clean).square().sum(1)
        if division is not None:  # each row counts for those of the other loss, too
            l_cons, l_flow = l_cons * (_ROWS / _JUMPS), l_flow * (_ROWS / (_ROWS - _JUMPS))
        metrics = {"consistency_loss": l_cons.sum() / rows, "flow_loss": l_flow.sum() / rows}
        l_flow = self.config.lambda_flow * l_flow
        return (l_cons + l_flow if division is None else torch.cat([l_cons, l_flow])[division.back]), metrics

    def _division(self, rows: int, device: torch.device) -> Division | None:
        """Which of the rows train by which loss, the same for a row in however many processes; None: all by both."""
        # Out of training each row has both: what looks for the cause of a NaN looks at single rows.
        if not (self.config.alternate and self.training):
            return None
        key = rows, first_row(rows), device
        if all_rows(rows) < 2:  # too few for both
            return None
        if key not in self._divisions:
            jumps = [row for row in range(rows) if (key[1] + row) * _JUMPS % _ROWS < _JUMPS]
            flows = sorted(set(range(rows)) - set(jumps))
            back = sorted(range(rows), key=(jumps + flows).__getitem__)
            self._divisions[key] = Division(
                *(torch.tensor(each, dtype=torch.int64, device=device) for each in (jumps, flows, back))
            )
        return self._divisions[key]

    def target(
        self,
        observed: torch.Tensor,
        a_t: torch.Tensor,
        d: torch.Tensor,
        t: torch.Tensor,
        u: torch.Tensor,
        s: torch.Tensor,
    ) -> torch.Tensor:
        """What phi(a_t, t, s) should be, c phi'(a_u, u, s) + (1 - c) d: (B, A).

        a_u = (u/t) a_t + (1 - u/t) d and c = (1 - s/u) / (1 - s/t). As actions lie in [-1, 1], so does their mean
        along any trajectory; holding phi' to it keeps a teacher that learns from itself from running away.
        """
        a_u = torch.lerp(d, a_t, (u / t)[:, None])
        c = (1 - _ratio(s, u)) / (1 - s / t).clamp_min(1e-8)  # on the finest grids s may be t in float32
        return torch.lerp(d, self._phi(observed, a_u, u, s).to(a_t.dtype).clamp(-1, 1), c[:, None])

    def denoised_between(
        self, observed: torch.Tensor, a_t: torch.Tensor, t: torch.Tensor, u: torch.Tensor
    ) -> torch.Tensor:
        """The mean denoised action d on the way from t to u: (B, A) in [-1, 1].

        The midpoint method in log t, in which the linear part of da/dt = (a - D(a, t)) / t is solved exactly
        (DPM-Solver++(2S) of Lu et al., 2022): D at the level sqrt(t u), reached by a step with D at t. The way to
        u = 0 ends in effect at sigma_min, below which D hardly moves.
        """
        half = (t * u.clamp_min(self.config.sigma_min)).sqrt().minimum(t)
        d_t = self._phi(observed, a_t, t, t).to(a_t.dtype).clamp(-1, 1)
        a_half = torch.lerp(d_t, a_t, (half / t)[:, None])
        return self._phi(observed, a_half, half, half).to(a_t.dtype).clamp(-1, 1)

    def triple(self, rows: int, noise: NoiseSource) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Levels t > u >= s, three (B,) tensors.

        By their places on the grid (see `level`): t is uniform. s is 0 with probability `zero_share`, because every
        action ends with such a jump, else uniform from t to one step beyond the grid, which is 0 too. u is one step
        of the grid below t for teacher=model, and uniform between t and s for teacher=data.
        Where t and s are within a step of each other, u = s: there the teacher's map is the identity, and the target
        is d. With the data's, the jumps to 0 have no other anchor (c = 1 for all u > 0): without it any shift of
        them would cost nothing.
        """
        n = self.config.grid
        at = n * noise.uniform(rows)
        to = at + (n + 1 - at) * noise.uniform(rows).clamp_min(_CLOSEST)
        to = torch.where(noise.uniform(rows) < self.config.zero_share, n + 1.0, to)
        if self.config.teacher == "model":
            over = at + 1
        else:
            over = at + (to.clamp_max(n) - at) * noise.uniform(rows)
            over = torch.where(to.clamp_max(n) - at < 1, to, over)
        t, u, s = (self.level(place) for place in (at, torch.minimum(over, to), to))
        return t, u, s

    # Acting --------------------------------------------------------------------------------------------------

    def integrate(self, observed: torch.Tensor, z: torch.Tensor, steps: int) -> torch.Tensor:
        """K jumps of Phi from N(0, sigma_max^2 I) to level 0."""
        a_t = self.config.sigma_max * z
        for t, s in itertools.pairwise(self.levels(steps)):
            phi = self._phi(observed, a_t, t, s).float()
            a_t = torch.lerp(phi, a_t, s / t) if s > 0 else phi
        return a_t

    def answer(self, observed: torch.Tensor, z: torch.Tensor) -> torch.Tensor:
        """phi(o, sigma_max z, sigma_max, beyond): the network where no jump of the map ends."""
        start = z.new_full((1,), self.config.sigma_max)
        embedded = torch.cat([self.embed(start), self.embed.at(z.new_full((1, 1), _BEYOND))], dim=1)
        place = torch.cat([self.scale(start) * self.config.sigma_max * z, embedded.expand(len(z), -1)], dim=1)
        return self.network(observed + self.locate(place.to(observed.dtype))).float()

    def renoised(self, observed: torch.Tensor, action: torch.Tensor, level: float, z: torch.Tensor) -> torch.Tensor:
        """Phi(a + t z, t, 0) of t = `level`."""
        return self._phi(observed, torch.add(action, z, alpha=level), level, 0.0).float()


def _ratio(s: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    """S / t, and 1 for s = t = 0, where the map is the identity too."""
    return torch.where(t > s, s / t, 1.0)
