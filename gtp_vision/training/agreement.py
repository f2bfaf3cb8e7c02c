"""`gtp-vision data check`: whether a data set and its simulator agree."""

from __future__ import annotations

from typing import Any

import numpy as np

from gtp_vision.config.schema import Config
from gtp_vision.core.errors import GtpVisionError
from gtp_vision.datasets.record import record_of
from gtp_vision.envs import EnvSpec, versions
from gtp_vision.evaluation.agreement import TOLERANCE, frame_faults, frames_of, recorded_states, replay
from gtp_vision.training.data import open_data
from gtp_vision.training.evaluate import env_spec, simulator_of, units_of

SCORE = 0.95
"""Least replay score at which data and simulator are taken to agree."""
_ADVICE = (
    "check the actions' units and order (task.env_actions), the controller and the simulator's version, or set "
    "task.env=null"
)


def check_data(config: Config, episodes: int = 10, steps: int = 100) -> dict[str, Any]:
    """Compare a task's data set with its simulator.

    Args:
        config: its task names both.
        episodes: how many are replayed, spread evenly.
        steps: most steps of each.

    Returns:
        JSON-able facts: `data`, `env`, `versions` of the simulator, `actions` (a sentence), `notice` (a sentence on
        versions, or empty), `cameras` that were compared, `replay` (`score`, `steps`, `episodes`, `first` that
        disagrees; None where the simulator cannot be put into the recorded states) and `problems`, a sentence each.

    Raises:
        GtpVisionError: they cannot be compared, see `check_simulator`.
    """
    store, problems = open_data(config), list[str]()
    spec = env_spec(config, record_of(store))
    numbers = np.unique(np.linspace(0, store.episodes - 1, episodes).astype(int)).tolist()
    with simulator_of(config, store) as env:
        units, done = units_of(env, store), None
        notice = getattr(env.unwrapped, "notice", "")
        try:
            done = replay(env, spec.simulator, store, recorded_states(store, numbers, config.task.features), steps)
        except GtpVisionError as error:  # states of another version
            problems.append(str(error))
        pairs = (done.recorded, done.rendered) if done and done.recorded else frames_of(env, store)
    if done and done.score < SCORE:
        problems.append(f"recorded actions do not lead to the recorded states: {done.first}; {_ADVICE}")
    return {
        "data": str(store.path),
        "env": spec.name,
        "versions": _versions(spec),
        "actions": units,
        "notice": notice,
        "cameras": list(pairs[0]),
        "replay": done and {"score": done.score, "steps": done.steps, "episodes": len(numbers), "first": done.first},
        "problems": [*frame_faults(*pairs), *problems],
    }


def _versions(spec: EnvSpec) -> dict[str, str]:
    own = {name: held for name, held in versions().items() if name in spec.simulator.packages}
    return own | dict(spec.simulator.elsewhere())


def check_text(found: dict[str, Any]) -> str:
    """The report of `check_data` as lines of text."""
    done, known = found["replay"], ", ".join(f"{name} {held}" for name, held in found["versions"].items())
    lines = [f"{found['data']} and {found['env']} ({known})", f"  {found['actions']}"]
    lines += [f"  {found['notice']}"] if found["notice"] else []
    lines += [f"  cameras: {', '.join(found['cameras'])}"] if found["cameras"] else []
    if done:
        share = f"{done['score']:.4f} of {done['steps']} steps of {done['episodes']} episodes"
        lines.append(f"  replay: {share} lead to the recorded state, within {TOLERANCE} standard deviations")
        lines += [f"    {done['first']}"] if done["first"] else []
    else:
        lines.append("  replay: the simulator cannot be put into the recorded states")
    return "\n".join([*lines, *(f"  PROBLEM {problem}" for problem in found["problems"])])
