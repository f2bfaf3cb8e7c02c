"""Evaluation of a run's agent in its task's environment."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
from accelerate import Accelerator

from gtp_vision.agents import ActingConfig, Agent
from gtp_vision.agents.acting import Executor
from gtp_vision.config.compose import acting_with, checked, from_run, segments_in
from gtp_vision.config.schema import Config
from gtp_vision.core.errors import GtpVisionError, propose
from gtp_vision.core.framing import FRAMES, Framing
from gtp_vision.core.names import INSTRUCTION, SALIENCY
from gtp_vision.core.progress import Progress
from gtp_vision.datasets.instructions import table_of
from gtp_vision.datasets.record import DataRecord, record_of
from gtp_vision.datasets.store import ACTION_BOUNDS, Store
from gtp_vision.envs import ActionUnits, EnvSpec, PolicyActions, Rendering, by_name, close
from gtp_vision.evaluation.agreement import faults_at_once
from gtp_vision.evaluation.evaluator import Actor, Episode, Evaluator, write_videos
from gtp_vision.evaluation.saliency import Saliency
from gtp_vision.training import checkpoint
from gtp_vision.training.build import Components, accelerate, agent_of
from gtp_vision.training.data import STATISTICS, kept_scale, measure, open_data
from gtp_vision.training.seeds import folders
from gtp_vision.training.segments import changes, segments_of, statistics_differ, with_free

_COMPARED = 1000  # recorded actions that are brought to the simulator
_TWO_VALUED = 0.999  # of the largest variance: statistics are rounded
_EVAL_SEED = 100_000  # of the first episode, if the run's seed is 0


@dataclass(frozen=True)
class Trained:
    """A run's agent as a checkpoint has it, its device, and the record of the data set that it was trained on."""

    agent: Agent
    accelerator: Accelerator
    record: DataRecord


def restore(
    folder: Path, which: str = "last", *, acting: Sequence[str] = (), steps: int | None = None
) -> tuple[Config, Trained]:
    """Load the agent of a run's checkpoint `last`, `best` or `step_N`, and the configuration it was trained with.

    The data set need not exist. Settings that change no step, such as those of evaluations, are those of config.yaml;
    `acting` and `steps` change how the agent acts, as `config.compose.acting_with` says.

    Raises:
        GtpVisionError: the run or the checkpoint is missing or damaged; config.yaml holds other settings than the
            checkpoint; an earlier version wrote the checkpoint without a record of its data, and these are missing or
            others by now; the agent cannot act so.
    """
    config = replace(from_run(folder), run_dir=str(folder))
    if config.training.seeds > 1:
        runs = folders(config)
        raise GtpVisionError(f"{folder} holds {len(runs)} runs, one for each seed; give one of them, e.g. {runs[0]}")
    path = folder / "checkpoints" / which
    if not path.exists():
        known = [other.name for other in (folder / "checkpoints").glob("[!.]*")]
        raise GtpVisionError(f"{folder} has no checkpoint '{which}': {propose(which, known)}")
    past = segments_of(path.resolve())
    if past:
        config = _as_trained(config, past[-1].config, folder, which)
    config = replace(config, agent=acting_with(config.agent, acting, steps=steps))
    accelerator = accelerate(config)
    record = (past[-1].data if past else None) or _record_of_old(config, folder)
    agent = agent_of(config, record, pretrained=False)
    checkpoint.load(path.resolve(), agent)
    agent.become_average()
    return config, Trained(agent.to(accelerator.device).eval(), accelerator, record)


def _as_trained(config: Config, trained: Config, folder: Path, which: str) -> Config:
    """`config`, of config.yaml, with the settings of the checkpoint's steps where the run has changed them since."""
    known = {key for segment in segments_in(folder) for key in segment["settings"]}
    edited = {key: change for key, change in changes(trained, config, free=False).items() if key not in known}
    if edited:
        raise GtpVisionError(
            f"{folder / 'config.yaml'} holds other settings than its checkpoint '{which}' was trained with: "
            f"{'; '.join(f'{key}: {change}' for key, change in edited.items())}; restore them"
        )
    return checked(with_free(trained, config))


def _record_of_old(config: Config, folder: Path) -> DataRecord:
    """The record of the data set as it is today, for a checkpoint that holds none, compared with statistics.json."""
    record = measure(open_data(config, kept_scale(config, None)))[1]
    if differ := statistics_differ(folder / STATISTICS, record):
        raise GtpVisionError(
            f"the data set of {folder}, of which this checkpoint of an earlier version holds no record, has changed: "
            f"{'; '.join(differ)}; restore it"
        )
    return record


def evaluate_run(
    folder: Path,
    *,
    which: str = "last",
    episodes: int = 50,
    steps: int | None = None,
    candidates: int | None = None,
    delay: int | None = None,
    acting: Sequence[str] = (),
    seed: int = 50_000,
    videos: Path | None = None,
    saliency: bool = False,
    progress: bool = True,
) -> dict[str, Any]:
    """Evaluate a checkpoint of a run in its task's environment.

    The agent acts eagerly: the number of episodes that plan changes from step to step, and `agents.fast` would
    compile each of them anew.

    Args:
        folder: the run folder.
        which: `last`, `best` or `step_N`.
        episodes: how many.
        steps: K; None is the agent's.
        candidates: N actions of which the critic chooses one; None is the agent's.
        delay: steps that a plan takes to arrive; None is the agent's.
        acting: overrides of how the agent acts, `acting=beam` or `agent.acting.noise=0.5`.
        seed: of the first episode.
        videos: folder for the videos of all episodes; None writes none.
        saliency: write each video twice, the second one with a saliency map.
        progress: show a bar.

    Raises:
        GtpVisionError: the run or the checkpoint is missing or damaged; candidates without a critic; saliency without
            videos or without a camera.
    """
    if saliency and videos is None:
        raise GtpVisionError("saliency is drawn into videos, and no folder for them is given; add --videos FOLDER")
    for name, value in {"episodes": episodes, "steps": steps, "candidates": candidates}.items():
        if value is not None and value < 1:
            raise GtpVisionError(f"{name}={value} must be at least 1")
    for key, number in {"candidates": candidates, "delay": delay}.items():
        acting = acting if number is None else [*acting, f"agent.acting.{key}={number}"]
    config, parts = restore(folder, which, acting=acting, steps=steps)
    agent = parts.agent
    if config.task.env is None:
        raise GtpVisionError(f"{folder} was trained without a simulator (task.env=null), so it cannot be evaluated")
    if saliency and not agent.actor_encoder.cameras:
        raise GtpVisionError(f"{folder} sees no camera, so saliency has no image to be drawn on; leave out --saliency")
    if steps is not None and not agent.improvement.acts_in_steps:
        Progress.write(
            f"gtp-vision: {config.agent.name} acts in one jump, so --steps {steps} changes nothing", file=sys.stderr
        )
    with evaluator_of(config, parts, progress, seed) as evaluator:
        metrics, done = evaluator.run(actor_of(agent), episodes, film=episodes if videos else 0)
    if videos and not write_videos(videos, done):
        Progress.write(f"warning: no videos are written: {config.task.env} shows no camera", file=sys.stderr)
    if videos and saliency:
        write_videos(videos, done, Saliency(agent, config.task.frame_stack, seed), SALIENCY)
    return metrics


def actor_of(agent: Agent, steps: int | None = None, acting: ActingConfig | None = None) -> Actor:
    """The agent as the actor of an evaluation, which executes chunks; `steps` and `acting` are its own if None."""
    acting = agent.config.acting if acting is None else acting
    return Executor(
        lambda observation, noise, known=None: agent.plan(observation, noise, steps, acting, known),
        acting,
        agent.config.action_chunk,
    )


def chosen(episodes: list[Episode], count: int) -> list[Episode]:
    """At most `count` filmed episodes, half of them failures if there are enough of both."""
    filmed = [episode for episode in episodes if episode.film]
    failures = [episode for episode in filmed if episode.success is False][: count // 2]
    others = [episode for episode in filmed if episode.success is not False][: count - len(failures)]
    return others + failures


def eval_seed(config: Config) -> int:
    """The seed of an evaluation's first episode, far from the seeds of training and of collection."""
    return _EVAL_SEED * (1 + config.seed)


def env_spec(config: Config, data: DataRecord) -> EnvSpec:
    """The environment in which the task is evaluated, rendered as its data were, with actions in their units."""
    actions, frames = data.statistics["actions"], Framing.of(data.attributes.get(FRAMES))
    table, shown = table_of(data.attributes), dict(data.observations)
    if table is not None:
        del shown[INSTRUCTION]  # not of the simulator
    return EnvSpec(
        name=config.task.env or "",
        rendering=Rendering.of(data.attributes),
        pixels="camera" in data.observations,
        max_episode_steps=config.task.max_episode_steps,
        goals=config.task.goals is not None,
        env_args=data.attributes.get("env_args"),
        shown={name: (frames.recorded if frames else {}).get(name, x) for name, x in shown.items()},
        instructions=None if table is None else dict(zip(table.texts, table.vectors, strict=True)),
        frames=frames,
        units=action_units(config, data.name or "the data set", data.attributes, (actions["min"], actions["max"])),
        success_reward=config.task.success_reward,
    )


def action_units(config: Config, name: str, attributes: Mapping[str, Any], reach: tuple[Any, Any]) -> ActionUnits:
    """The units of a data set's actions: `name` and `attributes` are its, `reach` their least and largest, (A,)."""
    low, high = (attributes.get(bound) for bound in ACTION_BOUNDS)
    return ActionUnits(
        data=name,
        reach=(tuple(map(float, reach[0])), tuple(map(float, reach[1]))),
        bounds=None if low is None or high is None else (low, high),
        declared=attributes.get("action_bounds") == "declared",
        recorder=str(attributes.get("suite", "")),
        choice=config.task.env_actions,
    )


def check_simulator(config: Config, store: Store) -> tuple[str, bool]:
    """Create the environment once before training, so that a wrong name or missing OpenGL is not found after days.

    Returns a sentence about the units of actions, with `actions_kept`, and whether they are converted or
    the first recorded action leads elsewhere than recorded. Raises GtpVisionError: it cannot be created; its
    observations, actions or their units differ from the data set's; its frames are turned, or of other colors or names.
    """
    with simulator_of(config, store) as env:
        sentence = units_of(env, store)
        simulator = env_spec(config, record_of(store)).simulator
        faults, differs = faults_at_once(env, simulator, store, config.task.features)
    if faults:
        raise GtpVisionError(f"{store.path or 'the data set'}: {faults[0]}, or set task.env=null to train without it")
    if differs:
        sentence = f"{config.task.env} differs from the data, see gtp-vision data check ({differs}); {sentence}"
    return sentence, isinstance(env, PolicyActions) or bool(differs)


@contextmanager
def simulator_of(config: Config, store: Store) -> Iterator[gymnasium.Env]:
    """The environment of the task, which shows and takes what the data set holds; see `check_simulator`."""
    env = env_spec(config, record_of(store)).make()
    try:
        env_shapes = {name: space.shape for name, space in by_name(env.observation_space).items()}
        data_shapes = {name: tuple(array.shape[1:]) for name, array in store.observations.items()}
        if env_shapes != data_shapes or env.action_space.shape != (store.action_dim,):
            raise GtpVisionError(
                f"{config.task.env} shows {env_shapes} and takes actions {env.action_space.shape}, but "
                f"{store.path or 'the data set'} holds {data_shapes} and actions {(store.action_dim,)}; set task.env "
                f"to the data set's simulator, or to null"
            )
        yield env
    finally:
        close(env)


def units_of(env: gymnasium.Env, store: Store) -> str:
    """A sentence about the units of actions, with `actions_kept`."""
    meaning = env.meaning if isinstance(env, PolicyActions) else "actions: [-1, 1] in the data and the simulator"
    return f"{meaning}; actions kept {actions_kept(env, store):.6f}"


def actions_kept(env: gymnasium.Env, store: Store) -> float:
    """1 less the largest difference between recorded actions and what of them reaches the simulator, in [-1, 1].

    A sample of the actions that are sampled takes a policy's way: [-1, 1], the simulator's units and dtype, and back.
    """
    rows = store.transitions[:: max(1, len(store.transitions) // _COMPARED)]
    actions = np.asarray(store.actions[rows], np.float64)
    if not isinstance(env, PolicyActions):
        return 1.0
    back = env.back(env.action(actions))
    moves = env.high > env.low  # a constant comes back as 0
    return 1 - float(np.abs(back - actions)[:, moves].max(initial=0))


def evaluator_of(config: Config, parts: Components | Trained, progress: bool, seed: int | None = None) -> Evaluator:
    """The evaluator of the run's task; `seed`, of the first episode, is that of evaluations during training if None."""
    return Evaluator(
        env_spec(config, parts.record),
        frame_stack=config.task.frame_stack,
        envs=config.training.eval_envs,
        seed=eval_seed(config) if seed is None else seed,
        device=parts.accelerator.device,
        progress=progress,
        patience=config.training.eval_timeout,
        grippers=_grippers(parts.record.statistics["actions"]),
        rank=parts.accelerator.process_index,
        world_size=parts.accelerator.num_processes,
    )


def _grippers(moves: Mapping[str, Sequence[float]]) -> list[int]:
    """Dimensions of which the data have two values at most: none of that mean and range varies more.

    The variance is at most (max - mean)(mean - min), that of two values (Bhatia and Davis, 2000).
    """
    mean, std, low, high = (np.asarray(moves[name], np.float64) for name in ("mean", "std", "min", "max"))
    return np.flatnonzero(std**2 >= _TWO_VALUED * (high - mean) * (mean - low)).tolist()
