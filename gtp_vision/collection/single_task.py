"""Single-task puzzles and cubes, solved or not, into a native file; the demo data set was made with it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import gymnasium
import numpy as np

from gtp_vision.collection import oracles
from gtp_vision.collection.recording import EpisodeParts, Execution, recorded, require_at_least, seed_of, versions
from gtp_vision.core.errors import GtpVisionError
from gtp_vision.datasets.formats import native
from gtp_vision.datasets.store import Store
from gtp_vision.datasets.validation import validate
from gtp_vision.envs import EnvSpec, Rendering, choose_backend


@dataclass(frozen=True)
class _Visits:
    """Records visit k as a function of (seed, k) only."""

    kind: str
    spec: EnvSpec
    seed: int
    expert: float
    noise: float
    wander: float
    limit: int

    def make(self) -> gymnasium.Env:
        return self.spec.make()

    def record(self, env: gymnasium.Env, episode: int) -> dict[str, np.ndarray]:
        visit = oracles.DEMONSTRATORS[self.kind](
            env, seed_of(self.seed, episode), self.expert, self.noise, self.wander, self.limit
        )
        arrays = {
            "lengths": np.array([len(recording.actions) for recording in visit], np.int64),
            "terminal": np.array([recording.terminal for recording in visit], bool),
            "expert": np.array(any(recording.expert for recording in visit)),
            "solved": np.array(any(recording.success for recording in visit)),
        }
        if visit:
            arrays |= {
                name: np.concatenate([getattr(recording, name) for recording in visit])
                for name in ("observations", "actions", "rewards")
            }
            if arrays["observations"].dtype != np.uint8:
                arrays["observations"] = arrays["observations"].astype(np.float32)
        return arrays


def collect(
    env: str,
    out: Path,
    *,
    episodes: int = 100,
    seed: int = 0,
    expert: float = 0.5,
    noise: float = 0.3,
    wander: float = 0.5,
    limit: int = 80,
    shadow_size: int | None = None,
    multisamples: int | None = None,
    compress: bool = False,
    execution: Execution,
) -> str:
    """Record an oracle at a single-task OGBench puzzle or cube, and return a summary of one sentence.

    Visit k is a function of (seed, k) only, whatever the number of processes. Visual environments record frames, others
    states. Each visit gives one recording, and one more for each time that the hand wanders off (see
    `oracles.puzzle_episodes`); `expert` is the share of visits that solve the task.

    Raises:
        GtpVisionError: an environment without an oracle; a setting out of range; no OpenGL library.
    """
    kind = next((kind for kind in oracles.DEMONSTRATORS if kind in env), "")
    if not kind:
        raise GtpVisionError(
            f"'{env}' cannot be collected: oracles solve {', '.join(oracles.DEMONSTRATORS)} with a single task; "
            f"choose an environment like visual-puzzle-3x3-play-singletask-task1"
        )
    require_at_least(episodes=(episodes, 1), limit=(limit, 1), seed=(seed, 0), noise=(noise, 0))
    for name, share in (("expert", expert), ("wander", wander)):
        if not 0 <= share <= 1:
            raise GtpVisionError(f"--{name} {share} must lie within [0, 1]")
    rendering, pixels = Rendering(shadow_size, multisamples), env.startswith("visual-")
    spec = EnvSpec(env, rendering, pixels=pixels, max_episode_steps=limit + 1)
    if pixels:
        choose_backend()
    settings = {"env": env, "episodes": episodes, "seed": seed, "expert": expert, "noise": noise, "wander": wander}
    settings |= {"limit": limit, "rendering": rendering.record(), "compress": compress}
    settings |= {"versions": versions("ogbench", "mujoco", pixels=pixels)}
    with recorded(
        out,
        _Visits(kind, spec, seed, expert, noise, wander, limit),
        episodes=episodes,
        settings=settings,
        execution=execution,
        unit="visit",
    ) as parts:
        outcomes = [parts.load(number, "expert", "solved") for number in range(episodes)]
        store = _joined(parts)
        store.attributes = {
            "source": "OGBench's Markov oracle",
            "suite": "ogbench",
            "env": env,
            "rendering": rendering.record(),
            "seed": seed,
            "visits": episodes,
            "expert_visits": sum(bool(outcome["expert"]) for outcome in outcomes),
            "solved_visits": sum(bool(outcome["solved"]) for outcome in outcomes),
            "command": parts.command,
            "versions": settings["versions"],
        }
        validate(store)
        with parts.whole(out) as aside:
            native.write(aside, store, compression="gzip" if compress else None)
    return (
        f"{out}: {store.episodes} episodes, {len(store)} frames, {store.attributes['solved_visits']} of {episodes} "
        f"visits solved, {out.stat().st_size / 1e6:.1f} MB"
    )


def _joined(parts: EpisodeParts) -> Store:
    """The store of all visits; its arrays are mapped from files beside the parts, to limit memory."""
    visits = [parts.load(number, "lengths", "terminal") for number in range(parts.count)]
    lengths = np.concatenate([visit["lengths"] for visit in visits])
    if not lengths.size:
        raise GtpVisionError("none of the visits recorded anything; raise --limit")
    ends = np.cumsum(lengths)
    terminals = np.zeros(ends[-1], bool)
    terminals[ends - 1] = np.concatenate([visit["terminal"] for visit in visits])
    timeouts = np.zeros(ends[-1], bool)
    timeouts[ends - 1] = ~terminals[ends - 1]
    recorded_visits = [number for number, visit in enumerate(visits) if visit["lengths"].size]
    names = ("observations", "actions", "rewards")
    arrays = {name: parts.stacked(name, int(ends[-1]), recorded_visits) for name in names}
    return Store(
        observations={"camera" if arrays["observations"].dtype == np.uint8 else "state": arrays["observations"]},
        actions=arrays["actions"],
        rewards=arrays["rewards"],
        terminals=terminals,
        timeouts=timeouts,
        episode_ends=ends,
    )
