"""From an environment's observations to its actions: frame stacks before the network, action chunks after it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch

from gtp_vision.agents.settings import ActingConfig
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

    With a receding horizon a plan is made every `execute` steps and its first `execute` actions are carried out; with
    temporal ensembling (ACT; Zhao et al., 2023) every step makes a plan, and the actions that up to H plans hold for
    this moment are averaged, weighted exp(-m i), i = 0 for the oldest.
    """

    def __init__(
        self, plan: Callable[[Observation, EpisodeNoise], torch.Tensor], acting: ActingConfig, chunk: int
    ) -> None:
        self._plan, self._decay = plan, acting.ensemble
        self._execute = 1 if acting.ensemble is not None else acting.execute or chunk
        self._chunk = chunk
        self._plans: dict[int, list[tuple[int, torch.Tensor]]] = {}  # episode to (first step, (H, A)), oldest first

    def __call__(self, observation: Observation, noise: EpisodeNoise) -> torch.Tensor:
        """(B, A), the action of each episode of the noise; plans of all other episodes are dropped."""
        self._plans = {episode: self._plans.get(episode, []) for episode in noise.episodes}
        planning = [row for row, step in enumerate(noise.steps) if step % self._execute == 0]
        if planning:
            if len(planning) < len(noise.steps):
                observation = {name: x[planning] for name, x in observation.items()}
            chunks = self._plan(observation, noise.select(planning))
            for row, chunk in zip(planning, chunks, strict=True):
                self._add(noise.episodes[row], noise.steps[row], chunk)
        pairs = zip(noise.episodes, noise.steps, strict=True)
        return torch.stack([self._action(self._plans[episode], step) for episode, step in pairs])

    def _add(self, episode: int, step: int, chunk: torch.Tensor) -> None:
        earlier = [] if step == 0 or self._decay is None else self._plans[episode]
        reaching = [(first, plan) for first, plan in earlier if step < first + self._chunk]
        self._plans[episode] = [*reaching, (step, chunk)]

    def _action(self, plans: list[tuple[int, torch.Tensor]], step: int) -> torch.Tensor:
        actions = torch.stack([plan[step - first] for first, plan in plans])
        if self._decay is None:
            return actions[-1]
        weight = torch.exp(-self._decay * torch.arange(len(actions), device=actions.device, dtype=actions.dtype))
        return (weight[:, None] * actions).sum(0) / weight.sum()
