"""Tiny untrained policies, their artifacts, and random observations for them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from small_runs import composed

from gtp_vision import agents
from gtp_vision.agents.acting import FrameStack
from gtp_vision.serving import artifact
from gtp_vision.serving.policy import Policy
from gtp_vision.serving.reactions import TELLS, OnDoubt
from gtp_vision.serving.reference import Reference
from gtp_vision.serving.schema import Schema

LOW, HIGH = (-3.0, 0.0), (1.0, 250.0)
ORIGIN: dict[str, Any] = {
    **{"run": "none", "step": 0, "seed": 0, "environment": None, "evaluation": None},
    **{"data": {"episodes": 0, "frames": 0}, "licences": {"weights": "unknown"}},
}


def untrained(*overrides: str, **fields: Any) -> Policy:
    """A policy of two action dimensions; by default it sees a camera and a state, two frames each."""
    config = composed("task=demo", "encoder=impala_tiny", "agent.policy.hidden=[16]", *overrides)
    acting = config.agent.acting
    defaults: dict[str, Any] = {
        **{"cameras": {"front": (16, 12, 3)}, "states": {"arm": 5}, "frame_stack": 2, "task": "test"},
        **{"action_low": LOW, "action_high": HIGH, "chunk": config.agent.action_chunk, "steps": acting.steps},
        **{"candidates": acting.candidates, "agent": agents.label(config.agent)},
    }
    schema = Schema(**(defaults | fields))
    torch.manual_seed(0)
    agent = agents.create(schema.shapes(), schema.actions, config.agent, config.encoder, pretrained=False)
    return Policy(agent, schema, ORIGIN)


def knowing(policy: Policy, on_doubt: OnDoubt = TELLS, threshold: float = 1.0, seed: int = 1) -> Policy:
    """The same weights with a reference of random observations, of which each signal has the same threshold."""
    schema, encoder = policy.schema, policy.agent.actor_encoder
    seen = observations(schema, 40, seed)
    frames = FrameStack(schema.frame_stack)
    features: dict[str, list[torch.Tensor]] = {name: [] for name in schema.cameras}
    for observation in seen:
        frames.push({name: array[None] for name, array in observation.items()})
        stacks = frames.tensors()
        for name, rows in features.items():
            rows.append(encoder.camera_features(name, stacks[name]).detach())
    states = {name: torch.from_numpy(np.stack([each[name] for each in seen])) for name in schema.states}
    names = [*(f"camera {name}" for name in features), *(f"state {name}" for name in states), "map", "spread"]
    reference = Reference(
        {name: torch.cat(rows) for name, rows in features.items()},
        states,
        torch.zeros(len(seen), schema.actions),
        dict.fromkeys(features, 1.0),
        dict.fromkeys([*features, *states], 1.0),
        dict.fromkeys(names, threshold),
    )
    return Policy(policy.agent, schema, policy.card, reference=reference, on_doubt=on_doubt)


def write(folder: Path, policy: Policy, *parts: str) -> Path:
    folder.mkdir()
    artifact.write(folder, policy.agent, policy.schema, policy.card, parts)
    return folder


def observations(schema: Schema, count: int, seed: int = 1) -> list[dict[str, np.ndarray]]:
    """Random observations of one episode, whose goal stays the same."""
    random = np.random.default_rng(seed)

    def state(width: int) -> np.ndarray:
        return random.normal(size=width).astype(np.float32)

    goal = {name: state(width) for name, width in schema.states.items() if name.startswith("goal/")}
    return [
        {name: random.integers(0, 256, shape, np.uint8) for name, shape in schema.cameras.items()}
        | {name: state(width) for name, width in schema.states.items()}
        | goal
        for _ in range(count)
    ]
