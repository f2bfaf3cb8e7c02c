"""What a plan will cost on this machine, measured by taking a few steps of everything before it begins."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace

from tqdm import tqdm

from gtp_vision.config.schema import Config
from gtp_vision.datasets.sources import batch_source
from gtp_vision.datasets.store import Store
from gtp_vision.envs import close
from gtp_vision.evaluation.evaluator import one_thread
from gtp_vision.suites.plan import Plan, PlannedRun
from gtp_vision.training.build import build
from gtp_vision.training.eager import Eager
from gtp_vision.training.evaluate import env_spec

_WARM_UP, _SECONDS = 2, 0.5


def cost(plan: Plan, *, progress: bool = True) -> dict[PlannedRun, float]:
    """Seconds that each job has left, on one thread, training in the eager engine.

    A compiled engine, or a GPU that trains seeds side by side, is faster; episodes that end early are, too. What has
    the same networks and observations is measured once. Features of a frozen backbone, computed once for
    all runs, are left out: the live backbone is timed.

    Args:
        plan: see `plan.plan`.
        progress: show a bar.
    """
    steps: dict[tuple, float] = {}
    acts: dict[tuple, float] = {}
    left: dict[PlannedRun, float] = {}
    with one_thread():
        for job in tqdm(plan.jobs, "measuring", unit="run", disable=not progress):
            if job.done == 1:
                left[job] = 0.0
                continue
            config, store = _alone(job.config), plan.stores[job.task]
            seen = tuple((name, array.shape[1:]) for name, array in store.observations.items())
            key = (job.agent, seen, store.action_dim, config.training.batch_size)
            if key not in steps:
                steps[key] = _step_seconds(config)
            recorded = (store.attributes.get("env_args") or {}).get("env_name")  # of robosuite
            place = (str(config.task.env).partition("-singletask")[0], recorded, seen)
            if place not in acts:
                acts[place] = _acting_seconds(config, store)
            training = config.training
            evaluations = -(-training.steps // (training.eval_every or training.steps))
            episodes = evaluations * training.eval_episodes * (1 + len(training.eval_candidates or ()))
            whole = training.steps * steps[key] + episodes * acts[place] / _envs(config)
            left[job] = (1 - job.done) * len(job.seeds) * whole
    return left


def told(plan: Plan, left: dict[PlannedRun, float], workers: int) -> str:
    """The plan as text: every job with its seeds, how far it is, and hours; and the sum."""
    lines = [f"{'task':<48}{'agent':<14}{'seeds':<8}{'done':>6}{'hours':>8}"]
    for job in plan.jobs:
        seeds = f"{job.seeds[0]}-{job.seeds[-1]}" if len(job.seeds) > 1 else str(job.seeds[0])
        lines.append(f"{job.task:<48}{job.agent:<14}{seeds:<8}{job.done:>6.0%}{left[job] / 3600:>8.2f}")
    hours = sum(left.values()) / 3600
    longest = max(left.values(), default=0.0) / 3600
    lines.append(
        f"{hours:.1f} hours of one core are left, about {max(longest, hours / workers):.1f} hours with {workers} at "
        f"once (without compiling; less where episodes end early)"
    )
    return "\n".join([*lines, *plan.missing])


def _alone(config: Config) -> Config:
    alone = replace(config.training, seeds=1, device="cpu")
    return replace(config, training=alone, encoder=replace(config.encoder, cache=False))


def _step_seconds(config: Config) -> float:
    parts = build(config)
    engine = Eager(batch_source(parts.sampler, parts.accelerator.device), config, parts)
    steps = iter(range(10**9))

    def step() -> None:
        at = next(steps)
        engine.step(at, engine.source.fetch(at))

    return _seconds_of(step)


def _acting_seconds(config: Config, store: Store) -> float:
    """Of a whole episode that nothing ends before its time limit, without the policy."""
    env = env_spec(config, store).make()
    try:
        limit = config.task.max_episode_steps or (env.spec.max_episode_steps if env.spec else None) or 1000
        env.reset(seed=0)
        return limit * _seconds_of(lambda: env.step(env.action_space.sample()))
    finally:
        close(env)


def _envs(config: Config) -> int:
    return config.training.eval_envs or 1


def _seconds_of(work: Callable[[], object]) -> float:
    for _ in range(_WARM_UP):
        work()
    began, count = time.perf_counter(), 0
    while time.perf_counter() - began < _SECONDS:
        work()
        count += 1
    return (time.perf_counter() - began) / count
