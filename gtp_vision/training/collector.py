"""A process that collects episodes for online fine-tuning.

What it records is a function of the weights that it is given, the seed of the run and the number of the file, so it may
be killed at any moment: whoever starts it again gets the same file.
"""

from __future__ import annotations

import atexit
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import torch
from safetensors.torch import load_file

from gtp_vision.agents import ActingConfig, Agent, label
from gtp_vision.agents.acting import FrameStack
from gtp_vision.config.schema import Config
from gtp_vision.core.errors import GtpVisionError, first_line
from gtp_vision.core.names import GOAL
from gtp_vision.core.random import EpisodeNoise
from gtp_vision.core.success import marked
from gtp_vision.core.tied import with_aliases
from gtp_vision.datasets.record import DataRecord
from gtp_vision.datasets.replay_store import RecordedEpisode, ReplayStore
from gtp_vision.envs import EnvSpec, close, make_named, quiet_worker, versions
from gtp_vision.training.build import agent_of
from gtp_vision.training.evaluate import actor_of

_PROVENANCE = ("command", "recipe", "visits", "expert_visits", "solved_visits")  # of the data set, not of recordings
_SALT = 0x0C  # keeps the seeds of collected episodes apart from those of batches and evaluations


@dataclass(frozen=True)
class Collection:
    """What all rounds of a run have in common.

    Attributes:
        config: of the run.
        record: of its data set, whose attributes the recordings have but for its provenance.
        dtypes: of its observations, by name.
        spec: the environment.
        acting: how the policy acts.
        folder: the replay store.
    """

    config: Config
    record: DataRecord
    dtypes: Mapping[str, str]
    spec: EnvSpec
    acting: ActingConfig
    folder: Path


@dataclass(frozen=True)
class Order:
    """A file to be recorded: its number, the weights to act with, and the steps after which no new episode begins."""

    number: int
    weights: Path
    steps: int


_collection: Collection
_beats: Any  # shared memory: one number, which grows by each step of the environment
_parts: tuple[Agent, gymnasium.Env] | None = None


def begin(collection: Collection, beats: Any) -> None:
    """Set up this process; what may fail is left to the first order, whose error reaches the learner."""
    global _collection, _beats
    quiet_worker()
    torch.set_num_threads(1)
    _collection, _beats = collection, beats


def collect(order: Order) -> None:
    """Record whole episodes into a file of the replay store, until they have `order.steps` steps.

    Raises GtpVisionError: the environment failed; its observations or rewards are not finite; the disk is full.
    """
    global _parts
    config, first = _collection.config, _parts is None
    if _parts is None:
        agent = agent_of(config, _collection.record, pretrained=False).eval()
        _parts = agent, make_named(_collection.spec)
    agent, env = _parts
    agent.load_state_dict(with_aliases(load_file(order.weights), agent))
    episodes, steps = list[RecordedEpisode](), 0
    while steps < order.steps:
        with agent.averaged():
            episodes.append(_episode(agent, env, episode_seed(config.seed, order.number, len(episodes))))
        steps += len(episodes[-1].actions)
        if first:  # after the exit handler of OpenGL, which the first frame loads, so that this one runs before it
            atexit.register(_close, env)
            first = False
    held = {name: value for name, value in _collection.record.attributes.items() if name not in _PROVENANCE}
    made = {"source": f"{label(config.agent)}, fine-tuned online", "seed": config.seed, "versions": versions()}
    ReplayStore(_collection.folder).append(episodes, held | made, order.number)


def episode_seed(seed: int, number: int, episode: int) -> int:
    """The seed of an episode of a file, and of the noise that its policy draws: 32 bits."""
    return int(np.random.SeedSequence((seed, _SALT, number, episode)).generate_state(1)[0])


def _episode(agent: Agent, env: gymnasium.Env, seed: int) -> RecordedEpisode:
    actor, frames = actor_of(agent, None, _collection.acting), FrameStack(_collection.config.task.frame_stack)
    names, actions, rewards = list(_collection.record.observations), list[np.ndarray](), list[float]()
    success: bool | None = None
    try:
        observation, info = env.reset(seed=seed)
        shown = [{name: np.asarray(observation[name], _collection.dtypes[name]) for name in names}]
        goals = {GOAL + name: np.asarray(goal)[None] for name, goal in info.get("goal", {}).items()}
        frames.begin({name: frame[None] for name, frame in shown[0].items()} | goals)
        terminated = truncated = False
        while not (terminated or truncated):
            noise = EpisodeNoise(seed, [0], [len(actions)], torch.device("cpu"))
            actions.append(actor(frames.tensors(), noise)[0].numpy())
            observation, reward, terminated, truncated, info = env.step(actions[-1])
            rewards.append(float(reward))
            mark = marked(info["success"])
            success = success if mark is None else bool(success) or mark
            shown.append({name: np.asarray(observation[name], _collection.dtypes[name]) for name in names})
            frames.push({name: frame[None] for name, frame in shown[-1].items()})
            _beats.value += 1
    except GtpVisionError:
        raise
    except Exception as error:  # code that is not ours may raise anything
        raise GtpVisionError(
            f"collecting: the simulator of {_collection.spec.name} raised {type(error).__name__} "
            f"({first_line(error)}) in step {len(actions)} of the episode with seed {seed}; fix the simulator, then "
            f"continue with --resume"
        ) from error
    return RecordedEpisode(
        {name: np.stack([each[name] for each in shown]) for name in names},
        np.stack(actions),
        np.asarray(rewards, np.float32),
        bool(terminated),
        success,
    )


def _close(env: gymnasium.Env) -> None:
    with suppress(Exception):  # the process ends
        close(env)
