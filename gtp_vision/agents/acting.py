"""From plans to actions: how many are chosen from, and what of a chunk is executed, step by step, side by side."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace

import torch

from gtp_vision.agents.base import Agent
from gtp_vision.agents.settings import ActingConfig
from gtp_vision.core.random import EpisodeNoise

Observation = Mapping[str, torch.Tensor]


@contextmanager
def best_of(agent: Agent, candidates: int) -> Iterator[None]:
    """Let an agent act by the best of so many actions by Q, inside the block."""
    before = agent.config
    agent.config = replace(before, acting=replace(before.acting, candidates=candidates, choose="argmax"))
    try:
        yield
    finally:
        agent.config = before


class Executor:
    """One action a step out of action chunks.

    With a receding horizon a plan is made every `execute` steps and its first `execute` actions are carried out; with
    temporal ensembling (ACT; Zhao et al., 2023) every step makes a plan, and the actions that up to H plans hold for
    this moment are averaged, weighted exp(-m i), i = 0 for the oldest.

    Args:
        plan: (observation, noise) to action chunks (B, H, A).
        acting: see `ActingConfig`.
        chunk: H.
    """

    def __init__(
        self, plan: Callable[[Observation, EpisodeNoise], torch.Tensor], acting: ActingConfig, chunk: int
    ) -> None:
        self._plan, self._decay = plan, acting.ensemble
        self._execute = 1 if acting.ensemble is not None else acting.execute or chunk
        self._chunk = chunk
        self._plans: dict[int, list[tuple[int, torch.Tensor]]] = {}  # episode to (first step, (H, A)), oldest first

    def __call__(self, observation: Observation, noise: EpisodeNoise) -> torch.Tensor:
        """(B, A), the action of each episode in progress; those that are not asked about are forgotten."""
        self._plans = {episode: self._plans.get(episode, []) for episode in noise.episodes}
        planning = [row for row, step in enumerate(noise.steps) if step % self._execute == 0]
        if planning:
            some = len(planning) < len(noise.steps)
            seen = {name: x[planning] for name, x in observation.items()} if some else observation
            chunks = self._plan(seen, noise.select(planning) if some else noise)
            for row, chunk in zip(planning, chunks, strict=True):
                self._remember(noise.episodes[row], noise.steps[row], chunk)
        pairs = zip(noise.episodes, noise.steps, strict=True)
        return torch.stack([self._action(self._plans[episode], step) for episode, step in pairs])

    def _remember(self, episode: int, step: int, chunk: torch.Tensor) -> None:
        kept = [] if step == 0 or self._decay is None else self._plans[episode]
        reaching = [(first, plan) for first, plan in kept if step < first + self._chunk]
        self._plans[episode] = [*reaching, (step, chunk)]

    def _action(self, plans: list[tuple[int, torch.Tensor]], step: int) -> torch.Tensor:
        actions = torch.stack([plan[step - first] for first, plan in plans])
        if self._decay is None:
            return actions[-1]
        weight = torch.exp(-self._decay * torch.arange(len(actions), device=actions.device, dtype=actions.dtype))
        return (weight[:, None] * actions).sum(0) / weight.sum()
