"""What some families can do besides `loss` and `sample`; other parts check for it by `isinstance` or `issubclass`.

    Integrable   an action is a function of given noise                          distillation, the single jump
    Guidable     sampling can follow an energy, (a_t, t) can be drawn for it     energy guidance
    Density      log mu(a_t | o) is one evaluation of the network                alignment
    Answering    the network has a place for a second answer to noise            guidance by Q in one network
    Renoisable   one jump leads from any noise level to an action                beam search

Axes in names: B batch, F features, A action dimensions, M actions an observation.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable

import torch

from gtp_vision.core.random import NoiseSource
from gtp_vision.models.policy import Policy, check_steps

Pull = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""An energy's pull: a noised action x (B, A) and its time t (B,) to the gradient of log E[e^energy | o, x, t], (B, A).

Both are the family's own, as `Guidable.noised` draws them.
"""


class Integrable(Policy):
    """An action is a deterministic function of standard normal noise, and all the noise is drawn at once."""

    @abstractmethod
    def integrate(self, observed: torch.Tensor, z: torch.Tensor, steps: int) -> torch.Tensor:
        """The action (B, A), not clamped, that noise z (B, A), standard normal in every family, becomes in K steps.

        `observed` (B, width) is what `observe` makes of the features.
        """

    def generate(self, observed: torch.Tensor, steps: int, noise: NoiseSource) -> torch.Tensor:
        """`integrate` from new noise."""
        return self.integrate(observed, noise.normal(len(observed), self.actions), steps)

    def sample_from(self, features: torch.Tensor, z: torch.Tensor, steps: int) -> torch.Tensor:
        """As `sample`, from given noise: (B, F) and (B, A) to (B, A) in [-1, 1]. Raises ValueError: K below 1."""
        check_steps(steps)
        return self.bounded(self.integrate(self.observe(features), z, steps))


class Answering(Integrable):
    """Its network has a place for a second answer to given noise, which its own loss does not train."""

    @abstractmethod
    def answer(self, observed: torch.Tensor, z: torch.Tensor) -> torch.Tensor:
        """The second answer (B, A), not clamped, to standard normal z (B, A); `observed` as in `integrate`."""


class Guidable(Policy):
    """Knows its forward process, and can follow the gradient of an energy while it samples."""

    @abstractmethod
    def draw_time(self, rows: int, noise: NoiseSource) -> torch.Tensor:
        """Times by the law of the family's own loss, as its network gets them: (B,)."""

    @abstractmethod
    def diffuse(self, action: torch.Tensor, t: torch.Tensor, z: torch.Tensor) -> torch.Tensor:
        """The family's forward process: actions (B, A) or (B, M, A) at times (B,) with noise z of their shape."""

    def noised(self, action: torch.Tensor, noise: NoiseSource) -> tuple[torch.Tensor, torch.Tensor]:
        """Noised actions in the shape of `action` and their times t (B,) as the family's own loss draws them.

        In (B, M, A), M actions share their row's time, each with noise of its own.
        """
        t = self.draw_time(len(action), noise)
        return self.diffuse(action, t, noise.normal(*action.shape)), t

    @abstractmethod
    def guided(self, observed: torch.Tensor, steps: int, noise: NoiseSource, pull: Pull) -> torch.Tensor:
        """Sample from the policy times e^energy in K steps: (B, A) in [-1, 1], where its mean is held at every step.

        `pull` is the energy's gradient, see `Pull`; its rows are those of `observed`, (B, width).
        """


class Density(Policy):
    """Tells how likely noised actions are."""

    @abstractmethod
    def log_density(self, observed: torch.Tensor, a_t: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        """Log mu_t(a_t | o), up to a constant of (o, t): observed (B, width), a_t (B, A) and t (B,) to (B,)."""

    @abstractmethod
    def noised(self, action: torch.Tensor, noise: NoiseSource) -> tuple[torch.Tensor, torch.Tensor]:
        """What `log_density` is asked about; as `Guidable.noised`."""


class Renoisable(Policy):
    """Has learned the jump from any noise level to an action, so that an action can be noised in part and made anew."""

    @abstractmethod
    def renoised(self, observed: torch.Tensor, action: torch.Tensor, level: float, z: torch.Tensor) -> torch.Tensor:
        """Where one jump leads from the noised action a + level z: (B, A), not clamped; action and noise z are (B, A).

        In every family the level is the ratio of noise to action; `observed` is (B, width).
        """


def over_rows(t: torch.Tensor, action: torch.Tensor) -> torch.Tensor:
    """(B,) in a shape that multiplies actions (B, A) or (B, M, A)."""
    return t.view(-1, *(1 for _ in action.shape[1:]))
