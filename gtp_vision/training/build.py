"""The components of a run: data, networks and optimizer, on the devices that Accelerate chooses."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator

from gtp_vision import agents
from gtp_vision.agents import Agent
from gtp_vision.config.schema import Config
from gtp_vision.core import depth
from gtp_vision.core.errors import GtpVisionError
from gtp_vision.core.files import cache_dir
from gtp_vision.core.names import GOAL, INSTRUCTION
from gtp_vision.core.random import RandomStream
from gtp_vision.datasets.batch import Batch
from gtp_vision.datasets.goals import ACTOR_GOALS, HindsightGoals, RoleGoals
from gtp_vision.datasets.instructions import TABLE
from gtp_vision.datasets.placement import free_memory, place
from gtp_vision.datasets.record import DataRecord
from gtp_vision.datasets.sampler import Sampler
from gtp_vision.datasets.sources import batch_source
from gtp_vision.datasets.split import Split
from gtp_vision.datasets.statistics import ArrayStatistics
from gtp_vision.datasets.store import Store
from gtp_vision.encoders import CameraConfig, Encoder
from gtp_vision.encoders.tuning import parameter_groups
from gtp_vision.training import checkpoint
from gtp_vision.training.data import fit, in_order, kept_scale, measure, open_split, represent
from gtp_vision.training.feature_cache import cacheable, feature_store
from gtp_vision.training.ranks import accelerator_of, global_batch
from gtp_vision.training.seeds import check_seeds
from gtp_vision.training.warm_start import Match, Source, check_match, match, missing_backbones


@dataclass
class Components:
    """The components of a run, built once from its configuration.

    Attributes:
        accelerator: owns device and processes.
        store: the data set, mapped.
        frames: draws from it the batches of training, as recorded.
        sampler: draws the same rows, from where training wants them: placed on the device, or as features.
        agent: the networks.
        module: the agent as Accelerate wraps it.
        optimizer: of what is trained.
        noise_seed: of `stream`.
        statistics: of actions and states.
        record: what the run's checkpoints remember of the data set.
        where: a sentence about where the data lie.
        augmented: whether training sees augmented frames.
        held_out: draws from the episodes that are not trained on, as `sampler` does; None if there are none.
        split: which these are.
        micro_batches: of a step, which this process computes one after the other.
        feature_seconds: that computing or finding a frozen backbone's features took.
        initial: the weights of another run that a new run begins with.
    """

    accelerator: Accelerator
    store: Store
    frames: Sampler
    sampler: Sampler
    agent: Agent
    module: torch.nn.Module
    optimizer: torch.optim.Optimizer
    noise_seed: int
    statistics: dict[str, ArrayStatistics]
    record: DataRecord
    where: str
    augmented: bool
    feature_seconds: float
    held_out: Sampler | None
    split: Split
    initial: Match | None = None
    micro_batches: int = 1

    def batch(self, step: int) -> Batch:
        """This process's part of the batch of a training step, on the device."""
        a, source = self.accelerator, batch_source(self.sampler, self.accelerator.device)
        return source.batch(source.fetch(step, a.process_index, a.num_processes).to(a.device))

    def stream(self, step: int, part: int | None = None) -> RandomStream:
        """The noise of a training step, or of one of its micro-batches."""
        rank, count = self.share(part)
        return RandomStream(self.noise_seed, step, rank=rank, world_size=count, device=self.accelerator.device)

    def share(self, part: int | None = None) -> tuple[int, int]:
        """The number of this process among all, or of its micro-batch `part` among all processes', and how many."""
        a, parts = self.accelerator, self.micro_batches
        if part is None:
            return a.process_index, a.num_processes
        return a.process_index * parts + part, a.num_processes * parts


def build(
    config: Config,
    *,
    resumes: Path | None = None,
    past: DataRecord | None = None,
    source: Source | None = None,
    compare: Callable[[DataRecord, int], None] = lambda record, rows: None,
    check: Callable[[Store], None] | None = None,
) -> Components:
    """Build the data, networks and optimizer of a run.

    With `resumes`, the checkpoint that will fill the agent, the file with the encoder's trained weights need not exist
    any more; `past` is the record of its data set, whose order of observations is kept. A new run may begin with the
    weights of a `source`. `compare` is called with the data set's record and the rows of a step, `check` with the data
    set on the main process, before anything that takes long.
    """
    accelerator = accelerate(config)
    batch_size = global_batch(config.training, accelerator.num_processes)
    _check_split(config)
    with accelerator.local_main_process_first():  # one process of each machine fills its cache, the others map it
        scale = kept_scale(config, past) if resumes else source.known_scale(config) if source else None
        data = open_split(config, scale, rescales=source is not None)
        store = in_order(data.training, source.data if source else past, config.task)
    check_seeds(config, store, accelerator.num_processes)
    statistics, record = measure(store)
    compare(record, batch_size)
    if check is not None and accelerator.is_main_process:
        check(store)
    task = config.task
    frames = Sampler(
        store,
        batch_size=batch_size,
        seed=config.seed,
        frame_stack=task.frame_stack,
        n_step=task.n_step,
        discount=task.discount,
        reward_scale=task.reward_scale,
        reward_shift=task.reward_shift,
        action_chunk=agents.actions_needed(config.agent, task.n_step),
        goals=goals_of(config),
    )
    if config.agent.critic.backup != "none" and task.goals is None:
        _check_rewards(config, store)
    _check_chunk(config, store)
    agent = agent_of(config, record, pretrained=resumes is None and source is None)
    initial = None if source is None else match(agent, source)
    if initial is not None:
        check_match(initial, agent, config)
        if config.encoder.weights is not None and missing_backbones(initial, agent):
            agent = agent_of(config, record, pretrained=True)
    fit(agent, statistics, standardize=config.encoder.standardize)
    represent(agent, frames, record, task.action_scaling)
    if initial is not None:
        initial.fill(agent)
        if config.init.refit:  # the statistics that were loaded with the weights
            fit(agent, statistics, standardize=config.encoder.standardize)
            represent(agent, frames, record, task.action_scaling)
    is_online = config.online.steps > 0  # then the data grow, so they are neither copied nor replaced by features
    cached, began = not is_online and cacheable(config.encoder, store), time.perf_counter()
    held_out = None
    if data.held_out is not None:
        held_out = replace(frames, store=data.held_out.select(list(store.observations)))
    if cached:
        if resumes is not None:
            checkpoint.load(resumes, agent)  # whose weights make the features
        sampler, where = _of_features(config, frames, agent, accelerator)
        if held_out is not None:
            held_out = _of_features(config, held_out, agent, accelerator)[0]
    else:
        placed, where = place(store, accelerator.device, "mapped" if is_online else config.training.placement)
        sampler = replace(frames, store=placed)
    feature_seconds = time.perf_counter() - began if cached else 0.0
    augmented = agent.augment.active and (not cached or config.encoder.views > 1)
    agent, module, optimizer = _prepared(config, agent, accelerator)
    return Components(
        *(accelerator, store, frames, sampler, agent, module, optimizer, config.seed, statistics.arrays, record, where),
        *(augmented, feature_seconds, held_out, data.split, initial, config.training.accumulate),
    )


def accelerate(config: Config) -> Accelerator:
    """The devices and processes of a run, with its precision set."""
    accelerator = accelerator_of(config.training, has_unused=config.agent.clone_steps > 0)
    if accelerator.device.type == "cuda":
        set_products(config.training.precision)
    return accelerator


def components_for_seed(parts: Components, config: Config) -> Components:
    """The components of a run that differs in the seed alone, with the same data; the given ones have not begun."""
    agent = agent_of(config, parts.record, pretrained=False)
    if parts.initial is not None:
        parts.initial.fill(agent)
    with torch.no_grad():  # statistics of the data
        for own, known in zip(agent.buffers(), parts.agent.buffers(), strict=True):
            own.copy_(known)
    agent, module, optimizer = _prepared(config, agent, parts.accelerator)
    for (name, parameter), known in zip(agent.named_parameters(), parts.agent.parameters(), strict=True):
        if not known.requires_grad and ".towers." in name:  # a frozen backbone with trained weights: once for all
            parameter.data = known.data
    seed = config.seed
    frames, sampler = replace(parts.frames, seed=seed), replace(parts.sampler, seed=seed)
    return replace(
        parts, frames=frames, sampler=sampler, agent=agent, module=module, optimizer=optimizer, noise_seed=seed
    )


def initial_agent(parts: Components, config: Config) -> Agent:
    """The agent as the run began with it, on the device, with the data's statistics of its present agent."""
    agent = agent_of(config, parts.record, pretrained=True)
    with torch.no_grad():
        for own, known in zip(agent.buffers(), parts.agent.buffers(), strict=True):
            if bool(known.isfinite().all()):
                own.copy_(known)
    return agent.to(parts.accelerator.device)


def set_products(precision: str) -> None:
    """How GPUs multiply float32 matrices and convolve, in this process: exactly, or with 10 bits of mantissa (TF32).

    All that is not a product (sums, losses, the targets' averages, Adam) is float32 in either case.
    """
    torch.set_float32_matmul_precision("highest" if precision == "float32" else "high")
    torch.backends.cudnn.allow_tf32 = precision != "float32"


def agent_of(config: Config, data: DataRecord, *, pretrained: bool) -> Agent:
    """The networks, as the seed begins them."""
    task = config.task
    seen = shapes(data, task.frame_stack, goals=task.goals is not None)
    for name in depth.cameras(data.attributes):
        if name in seen and not config.encoder.cameras.get(name, CameraConfig()).depth:
            raise GtpVisionError(
                f"the frames of '{name}' are distances of two bytes; set encoder.cameras.{name}.depth=true, or leave "
                f"it out by task.observations"
            )
    _check_memory(lambda: agents.create(seen, data.actions, config.agent, config.encoder, pretrained=False))
    torch.manual_seed(config.seed)
    agent = agents.create(seen, data.actions, config.agent, config.encoder, pretrained=pretrained)
    if config.training.ema:
        agent.keep_average()
    for module in agent.modules():
        if isinstance(module, Encoder):
            module.use_bf16(config.training.precision == "bf16")
    return agent


def _check_memory(create: Callable[[], Agent]) -> None:
    """Refuse networks that this machine cannot hold, before it tries to."""
    try:
        with torch.device("meta"):  # takes no memory
            plan = create()
        size = sum(x.numel() * x.element_size() for x in (*plan.parameters(), *plan.buffers()))
    except RuntimeError as error:
        if "overflow" not in str(error):  # what cannot be planned may still be built
            return
        size = sys.maxsize
    free = free_memory(torch.device("cpu"))
    if size > free:
        raise GtpVisionError(
            f"the networks would take {size / 1e9:,.0f} GB, and {free / 1e9:.0f} GB are free; make "
            f"agent.policy.hidden, agent.critic.hidden or the encoder smaller"
        )


def _prepared(
    config: Config, agent: Agent, accelerator: Accelerator
) -> tuple[Agent, torch.nn.Module, torch.optim.Optimizer]:
    """The agent on its device, as Accelerate wraps it, and its optimiser."""
    groups = parameter_groups(agent, config.encoder, config.training.weight_decay)
    optimizer = torch.optim.AdamW(groups, lr=config.training.learning_rate)
    module, optimizer = accelerator.prepare(agent, optimizer)
    return accelerator.unwrap_model(module), module, optimizer


def _of_features(config: Config, frames: Sampler, agent: Agent, accelerator: Accelerator) -> tuple[Sampler, str]:
    """Draws what the actor's backbones make of the frames, which all other encoders' make too; and a sentence."""
    device, encoder = accelerator.device, config.encoder
    with accelerator.local_main_process_first():  # one process of each machine computes, the others map it
        features = feature_store(agent.actor_encoder.to(device), agent.augment, frames, device)
    placed, where = place(features, device, config.training.placement, what="features", source=cache_dir())
    note = f"{where}, computed once"
    if encoder.views > 1:
        note += f" in {encoder.views} views, {encoder.views - 1} of them augmented"
    elif agent.augment.active:
        note += " and not augmented (encoder.views=4, say, would)"
    return replace(frames, store=placed, frame_stack=1), note


def shapes(data: DataRecord, frame_stack: int, *, goals: bool = False) -> dict[str, tuple[int, ...]]:
    """Observation name to the shape of one stacked observation: (T, C, H, W) or (T, D); with goals, of theirs too."""
    found = {
        name: (frame_stack, shape[2], *shape[:2]) if len(shape) == 3 else (frame_stack, *shape)
        for name, shape in data.observations.items()
    }
    of_goals = {
        GOAL + name: shape for name, shape in found.items() if name != INSTRUCTION or TABLE not in data.attributes
    }
    return found | (of_goals if goals else {})


def goals_of(config: Config) -> HindsightGoals | RoleGoals | None:
    """The law of a task's goals: a critic learns from other goals than the policy, as its agent's paper has it."""
    critic, share = agents.critic_goals(config.agent), config.task.random_goals
    if config.task.goals is None:
        return None
    if critic is None:
        return ACTOR_GOALS
    return RoleGoals(
        replace(critic, discount=config.task.discount),
        replace(ACTOR_GOALS, trajectory=1 - share, random=share),
        getattr(config.agent.improvement, "subgoal_steps", 0),
    )


def _check_split(config: Config) -> None:
    """Refuse micro-batches where a step needs its whole batch at once."""
    training, advice = config.training, "set training.accumulate=1"
    if training.accumulate > 1 and training.seeds > 1:
        raise GtpVisionError(
            f"training.seeds={training.seeds} maps whole batches over seeds, and training.accumulate="
            f"{training.accumulate} splits them; {advice}, or train the seeds one by one: -m seed=0,1"
        )
    if training.accumulate > 1 and config.encoder.batch_norm == "train":
        raise GtpVisionError(
            f"encoder.batch_norm=train takes statistics of whole batches, and training.accumulate="
            f"{training.accumulate} splits them; {advice}, or encoder.batch_norm=frozen"
        )


def _check_chunk(config: Config, store: Store) -> None:
    """Refuse chunks that no episode fills: their last actions would be learnt from nothing."""
    longest = int((store.last_outcomes + 1 - store.episode_starts).max(initial=0))
    if config.agent.action_chunk > longest:
        raise GtpVisionError(
            f"agent.action_chunk={config.agent.action_chunk} is more than the {longest} actions of the longest episode "
            f"of {store.path or 'the data set'}; set it to at most {longest}"
        )


def _check_rewards(config: Config, store: Store) -> None:
    """Refuse rewards that are all 0 once they are shifted and scaled: a critic would learn nothing."""
    shift, scale = config.task.reward_shift, config.task.reward_scale
    extremes = [np.min(store.rewards), np.max(store.rewards)] if len(store.rewards) else [-shift]
    if not np.any((np.array(extremes, np.float64) + shift) * scale):
        changes = f" with task.reward_shift={shift:g} and task.reward_scale={scale:g}" if shift or scale != 1 else ""
        raise GtpVisionError(
            f"{store.path or 'the data set'} holds no rewards (all are 0{changes}), and agent={config.agent.name} "
            f"learns from them; clone it with agent=gtp_bc, or record rewards"
        )
