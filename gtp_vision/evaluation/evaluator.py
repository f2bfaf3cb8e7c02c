"""Vectorized evaluation, in which every episode is a function of its own seed."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import imageio.v3 as iio
import numpy as np
import torch
from accelerate.utils import gather_object

from gtp_vision.agents.acting import Executor, FrameStack
from gtp_vision.core.distributed import any_rank
from gtp_vision.core.errors import GtpVisionError
from gtp_vision.core.names import GOAL
from gtp_vision.core.progress import Progress
from gtp_vision.core.random import EpisodeNoise
from gtp_vision.datasets.pictures import rgb
from gtp_vision.envs import EnvSpec
from gtp_vision.evaluation.metrics import METRICS
from gtp_vision.evaluation.vector_env import FaultyError, Simulators

_FRAMES_A_SECOND = 20  # OGBench's control rate: videos play in real time
_LARGEST_SCALE, _SIDE = 4, 256  # small frames are enlarged up to four times, until their longest side has 256 pixels
_ROUND = 16  # steps of the environments between synchronizations of several processes

Actor = Callable[[Mapping[str, torch.Tensor], EpisodeNoise], torch.Tensor]
"""Stacked observations and noise to actions (B, A) in [-1, 1]."""


@dataclass
class Episode:
    """The outcome of an episode.

    Attributes:
        number: from 0.
        success: whether any of its steps was a success; None if the environment said nothing of any.
        total_reward: the sum of its rewards.
        length: steps.
        film: if it was filmed, its observations by name, one more than steps; images are (H, W, C).
        task: of environments with goals or instructions, or that take turns.
        goal: the goal's observation by name, of environments with goals.
        rewards: of its steps.
        actions: of its steps, each (A,) in [-1, 1], without those of grippers, see `Evaluator`.
        switches: steps whose action is the first of a plan that followed another, and what remained of that, (L, A).
    """

    number: int
    success: bool | None
    total_reward: float
    length: int
    film: list[dict[str, np.ndarray]]
    task: int | str | None = None
    goal: dict[str, np.ndarray] | None = None
    rewards: list[float] = field(default_factory=list)
    actions: list[np.ndarray] = field(default_factory=list)
    switches: dict[int, np.ndarray] = field(default_factory=dict)

    @property
    def camera(self) -> str:
        """The first camera, whose images the video shows."""
        return next(name for name, array in self.film[0].items() if array.ndim == 3)

    @property
    def frames(self) -> list[np.ndarray]:
        """Images of `camera` as RGB, uint8 (H, W, 3), one more than steps; empty if it was not filmed."""
        return [rgb(observation[self.camera]) for observation in self.film]


class SimulatorError(GtpVisionError):
    """An environment hung, died or raised during an evaluation."""


class StoppedError(Exception):
    """An evaluation was stopped, by this process or another."""


class Evaluator:
    """Runs episodes in environments that live as long as the evaluator; use it as a context manager.

    Several processes share the episodes, and each of them gets all results. An episode is a function of its number,
    so the results equal those of one process, up to rounding in batches of other sizes.

    Args:
        spec: the environment.
        frame_stack: frames an observation.
        envs: environments side by side in this process; None is one a core, 8 at most.
        seed: episode e is reset with seed + e.
        device: where observations go.
        progress: show a bar.
        rank: index of this process, which runs the episodes rank, rank + world_size, ...
        world_size: number of processes that call `run` together.
        patience: seconds that a step or a reset of an environment may take.
        grippers: dimensions of actions that switch between two values, which have no jerk.
    """

    def __init__(
        self,
        spec: EnvSpec,
        *,
        frame_stack: int,
        envs: int | None = None,
        seed: int = 0,
        device: torch.device | str = "cpu",
        progress: bool = True,
        rank: int = 0,
        world_size: int = 1,
        patience: float = 300.0,
        grippers: Sequence[int] = (),
    ) -> None:
        self.patience, self.grippers = patience, list(grippers)
        self.spec, self.frame_stack, self.seed = spec, frame_stack, seed
        self.device, self.progress = torch.device(device), progress
        self.rank, self.world_size = rank, world_size
        cores = (os.cpu_count() or 1) // int(os.environ.get("LOCAL_WORLD_SIZE", 1))
        self.envs = envs or max(1, min(cores, 8))
        self._simulators: Simulators | None = None

    def __enter__(self) -> Evaluator:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the environments' processes."""
        if self._simulators is not None:
            self._simulators.close()
            self._simulators = None

    def run(
        self,
        actor: Actor,
        episodes: int,
        *,
        film: int = 0,
        label: str = "evaluating",
        stop: Callable[[], bool] = lambda: False,
    ) -> tuple[dict[str, Any], list[Episode]]:
        """Evaluate an actor.

        Args:
            actor: see `Actor`; called with the observations of the episodes in progress.
            episodes: how many.
            film: how many of them, the first ones, are filmed.
            label: of the progress bar.
            stop: whether to stop; one process that stops, stops all.

        Returns:
            A summary (see `summary`) and the episodes, those of all processes.

        Raises:
            StoppedError: in all processes, because `stop` returned True in one.
            SimulatorError: an environment hung, died or raised.
        """
        started = time.perf_counter()
        waiting = list(range(self.rank, episodes, self.world_size))
        if self._simulators is None:
            count = max(1, min(self.envs, len(waiting)))
            try:
                self._simulators = Simulators(self.spec, count, self.patience)
            except FaultyError as fault:
                raise self._failure(fault, {}) from fault
        rollout = _Rollout(self, self._simulators, waiting, film)
        with one_thread(), Progress(total=len(waiting), desc=label, unit="episode", disable=not self.progress) as bar:
            done = self._finish(rollout, actor, bar, stop)
        if self.world_size > 1:
            done = gather_object(done)
        done.sort(key=lambda episode: episode.number)
        if any(episode.success is not None for episode in done):  # some environments report successes only
            for episode in done:
                episode.success = bool(episode.success)
        rule = {} if self.spec.success_reward is None else {"success_rule": f"reward >= {self.spec.success_reward:g}"}
        return summary(done, time.perf_counter() - started, self.spec.name) | rule, done

    def _finish(self, rollout: _Rollout, actor: Actor, bar: Progress, stop: Callable[[], bool]) -> list[Episode]:
        done: list[Episode] = []
        rounds = 0
        while self._is_any_busy(rollout.is_busy, rounds, stop):
            rounds += 1
            if not rollout.is_busy:
                continue  # other processes are
            try:
                ended = rollout.step(actor)
            except FaultyError as fault:
                if not stop():
                    raise self._failure(fault, rollout.running) from fault
                rollout.cancel()  # the signal that stops the run also killed the simulators
                ended = []
            done += ended
            bar.update(len(ended))
        return done

    def _failure(self, fault: FaultyError, running: Mapping[int, Episode]) -> SimulatorError:
        """The error that says which simulator failed, in which episodes, and what to do."""
        self.close()
        where = ", ".join(
            f"episode {episode.number} (seed {self.seed + episode.number}, step {episode.length})"
            for slot in fault.slots
            if (episode := running.get(slot)) is not None
        )
        hint = "raise training.eval_timeout, " if fault.late else ""
        return SimulatorError(
            f"evaluation: the simulator of {self.spec.name} {fault.what}{f' in {where}' if where else ''}; "
            f"{hint}fix the simulator, or set training.eval_episodes=0"
        )

    def _is_any_busy(self, busy: bool, rounds: int, stop: Callable[[], bool]) -> bool:
        """Whether any process still runs episodes.

        Busy processes synchronize every `_ROUND` steps and idle ones all the time, so that all of them leave together.
        """
        if self.world_size == 1:
            stopped, any_busy = stop(), busy
        elif busy and rounds % _ROUND:
            return True
        else:
            stopped, any_busy = any_rank(stop(), busy, device=self.device)
        if stopped:
            raise StoppedError
        return any_busy


class _Rollout:
    """The episodes of one evaluation, at most one in each slot of the simulators; those below `film` are filmed."""

    def __init__(self, evaluator: Evaluator, simulators: Simulators, waiting: list[int], film: int) -> None:
        self._simulators, self._waiting, self._film = simulators, waiting, film
        self._seed, self._device, self._grippers = evaluator.seed, evaluator.device, evaluator.grippers
        self._has_goals = evaluator.spec.goals
        self._frames = FrameStack(evaluator.frame_stack)
        self.running: dict[int, Episode] = {}

    @property
    def is_busy(self) -> bool:
        """Whether episodes are running or waiting."""
        return bool(self._waiting or self.running)

    def cancel(self) -> None:
        """Drop all episodes that have not ended."""
        self._waiting.clear()
        self.running.clear()

    def step(self, actor: Actor) -> list[Episode]:
        """Start episodes in free slots, and take a step in all; returns those that ended, or raises FaultyError."""
        self._start()
        slots = sorted(self.running)
        episodes = [self.running[slot] for slot in slots]
        numbers, steps = [episode.number for episode in episodes], [episode.length for episode in episodes]
        noise = EpisodeNoise(self._seed, numbers, steps, self._device)
        # Environments in free slots take a step, too: their simulation continues unused.
        actions = np.zeros(self._simulators.action_space.shape, np.float32)
        actions[slots] = actor(self._frames.tensors(self._device, slots), noise).cpu().numpy()
        switched = actor.switched if isinstance(actor, Executor) else {}
        observations, rewards, terminated, truncated, info = self._simulators.step(actions)
        self._frames.push(self._in_order(observations))
        ended = []
        for slot, episode in zip(slots, episodes, strict=True):
            episode.actions.append(np.delete(actions[slot], self._grippers))
            if (rest := switched.get(episode.number)) is not None:
                episode.switches[episode.length] = np.delete(rest.cpu().numpy(), self._grippers, 1)
            episode.length += 1
            episode.total_reward += float(rewards[slot])
            episode.rewards.append(float(rewards[slot]))
            mark = float(info["success"][slot])
            if not math.isnan(mark):
                episode.success = bool(episode.success) or mark > 0
            if episode.film:
                self._add_frame(slot)
            if terminated[slot] or truncated[slot]:
                ended.append(self.running.pop(slot))
        return ended

    def _start(self) -> None:
        count = self._simulators.num_envs
        free = [slot for slot in range(count) if slot not in self.running][: len(self._waiting)]
        if not free:
            return
        seeds: list[int | None] = [None] * count
        for slot in free:
            episode = self.running[slot] = Episode(self._waiting.pop(0), None, 0.0, 0, [])
            seeds[slot] = self._seed + episode.number
        mask = np.isin(np.arange(count), free)
        observations, info = self._simulators.reset(seeds, mask)
        first = self._in_order(observations)
        if self._has_goals:
            first |= {GOAL + name: goal for name, goal in self._in_order(info["goal"]).items()}
        self._frames.begin(first, free)
        for slot in free:
            episode = self.running[slot]
            if "task" in info:
                task = info["task"][slot]
                episode.task = task if isinstance(task, str) else int(task)
            if self._has_goals:
                newest = self._frames.newest(slot)
                episode.goal = {name.removeprefix(GOAL): x for name, x in newest.items() if name.startswith(GOAL)}
            if episode.number < self._film:
                self._add_frame(slot)

    def _in_order(self, observation: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        return {name: observation[name] for name in self._simulators.single_observation_space}

    def _add_frame(self, slot: int) -> None:
        newest = {name: x for name, x in self._frames.newest(slot).items() if not name.startswith(GOAL)}
        if any(x.ndim == 3 for x in newest.values()):
            self.running[slot].film.append(newest)


@contextmanager
def one_thread() -> Iterator[None]:
    """Limit PyTorch to one thread: more would spin on small batches while the simulators need the cores."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def summary(episodes: Sequence[Episode], seconds: float, env: str = "") -> dict[str, Any]:
    """The number of episodes, the values of every metric of `evaluation.metrics`, and the seconds that they took."""
    values = {key: value for metric in METRICS.values() for key, value in metric.values(episodes, env).items()}
    return {"episodes": len(episodes)} | values | {"seconds": seconds}


def random_actor(actions: int) -> Actor:
    """An actor of uniform actions in [-1, 1], the baseline of every policy."""

    def act(observation: Mapping[str, torch.Tensor], noise: EpisodeNoise) -> torch.Tensor:
        rows = len(next(iter(observation.values())))
        return 2 * noise.uniform(rows, actions) - 1

    return act


def scaled_up(episode: Episode) -> np.ndarray:
    """The frames of a filmed episode, uint8 (L, H, W, 3), each pixel of a small frame repeated up to 4 times."""
    frames = np.stack(episode.frames)
    scale = max(1, min(_LARGEST_SCALE, _SIDE // max(frames.shape[1:3])))
    return frames.repeat(scale, 1).repeat(scale, 2)


def write_videos(
    folder: Path,
    episodes: Sequence[Episode],
    draw: Callable[[Episode], np.ndarray] = scaled_up,
    suffix: str = "",
) -> list[Path]:
    """Write filmed episodes as mp4 files named by number and outcome; `draw` makes the images uint8 (L, H, W, 3).

    The codec takes even sides only: the last row and column of odd ones are repeated.
    """
    written = []
    for episode in episodes:
        if episode.film:
            folder.mkdir(parents=True, exist_ok=True)
            outcome = {True: "success", False: "failure", None: "unknown"}[episode.success]
            path = folder / f"episode_{episode.number:03d}_{outcome}{suffix}.mp4"
            video = draw(episode)
            if video.shape[1] % 2 or video.shape[2] % 2:
                video = np.pad(video, ((0, 0), (0, video.shape[1] % 2), (0, video.shape[2] % 2), (0, 0)), "edge")
            iio.imwrite(path, video, fps=_FRAMES_A_SECOND, codec="libx264", macro_block_size=None)
            written.append(path)
    return written
