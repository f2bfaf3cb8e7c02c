"""What a checkpoint remembers of the data and the settings of its steps, and their comparison when a run is resumed.

A run is one segment, unless it was resumed with other data or settings. Each checkpoint holds the segments until its
step (`segments` in state.json), config.yaml the settings that differ between them.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from gtp_vision.config.compose import from_run, from_values, plain_values, segments_in
from gtp_vision.config.schema import Config
from gtp_vision.core.errors import GtpVisionError
from gtp_vision.core.safe_json import read_json
from gtp_vision.core.settings import settings_of
from gtp_vision.datasets.record import DataRecord, differences, moved, read_record
from gtp_vision.training import checkpoint

_KEY = "segments"  # in state.json
_SCHEDULE = ("training.schedule", "training.warmup_steps")
_STEPS, _ONLINE_STEPS, _SCHEDULE_START = "training.steps", "online.steps", "training.schedule_start"
_OF_COLLECTING = ("task.env", "task.max_episode_steps", "task.env_actions")  # change the steps of a run that collects
_IGNORED = ("run_dir",)


@dataclass(frozen=True)
class Segment:
    """Steps of a run with the same data and settings.

    Attributes:
        start: how many steps were taken before it.
        config: its settings.
        data: its data set; None if an earlier version of this package wrote the checkpoint.
        rows: of a step, in all processes together; None likewise.
    """

    start: int
    config: Config
    data: DataRecord | None = None
    rows: int | None = None

    def record(self) -> dict[str, Any]:
        """As JSON-able values; the run folder is left out, which may be moved."""
        values = plain_values(replace(self.config, run_dir=""))
        data = self.data.record() if self.data else None
        return {"start": self.start, "settings": values, "data": data, "rows": self.rows}


def segments_of(path: Path) -> list[Segment]:
    """The segments of a run until its checkpoint `path`; empty if an earlier version of this package wrote it.

    Raises GtpVisionError: they are damaged.
    """
    file = path / "state.json"
    stored = checkpoint.read_state(path).get(_KEY, [])
    try:
        return [
            Segment(
                int(segment["start"]),
                from_values(segment["settings"], file),
                None if segment["data"] is None else read_record(segment["data"]),
                None if segment["rows"] is None else int(segment["rows"]),
            )
            for segment in stored
        ]
    except (KeyError, TypeError, ValueError) as error:
        raise GtpVisionError(f"{file} holds no valid segments ({error}); use another checkpoint") from error
    except GtpVisionError as error:
        raise GtpVisionError(f"{file}: {error}; use another checkpoint") from error


def state_of(segments: Sequence[Segment]) -> dict[str, Any]:
    """The entry of state.json that `segments_of` reads."""
    return {_KEY: [segment.record() for segment in segments]}


def changes(old: Config, new: Config, *, free: bool) -> dict[str, str]:
    """Settings that differ, as `old -> new` by key: those that may (`free`), or those that would alter the steps."""
    before, after = _flat(old), _flat(new)
    is_free = {key: declared.metadata.get("free", False) for key, _, declared in settings_of(new)}
    if new.online.steps:
        is_free |= dict.fromkeys(_OF_COLLECTING, False)
    is_free[_STEPS] = is_free[_ONLINE_STEPS] = "cosine" not in (old.training.schedule, new.training.schedule)
    return {
        key: f"{_text(before.get(key))} -> {_text(after.get(key))}"
        for key in dict.fromkeys((*before, *after))
        if key not in _IGNORED and before.get(key) != after.get(key) and is_free.get(key, False) == free
    }


def resumed(config: Config, old: Config, step: int, *, new_segment: bool) -> Config:
    """The configuration of a run with settings `old` that continues from `step`.

    The schedule is that of the steps before, or, if it has changed, one that begins at `step`. Raises GtpVisionError:
    more steps have been taken already, or the data set does not exist.
    """
    if config.training.steps < step:
        raise GtpVisionError(
            f"training.steps={config.training.steps}, and {config.run_dir} has taken {step} steps already; set it to "
            f"at least {step}"
        )
    data = config.task.dataset
    if data and data != "demo" and not Path(data).expanduser().exists():
        raise GtpVisionError(
            f"{data}, on which {config.run_dir} was trained, does not exist; if it was moved, add task.dataset=PATH"
        )
    begins = config.training.schedule_start or old.training.schedule_start
    config = replace(config, training=replace(config.training, schedule_start=begins))
    changed = changes(old, config, free=False)
    if new_segment and any(key in changed for key in (*_SCHEDULE, _STEPS)):
        config = replace(config, training=replace(config.training, schedule_start=step))
    return config


def accepted_data(folder: Path, step: int, old: Config, config: Config) -> str | None:
    """The fingerprint of the data of a segment from `step` on with these settings that config.yaml records, if any.

    It was accepted before, and the run was stopped before its first checkpoint; `old` are the settings until `step`.
    """
    recorded = segments_in(folder)[-1:]
    if not recorded or recorded[0].get("start") != step or not step:
        return None
    settings = recorded[0]["settings"]
    flat = _flat(config) | {_SCHEDULE_START: settings.get(_SCHEDULE_START)}
    changed = changes(old, config, free=False).keys() | changes(old, config, free=True).keys()
    is_same = changed <= settings.keys() | {_SCHEDULE_START} and all(flat.get(key) == settings[key] for key in settings)
    return str(recorded[0].get("data")) if is_same else None


def continued(past: Sequence[Segment], now: Segment, *, new_segment: bool, statistics: Path) -> list[Segment]:
    """The segments of a run that continues with `now`, whose `start` is the step of its checkpoint.

    `statistics` is the run's statistics.json, with which the data are compared if the checkpoint has no record.

    Raises:
        GtpVisionError: data or settings are others, and `new_segment` does not accept it.
    """
    last = past[-1]
    differ = [f"{key}: {change}" for key, change in changes(last.config, now.config, free=False).items()]
    assert now.data is not None
    differ += differences(last.data, now.data) if last.data else statistics_differ(statistics, now.data)
    if last.rows not in (None, now.rows):
        differ.append(f"rows of a step in all processes: {last.rows} -> {now.rows}")
    free = changes(last.config, now.config, free=True)
    if differ and not new_segment:
        raise GtpVisionError(
            f"{now.config.run_dir} has taken {now.start} steps with other data or settings than it would continue "
            f"with: {'; '.join(differ)}; restore them, or give --new-segment to continue with the new ones, which "
            f"config.yaml then records{_restart_note(last.config, now.config)}"
        )
    if not differ and not free:
        return [*past[:-1], replace(last, data=now.data, rows=now.rows)]
    return [*(segment for segment in past if segment.start < now.start), now]


def statistics_differ(path: Path, data: DataRecord) -> list[str]:
    """What statistics.json of a run, written by an earlier version, says against a data set; empty if it is missing."""
    if not path.exists():
        return []
    try:
        stored = read_json(path, advice="")
        for name, pair in zip(("action_low", "action_high"), data.action_bounds, strict=True):
            before = [float(x) for x in stored.get(name, [(-1.0, 1.0)[name == "action_high"]] * data.actions)]
            if before != pair:
                return [f"{name}: {before} -> {pair}"]
        for name, found in data.statistics.items():
            if name not in stored:
                return [f"{name}: absent -> present"]
            if different := moved(name, stored[name], found):
                return different
    except (KeyError, TypeError, ValueError, GtpVisionError):
        return []
    return []


def sentences(segments: Sequence[Segment], step: int) -> Iterator[str]:
    """Sentences about a segment that begins at `step`."""
    if len(segments) > 1 and segments[-1].start == step:
        old, new = segments[-2], segments[-1]
        both = changes(old.config, new.config, free=False) | changes(old.config, new.config, free=True)
        differ = [f"{key}: {change}" for key, change in both.items()]
        differ += differences(old.data, new.data) if old.data and new.data else []
        if differ:
            yield f"from step {step} on: {'; '.join(differ)}"


def changed_by_segment(segments: Sequence[Segment]) -> list[dict[str, Any]]:
    """For config.yaml: `start` of each segment, and the value of every setting that differs between some of them."""
    flat = [_flat(segment.config) for segment in segments]
    keys = [key for key in dict.fromkeys(key for one in flat for key in one) if key not in _IGNORED]
    differing = [key for key in keys if any(one.get(key) != flat[0].get(key) for one in flat)]
    data = [segment.data.fingerprint if segment.data else "unknown" for segment in segments]
    return [
        {"start": segment.start, "settings": {key: one[key] for key in differing if key in one}, "data": content}
        for segment, one, content in zip(segments, flat, data, strict=True)
        if len(segments) > 1
    ]


def with_free(trained: Config, config: Config) -> Config:
    """`trained` with the free settings of `config`."""
    task, training = _free_of(config.task, trained.task), _free_of(config.training, trained.training)
    return _free_of(config, replace(trained, task=task, training=training))


def _free_of(source: Any, target: Any) -> Any:
    free = [declared.name for declared in fields(source) if declared.metadata.get("free", False)]
    return replace(target, **{name: getattr(source, name) for name in free})


def _restart_note(old: Config, new: Config) -> str:
    if _STEPS not in changes(old, new, free=False):
        return ""
    return f" (the cosine then begins again, from {new.training.learning_rate:g} to 0 at step {new.training.steps})"


def past_of(path: Path, folder: Path) -> list[Segment]:
    """The segments until the checkpoint `path` of the run in `folder`, if need be as its config.yaml has it."""
    return segments_of(path) or [Segment(0, from_run(folder))]


def _flat(config: Config) -> dict[str, Any]:
    return {key: json.loads(json.dumps(value, default=asdict)) for key, value, _ in settings_of(config)}


def _text(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
