"""What a recording holds of each answer, beside its data set: arrays in the same file, which readers of data leave out.

    /answers/actions         float32 (N, H, A), the whole answer to each row's observation
    /answers/counts          int64 (N, C): seed, episode, step, ..., clamps by limit; row of the goals
    /answers/measures        float64 (N, M): when the observation came and was answered, measures of doubt
    /answers/goals/<name>    the goals, each once
    attribute metadata       under "answers": the names of the columns, and `Served`

Recordings are untrusted files: a sandbox process checks types and sizes, and this process maps the arrays.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from gtp_vision.core import sandbox
from gtp_vision.core.errors import GtpVisionError
from gtp_vision.core.names import ANSWERS, GOAL
from gtp_vision.datasets import hdf5
from gtp_vision.datasets.arrays import Array
from gtp_vision.datasets.formats import native, open_store
from gtp_vision.datasets.layout import map_array
from gtp_vision.datasets.store import Store
from gtp_vision.serving.answer import ACTION, PLAN, Answered

_COUNTS, _MEASURES = ("seed", "episode", "step", "steps", "executed", "delay"), ("received", "sent")
_CLAMPS, _DOUBT = "clamps/", "doubt/"
_UNKNOWN = -1  # of `executed`
_MOST_COLUMNS, _MOST_THREADS = 1000, 4096
_NUMBERS = 256  # bytes of a step's counts and measures


@dataclass(frozen=True)
class Served:
    """How the server answered.

    Attributes:
        artifact: hash of the files that act, see `artifact.identity`.
        answer: `answer.PLAN` or `answer.ACTION`.
        engine, device, threads, torch: with others, equal policies may differ by rounding.
        on_doubt: the reaction to doubt, of `reactions.REACTIONS`.
    """

    artifact: str
    answer: str
    engine: str
    device: str
    threads: int
    torch: str
    on_doubt: str = "none"


@dataclass(frozen=True)
class Step:
    """An observation with its goals, and its answer; times are of `time.time`."""

    client: int
    observation: Mapping[str, np.ndarray]
    answered: Answered
    received: float
    sent: float

    @property
    def nbytes(self) -> int:
        """Bytes that it takes in a file, about."""
        return _NUMBERS + self.answered.actions.nbytes + sum(array.nbytes for array in self.observation.values())


def arrays_of(steps: Sequence[Step]) -> tuple[dict[str, np.ndarray], dict[str, list[str]]]:
    """The arrays of steps as they lie in a file, by path; and the names of the columns."""
    goals: dict[str, list[np.ndarray]] = {}
    counts, measures = list[dict[str, int]](), list[dict[str, float]]()
    for step in steps:
        answered, row = step.answered, dict[str, int]()
        for name, goal in step.observation.items():
            if name.startswith(GOAL):
                held = goals.setdefault(name, [])
                if not held or held[-1].shape != goal.shape or not np.array_equal(held[-1], goal):
                    held.append(goal)
                row[name] = len(held) - 1
        executed = _UNKNOWN if answered.executed is None else answered.executed
        own = {name: getattr(answered, name) for name in _COUNTS} | {"executed": executed}
        counts.append(own | {f"{_CLAMPS}{name}": n for name, n in answered.clamps.items()} | row)
        times = {"received": step.received, "sent": step.sent}
        measures.append(times | {f"{_DOUBT}{name}": x for name, x in answered.doubt.items()})
    columns = {"counts": _names(counts), "measures": _names(measures)}
    tables = {
        "counts": np.array([[row.get(name, 0) for name in columns["counts"]] for row in counts], np.int64),
        "measures": np.array([[row.get(name, np.nan) for name in columns["measures"]] for row in measures]),
        "actions": np.stack([step.answered.actions for step in steps]).astype(np.float32, copy=False),
        **{f"goals/{name.removeprefix(GOAL)}": np.stack(held) for name, held in goals.items()},
    }
    return {f"{ANSWERS}/{name}": array for name, array in tables.items()}, columns


def _names(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    return list(dict.fromkeys(name for row in rows for name in row))


@dataclass(frozen=True)
class Recording:
    """A file of a recorded episode, or of a part of one; row i of all arrays is the i-th observation."""

    path: Path
    client: int
    served: Served
    store: Store
    actions: np.ndarray
    counts: Mapping[str, np.ndarray]
    measures: Mapping[str, np.ndarray]
    goals: Mapping[str, Array]

    def __len__(self) -> int:
        return len(self.actions)

    def observation(self, row: int) -> dict[str, np.ndarray]:
        """What the policy saw of a row, with goals."""
        seen = {name: np.asarray(array[row]) for name, array in self.store.observations.items()}
        return seen | {name: np.asarray(array[self.counts[name][row]]) for name, array in self.goals.items()}

    def answered(self, row: int) -> Answered:
        """The answer of a row."""
        own: dict[str, Any] = {name: int(self.counts[name][row]) for name in _COUNTS}
        return Answered(
            self.actions[row],
            **own | {"executed": None if own["executed"] == _UNKNOWN else own["executed"]},
            clamps={name: int(column[row]) for name, column in _below(self.counts, _CLAMPS)},
            doubt={name: float(column[row]) for name, column in _below(self.measures, _DOUBT)},
        )


def _below(columns: Mapping[str, np.ndarray], prefix: str) -> Iterator[tuple[str, np.ndarray]]:
    return ((name.removeprefix(prefix), column) for name, column in columns.items() if name.startswith(prefix))


def read(path: Path) -> Recording:
    """Read a file of `serve --record`.

    Raises:
        GtpVisionError: it is damaged, not a recording, or one from before answers were recorded.
    """
    store = open_store(path, labels=False)
    found = sandbox.call(f"{__name__}:_layout", path)
    arrays = {name: map_array(entry, path) for name, entry in found["arrays"].items()}
    try:
        known = {each.name for each in fields(Served)}
        served = Served(**{name: value for name, value in found["served"].items() if name in known})
        tables = {
            name: dict(zip(found["served"][name], np.asarray(arrays[name]).T, strict=True))
            for name in ("counts", "measures")
        }
        goals = {f"{GOAL}{name.removeprefix('goals/')}": x for name, x in arrays.items() if name.startswith("goals/")}
        client = int(found["served"]["client"])
        missing = {*_COUNTS, *goals} - tables["counts"].keys() or set(_MEASURES) - tables["measures"].keys()
    except (KeyError, TypeError, ValueError) as error:
        raise _damaged(path, error) from error
    least = dict.fromkeys((*_COUNTS, *goals), 0) | {"executed": _UNKNOWN, "steps": 1}
    if missing or len(arrays["actions"]) != len(store):
        raise _damaged(path, f"{', '.join(sorted(missing)) or 'rows'} missing")
    if any(tables["counts"][name].min() < low for name, low in least.items()) or any(
        tables["counts"][name].max() >= len(goal) for name, goal in goals.items()
    ):
        raise _damaged(path, "a count is out of range")
    texts = (served.artifact, served.engine, served.device, served.torch, served.on_doubt)
    is_text = all(isinstance(text, str) for text in texts) and served.answer in (PLAN, ACTION)
    if not is_text or type(served.threads) is not int or not 0 < served.threads <= _MOST_THREADS:
        raise _damaged(path, "how the server answered is not known")
    return Recording(path, client, served, store, np.asarray(arrays["actions"]), **tables, goals=goals)


def _damaged(path: Path, fault: object) -> GtpVisionError:
    return GtpVisionError(f"{path}: its group '{ANSWERS}' is damaged ({fault}); copy the recording again")


def _layout(path: Path) -> dict[str, Any]:
    """Where a file's answers lie, and its attribute; in the sandbox process."""
    with hdf5.open_file(path) as file:
        served = hdf5.json_attribute(file, "metadata", path).get(ANSWERS)
        if ANSWERS not in hdf5.children(file, path) or not isinstance(served, dict):
            raise GtpVisionError(
                f"{path} holds no answers to replay: it was not written by serve --record, or by an older version; "
                f"record episodes again"
            )
        group = hdf5.group(file, ANSWERS, path)
        actions = hdf5.array(group, "actions", path, kinds="f", ndim=3)
        found = {"actions": actions}
        for name, kinds in (("counts", "i"), ("measures", "f")):
            found[name] = hdf5.array(group, name, path, kinds=kinds, ndim=2, rows=len(actions))
            if found[name].shape[1] > _MOST_COLUMNS:
                raise GtpVisionError(f"{path}: '{ANSWERS}/{name}' has too many columns; record episodes again")
        if "goals" in hdf5.children(group, path):
            goals = hdf5.group(group, "goals", path)
            found |= {f"goals/{name}": hdf5.array(goals, name, path) for name in hdf5.children(goals, path)}
        for name, data in found.items():
            if data.size == 0 or hdf5.offset(data, path) is None:
                raise GtpVisionError(f"{path}: '{ANSWERS}/{name}' is empty or compressed; record episodes again")
        return {"arrays": {name: native.array_layout(data, path) for name, data in found.items()}, "served": served}
