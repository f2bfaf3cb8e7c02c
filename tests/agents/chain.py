"""A line of places, steps to the left and to the right, and critics that learn how far apart places are."""

from __future__ import annotations

from itertools import product

import numpy as np
import torch
from small import preset

from gtp_vision import agents
from gtp_vision.agents import Agent
from gtp_vision.core.random import RandomStream
from gtp_vision.datasets.batch import Batch
from gtp_vision.encoders import EncoderConfig

PLACES = 8
SHAPES: dict[str, tuple[int, ...]] = {"state": (1, 1), "goal/state": (1, 1)}


def shown(places: np.ndarray) -> torch.Tensor:
    """The observation of places, (B, 1, 1) in [-1, 1]."""
    return torch.from_numpy(2 * places / (PLACES - 1) - 1).float()[:, None, None]


def batch(discount: float = 0.9) -> Batch:
    """Every step from every place to every goal, both as OGBench rewards them; way points two steps ahead."""
    every = np.array(list(product(range(PLACES), (-1, 1), range(PLACES))))
    here, way, goal = every[(every[:, 0] + every[:, 1] >= 0) & (every[:, 0] + every[:, 1] < PLACES)].T
    reached = torch.from_numpy(here == goal)
    aim = {"goal/state": shown(goal)}
    ahead = {"goal/state": shown(np.where(abs(goal - here) < 2, goal, here + 2 * np.sign(goal - here)))}
    return Batch(
        {"state": shown(here), **aim},
        {"state": shown(here + way), **aim},
        torch.from_numpy(way).float()[:, None, None],
        torch.ones(len(here), 1, dtype=torch.bool),
        torch.where(reached, 0.0, -1.0),
        torch.where(reached, 0.0, discount),
        aim,
        ahead,
    )


def learner(name: str, *more: str) -> Agent:
    """A small agent whose slow critic follows fast."""
    settings = ["agent.critic.hidden=[64,64]", "agent.tau=0.1", "agent.critic.latent=16", *more]
    torch.manual_seed(0)
    return agents.create(SHAPES, 1, preset(name, *settings), EncoderConfig(name="state", share=True))


def learn(agent: Agent, seen: Batch, steps: int, rate: float = 3e-3) -> None:
    """Train the critic on one batch."""
    optimizer = torch.optim.Adam(agent.critic.parameters(), lr=rate)
    for step in range(steps):
        loss = agent.critic_loss(agent.loss_inputs(seen, RandomStream(0, step), step))[0]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        agent.update_targets()


def pairs() -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """An observation of every place and goal, and their distance in steps, float32 (B,)."""
    here, goal = np.array(list(product(range(PLACES), range(PLACES)))).T
    return {"state": shown(here), "goal/state": shown(goal)}, torch.from_numpy(abs(here - goal)).float()
