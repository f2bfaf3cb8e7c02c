"""What a run remembers of its data set: enough to act and to recognize the data set, which need not exist any more."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from gtp_vision.core.errors import GtpVisionError
from gtp_vision.datasets.arrays import Array, Lookup
from gtp_vision.datasets.statistics import ArrayStatistics, action_statistics, mean_rows
from gtp_vision.datasets.store import ACTION_BOUNDS, EPISODE_ATTRIBUTES, Store

_WHOLE = 1 << 25  # bytes of an array that are hashed; of a larger one rows that are spread evenly
_ROWS = 64  # of an array with larger rows
_CLOSE = 1e-5  # relative to a dimension's deviation: libraries may add in another order
_RENDERING = ("rendering", "env_args")  # attributes by which the simulator renders as the recordings do
_LARGEST = 1 << 20  # of an extent or a number of dimensions


@dataclass(frozen=True)
class DataRecord:
    """A data set without its rows.

    Attributes:
        observations: name to the shape of one frame, (H, W, C) or (D,), in the order in which the networks take them.
        actions: number A of action dimensions.
        episodes: how many.
        frames: of all episodes.
        name: of its file or folder.
        attributes: of the data set, without those that number episodes or name paths.
        statistics: `actions` and each state to `mean`, `std`, `min` and `max` of each dimension; over all rows.
        content: name of each array to a hash of it, or of some of its rows, see `content_of`.
    """

    observations: Mapping[str, tuple[int, ...]]
    actions: int
    episodes: int
    frames: int
    name: str | None = None
    attributes: Mapping[str, Any] = field(default_factory=dict)
    statistics: Mapping[str, Mapping[str, list[float]]] = field(default_factory=dict)
    content: Mapping[str, str] = field(default_factory=dict)

    @property
    def action_bounds(self) -> tuple[list[float], list[float]]:
        """What -1 and 1 are of each action, in the robot's units."""
        low, high = (self.attributes.get(bound) for bound in ACTION_BOUNDS)
        return (
            [-1.0] * self.actions if low is None else [float(x) for x in low],
            [1.0] * self.actions if high is None else [float(x) for x in high],
        )

    @property
    def fingerprint(self) -> str:
        """One hash of all arrays."""
        return hashlib.blake2b("".join(self.content.values()).encode(), digest_size=16).hexdigest()

    def record(self) -> dict[str, Any]:
        """As JSON-able values."""
        return asdict(self)


def record_of(
    store: Store,
    statistics: Mapping[str, ArrayStatistics] | None = None,
    means: Mapping[str, np.ndarray] | None = None,
) -> DataRecord:
    """The record of a data set, with `content` where its statistics and the cameras' mean frames are given.

    Otherwise it has the statistics of actions alone.
    """
    found = {"actions": action_statistics(store)} if statistics is None else statistics
    left_out = (*EPISODE_ATTRIBUTES, "mixed")
    return DataRecord(
        observations={name: tuple(array.shape[1:]) for name, array in store.observations.items()},
        actions=store.action_dim,
        episodes=store.episodes,
        frames=len(store),
        name=store.path.name if store.path else None,
        attributes={name: value for name, value in store.attributes.items() if name not in left_out},
        statistics={name: moments(array.record()) for name, array in found.items()},
        content={} if means is None else content_of(store, means),
    )


def moments(statistics: Mapping[str, Any]) -> dict[str, list[float]]:
    """The entries of an array's statistics that a record holds."""
    return {name: statistics[name] for name in ("mean", "std", "min", "max")}


def content_of(store: Store, means: Mapping[str, np.ndarray]) -> dict[str, str]:
    """A hash of each array, whatever the format and path it comes from.

    Arrays of up to 32 MB are hashed whole, of larger ones as many rows, spread evenly, and at least 64. Cameras' mean
    frames `means`, over up to 2048 frames, are hashed with them. Changes between these rows are seen only if they
    change the statistics of actions or states.
    """
    flags = {name: np.asarray(getattr(store, name), bool) for name in ("terminals", "timeouts")}
    arrays: dict[str, Array] = {"actions": store.actions, "rewards": store.rewards, **flags}
    arrays |= {"episode_ends": store.episode_ends}
    arrays |= {f"observations/{name}": array for name, array in store.observations.items()}
    content = {name: _hash(array) for name, array in arrays.items()}
    for name, mean in means.items():
        content[f"observations/{name}"] += hashlib.blake2b(mean.tobytes(), digest_size=8).hexdigest()
    return content


def _hash(array: Array) -> str:
    digest = hashlib.blake2b(f"{tuple(array.shape)}".encode(), digest_size=8)
    row = max(1, array.nbytes // max(1, len(array)))
    if isinstance(array, Lookup):
        parts: Iterator[np.ndarray] = iter((array.table, array.index))
    elif array.nbytes <= _WHOLE:
        parts = (array[start : start + 4096] for start in range(0, len(array), 4096))
    else:
        rows = mean_rows(len(array)) if array.ndim == 4 else np.arange(len(array))  # those are in memory already
        count = min(len(rows), max(_ROWS, _WHOLE // row))
        chosen = rows[np.linspace(0, len(rows) - 1, count).astype(np.int64)]
        parts = (array[some] for some in np.array_split(chosen, max(1, count * row >> 22)))
    for part in parts:
        digest.update(np.ascontiguousarray(part).data)
    return digest.hexdigest()


def differences(old: DataRecord, new: DataRecord) -> list[str]:
    """What differs between two data sets, `name: old -> new`; what only renames or moves the files does not."""
    pairs = {
        "observations": (_shapes(old), _shapes(new)),
        "action dimensions": (old.actions, new.actions),
        **{bound: (a, b) for bound, a, b in zip(ACTION_BOUNDS, old.action_bounds, new.action_bounds, strict=True)},
        "episodes": (old.episodes, new.episodes),
        "frames": (old.frames, new.frames),
        **{name: (old.attributes.get(name), new.attributes.get(name)) for name in _RENDERING},
    }
    found = [f"{name}: {_short(a)} -> {_short(b)}" for name, (a, b) in pairs.items() if a != b]
    shared = {
        name: moved(name, old.statistics[name], new.statistics[name])
        for name in old.statistics.keys() & new.statistics.keys()
    }
    found += [sentence for name in sorted(shared) for sentence in shared[name]]
    if old.frames != new.frames:
        return found
    changed = [name for name in old.content.keys() & new.content.keys() if old.content[name] != new.content[name]]
    return found + [
        f"content of {name}: {old.content[name]} -> {new.content[name]}"
        for name in sorted(changed)
        if not shared.get(name)
    ]


def moved(name: str, old: Mapping[str, list[float]], new: Mapping[str, list[float]]) -> list[str]:
    """The first dimension of an array in which its statistics are others."""
    if len(old["std"]) != len(new["std"]):
        return [f"dimensions of {name}: {len(old['std'])} -> {len(new['std'])}"]
    deviation = np.asarray(old["std"]) + 1e-3 * np.abs(old["mean"]) + 1e-12
    for kind in ("min", "max", "mean", "std"):
        one, other = np.asarray(old[kind]), np.asarray(new[kind])
        for dimension in np.flatnonzero(~(np.abs(other - one) <= _CLOSE * deviation))[:1]:
            return [f"{kind} of {name}[{dimension}]: {one[dimension]:.6g} -> {other[dimension]:.6g}"]
    return []


def read_record(stored: Any) -> DataRecord:
    """The record in untrusted JSON, or a GtpVisionError."""
    try:
        record = DataRecord(
            observations={str(name): tuple(map(_extent, shape)) for name, shape in stored["observations"].items()},
            actions=_extent(stored["actions"]),
            episodes=int(stored["episodes"]),
            frames=int(stored["frames"]),
            name=None if stored["name"] is None else str(stored["name"]),
            attributes=dict(stored["attributes"]),
            statistics={
                str(name): {kind: [float(x) for x in found[kind]] for kind in ("mean", "std", "min", "max")}
                for name, found in stored["statistics"].items()
            },
            content={str(name): str(found) for name, found in stored["content"].items()},
        )
        low, high = record.action_bounds
        if len(low) != record.actions or len(high) != record.actions or not np.isfinite([low, high]).all():
            raise ValueError("its action bounds are not those of its actions")
        if len(record.statistics["actions"]["min"]) != record.actions:
            raise ValueError("its statistics are not those of its actions")
        if any(len(shape) not in (1, 3) for shape in record.observations.values()):
            raise ValueError("an observation is neither frames nor a state")
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise GtpVisionError(f"its record of the data set is invalid ({type(error).__name__}: {error})") from error
    return record


def _extent(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 < value <= _LARGEST:
        raise ValueError(f"{str(value)[:20]} is not a number of pixels or dimensions")
    return value


def _shapes(record: DataRecord) -> dict[str, str]:
    return {name: "x".join(map(str, shape)) for name, shape in sorted(record.observations.items())}


def _short(value: Any) -> str:
    if isinstance(value, dict):
        value = ", ".join(f"{name} {inner}" for name, inner in value.items())
    elif isinstance(value, list):
        value = f"[{', '.join(f'{x:g}' for x in value)}]"
    text = str(value)
    return text if len(text) <= 120 else f"{text[:117]}..."
