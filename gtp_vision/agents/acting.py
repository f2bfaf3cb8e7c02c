"""From an environment's observations to its actions: frame stacks before the network, action chunks after it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch

from gtp_vision.agents.joining import Known
from gtp_vision.agents.settings import CUT, ActingConfig
from gtp_vision.core.names import GOAL
from gtp_vision.core.random import EpisodeNoise
from gtp_vision.datasets.batch import channels_first

Observation = Mapping[str, torch.Tensor]


class FrameStack:
    """The newest `frames` frames of each observation, for episodes side by side, as the sampler's windows hold them.

    An episode begins with its first frame repeated. A goal is a single frame that stands in place of every frame.
    """

    def __init__(self, frames: int) -> None:
        self._frames = frames
        self._stacks: dict[str, np.ndarray] = {}  # name to (rows, T, ...)

    def begin(self, observation: Mapping[str, np.ndarray], rows: Sequence[int] | None = None) -> None:
        """Start episodes in `rows` (None: all) with images uint8 (rows, H, W, C) and states (rows, D)."""
        begun = slice(None) if rows is None else rows
        for name, frame in observation.items():
            if name not in self._stacks:
                dtype = np.uint8 if frame.dtype == np.uint8 else np.float32
                self._stacks[name] = np.zeros((len(frame), self._frames, *frame.shape[1:]), dtype)
            self._stacks[name][begun] = frame[begun][:, None]

    def push(self, observation: Mapping[str, np.ndarray]) -> None:
        """Append a frame to every row; the first one starts the episodes."""
        for name, frame in observation.items():
            stack = self._stacks.get(name)
            if stack is None or name.startswith(GOAL):
                self.begin({name: frame})
            else:
                stack[:, :-1], stack[:, -1] = stack[:, 1:].copy(), frame

    def newest(self, row: int) -> dict[str, np.ndarray]:
        """Copies of the last frame of a row, goals included."""
        return {name: stack[row, -1].copy() for name, stack in self._stacks.items()}

    def tensors(self, device: torch.device | str = "cpu", rows: Sequence[int] | None = None) -> dict[str, torch.Tensor]:
        """Copies of `rows` (None: all) for networks: images uint8 (B, T, C, H, W), states float32 (B, T, D)."""
        tensors = {
            name: torch.from_numpy(stack.copy() if rows is None else stack[rows]).to(device)
            for name, stack in self._stacks.items()
        }
        return {name: channels_first(x) if x.ndim == 5 else x for name, x in tensors.items()}


class Executor:
    """Takes one action a step from the chunks (B, H, A) of `plan`, for episodes side by side.

    With a receding horizon a plan is made every `acting.horizon` steps and executed until the next one; with temporal
    ensembling (ACT; Zhao et al., 2023) every step makes a plan, and the actions that up to H plans hold for this moment
    are averaged, weighted exp(-m i), i = 0 for the oldest.

    A plan arrives `acting.delay` steps after its observation, and the one before is executed meanwhile. The first plan
    of an episode is waited for. Unless `acting.join` is cut, `plan` is also given what is known of the new plan, as the
    keyword `known`.

    Attributes:
        switched: episodes whose last action is the first of a plan that followed another, and what remained of that
            one, (L, A), L >= 0.
    """

    def __init__(self, plan: Callable[..., torch.Tensor], acting: ActingConfig, chunk: int) -> None:
        self._plan, self._acting, self._chunk = plan, acting, chunk
        self._horizon = acting.horizon(chunk)
        self._plans: dict[int, list[tuple[int, torch.Tensor]]] = {}  # episode to (first step, (H, A)), oldest first
        self.switched: dict[int, torch.Tensor] = {}

    def __call__(self, observation: Observation, noise: EpisodeNoise) -> torch.Tensor:
        """(B, A), the action of each episode of the noise; plans of all other episodes are dropped."""
        steps = dict(zip(noise.episodes, noise.steps, strict=True))
        self._plans = {episode: self._plans.get(episode, []) if step else [] for episode, step in steps.items()}
        planning = [row for row, step in enumerate(noise.steps) if step % self._horizon == 0]
        joining = [row for row in planning if noise.steps[row] and self._acting.join != CUT]
        for rows in ([row for row in planning if row not in joining], joining):
            if rows:
                seen = observation
                if len(rows) < len(noise.steps):
                    seen = {name: x[rows] for name, x in observation.items()}
                known = {"known": self._known([noise.episodes[row] for row in rows], steps)} if rows is joining else {}
                for row, chunk in zip(rows, self._plan(seen, noise.select(rows), **known), strict=True):
                    self._add(noise.episodes[row], noise.steps[row], chunk)
        self.switched = {
            episode: self._rest(self._arrived(self._plans[episode], step - 1) or self._plans[episode], step)
            for episode, step in steps.items()
            if any(0 < first == step - self._acting.delay for first, _ in self._plans[episode])
        }
        return torch.stack([self._action(self._plans[episode], step) for episode, step in steps.items()])

    def _known(self, episodes: Sequence[int], steps: Mapping[int, int]) -> Known:
        rest = [self._rest(self._arrived(self._plans[e], steps[e]), steps[e]) for e in episodes]
        return Known.of(torch.stack(rest), self._acting.delay, self._chunk)

    @staticmethod
    def _rest(plans: list[tuple[int, torch.Tensor]], step: int) -> torch.Tensor:
        """What the newest of these plans holds from `step` on, but nothing of one that begins there."""
        first, plan = plans[-1]
        return plan[step - first or len(plan) :]

    def _add(self, episode: int, step: int, chunk: torch.Tensor) -> None:
        reaching = [(first, plan) for first, plan in self._plans[episode] if step < first + self._chunk]
        self._plans[episode] = [*reaching, (step, chunk)]

    def _arrived(self, plans: list[tuple[int, torch.Tensor]], step: int) -> list[tuple[int, torch.Tensor]]:
        return [(first, plan) for first, plan in plans if first == 0 or first + self._acting.delay <= step]

    def _action(self, plans: list[tuple[int, torch.Tensor]], step: int) -> torch.Tensor:
        actions = [plan[step - first] for first, plan in self._arrived(plans, step) if step < first + self._chunk]
        if self._acting.ensemble is None:
            return actions[-1]
        stacked = torch.stack(actions)
        weight = torch.exp(-self._acting.ensemble * torch.arange(len(actions)).to(stacked))
        return (weight[:, None] * stacked).sum(0) / weight.sum()
