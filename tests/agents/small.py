"""Tiny agents from the presets that people run, and observations for them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from small_runs import composed, small

from gtp_vision import agents
from gtp_vision.agents import AGENTS, Agent, AgentConfig
from gtp_vision.core.names import GOAL
from gtp_vision.core.random import RandomStream
from gtp_vision.datasets.batch import Batch
from gtp_vision.encoders import AugmentationConfig, EncoderConfig

NAMES = sorted(AGENTS)
AIMED = [name for name in NAMES if AGENTS[name].goals]
JUDGED = [name for name in NAMES if AGENTS[name].backup != "none"]
STATE: dict[str, tuple[int, ...]] = {"state": (2, 3)}
PIXELS: dict[str, tuple[int, ...]] = {"front": (2, 3, 12, 12), "state": (2, 3)}


def preset(name: str, *overrides: str) -> AgentConfig:
    """The preset that people run, tiny."""
    tiny = [
        *small(name, *overrides),
        *("agent.policy.hidden=[16,16]", "agent.policy.grid=2", "agent.acting.steps=2"),
        *("agent.critic.hidden=[16]", "agent.critic.next_steps=2"),
    ]
    tiny += ["agent.acting.candidates=4"] if AGENTS[name].chooses else []
    return composed("task=demo", *tiny, *overrides).agent


def make(
    name: str = "gtp",
    *overrides: str,
    shapes: Mapping[str, tuple[int, ...]] = STATE,
    share: bool = False,
    shift: int = 2,
    shift_probability: float = 0.5,
    seed: int = 0,
) -> Agent:
    """A tiny agent of two action dimensions; `share`, `shift` and `shift_probability` are the encoder's."""
    torch.manual_seed(seed)
    kind = "impala_tiny" if any(len(shape) == 4 for shape in shapes.values()) else "state"
    augmentation = AugmentationConfig(shift=shift, shift_probability=shift_probability)
    encoder = EncoderConfig(name=kind, features=8, share=share, augmentation=augmentation)
    shapes = {**shapes, **(goals_of(shapes) if AGENTS[name].goals else {})}
    return agents.create(shapes, 2, preset(name, *overrides), encoder)


def goals_of(shapes: Mapping[str, Any]) -> dict[str, Any]:
    """The same under the names of goals."""
    return {GOAL + name: value for name, value in shapes.items()}


def observation(
    shapes: Mapping[str, tuple[int, ...]] = STATE, batch: int = 4, seed: int = 0
) -> dict[str, torch.Tensor]:
    """An observation, and goals for agents that see them."""
    noise = RandomStream(seed, 0)
    return {
        name: noise.integers(256, batch, *shape).byte() if len(shape) == 4 else noise.normal(batch, *shape)
        for name, shape in [*shapes.items(), *goals_of(shapes).items()]
    }


def aimed(batch: Batch) -> Batch:
    """The batch with goals, of the critic and of the policy, and way points: other rows' observations."""
    critic, policy, way_point = (
        goals_of({name: x.roll(shift, 0) for name, x in batch.observation.items()}) for shift in (1, 2, 3)
    )
    seen = {name: getattr(batch, name) | critic for name in ("observation", "next_observation")}
    return replace(batch, **seen, policy_goal=policy, way_point=way_point)


def states_of(batch: Batch) -> Batch:
    def states(seen: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return {name: x for name, x in seen.items() if name.endswith("state")}

    batch = replace(batch, observation=states(batch.observation), next_observation=states(batch.next_observation))
    if batch.policy_goal is None or batch.way_point is None:
        return batch
    return replace(batch, policy_goal=states(batch.policy_goal), way_point=states(batch.way_point))


def owner(name: str) -> str:
    """The part of the agent that a parameter belongs to."""
    return name.partition(".")[0]
