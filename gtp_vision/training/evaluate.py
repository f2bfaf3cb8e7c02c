"""A run's agent in its task's environment: what is evaluated, where and how."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from gtp_vision import agents
from gtp_vision.agents import Agent
from gtp_vision.agents.acting import Executor
from gtp_vision.config.compose import from_run
from gtp_vision.config.schema import Config
from gtp_vision.core.errors import GtpVisionError, propose
from gtp_vision.core.names import SALIENCY
from gtp_vision.datasets.store import Store
from gtp_vision.envs import EnvSpec, Rendering, by_name, close
from gtp_vision.evaluation.evaluator import Actor, Episode, Evaluator, write_videos
from gtp_vision.evaluation.saliency import Saliency
from gtp_vision.training import checkpoint
from gtp_vision.training.build import Components, build
from gtp_vision.training.seeds import folders

_EVAL_SEED = 100_000  # episodes of evaluations are reset with seeds from here on


def restore(folder: Path, which: str = "last") -> tuple[Config, Components]:
    """A run's configuration and parts, the agent as the checkpoint `which` holds it: `last`, `best` or `step_N`.

    Raises:
        GtpVisionError: no run, no such checkpoint, or a damaged one.
    """
    config = from_run(folder)
    if config.training.seeds > 1:
        several = folders(config)
        raise GtpVisionError(f"{folder} holds {len(several)} runs, one a seed; name one of them, e.g. {several[0]}")
    path = folder / "checkpoints" / which
    if not path.exists():
        known = [other.name for other in (folder / "checkpoints").glob("[!.]*")]
        raise GtpVisionError(f"{folder} has no checkpoint '{which}': {propose(which, known)}")
    parts = build(config, fresh=False)
    checkpoint.load(path.resolve(), parts.agent)
    parts.agent.eval()
    return config, parts


def evaluate_run(
    folder: Path,
    *,
    which: str = "last",
    episodes: int = 50,
    steps: int | None = None,
    candidates: int | None = None,
    seed: int = 50_000,
    videos: Path | None = None,
    saliency: bool = False,
    progress: bool = True,
) -> dict[str, Any]:
    """Evaluate a checkpoint of a run in its task's environment.

    The agent acts eagerly: how many episodes are in progress, and plan, changes from step to step, and each number
    would be compiled anew (`agents.fast` is for a robot that plans for one observation at a time).

    Args:
        folder: the run folder.
        which: `last`, `best` or `step_N`.
        episodes: how many.
        steps: K; None is the agent's.
        candidates: N actions of which the critic chooses one; None is the agent's.
        seed: of the first episode.
        videos: folder for the videos of all episodes; None films none.
        saliency: write each video twice, the second with heat where the policy looked (see `insight`).
        progress: show a bar.

    Raises:
        GtpVisionError: no run, no such checkpoint, or a damaged one; candidates without a critic; saliency without
            videos, or of a policy that sees no camera.
    """
    if saliency and videos is None:
        raise GtpVisionError("saliency is drawn into videos, and none are asked for; give --videos FOLDER as well")
    for name, value in {"episodes": episodes, "steps": steps, "candidates": candidates}.items():
        if value is not None and value < 1:
            raise GtpVisionError(f"{name}={value} must be at least 1")
    config, parts = restore(folder, which)
    agent = config.agent
    if candidates is not None:
        agent = parts.agent.config = replace(agent, acting=replace(agent.acting, candidates=candidates))
    if steps is not None:
        agents.check_agent(agents.acting_in(agent, steps), steps_key="--steps")
    agents.check_agent(agent)
    if config.task.env is None:
        raise GtpVisionError(f"{folder} was trained without a simulator (task.env=null): there is nothing to act in")
    if saliency and not parts.agent.actor_encoder.cameras:
        raise GtpVisionError(
            f"{folder} sees no camera, so there is no frame to draw saliency into; leave out --saliency"
        )
    with Evaluator(
        env_spec(config, parts.store),
        frame_stack=config.task.frame_stack,
        envs=config.training.eval_envs,
        seed=seed,
        device=parts.accelerator.device,
        progress=progress,
        patience=config.training.eval_timeout,
    ) as evaluator:
        found, done = evaluator.run(actor_of(parts.agent, steps), episodes, film=episodes if videos else 0)
    if videos:
        write_videos(videos, done)
    if videos and saliency:
        write_videos(videos, done, Saliency(parts.agent, config.task.frame_stack, seed, steps), SALIENCY)
    return found


def actor_of(agent: Agent, steps: int | None = None) -> Actor:
    """The agent as an evaluation's actor, which remembers the action chunks it is in."""
    return Executor(
        lambda observation, noise: agent.plan(observation, noise, steps), agent.config.acting, agent.config.action_chunk
    )


def chosen(episodes: list[Episode], count: int) -> list[Episode]:
    """At most `count` filmed episodes, the first of successes and of failures alike."""
    filmed = [episode for episode in episodes if episode.seen]
    failures = [episode for episode in filmed if not episode.success][: count // 2]
    successes = [episode for episode in filmed if episode.success][: count - len(failures)]
    return successes + failures


def eval_seed(config: Config) -> int:
    """The seed of an evaluation's first episode, far from the seeds of training and of collection."""
    return _EVAL_SEED * (1 + config.seed)


def env_spec(config: Config, store: Store) -> EnvSpec:
    """The environment in which the task is evaluated, rendered as its data were."""
    return EnvSpec(
        name=config.task.env or "",
        rendering=Rendering.of(store.attributes),
        pixels="camera" in store.observations,
        max_episode_steps=config.task.max_episode_steps,
        goals=config.task.goals is not None,
        env_args=store.attributes.get("env_args"),
        shown={name: tuple(array.shape[1:]) for name, array in store.observations.items()},
    )


def check_simulator(config: Config, store: Store) -> None:
    """Make the environment once: a wrong name, no OpenGL or other observations should not show after days.

    Raises:
        GtpVisionError: it cannot be made, or shows or takes other things than the data set holds.
    """
    env = env_spec(config, store).make()
    try:
        shown = {name: space.shape for name, space in by_name(env.observation_space).items()}
        taken = env.action_space.shape
    finally:
        close(env)
    held = {name: tuple(array.shape[1:]) for name, array in store.observations.items()}
    if shown != held or taken != (store.action_dim,):
        raise GtpVisionError(
            f"{config.task.env} shows {shown} and takes actions {taken}, but {store.path or 'the data set'} holds "
            f"{held} and actions {(store.action_dim,)}; set task.env to the data set's simulator, or to null if there "
            f"is none"
        )


def evaluator_of(config: Config, parts: Components, progress: bool) -> Evaluator:
    """What evaluates the run's task, as it was evaluated in training."""
    return Evaluator(
        env_spec(config, parts.store),
        frame_stack=config.task.frame_stack,
        envs=config.training.eval_envs,
        seed=eval_seed(config),
        device=parts.accelerator.device,
        progress=progress,
        patience=config.training.eval_timeout,
        rank=parts.accelerator.process_index,
        world_size=parts.accelerator.num_processes,
    )
