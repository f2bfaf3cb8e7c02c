"""Doubt in an answer: how far an observation is from those that the policy was trained on.

    camera NAME   distance of its backbone's features from the training data's          (signal `features`)
    state NAME    distance of its values from the training data's                       (`states`)
    still NAME    equal frames one after another, against the longest run in the data   (`still`)
    map           distance between one jump and K jumps of the same noise               (`map`)
    spread        deviation of the actions of several noises                            (`spread`)

Each is divided by its threshold, which ordinary frames set when the policy is exported; the largest is the doubt. The
first three separate shifted cameras from ordinary ones and cost little, so they are the default; what the others add
on top of them is measured by `gtp-vision bench doubt`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import torch

from gtp_vision.agents import Agent
from gtp_vision.core.errors import GtpVisionError
from gtp_vision.core.random import NoiseSource
from gtp_vision.models import Integrable
from gtp_vision.models.policy import repeated
from gtp_vision.models.timed import TimedPolicy
from gtp_vision.serving.reactions import ABSOLUTE, DELTA, DRAWN, Doubt, DoubtError, OnDoubt
from gtp_vision.serving.reference import Reference
from gtp_vision.serving.schema import Schema

SALT = 0xD0B7
"""Separates the noise of `map` and `spread` from that of actions."""
_DRAWS = 8  # noises of `map` and `spread`


class Doubter:
    """Doubt in one robot's observations, in their order.

    Args:
        agent: the policy's.
        reference: of its training data, with the thresholds of its signals.
        signals: of `SIGNALS`.
    """

    def __init__(self, agent: Agent, reference: Reference, signals: tuple[str, ...]) -> None:
        self._agent, self._reference, self._signals = agent, reference, signals
        self.reset()

    def reset(self) -> None:
        """Forget earlier frames: an episode begins."""
        self._frames = dict[str, np.ndarray]()
        self._runs = dict[str, int]()

    def features(self, stacks: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Each camera's features of stacked observations, (B, 1, W), which the encoder takes in place of frames."""
        encoder = self._agent.actor_encoder
        return {name: encoder.camera_features(name, stacks[name])[:, None] for name in encoder.cameras}

    def signals(
        self,
        newest: Mapping[str, np.ndarray],
        stacks: Mapping[str, torch.Tensor],
        noise: NoiseSource,
        *,
        has_moved: bool = True,
    ) -> dict[str, float]:
        """Each signal, divided by its threshold, of one observation.

        Args:
            newest: its frames (H, W, C) and states (D,).
            stacks: the same with those before, cameras as their `features`.
            noise: of the drawn signals.
            has_moved: whether the robot moved since the last one; otherwise equal frames do not count.
        """
        reference, found = self._reference, dict[str, float]()
        if "features" in self._signals:
            for name in reference.features:
                found[f"camera {name}"] = float(reference.camera_distance(name, stacks[name][:, 0]))
        if "states" in self._signals:
            for name in reference.states:
                found[f"state {name}"] = float(reference.state_distance(name, stacks[name][:, -1]))
        if "still" in self._signals:
            for name, longest in reference.still.items():
                found[f"still {name}"] = (self._run(name, newest[name], has_moved) - 1) / (longest - 0.5)
        if any(name in self._signals for name in DRAWN):
            found |= self._drawn(stacks, noise)
        return {name: value / reference.thresholds.get(name, 1.0) for name, value in found.items()}

    def _run(self, name: str, frame: np.ndarray, has_moved: bool) -> int:
        """How many equal frames of a camera end with this one."""
        before = self._frames.get(name)
        is_same = before is not None and np.array_equal(before, frame)
        if not is_same:
            self._frames[name] = frame.copy()
        self._runs[name] = self._runs.get(name, 1) + int(has_moved) if is_same else 1
        return self._runs[name]

    def _drawn(self, stacks: Mapping[str, torch.Tensor], noise: NoiseSource) -> dict[str, float]:
        """Root mean squares, in the policy's units: of one jump less K jumps, and of K jumps less their mean."""
        policy, features = self._agent.policy, self._agent.actor_encoder(stacks)
        assert isinstance(policy, Integrable)
        rows, z = repeated(features, _DRAWS), noise.normal(_DRAWS, policy.actions)
        one, several = (policy.sample_from(rows, z, steps) for steps in (1, max(2, self._agent.config.acting.steps)))
        distances = {"map": several - one, "spread": several - several.mean(0)}
        return {name: float(x.square().mean().sqrt()) for name, x in distances.items() if name in self._signals}


class Reactor:
    """Decides by the doubt of one robot's answers, in their order, when its reaction begins and ends."""

    def __init__(self, settings: OnDoubt) -> None:
        self._settings = settings
        self._deltas = np.array([kind == DELTA for kind in settings.actions])
        self.reset()

    def reset(self) -> None:
        """Forget earlier answers: an episode begins."""
        self._is_active, self._against = False, 0

    @property
    def reaction(self) -> str:
        """What is done about the last answer."""
        return self._settings.reaction if self._is_active else "none"

    def doubt(self, signals: Mapping[str, float]) -> Doubt:
        """The doubt of the next answer.

        Raises:
            DoubtError: the reaction is to stop; then of all answers until a reset.
        """
        found = Doubt(signals, self._settings.reaction)
        is_stopped = self._is_active and self._settings.reaction == "stop"
        self._against = self._against + 1 if (found.value > 1) != self._is_active else 0
        if self._against >= self._settings.after and not is_stopped:
            self._is_active, self._against = not self._is_active, 0
        if self.reaction == "stop":
            raise DoubtError(
                f"the policy stopped because of doubt: {found.because} is at {found.value:.3g} times its threshold; "
                f"check what the robot sees, then reset the episode"
            )
        return replace(found, reaction=self.reaction)

    def changed(self, actions: np.ndarray, last: np.ndarray | None) -> np.ndarray:
        """The actions (H, A) after slowing or holding; `last` (A,) is the last executed one, in the robot's units."""
        share = {"slow": self._settings.share, "hold": 0.0}.get(self.reaction)
        if share is None:
            return actions
        if last is None and not self._deltas.all():
            raise GtpVisionError(
                f"on doubt, '{self.reaction}' of absolute actions starts from the last executed one, which is not "
                f"known; send 'executed' with the observation, or use act (serve --answer action)"
            )
        start = np.where(self._deltas, 0.0, 0.0 if last is None else last)
        return (start + share * (actions - start)).astype(np.float32)


def is_still(name: str) -> bool:
    """Whether a signal counts equal frames, of which the data's longest run sets the threshold."""
    return name.startswith("still ")


def check(settings: OnDoubt, agent: Agent, schema: Schema) -> None:
    """Refuse values that are out of range, or have no meaning for a policy, by a GtpVisionError."""
    settings.check()
    if any(name in settings.signals for name in DRAWN) and not isinstance(agent.policy, Integrable):
        raise GtpVisionError(
            f"map and spread need a policy whose action is a function of its noise, and "
            f"{agent.config.policy.family} is not one; leave them out of --doubt"
        )
    if settings.reaction == "steps" and not (isinstance(agent.policy, TimedPolicy) and agent.improvement.acts_in_steps):
        raise GtpVisionError(f"--on-doubt steps has no meaning for {schema.agent}, which always acts in one step")
    if settings.reaction in ("slow", "hold"):
        if len(settings.actions) not in (1, schema.actions):
            raise GtpVisionError(
                f"--on-doubt {settings.reaction} needs to know of {schema.actions} actions whether they are goals or "
                f"motions, and {len(settings.actions)} are given; export with --actions absolute, --actions delta, or "
                f"one of these for each"
            )
        kinds = settings.actions * (schema.actions if len(settings.actions) == 1 else 1)
        for index, (kind, low, high) in enumerate(zip(kinds, schema.action_low, schema.action_high, strict=True)):
            if kind == DELTA and not low <= 0 <= high:
                raise GtpVisionError(
                    f"--on-doubt {settings.reaction}: action {index} is a motion from {low:g} to {high:g}, which "
                    f"cannot rest at 0; give --actions absolute for it, or choose stop"
                )
        if ABSOLUTE in settings.actions and settings.after < 2:
            raise GtpVisionError(
                f"--on-doubt {settings.reaction} of absolute actions starts from an earlier action; set --doubt-after "
                f"to 2 or more"
            )
