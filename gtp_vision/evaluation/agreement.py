"""Whether a data set and a simulator agree: recorded actions, replayed from recorded states, reach recorded states.

An episode is replayed without correction. Where its states are float64, as the simulator has them, it is replayed from
its first one to its end; contacts amplify the rounding of float32, so such states are returned to every `_WINDOW` steps.
A step agrees if every number of the state after it is within `TOLERANCE` of its standard deviation in the data. The
state is what the data set holds of the simulator, or else what a policy sees of it. Frames are compared pixel by pixel,
as they are and as common faults would change them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import gymnasium
import numpy as np

from gtp_vision.datasets.formats import Snapshots
from gtp_vision.datasets.store import Store
from gtp_vision.envs import Simulator, by_name

TOLERANCE = 0.05
"""Of a number's standard deviation in the data."""
_LEAST = 0.01  # of that deviation, in the simulator's units (meters, radians): nearly constant numbers
_WINDOW = 10  # steps
_FAULTY = 6.0  # of 255: mean difference below which frames are taken to agree
_CLEARLY = 0.5  # of that difference, by which a fault must explain the frames better
_FRAMES = 16  # recorded frames whose mean is compared with a scene that cannot be restored

Frames = Mapping[str, np.ndarray]
_FAULTS: dict[str, tuple[str, Callable[[np.ndarray], np.ndarray]]] = {
    "": ("", lambda x: x),
    "is upside down": ("[::-1]", lambda x: x[..., ::-1, :, :]),
    "is mirrored left to right": ("[:, ::-1]", lambda x: x[..., ::-1, :]),
    "is turned by 180 degrees": ("[::-1, ::-1]", lambda x: x[..., ::-1, ::-1, :]),
    "has red and blue exchanged (BGR)": ("[..., ::-1]", lambda x: x[..., ::-1]),
    "is upside down, with red and blue exchanged": ("[::-1, :, ::-1]", lambda x: x[..., ::-1, :, ::-1]),
}


@dataclass
class Replay:
    """The steps of some replayed episodes.

    Attributes:
        steps: how many were replayed.
        agreeing: of them, how many led to the recorded state.
        worst: of the first step of each start, the largest difference in standard deviations.
        first: where the first step disagrees, in words; empty if none does.
        recorded, rendered: frames of the same steps by camera, uint8 (n, H, W, C), at most one of each start.
    """

    steps: int = 0
    agreeing: int = 0
    worst: float = 0.0
    first: str = ""
    recorded: dict[str, list[np.ndarray]] = field(default_factory=dict)
    rendered: dict[str, list[np.ndarray]] = field(default_factory=dict)

    @property
    def score(self) -> float:
        """Share of the steps that agree."""
        return self.agreeing / self.steps if self.steps else 0.0


def replay(
    env: gymnasium.Env,
    simulator: Simulator,
    store: Store,
    numbers: Sequence[int],
    snapshots: Sequence[Snapshots],
    most: int | None = None,
) -> Replay | None:
    """Replay episodes `numbers` of a store, of each at most `most` steps; `snapshots` are theirs, or empty.

    `env` takes actions in [-1, 1]. None if the simulator cannot be put into the recorded states.
    """
    if simulator.restore is None:
        return None
    found = Replay()
    states = {name: np.asarray(x, np.float64) for name, x in store.observations.items() if x.ndim == 2}
    shown = [{name: x[rows] for name, x in states.items()} for rows in (_rows(store, number) for number in numbers)]
    wanted = [dict(each.arrays) for each in snapshots] or shown
    spread = {name: np.maximum(np.concatenate([x[name] for x in wanted]).std(0), _LEAST) for name in wanted[0]}
    is_exact = all(x.dtype.itemsize > 4 for each in snapshots for x in each.arrays.values()) and bool(snapshots)
    for index, number in enumerate(numbers):
        rows = _rows(store, number)
        last = min(len(rows), *(len(x) for x in wanted[index].values())) - 1  # the last row has no outcome
        last = last if most is None else min(last, most)
        model = {"model": snapshots[index].model} if snapshots else {}
        for start in range(0, last, last if is_exact else _WINDOW):
            env.reset(seed=0)
            try:
                at = {name: x[start] for name, x in (shown[index] | wanted[index]).items()}
                simulator.restore(env, at | model)
            except KeyError:
                return None
            for step in range(start, last if is_exact else min(last, start + _WINDOW)):
                seen = by_name(env.step(np.asarray(store.actions[rows[step]]))[0])
                reached = simulator.state(env) if snapshots and simulator.state else seen
                after = {name: x[step + 1] for name, x in wanted[index].items()}
                _add(found, f"episode {number}, step {step}", step == start, after, reached, spread)
                if step == start:
                    for name, frame in seen.items():
                        if np.ndim(frame) == 3:
                            found.rendered.setdefault(name, []).append(frame)
                            found.recorded.setdefault(name, []).append(np.asarray(store.observations[name][rows[step + 1]]))
    return found


def _rows(store: Store, number: int) -> np.ndarray:
    return np.arange(store.episode_starts[number], store.episode_ends[number])


def _add(found: Replay, place: str, is_first: bool, wanted: Mapping[str, Any], reached: Any, spread: Any) -> None:
    """Compare a step's state with the recorded one."""
    off = {name: np.abs(np.asarray(reached[name], np.float64) - x) / spread[name] for name, x in wanted.items() if name in reached}
    worst = {name: float(np.nan_to_num(x, nan=np.inf).max(initial=0)) for name, x in off.items()}
    found.steps += 1
    if is_first:
        found.worst = max(found.worst, *worst.values())
    if max(worst.values()) <= TOLERANCE:
        found.agreeing += 1
    elif not found.first:
        name = max(worst, key=lambda key: worst[key])
        number = int(np.argmax(off[name]))
        found.first = f"{place}: {name}[{number}] is off by {worst[name]:.2g} standard deviations"


def frame_faults(recorded: Frames, rendered: Frames) -> Iterator[str]:
    """Yield a sentence on each camera whose frames are the simulator's after a common fault, and on swapped cameras.

    Frames are (n, H, W, C) of the same n states, or of any states: then their means are compared.
    """
    for name, frames in recorded.items():
        own = {fault: _difference(change(frames), rendered[name]) for fault, (_, change) in _FAULTS.items()}
        fault = min(own, key=lambda key: own[key])
        others = {o: _difference(frames, x) for o, x in rendered.items() if o != name and x.shape[1:] == frames.shape[1:]}
        other = min(others, key=lambda key: others[key]) if others else ""
        least = min(own[fault], others.get(other, np.inf))
        if own[""] <= _FAULTY or least > _CLEARLY * own[""]:
            continue
        size = f"mean difference {own['']:.1f} of 255, {least:.1f} without it"
        if least < own[fault]:
            yield f"{name} shows what the simulator shows as {other} ({size}); exchange their names by task.features"
        else:
            yield f"{name} {fault} in the data ({size}); write the frames as frame{_FAULTS[fault][0]}"


def _difference(frames: np.ndarray, others: np.ndarray) -> float:
    """Mean difference of pixels, of frames of the same states, or of the mean frames of any."""
    if frames.shape[1:] != others.shape[1:]:
        return float("inf")
    same = len(frames) == len(others)
    one, other = ((x if same else x.mean(0, keepdims=True)).astype(np.float32) for x in (frames, others))
    return float(np.abs(one - other).mean())


def first_frames(env: gymnasium.Env, store: Store) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Recorded first frames of episodes that are spread evenly, and the frame of a reset: uint8 (n, H, W, C)."""
    rows = store.episode_starts[np.linspace(0, store.episodes - 1, min(_FRAMES, store.episodes)).astype(int)]
    seen = by_name(env.reset(seed=0)[0])
    cameras = [name for name, x in store.observations.items() if x.ndim == 4 and np.ndim(seen.get(name)) == 3]
    recorded = {name: np.stack([np.asarray(store.observations[name][row]) for row in rows]) for name in cameras}
    return recorded, {name: seen[name][None] for name in cameras}
