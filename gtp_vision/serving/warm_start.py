"""An artifact, or a run, as the source of another run's first weights."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from gtp_vision.config.compose import from_values, plain_values
from gtp_vision.config.schema import Config, InitConfig, TaskConfig
from gtp_vision.core.framing import FRAMES
from gtp_vision.core.names import GOAL
from gtp_vision.datasets.instructions import TABLE
from gtp_vision.datasets.record import DataRecord
from gtp_vision.datasets.store import ACTION_BOUNDS
from gtp_vision.serving import artifact
from gtp_vision.training.warm_start import Source, open_run

SETTINGS, ROUNDS = "settings", "rounds"
"""Of provenance.json: a run's settings without paths, and its rounds, see `report.rounds`."""


def open_source(given: str) -> Source:
    """The artifact, run or checkpoint at a path; the policy of an artifact is checked as it is to act.

    Raises:
        GtpVisionError: none of them, or damaged.
    """
    folder = Path(given).expanduser()
    return _artifact(folder) if (folder / artifact.MADE_OF).is_file() else open_run(given)


def portable(config: Config) -> dict[str, object]:
    """The settings of a run without the paths of its machine; `task.datasets` is empty where it named some."""
    task = config.task
    if task.datasets or task.dataset not in (None, "demo"):
        task = replace(task, dataset=None, datasets=[], shares=None, labels=None)
    alone = replace(config, run_dir="", data_dir=Config().data_dir, init=InitConfig(), task=task)
    return plain_values(replace(alone, encoder=replace(config.encoder, weights=None)))


def _artifact(folder: Path) -> Source:
    policy = artifact.load_policy(folder)
    schema, origin = policy.schema, policy.card
    is_known, config = SETTINGS in origin, Config()
    if is_known:
        config = from_values(origin[SETTINGS], folder / artifact.PROVENANCE)
    else:
        names = [name for name in (*schema.cameras, *schema.states) if not name.startswith(GOAL)]
        goals = "hindsight" if len(names) < len(schema.cameras) + len(schema.states) else None
        task = TaskConfig(name=schema.task, env=None, datasets=[], observations=names, goals=goals)
        config = replace(config, task=replace(task, frame_stack=schema.frame_stack))
    encoder = replace(policy.agent.actor_encoder.config, weights=None)
    config = replace(config, run_dir="", agent=policy.agent.config, encoder=encoder)
    data, rounds = origin.get("data"), origin.get(ROUNDS)
    episodes, frames = (_count(data, name) for name in ("episodes", "frames"))
    record = DataRecord(
        observations={
            **{name: shape for name, shape in schema.cameras.items() if not name.startswith(GOAL)},
            **{name: (width,) for name, width in schema.states.items() if not name.startswith(GOAL)},
        },
        actions=schema.actions,
        episodes=episodes,
        frames=frames,
        attributes=dict(zip(ACTION_BOUNDS, map(list, (schema.action_low, schema.action_high)), strict=True))
        | ({} if schema.frames is None else {FRAMES: schema.frames})
        | ({} if schema.instructions is None else {TABLE: schema.instructions}),
    )
    return Source(
        path=folder.absolute(),
        run=None,
        config=config,
        data=record,
        scale=record.attributes,
        weights=folder / artifact.WEIGHTS,
        step=_count(origin, "step"),
        rounds=[entry for entry in rounds if isinstance(entry, dict)] if isinstance(rounds, list) else (),
        note="" if is_known else "the artifact holds no settings of its task and training: they are the defaults",
    )


def _count(values: Any, name: str) -> int:
    """A number in untrusted JSON; 0 if it holds none."""
    found = values.get(name) if isinstance(values, dict) else None
    return found if isinstance(found, int) and found >= 0 else 0
