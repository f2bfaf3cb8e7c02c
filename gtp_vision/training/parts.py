"""What a run consists of: data, networks and optimiser, placed where Accelerate says."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs, InitProcessGroupKwargs

from gtp_vision import agents
from gtp_vision.agents import Agent
from gtp_vision.config import Config
from gtp_vision.datasets.placement import place
from gtp_vision.datasets.random import RandomStream
from gtp_vision.datasets.sampler import Sampler
from gtp_vision.datasets.statistics import ArrayStatistics
from gtp_vision.datasets.store import Store
from gtp_vision.envs import choose_backend
from gtp_vision.errors import GtpVisionError
from gtp_vision.training.data import fit, open_data


@dataclass
class Parts:
    """What a run consists of, built once from its configuration."""

    accelerator: Accelerator
    store: Store
    sampler: Sampler
    agent: Agent
    module: torch.nn.Module
    optimizer: torch.optim.Optimizer
    noise_seed: int
    statistics: dict[str, ArrayStatistics]
    where: str

    def stream(self, step: int) -> RandomStream:
        """The noise of a training step."""
        a = self.accelerator
        return RandomStream(self.noise_seed, step, rank=a.process_index, world_size=a.num_processes, device=a.device)


def build(config: Config, *, fresh: bool = True, pretrained: bool | None = None) -> Parts:
    """Data, networks, optimiser, placed where Accelerate says.

    Args:
        config: of the run.
        fresh: False for a run that is evaluated: the encoders' statistics come with its checkpoint, and no frames are
            copied to the device.
        pretrained: read the encoder's trained weights; None does so if fresh. False for what a checkpoint will fill,
            so that a run goes on without the file that it began with.
    """
    choose_backend(required=False)  # before the reader of OGBench's files imports mujoco, which looks only once
    accelerator = Accelerator(
        cpu=config.training.device == "cpu",
        mixed_precision=config.training.precision,
        kwargs_handlers=[
            DistributedDataParallelKwargs(broadcast_buffers=False, gradient_as_bucket_view=True),
            InitProcessGroupKwargs(timeout=timedelta(hours=12)),  # the others wait while the main one evaluates
        ],
    )
    if config.training.device == "cuda" and accelerator.device.type != "cuda":
        raise GtpVisionError("training.device=cuda, but torch finds no CUDA device here; set training.device=auto")
    if config.training.batch_size % accelerator.num_processes:
        raise GtpVisionError(
            f"training.batch_size={config.training.batch_size} cannot be divided over "
            f"{accelerator.num_processes} processes; make it a multiple"
        )
    with accelerator.local_main_process_first():  # one process of each machine fills its cache, the others map it
        store = open_data(config)
    # What is only evaluated draws no batches: its frames stay in the file.
    placed, where = place(store, accelerator.device, config.training.placement if fresh else "mapped")
    task = config.task
    sampler = Sampler(
        placed,
        batch_size=config.training.batch_size,
        seed=config.seed,
        frame_stack=task.frame_stack,
        n_step=task.n_step,
        discount=task.discount,
        reward_scale=task.reward_scale,
        reward_shift=task.reward_shift,
        action_chunk=agents.actions_needed(config.agent, task.n_step),
    )
    if config.agent.critic.backup != "none":
        _check_rewards(config, store)
    torch.manual_seed(config.seed)
    agent = agents.create(
        shapes(store, task.frame_stack),
        store.action_dim,
        config.agent,
        config.encoder,
        pretrained=fresh if pretrained is None else pretrained,
    )
    statistics = fit(agent, store, standardize=config.encoder.standardize) if fresh else {}
    trained = [p for p in agent.parameters() if p.requires_grad]
    optimizer = torch.optim.Adam(trained, lr=config.training.learning_rate)
    module, optimizer = accelerator.prepare(agent, optimizer)
    agent = accelerator.unwrap_model(module)
    return Parts(accelerator, store, sampler, agent, module, optimizer, config.seed, statistics, where)


def shapes(store: Store, frame_stack: int) -> dict[str, tuple[int, ...]]:
    """Observation name to the shape of one stacked observation: (T, C, H, W) or (T, D)."""
    return {
        name: (frame_stack, array.shape[3], *array.shape[1:3]) if array.ndim == 4 else (frame_stack, array.shape[1])
        for name, array in store.observations.items()
    }


def _check_rewards(config: Config, store: Store) -> None:
    """A critic learns nothing where nothing is ever rewarded.

    Raises:
        GtpVisionError: all rewards are 0, and none are made by shifting them.
    """
    if not config.task.reward_shift and not np.any(store.rewards):
        raise GtpVisionError(
            f"{store.path or 'the data set'} holds no rewards (all are 0), and agent={config.agent.name} learns from "
            f"them; clone it with agent=gtp_bc, or record rewards"
        )
