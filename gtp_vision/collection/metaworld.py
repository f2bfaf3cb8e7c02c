"""Meta-World's tasks by the scripted policies of its package, into a native file with the simulator's states."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from gtp_vision.collection.recording import EpisodeParts, Execution, recorded, require_at_least, versions
from gtp_vision.core.errors import GtpVisionError, propose
from gtp_vision.datasets.formats import episodes as instructions
from gtp_vision.datasets.formats import native
from gtp_vision.datasets.store import Store
from gtp_vision.datasets.success import attributes_of
from gtp_vision.datasets.validation import validate
from gtp_vision.envs import Rendering, choose_backend
from gtp_vision.envs import metaworld as simulator
from gtp_vision.envs.metaworld import INSTRUCTIONS, MetaWorld, benchmark
from gtp_vision.envs.showing import Shown

_AFTER = 20  # steps that are recorded after the first success, so that a policy also learns to stay
_ATTEMPTS = 50  # at an episode; the scripts fail in less than half of them


@dataclass(frozen=True)
class _Episodes:
    """Records episode k of all tasks, one task after another, as a function of (seed, k) only."""

    tasks: Sequence[str]
    episodes: int  # of a task
    shown: Shown
    rendering: Rendering
    seed: int
    noise: float
    limit: int

    def make(self) -> _Environments:
        return _Environments(self)

    def record(self, env: _Environments, episode: int) -> dict[str, np.ndarray]:
        task = episode // self.episodes
        for attempt in range(_ATTEMPTS):
            rng = np.random.default_rng((self.seed, episode, attempt))
            found = scripted_episode(env.of(self.tasks[task]), rng, noise=self.noise, limit=self.limit)
            if found is not None:
                return found | {"task": np.array(task), "attempts": np.array(attempt + 1)}
        raise GtpVisionError(
            f"{_ATTEMPTS} attempts of Meta-World's script at {self.tasks[task]} have no success in {self.limit} steps; "
            f"raise --limit (500 is Meta-World's), or lower --noise"
        )


class _Environments:
    """The environment of one task at a time."""

    def __init__(self, recorder: _Episodes) -> None:
        self._recorder = recorder
        self._env: MetaWorld | None = None

    def of(self, task: str) -> MetaWorld:
        if self._env is None or self._env.task != task:
            self.close()
            self._env = MetaWorld(task, self._recorder.shown, self._recorder.rendering)
        return self._env

    @property
    def unwrapped(self) -> _Environments:
        return self

    def close(self) -> None:
        if self._env is not None:
            self._env.close()


def collect(
    env: str,
    out: Path,
    *,
    episodes: int = 20,
    seed: int = 0,
    noise: float = 0.1,
    limit: int = 500,
    cameras: str | None = None,
    size: int | None = None,
    states_only: bool = False,
    shadow_size: int | None = None,
    multisamples: int | None = None,
    compress: bool = False,
    execution: Execution,
) -> str:
    """Record the scripted policies at one or several of Meta-World's tasks, and return a summary of one sentence.

    Episode k is a function of (seed, k) only; `episodes` of each task follow one another. Each ends 20 steps after its
    first success, with which Meta-World's evaluation ends; an attempt without success in `limit` steps is not recorded,
    and another one takes its place. `env` is a task, several with `+` between, or a benchmark (MT10). Rewards are
    Meta-World's.

    The file has `state` of 4 numbers and the frames of `cameras`, or for `states_only` Meta-World's 39 numbers; the
    attributes `tasks` and `episode_tasks`; and the simulator's states in `simulator/` (`envs.metaworld.state`).

    Raises:
        GtpVisionError: an unknown task or camera; a setting out of range; metaworld or OpenGL is missing; a task that
            is not solved.
    """
    tasks = [task.removeprefix("metaworld/") for name in env.split("+") for task in _members(name)]
    for task in tasks:
        if task not in INSTRUCTIONS:
            known = [*INSTRUCTIONS, *simulator.SUITES]
            raise GtpVisionError(f"metaworld has no task '{task}' that can be collected: {propose(task, known)}")
    if states_only and (cameras is not None or size is not None):
        raise GtpVisionError("--states-only does not record cameras: leave out --cameras and --size, or --states-only")
    names = [] if states_only else [name.strip() for name in (cameras or "image").split(",")]
    size = 84 if size is None else size
    require_at_least(episodes=(episodes, 1), limit=(limit, 1), seed=(seed, 0), noise=(noise, 0), size=(size, 1))
    choose_backend(required=bool(names))
    shown: Shown = {"state": (39,)} if states_only else dict.fromkeys(names, (size, size, 3)) | {"state": (4,)}
    rendering = Rendering(shadow_size, multisamples)
    settings = {"env": env, "tasks": tasks, "episodes": episodes, "seed": seed, "noise": noise, "limit": limit}
    settings |= {"shown": shown, "rendering": rendering.record()}
    benchmark(draws=False)
    settings["versions"] = versions("metaworld", "mujoco", pixels=bool(names))
    with recorded(
        out,
        _Episodes(tasks, episodes, shown, rendering, seed, noise, limit),
        episodes=episodes * len(tasks),
        settings=settings,
        execution=execution,
    ) as parts:
        store, beside, attempts = _joined(parts, tasks)
        record = {name: value for name, value in settings.items() if name not in ("tasks", "shown")}
        own = {"source": "Meta-World's scripted policies", "suite": "metaworld", "env": f"metaworld/{env}"}
        store.attributes = record | own | {"command": parts.command} | dict(store.attributes)
        validate(store)
        with parts.whole(out) as aside:
            native.write(aside, store, compression="gzip" if compress else None, beside=beside)
    return (
        f"{out}: {store.episodes} episodes, {len(store)} frames, all with success, of {attempts} attempts, "
        f"{out.stat().st_size / 1e6:.1f} MB"
    )


def _members(name: str) -> Sequence[str]:
    """The tasks of a benchmark, or the name itself."""
    return simulator.tasks(f"metaworld/{name.removeprefix('metaworld/')}") or [name]


def scripted_episode(
    env: MetaWorld, rng: np.random.Generator, *, noise: float, limit: int
) -> dict[str, np.ndarray] | None:
    """Record one episode of T steps, which ends 20 after its first success; None without success in `limit` steps.

    The Gaussian noise on all dimensions of actions has a standard deviation uniform in [0, `noise`].

    Returns:
        `observations/<name>` (T + 1, ...), the last after the last action; actions float32 (T + 1, 4) in [-1, 1] and
        rewards float32 (T + 1,), which end in zeros; `simulator/<name>` float64 (T + 1, ...).
    """
    from metaworld.policies import ENV_POLICY_MAP

    kind: Any = ENV_POLICY_MAP[env.task]  # typed as the abstract class
    script = kind()
    observation, info = env.reset(seed=int(rng.integers(2**32)))
    deviation = rng.uniform(0, noise)
    observations, states = [observation], [simulator.state(env)]
    actions: list[np.ndarray] = []
    rewards: list[float] = []
    end, solved = min(limit, env.simulator.max_path_length), False
    while len(actions) < end:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # scripts leave [-1, 1]
            action = script.get_action(env.state.copy())  # some write into it
        action = np.clip(action + deviation * rng.normal(size=4), -1, 1).astype(np.float32)
        observation, reward, _, _, info = env.step(action)
        observations.append(observation)
        states.append(simulator.state(env))
        actions.append(action)
        rewards.append(reward)
        if info["success"] and not solved:
            end, solved = min(len(actions) + _AFTER, env.simulator.max_path_length), True
    if not solved:
        return None
    found = {"actions": np.stack([*actions, np.zeros(4, np.float32)]), "rewards": np.array([*rewards, 0], np.float32)}
    for group, rows in (("observations", observations), ("simulator", states)):
        found |= {f"{group}/{name}": np.stack([row[name] for row in rows]) for name in rows[0]}
    found["observations/state"] = found["observations/state"].astype(np.float32)
    return found


def _joined(parts: EpisodeParts, tasks: Sequence[str]) -> tuple[Store, dict[str, np.ndarray], int]:
    """The store of all episodes, the simulator's states, and the number of attempts."""
    described = [parts.load(number, "actions", "task", "attempts") for number in range(parts.count)]
    ends = np.cumsum([len(episode["actions"]) for episode in described])
    arrays = {name: parts.stacked(name, int(ends[-1])) for name in parts.load(0) if name not in ("task", "attempts")}
    timeouts = np.zeros(ends[-1], bool)
    timeouts[ends - 1] = True
    store = Store(
        observations={
            name.partition("/")[2]: array for name, array in arrays.items() if name.startswith("observations/")
        },
        actions=arrays["actions"],
        rewards=arrays["rewards"],
        terminals=np.zeros(ends[-1], bool),
        timeouts=timeouts,
        episode_ends=ends,
    )
    words = instructions.tasks([INSTRUCTIONS[tasks[int(episode["task"])]] for episode in described])
    store.attributes = words | attributes_of([True] * parts.count, "episodes with a step of success")
    beside = {name: array for name, array in arrays.items() if name.startswith("simulator/")}
    return store, beside, sum(int(episode["attempts"]) for episode in described)
