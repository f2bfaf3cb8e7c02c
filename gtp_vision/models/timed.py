"""Families whose network gets times: levels of noise (gtp, diffusion, consistency) or times in [0, 1].

Axes in names: B batch, A action dimensions.
"""

from __future__ import annotations

import itertools
from abc import abstractmethod
from typing import TypeGuard

import torch
from torch import nn

from gtp_vision.core.random import NoiseSource
from gtp_vision.models.abilities import Guidable, Pull, over_rows
from gtp_vision.models.networks import LogTimeEmbedding, UnitTimeEmbedding
from gtp_vision.models.policy import OF_LEVELS, OF_MAPS, Policy, PolicyConfig, check_steps

Time = torch.Tensor | float
"""Of each row, (B,), or a number that all rows share: acting goes down such numbers, so their embedding is kept."""

_KEPT = 64  # of such embeddings, for each K and number of rows its own


class TimedPolicy(Policy):
    """A policy whose network sees the observation, a noised action and times.

    Arguments as `Policy`, and the number of times, what embeds them, and the output's width (None: `actions`).
    """

    unused = OF_MAPS | OF_LEVELS

    def __init__(
        self,
        features: int,
        actions: int,
        config: PolicyConfig,
        *,
        times: int = 1,
        embed: LogTimeEmbedding | UnitTimeEmbedding,
        outputs: int | None = None,
    ) -> None:
        super().__init__(features, actions, config)
        self.embed = embed
        self.locate = nn.Linear(actions + times * embed.width, config.hidden[0], bias=False)
        self.network = self.deeper_layers(actions) if outputs is None else self.deeper_layers(outputs, bias=False)
        self._kept: dict[tuple[object, ...], tuple[torch.Tensor, torch.Tensor]] = {}

    def evaluate(self, observed: torch.Tensor, x: torch.Tensor, *times: Time) -> torch.Tensor:
        """The network's output for what `observe` made of the features, noised actions (B, A) and their times.

        The first time is that of `x`; either all are (B,) or all are numbers.
        """
        scale, embedded = self._seen(*times) if _of_rows(times) else self._shared(x, times)
        place = torch.cat([x * scale, embedded], dim=1)
        return self.network(observed + self.locate(place.to(observed.dtype)))

    def scale(self, t: torch.Tensor) -> torch.Tensor:
        """The factor with which the network sees noised actions at times (B,): (B, 1) or (1, 1)."""
        return t.new_full((1, 1), self.config.input_gain)

    def _seen(self, *times: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The scale at the first of the times, and the embeddings of all, side by side."""
        first = self.embed(times[0])  # once, where all are the same
        embedded = [first if time is times[0] else self.embed(time) for time in times]
        return self.scale(times[0]), torch.cat(embedded, dim=1)

    def _shared(self, x: torch.Tensor, times: tuple[Time, ...]) -> tuple[torch.Tensor, torch.Tensor]:
        """`_seen` for times that all rows of `x` share: no parameter changes it, so it is made once."""
        if torch.compiler.is_compiling() or type(x) is not torch.Tensor:  # tensors without numbers are not for keeping
            return self._seen(*(x.new_full((len(x),), float(time)) for time in times))
        key = (times, x.shape, x.device, x.dtype)
        if key not in self._kept:
            while len(self._kept) >= _KEPT:
                self._kept.pop(next(iter(self._kept)))  # the oldest
            with torch.inference_mode(False), torch.no_grad():  # training may use what acting has kept
                scale, embedded = self._seen(*torch.tensor(times, dtype=x.dtype, device=x.device)[:, None])
                self._kept[key] = scale, embedded.expand(len(x), -1)
        return self._kept[key]


class LevelPolicy(TimedPolicy):
    """Its times are noise levels of the forward process a_t = a + t z, z ~ N(0, I), from sigma_max to 0.

    Arguments as `TimedPolicy`; ValueError for levels that do not grow from sigma_min over sigma_last to sigma_max.
    """

    unused = OF_MAPS
    embed: LogTimeEmbedding

    def __init__(
        self, features: int, actions: int, config: PolicyConfig, *, times: int = 1, outputs: int | None = None
    ) -> None:
        c = config
        if not 0 < c.sigma_min < c.sigma_last < c.sigma_max:
            raise ValueError(
                "wanted 0 < sigma_min < sigma_last < sigma_max, "
                f"got {c.sigma_min:g}, {c.sigma_last:g} and {c.sigma_max:g}"
            )
        embed = LogTimeEmbedding(c.sigma_min, c.sigma_max)
        super().__init__(features, actions, config, times=times, embed=embed, outputs=outputs)

    def level(self, place: torch.Tensor) -> torch.Tensor:
        """Noise levels by their place on the training grid, (B,) to (B,): 0 is sigma_max, from `grid` on it is 0.

        Between them as Karras et al. (2022), eq. 5: sigma_max^(1/rho) to sigma_min^(1/rho) in equal steps. Places
        need not be whole, so that training meets every level and acting may use any.
        """
        c = self.config
        low, high = c.sigma_min ** (1 / c.rho), c.sigma_max ** (1 / c.rho)
        level = (high + place.clamp_max(c.grid) / c.grid * (low - high)) ** c.rho
        return torch.where(place < c.grid, level, 0.0)

    def levels(self, count: int) -> tuple[float, ...]:
        """`count` + 1 noise levels to act by: sigma_max, ..., sigma_last, 0, spaced as `level`.

        The last jump starts where it can correct what earlier ones left between two modes: low enough to tell modes
        apart, high enough to move the action.
        """
        c = self.config
        if count == 1:
            return float(c.sigma_max), 0.0
        low, high = c.sigma_last ** (1 / c.rho), c.sigma_max ** (1 / c.rho)
        return *((high + k / (count - 1) * (low - high)) ** c.rho for k in range(count)), 0.0

    def scale(self, t: torch.Tensor) -> torch.Tensor:
        """`input_gain` c_in, c_in = 1 / sqrt(t^2 + sigma_data^2): unit scale at every level; (B,) to (B, 1)."""
        return self.config.input_gain * (t.square() + self.config.sigma_data**2).rsqrt()[:, None]


class DenoisingPolicy(LevelPolicy, Guidable):
    """Has the denoiser D(o, a_t, t) = E[a | a_t]. Arguments as `LevelPolicy`."""

    @abstractmethod
    def denoise(self, observed: torch.Tensor, a_t: torch.Tensor, t: Time) -> torch.Tensor:
        """D(o, a_t, t): (B, A)."""

    def draw_time(self, rows: int, noise: NoiseSource) -> torch.Tensor:
        """Levels at uniform places on the grid: (B,)."""
        return self.level(self.config.grid * noise.uniform(rows))

    def diffuse(self, action: torch.Tensor, t: torch.Tensor, z: torch.Tensor) -> torch.Tensor:
        """The noised a_t = a + t z."""
        return action + over_rows(t, action) * z

    def guided(self, observed: torch.Tensor, steps: int, noise: NoiseSource, pull: Pull) -> torch.Tensor:
        """K Euler steps along the levels with the guided denoiser D + t^2 pull(a_t, t), held to [-1, 1].

        The score of the product is the sum of the scores, and D = a_t + t^2 score.
        """
        check_steps(steps)
        rows = len(observed)
        a_t = self.config.sigma_max * noise.normal(rows, self.actions)
        for t, s in itertools.pairwise(self.levels(steps)):
            denoised = self.denoise(observed, a_t, t).float() + t**2 * pull(a_t, a_t.new_full((rows,), t))
            a_t = torch.lerp(denoised.clamp(-1, 1), a_t, s / t)
        return a_t


def column(factor: Time) -> Time:
    """In a shape that multiplies actions (B, A)."""
    return factor[:, None] if isinstance(factor, torch.Tensor) else factor


def _of_rows(times: tuple[Time, ...]) -> TypeGuard[tuple[torch.Tensor, ...]]:
    return isinstance(times[0], torch.Tensor)
