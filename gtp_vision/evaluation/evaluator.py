"""Evaluation: vectorised, and yet every episode is a function of its own seed."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import imageio.v3 as iio
import numpy as np
import torch
from accelerate.utils import gather_object
from tqdm import tqdm

from gtp_vision.core.distributed import any_rank
from gtp_vision.core.errors import GtpVisionError
from gtp_vision.core.names import GOAL
from gtp_vision.core.random import EpisodeNoise
from gtp_vision.datasets.batch import channels_first
from gtp_vision.envs import EnvSpec
from gtp_vision.evaluation.metrics import METRICS
from gtp_vision.evaluation.vector_env import FaultyError, Simulators

_FRAMES_A_SECOND = 20  # OGBench's control rate: videos play in real time
VIDEO_SCALE = 4
_ROUND = 16  # steps of the environments after which several processes ask each other

Actor = Callable[[Mapping[str, torch.Tensor], EpisodeNoise], torch.Tensor]
"""Stacked observations and noise to actions (B, A) in [-1, 1]."""
_Stacks = dict[str, np.ndarray]  # observation to (environments, T, ...)


@dataclass
class Episode:
    """How one episode went.

    Attributes:
        number: from 0.
        success: whether it ever succeeded.
        total_reward: the sum of its rewards.
        length: steps.
        seen: if it was filmed, everything that was shown, by name, one more than steps; pictures are uint8 (H, W, 3).
        task: of environments with goals.
        goal: what was to be reached, by name, as the environment showed it, of environments with goals.
    """

    number: int
    success: bool
    total_reward: float
    length: int
    seen: list[dict[str, np.ndarray]]
    task: int | None = None
    goal: dict[str, np.ndarray] | None = None

    @property
    def camera(self) -> str:
        """The camera whose pictures are the film: the first."""
        return next(name for name, array in self.seen[0].items() if array.ndim == 3)

    @property
    def frames(self) -> list[np.ndarray]:
        """Its pictures, uint8 (H, W, 3), one more than steps; none if it was not filmed."""
        return [shown[self.camera] for shown in self.seen]


class SimulatorError(GtpVisionError):
    """An environment hung, died or raised while it was evaluated in."""


class StoppedError(Exception):
    """An evaluation was asked to stop, in this process or in another, and did."""


class Evaluator:
    """Runs episodes in environments that live as long as the evaluator; use it as a context manager.

    Several processes share the episodes, and each of them gets all results: an episode is a function of its number,
    so these are one process's results, up to the rounding of networks that see other rows beside it.

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
    ) -> None:
        self.patience = patience
        self.spec, self.frame_stack, self.seed = spec, frame_stack, seed
        self.device, self.progress = torch.device(device), progress
        self.rank, self.world_size = rank, world_size
        cores = (os.cpu_count() or 1) // int(os.environ.get("LOCAL_WORLD_SIZE", 1))
        self.envs = envs or max(1, min(cores, 8))
        self._vector: Simulators | None = None

    def __enter__(self) -> Evaluator:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the environments' processes."""
        if self._vector is not None:
            self._vector.close()
            self._vector = None

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
            film: how many of them keep their frames.
            label: of the progress bar.
            stop: whether to stop; it is enough if one process says so.

        Returns:
            A summary (see `summary`) and the episodes, those of all processes.

        Raises:
            StoppedError: in all processes, because `stop` said so in one.
            SimulatorError: an environment hung, died or raised.
        """
        started = time.perf_counter()
        waiting = list(range(self.rank, episodes, self.world_size))
        if self._vector is None:
            count = max(1, min(self.envs, len(waiting)))
            try:
                self._vector = Simulators(self.spec, count, self.patience)
            except FaultyError as fault:
                raise self._told(fault, []) from fault
        with one_thread():
            done = self._episodes(actor, waiting, film, label, stop)
        if self.world_size > 1:
            done = gather_object(done)
        done.sort(key=lambda episode: episode.number)
        return summary(done, time.perf_counter() - started, self.spec.name), done

    def _episodes(
        self, actor: Actor, waiting: list[int], film: int, label: str, stop: Callable[[], bool]
    ) -> list[Episode]:
        vector = self._simulators
        count = vector.num_envs
        running: list[Episode | None] = [None] * count
        history = {
            name: np.zeros((count, self.frame_stack, *space.shape), np.uint8 if space.dtype == np.uint8 else np.float32)
            for name, space in vector.single_observation_space.items()
        }
        # One frame, shown in place of every frame.
        goals = {name: np.zeros_like(stack) for name, stack in history.items()} if self.spec.goals else {}
        done: list[Episode] = []
        steps = 0
        with tqdm(total=len(waiting), desc=label, unit="episode", disable=not self.progress) as bar:
            while self._go_on(bool(waiting or any(running)), steps, stop):
                steps += 1
                if not (waiting or any(running)):
                    continue  # others are still busy
                try:
                    ended = self._advance(actor, running, history, goals, waiting, film)
                except FaultyError as fault:
                    if not stop():
                        raise self._told(fault, running) from fault
                    waiting.clear()  # the signal that asks to stop went to the simulators, too, and they are dead
                    running, ended = [None] * count, []
                for slot in ended:
                    episode = running[slot]
                    assert episode is not None
                    done.append(episode)
                    running[slot] = None
                    bar.update()
        return done

    @property
    def _simulators(self) -> Simulators:
        assert self._vector is not None, "`run` starts them"
        return self._vector

    def _told(self, fault: FaultyError, running: Sequence[Episode | None]) -> SimulatorError:
        """Where a simulator failed, how, and what to do."""
        self.close()
        busy = [episode for slot in fault.slots if slot < len(running) if (episode := running[slot]) is not None]
        where = ", ".join(
            f"episode {episode.number} (seed {self.seed + episode.number}, step {episode.length})" for episode in busy
        )
        more = "raise training.eval_timeout, or " if fault.late else ""
        return SimulatorError(
            f"evaluation: the simulator of {self.spec.name} {fault.what}{f' in {where}' if where else ''}; "
            f"{more}mend it, or set training.eval_episodes=0"
        )

    def _go_on(self, busy: bool, steps: int, stop: Callable[[], bool]) -> bool:
        """Whether anyone is busy.

        All processes ask the same questions in the same order, those that are busy from time to time and those that
        wait all the time, so that nobody waits for somebody who has left.
        """
        if self.world_size == 1:
            stopped, going = stop(), busy
        elif busy and steps % _ROUND:
            return True
        else:
            stopped, going = any_rank(stop(), busy, device=self.device)
        if stopped:
            raise StoppedError
        return going

    def _advance(
        self,
        actor: Actor,
        running: list[Episode | None],
        history: _Stacks,
        goals: _Stacks,
        waiting: list[int],
        film: int,
    ) -> list[int]:
        """Begin what can begin, and take a step in all; the slots of episodes that ended."""
        self._start(running, history, goals, waiting, film)
        active = [slot for slot, episode in enumerate(running) if episode is not None]
        noise = EpisodeNoise(
            self.seed,
            [running[slot].number for slot in active],  # type: ignore[union-attr]
            [running[slot].length for slot in active],  # type: ignore[union-attr]
            self.device,
        )
        actions = np.zeros(self._simulators.action_space.shape, np.float32)
        stacks = history | {GOAL + name: goal for name, goal in goals.items()}
        shown = {name: to_tensors(torch.from_numpy(stack[active]).to(self.device)) for name, stack in stacks.items()}
        actions[active] = actor(shown, noise).cpu().numpy()
        return self._step(actions, running, history)

    def _start(
        self,
        running: list[Episode | None],
        history: _Stacks,
        goals: _Stacks,
        waiting: list[int],
        film: int,
    ) -> None:
        mask = np.zeros(len(running), bool)
        seeds: list[int | None] = [None] * len(running)
        for slot, episode in enumerate(running):
            if episode is None and waiting:
                number = waiting.pop(0)
                running[slot] = Episode(number, False, 0.0, 0, [])
                mask[slot], seeds[slot] = True, self.seed + number
        if mask.any():
            observations, info = self._simulators.reset(seeds, mask)
            for name, stack in history.items():
                stack[mask] = observations[name][mask][:, None]
            for name, stack in goals.items():
                stack[mask] = info["goal"][name][mask][:, None]
            for slot in np.flatnonzero(mask).tolist():
                episode = running[slot]
                assert episode is not None
                if goals:
                    episode.task = int(info["task"][slot])
                    episode.goal = {name: stack[slot, -1].copy() for name, stack in goals.items()}
                if episode.number < film:
                    self._film(episode, slot, history)

    def _step(self, actions: np.ndarray, running: list[Episode | None], history: _Stacks) -> list[int]:
        # An environment without an episode goes on from where its last one ended; nobody watches it.
        observations, rewards, terminated, truncated, info = self._simulators.step(actions)
        for name, stack in history.items():
            stack[:, :-1], stack[:, -1] = stack[:, 1:].copy(), observations[name]
        ended = []
        for slot, episode in enumerate(running):
            if episode is None:
                continue
            episode.length += 1
            episode.total_reward += float(rewards[slot])
            episode.success |= bool(info["success"][slot])
            if episode.seen:
                self._film(episode, slot, history)
            if terminated[slot] or truncated[slot]:
                ended.append(slot)
        return ended

    @staticmethod
    def _film(episode: Episode, slot: int, history: _Stacks) -> None:
        newest = {name: stack[slot, -1].copy() for name, stack in history.items()}
        if any(shown.ndim == 3 for shown in newest.values()):
            episode.seen.append(newest)


def to_tensors(stack: torch.Tensor) -> torch.Tensor:
    """Frames that an environment showed, stacked (B, T, ...), as networks take them: pictures (B, T, C, H, W)."""
    return channels_first(stack) if stack.ndim == 5 else stack


@contextmanager
def one_thread() -> Iterator[None]:
    """Acting on a few observations needs one thread; more would spin while the simulators want the cores."""
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
    """Uniform actions in [-1, 1]: what a policy must beat."""

    def act(observation: Mapping[str, torch.Tensor], noise: EpisodeNoise) -> torch.Tensor:
        rows = len(next(iter(observation.values())))
        return 2 * noise.uniform(rows, actions) - 1

    return act


def scaled_up(episode: Episode) -> np.ndarray:
    """The frames of a filmed episode, uint8 (L, H, W, 3), as squares of pixels without smoothing."""
    return np.stack(episode.frames).repeat(VIDEO_SCALE, 1).repeat(VIDEO_SCALE, 2)


def write_videos(
    folder: Path,
    episodes: Sequence[Episode],
    draw: Callable[[Episode], np.ndarray] = scaled_up,
    suffix: str = "",
) -> list[Path]:
    """Filmed episodes as mp4 files named by number and outcome.

    Args:
        folder: made if there is something to write.
        episodes: those that were not filmed are left out.
        draw: a filmed episode to its pictures, uint8 (L, H, W, 3).
        suffix: of the names.
    """
    written = []
    for episode in episodes:
        if episode.seen:
            folder.mkdir(parents=True, exist_ok=True)
            outcome = "success" if episode.success else "failure"
            path = folder / f"episode_{episode.number:03d}_{outcome}{suffix}.mp4"
            iio.imwrite(path, draw(episode), fps=_FRAMES_A_SECOND, codec="libx264", macro_block_size=None)
            written.append(path)
    return written
