"""What doubt tells from shifted observations, and what a reaction to it changes in the task's simulator.

    run -> artifact, calibrated on held-out episodes, ordinary and shifted     -> AUROC
        -> ordinary episodes in the simulator                                  -> false alarms, success
        -> those with a false alarm once more, with the reaction               -> success with it
        -> some steps seen through another camera                              -> AUROC

An episode in which no reaction begins is the same with one to be taken, bit for bit, so it is not simulated twice.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from gtp_vision.core.errors import GtpVisionError
from gtp_vision.core.random import EpisodeNoise
from gtp_vision.core.units import to_policy
from gtp_vision.envs import EnvSpec
from gtp_vision.envs.robosuite import LIFT_CAMERAS
from gtp_vision.evaluation.evaluator import Episode, Evaluator
from gtp_vision.models import Integrable
from gtp_vision.serving.calibration import auroc
from gtp_vision.serving.doubt import Reactor
from gtp_vision.serving.export import export
from gtp_vision.serving.policy import Policy, Session
from gtp_vision.serving.reactions import OBSERVED, SIGNALS, Doubt, OnDoubt
from gtp_vision.training.evaluate import env_spec, restore

_SEED = 90_000  # of the first episode
_OTHER, _OTHER_STEPS = 5, 20  # episodes and steps with another camera
_ALL = "of all signals"
_IMAGE = "_image"  # ends the name of robosuite's cameras


def bench_doubt(
    folder: Path, *, episodes: int = 100, reaction: str = "hold", after: int = 3, progress: bool = True
) -> dict[str, Any]:
    """Measure doubt of a run in its simulator, whose actions count as motions (`delta`).

    Args:
        folder: of the run, whose data exist.
        episodes: in the simulator.
        reaction: `steps`, `slow` or `hold`.
        after: doubtful answers, one after another, until it begins.
        progress: show bars.

    Returns:
        JSON-able: `held_out`, what `calibrate` reports, in `auroc` with doubt by all signals and with signals that are
        not measured by default; `other_camera`, the area under the ROC curve of doubt where the simulator has another
        one; `beyond`, the share of ordinary answers that are doubtful; `reacting`, the number of episodes with a
        reaction; `success` and `success_reacting` of the same episodes.

    Raises:
        GtpVisionError: the run has no simulator, or its data cannot be read.
    """
    config, trained = restore(folder)
    if config.task.env is None:
        raise GtpVisionError(f"{folder} was trained without a simulator (task.env=null); `export` measures its doubt")
    every = SIGNALS if isinstance(trained.agent.policy, Integrable) else OBSERVED
    settings = OnDoubt(reaction, after, actions=("delta",))
    with tempfile.TemporaryDirectory() as scratch:
        whole = export(folder, Path(scratch) / "all", on_doubt=OnDoubt(signals=every)).card["doubt"]
        policy = export(folder, Path(scratch) / "policy", on_doubt=settings)
    held_out = policy.card["doubt"]
    for shift, areas in held_out["auroc"].items():
        others = dict(whole["auroc"][shift])
        held_out["auroc"][shift] = {"doubt": areas["doubt"], _ALL: others.pop("doubt"), **others}
    spec = env_spec(config, trained.record)

    def simulated(robots: _Robots, shown: EnvSpec, count: int, first: int = 0) -> list[Episode]:
        robots.first = first
        frames, seed = policy.schema.frame_stack, _SEED + first
        with Evaluator(shown, frame_stack=frames, seed=seed, progress=progress) as evaluator:
            return evaluator.run(robots, count)[1]

    policy.react(replace(settings, reaction="none"))
    ordinary = _Robots(policy, spec)
    done = simulated(ordinary, spec, episodes)
    area = None
    if (other := other_camera(spec)) is not None:
        through = _Robots(policy, spec)
        simulated(through, replace(other, max_episode_steps=_OTHER_STEPS), _OTHER)
        area = auroc(ordinary.values, through.values)
    policy.react(settings)
    reacting = [number for number in range(episodes) if _reacts(ordinary.doubts[number], settings)]
    again = {number: simulated(_Robots(policy, spec), spec, 1, number)[0] for number in reacting}
    successes = [bool(again.get(episode.number, episode).success) for episode in done]
    return {
        "run": str(folder),
        "episodes": episodes,
        "reaction": reaction,
        "after": after,
        "held_out": held_out,
        "other_camera": area,
        "beyond": float(np.mean(np.array(ordinary.values) > 1)),
        "reacting": len(reacting),
        "success": float(np.mean([bool(episode.success) for episode in done])),
        "success_reacting": float(np.mean(successes)),
    }


class _Robots:
    """The actor of an evaluation: a session of the policy for each episode, the first of which has number `first`."""

    def __init__(self, policy: Policy, spec: EnvSpec) -> None:
        self._policy, self._names = policy, list(spec.shown or ())
        self._sessions = dict[int, Session]()
        self.doubts = dict[int, list[Doubt]]()
        self.first = 0

    @property
    def values(self) -> list[float]:
        """The doubt of every answer."""
        return [doubt.value for doubts in self.doubts.values() for doubt in doubts]

    def __call__(self, observation: Mapping[str, torch.Tensor], noise: EpisodeNoise) -> torch.Tensor:
        """Actions (B, A) in [-1, 1]."""
        rows = zip(noise.episodes, noise.steps, strict=True)
        return torch.stack([self._act(observation, row, *key) for row, key in enumerate(rows)])

    def _act(self, observation: Mapping[str, torch.Tensor], row: int, episode: int, step: int) -> torch.Tensor:
        schema, number = self._policy.schema, self.first + episode
        if step == 0:
            self._sessions[number], self.doubts[number] = self._policy.session(_SEED + number), []
        newest = [x[row, -1] for x in observation.values()]  # another camera has another name and the same place
        named = zip(self._names, newest, strict=True)
        session = self._sessions[number]
        action = session.act({name: (x.movedim(0, -1) if x.ndim == 3 else x).numpy() for name, x in named})
        assert session.doubt is not None, "`export` has refused a reaction without doubt"
        self.doubts[number].append(session.doubt)
        return torch.from_numpy(to_policy(action, schema.action_low, schema.action_high).astype(np.float32))


def _reacts(doubts: list[Doubt], settings: OnDoubt) -> bool:
    """Whether a reaction begins in an episode that was simulated without one."""
    reactor = Reactor(settings)
    return any(reactor.doubt(doubt.signals).reaction != "none" for doubt in doubts)


def other_camera(spec: EnvSpec) -> EnvSpec | None:
    """The same environment with another of its cameras in the first one's place; None if it has none."""
    shown = dict(spec.shown or {})
    cameras = [name for name in shown if name.endswith(_IMAGE)]
    if spec.env_args is not None and cameras:
        other = next(name + _IMAGE for name in LIFT_CAMERAS if name + _IMAGE not in shown)
        return replace(spec, shown={other if name == cameras[0] else name: shape for name, shape in shown.items()})
    return replace(spec, camera="front") if spec.pixels and spec.name.startswith("visual-") else None


def table(results: Mapping[str, Any]) -> str:
    """The results as text."""
    held_out, areas = results["held_out"], results["held_out"]["auroc"]
    names = list(next(iter(areas.values())))
    width = max(map(len, names))
    lines = [
        f"{results['run']}: {held_out['frames']} held-out frames against shifted ones, area under the ROC curve",
        f"{'':<{width}}" + "".join(f"{shift:>12}" for shift in areas),
        *(f"{name:<{width}}" + "".join(f"{area[name]:12.3f}" for area in areas.values()) for name in names),
    ]
    if results["other_camera"] is not None:
        lines.append(f"another camera of the simulator: {results['other_camera']:.3f}")
    lines += [
        f"{results['episodes']} episodes in the simulator: {results['beyond']:.2%} of the answers are doubtful",
        f"success {results['success']:.1%}; with '{results['reaction']}' after {results['after']} doubtful answers "
        f"{results['success_reacting']:.1%} ({results['reacting']} episodes have a reaction)",
    ]
    return "\n".join(lines)
