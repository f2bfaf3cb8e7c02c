"""An estimate of a plan's cost on this machine, from a few steps of every training and simulator."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import count
from statistics import fmean

import gymnasium

from gtp_vision.config.schema import Config
from gtp_vision.core.progress import Progress
from gtp_vision.core.timing import seconds
from gtp_vision.datasets.record import record_of
from gtp_vision.datasets.sources import batch_source
from gtp_vision.datasets.store import Store
from gtp_vision.envs import close, time_limit
from gtp_vision.evaluation.evaluator import one_thread
from gtp_vision.suites.plan import Plan, PlannedRun
from gtp_vision.training.build import build
from gtp_vision.training.eager import Eager
from gtp_vision.training.evaluate import env_spec

_WARM_UP, _SECONDS = 2, 0.5


def cost(plan: Plan, *, progress: bool = True) -> dict[PlannedRun, float]:
    """Remaining seconds of each job, on one thread, in the eager engine.

    A compiled engine, a GPU that trains seeds side by side and episodes that end early are faster. Jobs with the same
    networks and observations are measured once. A frozen backbone is timed without the cache of its features.
    """
    steps: dict[tuple, float] = {}
    episodes: dict[tuple, float] = {}
    left: dict[PlannedRun, float] = {}
    with one_thread():
        for job in Progress(plan.jobs, "measuring", unit="run", disable=not progress):
            if job.done == 1:
                left[job] = 0.0
                continue
            config, store = _single_run(job.config), plan.stores[job.task]
            shapes = tuple((name, array.shape[1:]) for name, array in store.observations.items())
            step_key = (job.agent, shapes, store.action_dim, config.training.batch_size)
            if step_key not in steps:
                steps[step_key] = _step_seconds(config)
            recorded = (store.attributes.get("env_args") or {}).get("env_name")  # of robosuite
            env_key = (str(config.task.env).partition("-singletask")[0], recorded, shapes)
            if env_key not in episodes:
                episodes[env_key] = _episode_seconds(config, store)
            training = config.training
            evaluations = -(-training.steps // (training.eval_every or training.steps))
            again = len(training.eval_candidates or ()) + len(training.eval_acting or ())
            evaluated = evaluations * training.eval_episodes * (1 + again)
            total = training.steps * steps[step_key] + evaluated * episodes[env_key] / (training.eval_envs or 1)
            left[job] = (1 - job.done) * len(job.seeds) * total
    return left


def table(plan: Plan, left: dict[PlannedRun, float], workers: int) -> str:
    """The plan as text: every job with its seeds, the share that is done, and the remaining hours."""
    lines = [f"{'task':<48}{'agent':<14}{'seeds':<8}{'done':>6}{'hours':>8}"]
    for job in plan.jobs:
        numbers = f"{job.seeds[0]}-{job.seeds[-1]}" if len(job.seeds) > 1 else str(job.seeds[0])
        lines.append(f"{job.task:<48}{job.agent:<14}{numbers:<8}{job.done:>6.0%}{left[job] / 3600:>8.2f}")
    hours = sum(left.values()) / 3600
    longest = max(left.values(), default=0.0) / 3600
    lines.append(
        f"{hours:.1f} hours of one core remain, about {max(longest, hours / workers):.1f} hours with {workers} workers "
        f"(without compiling; less where episodes end early)"
    )
    return "\n".join([*lines, *plan.missing])


def _single_run(config: Config) -> Config:
    training = replace(config.training, seeds=1, device="cpu")
    return replace(config, training=training, encoder=replace(config.encoder, cache=False))


def _step_seconds(config: Config) -> float:
    parts = build(config)
    engine, steps = Eager(batch_source(parts.sampler, parts.accelerator.device), config, parts), count()

    def step() -> None:
        number = next(steps)
        engine.step(number, engine.source.fetch(number))

    return _mean_seconds(step)


def _episode_seconds(config: Config, store: Store) -> float:
    env = env_spec(config, record_of(store)).make()
    try:
        return episode_seconds(env, config.task.max_episode_steps or time_limit(env) or 1000)
    finally:
        close(env)


def episode_seconds(env: gymnasium.Env, limit: int) -> float:
    """Of an episode of `limit` steps, without the policy, from random actions."""
    env.reset(seed=0)

    def step() -> None:
        _, _, terminated, truncated, _ = env.step(env.action_space.sample())
        if terminated or truncated:
            env.reset()

    return limit * _mean_seconds(step)


def _mean_seconds(work: Callable[[], object]) -> float:
    """The mean over as many calls as fit into half a second."""
    for _ in range(_WARM_UP):
        work()
    times: list[float] = []
    while sum(times) < _SECONDS:
        times.append(seconds(work))
    return fmean(times)
