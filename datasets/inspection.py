"""The report of `gtp-vision data inspect`: contents, faults and likely mistakes of a data set."""

from __future__ import annotations

import json
import textwrap
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np

from gtp_vision.core.errors import GtpVisionError
from gtp_vision.datasets import success as successes
from gtp_vision.datasets.arrays import videos_of
from gtp_vision.datasets.formats import FORMATS, detect, open_store
from gtp_vision.datasets.pitfalls import last_outcomes, pitfalls
from gtp_vision.datasets.scaling import SCALING, scaled, sentence
from gtp_vision.datasets.statistics import ArrayStatistics, action_statistics, array_statistics
from gtp_vision.datasets.store import Store
from gtp_vision.datasets.validation import problems, shape_errors

_MAX_STATE = 512  # numbers of a state that has statistics: a wider one is an image, or too long to read
_WIDTH = 120  # of a line of text
_INDENT = 17
_MAX_DEPTH = 100  # levels of an attribute
_MAX_TEXT = 100  # characters of an attribute
_NO_BREAK = "\N{NO-BREAK SPACE}"
# Attributes that are listed as facts.
_OWN_LINES = (
    "filters",
    "tasks",
    "episode_tasks",
    "time_stamps",
    successes.MARKS,
    successes.WORDS,
    SCALING,
    successes.FRAMES,
)


def inspect(
    path: Path,
    env: str | None = None,
    features: Mapping[str, str] | None = None,
    labels: Path | Literal[False] | None = None,
    video: str = "unpacked",
) -> tuple[dict[str, Any], Store]:
    """Describe a data set of any known format: JSON-able facts, and the data set itself.

    `problems` are faults, which prevent training; `warnings` are likely mistakes, looked for in data without faults. If
    lengths disagree, only shapes are reported. A number that is not finite is None. `env`, `features`, `labels`
    and `video` are as in `open_store`.
    """
    name = detect(path, features)
    store = open_store(path, env, features, labels=labels, video=video)
    if video == "seek" and not store.has_videos:
        raise GtpVisionError(f"--video seek is for videos, and {path} has none; leave it out")
    with np.errstate(all="ignore"):  # numbers that are too large are reported as faults, not as warnings of NumPy
        return {"path": str(path), "format": name, "title": FORMATS[name].title} | facts(store), store


def facts(store: Store) -> dict[str, Any]:
    """Return the facts of a store; see `inspect`.

    Actions and rewards are those of the rows that can be sampled: other rows hold padding in most formats. Actions are
    listed in the units of the file, and judged as a training sees them by default.
    """
    seen = scaled([store])[0]
    faults = problems(seen)
    shapes = {name: list(array.shape[1:]) for name, array in store.observations.items()}
    found: dict[str, Any] = {
        "problems": faults,
        "warnings": [],
        "episodes": store.episodes,
        "frames": len(store),
        "cameras": {name: shape for name, shape in shapes.items() if len(shape) == 3},
        "states": {name: shape for name, shape in shapes.items() if len(shape) != 3},
        "attributes": dict(store.attributes),
    }
    if store.has_videos:
        found["videos"] = {
            name: {"gb": part.nbytes / 1e9, "rows_per_keyframe": part.rows_per_keyframe()}
            for name, array in store.observations.items()
            for part in videos_of(array)
        }
    if shape_errors(store) or not len(store.transitions):
        return dict(_strict(found))
    numbers = statistics(store)
    actions = numbers["actions"]
    rewards, terminals = np.asarray(store.rewards[store.transitions]), np.asarray(store.terminals, bool)
    lengths = np.diff(store.episode_ends, prepend=0)
    found |= {
        "warnings": [] if faults else pitfalls(seen, numbers | {"actions": action_statistics(seen)}),
        "episode_length": _spread(lengths) | {"median": float(np.median(lengths))},
        "transitions": len(store.transitions),
        "actions": {name: getattr(actions, name) for name in ("min", "max", "mean", "std", "constant")},
        "action_scaling": sentence(seen),
        "reward": _spread(rewards) | {"nonzero": float(np.count_nonzero(rewards) / len(rewards))},
        "terminals": int(terminals.sum()),
        "timeouts": int(np.count_nonzero(store.timeouts)),
        "episodes_with_terminal": successes.episodes_with(store, terminals),
        "episodes_that_end_in_terminal": int(terminals[last_outcomes(store)].sum()),
        "success": success(store),
        "filters": _filters(store),
        "tasks": _tasks(store),
    }
    return dict(_strict(found))


def statistics(store: Store) -> dict[str, ArrayStatistics]:
    """Compute statistics of the `actions` that can be sampled, and of states of at most 512 numbers."""
    states = {name: array for name, array in store.observations.items() if array.ndim == 2}
    return {"actions": action_statistics(store)} | {
        f"observations/{name}": array_statistics(array)
        for name, array in states.items()
        if 0 < array.shape[1] <= _MAX_STATE
    }


def success(store: Store) -> dict[str, Any]:
    """Count the successful recordings: `rate`, `solved`, `of` and `because` (what was counted).

    Marks of the recorder count before the rule of the format that the data came from (`Format.success`), and that
    before rewards at the ends of episodes alone. If there is none, `rate` is None and `because` is the reason.
    """
    visits, solved = store.attributes.get("visits"), store.attributes.get("solved_visits")
    if isinstance(visits, int) and isinstance(solved, int) and 0 <= solved <= visits > 0:
        return successes.rate(solved, visits, "visits that the collector counted as solved")
    if (found := successes.counted(store)) is not None:
        return found
    suite = str(store.attributes.get("suite", ""))
    rule = FORMATS[suite].success if suite in FORMATS else None
    found = rule(store) if rule else successes.unknown("the data set does not say which episodes succeed")
    return found if found["rate"] is not None else successes.by_last_rewards(store) or found


def inspection_text(found: dict[str, Any]) -> str:
    """Format the facts as lines of text, without control characters."""
    lines = [
        f"{found['path']}: {found['format']} ({found['title']}), {found['episodes']} episodes, {found['frames']} frames"
    ]
    for name, text in entries(found):
        lines += textwrap.wrap(
            text,
            _WIDTH,
            initial_indent=f"  {name:<{_INDENT - 3}} ",
            subsequent_indent=" " * _INDENT,
            break_long_words=False,
            break_on_hyphens=False,
        )
    lines = [line.replace(_NO_BREAK, " ") for line in lines]
    return "\n".join("".join(letter if letter.isprintable() else "?" for letter in line) for line in lines)


def entries(found: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield names and texts of the facts; `inspection_text` makes them safe for a terminal."""
    for kind in ("cameras", "states"):
        if found[kind]:
            yield kind, ", ".join(f"{name} {'x'.join(map(str, shape))}" for name, shape in found[kind].items())
    for name, video in found.get("videos", {}).items():
        yield (
            "video",
            f"{name}: {video['gb']:.3g} GB if it were unpacked as it is, a keyframe every "
            f"{video['rows_per_keyframe']:.3g} rows",
        )
    if "reward" in found:
        length, reward, actions = found["episode_length"], found["reward"], found["actions"]
        ranges = [
            _range(*limits).replace(" ", _NO_BREAK) for limits in zip(actions["min"], actions["max"], strict=True)
        ]
        outcome = found["success"]
        yield "episode length", f"{length['min']:g} to {length['max']:g}, median {length['median']:g} frames"
        yield "actions", f"{len(ranges)} dimensions: {', '.join(ranges)}"
        if found["action_scaling"]:
            yield "training", found["action_scaling"]
        yield (
            "rewards",
            f"{_range(reward['min'], reward['max'])}, mean {_number(reward['mean'])}, other than 0 in "
            f"{reward['nonzero']:.1%} of the rows",
        )
        yield (
            "terminals",
            f"{found['terminals']} in {found['episodes_with_terminal']} episodes, "
            f"{found['episodes_that_end_in_terminal']} of which end in one",
        )
        yield "timeouts", f"{found['timeouts']}"
        yield "transitions", f"{found['transitions']} can be sampled"
        if outcome["rate"] is None:
            yield "success", f"unknown: {outcome['because']}"
        else:
            yield "success", f"{outcome['rate']:.0%}: {outcome['solved']} of {outcome['of']} {outcome['because']}"
        if found["filters"]:
            yield "filters", ", ".join(f"{name} {count}" for name, count in found["filters"].items()) + " (episodes)"
        if found["tasks"]:
            yield "tasks", "; ".join(f"{name} ({count} episodes)" for name, count in found["tasks"].items())
    for name, value in found["attributes"].items():
        if name not in _OWN_LINES:
            yield name, _short(value)
    for warning in found["warnings"]:
        yield "WARNING", warning
    for problem in found["problems"]:
        yield "PROBLEM", problem
    if not found["problems"]:
        yield "faults", "none were found" + (", but see the warnings" if found["warnings"] else "")


def _range(low: float | None, high: float | None) -> str:
    return f"{_number(low)} to {_number(high)}"


def _number(value: float | None) -> str:
    return "not finite" if value is None else f"{value:.3g}"


def _strict(value: Any, depth: int = 0) -> Any:
    """Replace numbers that are not finite, which JSON cannot hold, and very deep values by None."""
    if isinstance(value, dict | list) and depth > _MAX_DEPTH:
        return None
    if isinstance(value, dict):
        return {name: _strict(held, depth + 1) for name, held in value.items()}
    if isinstance(value, list):
        return [_strict(held, depth + 1) for held in value]
    return None if isinstance(value, float) and not np.isfinite(value) else value


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= _MAX_TEXT else f"{text[:_MAX_TEXT]}... ({len(text)} characters; --json prints them)"


def _filters(store: Store) -> dict[str, int]:
    """Return the number of episodes of each filter."""
    filters = store.attributes.get("filters")
    if not isinstance(filters, dict):
        return {}
    return {str(name): len(kept) for name, kept in filters.items() if isinstance(kept, list)}


def _tasks(store: Store) -> dict[str, int]:
    """Return the number of episodes of each task, by its text."""
    tasks, chosen = store.attributes.get("tasks"), store.attributes.get("episode_tasks")
    if not isinstance(tasks, list) or not isinstance(chosen, list):
        return {}
    counts = Counter(number for number in chosen if isinstance(number, int))
    return {str(task): counts[number] for number, task in enumerate(tasks)}


def _spread(values: np.ndarray) -> dict[str, float]:
    return {"min": float(values.min()), "max": float(values.max()), "mean": float(values.mean(dtype=np.float64))}
