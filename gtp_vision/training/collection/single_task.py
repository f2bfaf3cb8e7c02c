"""Collecting demonstrations into a native file: seeded, in parallel processes, the recipe recorded in the file."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from tqdm import tqdm

import gtp_vision
from gtp_vision.datasets.formats import native
from gtp_vision.datasets.store import Store
from gtp_vision.datasets.validation import validate
from gtp_vision.envs import EnvSpec, Rendering, choose_backend, oracles, quiet_worker
from gtp_vision.errors import GtpVisionError

_env = None  # one environment a worker process


def collect(
    env: str,
    out: Path,
    *,
    episodes: int,
    seed: int,
    expert_share: float,
    noise: float,
    wander: float,
    limit: int,
    shadow_size: int | None = None,
    multisamples: int | None = None,
    processes: int,
    command: Sequence[str],
    compression: str | None = None,
    progress: bool = True,
) -> Store:
    """Record an oracle at a single-task OGBench puzzle or cube.

    Visit k is a function of (seed, k) alone, whatever the number of processes.

    Args:
        env: OGBench's environment name; frames are recorded where it is a visual one, else states.
        out: the file to be; an existing one is replaced when the new one is whole.
        episodes: how many visits; one gives a recording, and one more for each wandering in between.
        seed: of the whole set.
        expert_share: share of visits that press the right buttons.
        noise: largest deviation of a visit's action noise.
        wander: probability that the hand wanders off before a button (see `oracles.puzzle_episodes`).
        limit: most steps of a visit.
        shadow_size: see `Rendering`.
        multisamples: see `Rendering`.
        processes: worker processes.
        command: the command line, recorded in the file.
        compression: "gzip" for a small file to be carried in a repository.
        progress: show a bar.

    Raises:
        GtpVisionError: nobody demonstrates this environment; a setting out of range; no OpenGL library.
    """
    kind = next((kind for kind in oracles.DEMONSTRATORS if kind in env), "")
    if not kind or "singletask" not in env:
        raise GtpVisionError(
            f"'{env}' cannot be collected: demonstrators know {', '.join(oracles.DEMONSTRATORS)} with a single task; "
            f"choose an environment like visual-puzzle-3x3-play-singletask-task1"
        )
    lowest = {"episodes": (episodes, 1), "limit": (limit, 1), "processes": (processes, 1), "seed": (seed, 0)}
    for name, (value, low) in ({**lowest, "noise": (noise, 0)}).items():
        if not value >= low:
            raise GtpVisionError(f"--{name} {value} must be at least {low}")
    for name, share in (("expert", expert_share), ("wander", wander)):
        if not 0 <= share <= 1:
            raise GtpVisionError(f"--{name} {share} must lie within [0, 1]")
    rendering, pixels = Rendering(shadow_size, multisamples), env.startswith("visual-")
    spec = EnvSpec(env, rendering, pixels=pixels, max_episode_steps=limit + 1)
    if pixels:
        choose_backend()
    seeds = [int(np.random.SeedSequence((seed, k)).generate_state(1)[0]) for k in range(episodes)]
    jobs = [(kind, spec, episode_seed, expert_share, noise, wander, limit) for episode_seed in seeds]
    context = multiprocessing.get_context("spawn")
    with context.Pool(min(processes, episodes), initializer=quiet_worker) as pool:
        visits = list(
            tqdm(pool.imap(_record, jobs), total=episodes, desc="collecting", unit="visit", disable=not progress)
        )
        pool.close()
        pool.join()
    recorded = [recording for visit in visits for recording in visit]
    store = _join(recorded)
    store.attributes = {
        "source": "OGBench's Markov oracle",
        "suite": "ogbench",
        "env": spec.name,
        "rendering": spec.rendering.record(),
        "seed": seed,
        "visits": episodes,
        "expert_visits": sum(visit[0].expert for visit in visits if visit),
        "solved_visits": sum(any(recording.success for recording in visit) for visit in visits),
        "command": " ".join(command),
        "versions": _versions(),
    }
    validate(store)
    native.write(out, store, compression=compression)
    return store


def _record(job: tuple[str, EnvSpec, int, float, float, float, int]) -> list[oracles.Recording]:
    global _env
    kind, spec, seed, expert_share, noise, wander, limit = job
    if _env is None:
        _env = spec.make()
    return oracles.DEMONSTRATORS[kind](_env, seed, expert_share, noise, wander, limit)


def _join(recorded: Sequence[oracles.Recording]) -> Store:
    lengths = np.array([len(episode.actions) for episode in recorded])
    ends = np.cumsum(lengths)
    terminals, timeouts = np.zeros(ends[-1], bool), np.zeros(ends[-1], bool)
    terminals[ends - 1] = [episode.terminal for episode in recorded]
    timeouts[ends - 1] = ~terminals[ends - 1]
    observations = np.concatenate([episode.observations for episode in recorded])
    name = "camera" if observations.dtype == np.uint8 else "state"
    return Store(
        observations={name: observations if name == "camera" else observations.astype(np.float32)},
        actions=np.concatenate([episode.actions for episode in recorded]),
        rewards=np.concatenate([episode.rewards for episode in recorded]),
        terminals=terminals,
        timeouts=timeouts,
        episode_ends=ends,
    )


def _versions() -> dict[str, str]:
    from importlib.metadata import version

    found = {name: version(name) for name in ("ogbench", "mujoco", "numpy")}
    return found | {"gtp-vision": gtp_vision.__version__, "MUJOCO_GL": os.environ.get("MUJOCO_GL", "")}
