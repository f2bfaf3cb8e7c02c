"""Whether a data set and a simulator agree: recorded actions, replayed from recorded states, reach recorded states.

The state is what the data set holds of the simulator, or else what a policy sees of it. Where it is float64, as the
simulator has it, an episode is replayed from its first state to its end. Contacts amplify the rounding of float32, so
each step is then replayed from its own state, and velocities are not compared. A step agrees if every number of the
state after it is within `TOLERANCE` standard deviations of the recorded one. Frames are compared as they are, and as
common faults would change them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import gymnasium
import numpy as np

from gtp_vision.core.errors import GtpVisionError
from gtp_vision.core.names import INSTRUCTION
from gtp_vision.datasets.formats import Snapshots, open_snapshots
from gtp_vision.datasets.names import Names
from gtp_vision.datasets.store import Store
from gtp_vision.envs import Simulator, by_name
from gtp_vision.envs.tasks import InTurns

TOLERANCE = 0.05
"""Standard deviations of a number in the replayed episodes."""
_LEAST = 0.01  # of that deviation, in the simulator's units (meters, radians): nearly constant numbers
_WINDOW = 10
_FAULTY = 6.0  # of 255: mean difference below which frames are taken to agree
_CLEARLY = 0.5  # of that difference, by which a fault must explain the frames better
_FRAMES = 16  # recorded frames whose mean is compared with a scene that cannot be restored

State = Mapping[str, Any]
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
    """Steps of replayed episodes.

    Attributes:
        steps: how many were replayed.
        agreeing: of them, how many led to the recorded state.
        first: where the first one disagrees, in words; empty if none does.
        recorded, rendered: frames after the first step of each episode, uint8 (H, W, C), by camera.
    """

    steps: int = 0
    agreeing: int = 0
    first: str = ""
    recorded: dict[str, list[np.ndarray]] = field(default_factory=dict)
    rendered: dict[str, list[np.ndarray]] = field(default_factory=dict)

    @property
    def score(self) -> float:
        """Share of the steps that agree."""
        return self.agreeing / max(1, self.steps)

    def compare(self, place: str, wanted: State, reached: State, spread: State) -> None:
        """Count a step: `wanted` is the recorded state after it, `spread` the deviations of its numbers."""
        off = {name: np.abs(np.asarray(reached[name], np.float64) - x) / spread[name] for name, x in wanted.items()}
        worst = {name: float(np.nan_to_num(x, nan=np.inf).max(initial=0)) for name, x in off.items()}
        self.steps += 1
        if max(worst.values()) <= TOLERANCE:
            self.agreeing += 1
        elif not self.first:
            name = max(worst, key=lambda key: worst[key])
            size = f"{worst[name]:.2g} standard deviations"
            self.first = f"after {place}, {name}[{int(np.argmax(off[name]))}] is off by {size}"


def recorded_states(store: Store, numbers: Sequence[int], features: Names | None = None) -> dict[int, Snapshots]:
    """What a store's file holds of its simulator in some episodes, maybe nothing; `features` as in `open_store`."""
    found: list[Snapshots] = []
    if store.path is not None and "mixed" not in store.attributes:
        of_file = [int(number if store.numbers is None else store.numbers[number]) for number in numbers]
        found = open_snapshots(store.path, of_file, features)
    return dict(zip(numbers, found or [Snapshots({})] * len(numbers), strict=True))


def faults_at_once(
    env: gymnasium.Env, simulator: Simulator, store: Store, features: Names | None = None
) -> tuple[list[str], str]:
    """What can be found within seconds: faults of frames, a sentence each, and what differs after the first action.

    Where an environment has a `notice`, a sentence on how it differs from the recorder's, that is it.
    """
    found, differs = None, ""
    try:
        found = replay(env, simulator, store, recorded_states(store, [0], features), 1)
        differs = found.first if found else ""
    except GtpVisionError as error:
        differs = str(error)
    pairs = (found.recorded, found.rendered) if found and found.recorded else frames_of(env, store)
    return list(frame_faults(*pairs)), getattr(env.unwrapped, "notice", "") or differs


def replay(
    env: gymnasium.Env, simulator: Simulator, store: Store, held: Mapping[int, Snapshots], most: int | None = None
) -> Replay | None:
    """Replay episodes of a store, of each at most `most` steps.

    Args:
        env: of the simulator, with actions in [-1, 1].
        simulator: see `Simulator.restore`.
        store: the data set.
        held: number of each episode in the store to what is recorded of the simulator, maybe nothing.
        most: steps of an episode; None: all.

    Returns:
        None if the simulator cannot be put into the recorded states, also of environments that take turns.
    """
    if simulator.restore is None or not held or isinstance(env.unwrapped, InTurns):
        return None
    shown = {name: x for name, x in store.observations.items() if x.ndim == 2 and name != INSTRUCTION}
    states = {
        n: x.arrays or {name: np.asarray(shown[name][_rows(store, n)]) for name in shown} for n, x in held.items()
    }
    judged = [name for name in next(iter(states.values())) if name != "qvel"]  # velocities jump at contacts
    if not judged:
        return None
    spread = {name: np.maximum(np.concatenate([x[name] for x in states.values()]).std(0), _LEAST) for name in judged}
    found = Replay()
    for number, snapshots in held.items():
        rows, arrays = _rows(store, number), states[number]
        last = min(len(rows), *map(len, arrays.values())) - 1  # the last row has no outcome
        env.reset(seed=0)
        is_exact = bool(snapshots.arrays) and all(x.dtype.itemsize > 4 for x in arrays.values())
        for step in range(last if most is None else min(last, most)):
            if step == 0 or not is_exact:
                at = {name: np.asarray(x[rows[step]]) for name, x in shown.items()}
                try:
                    simulator.restore(env, at | {name: x[step] for name, x in arrays.items()} | _model(snapshots))
                except KeyError:
                    return None
            seen = by_name(env.step(np.asarray(store.actions[rows[step]]))[0])
            reached = simulator.state(env) if snapshots.arrays and simulator.state else seen
            place = f"step {step} of episode {number if store.numbers is None else store.numbers[number]}"
            found.compare(place, {name: arrays[name][step + 1] for name in judged}, reached, spread)
            for name in (name for name in seen if step == 0 and np.ndim(seen[name]) == 3):
                found.rendered.setdefault(name, []).append(seen[name])
                found.recorded.setdefault(name, []).append(np.asarray(store.observations[name][rows[1]]))
    return found


def _rows(store: Store, number: int) -> np.ndarray:
    return np.arange(store.episode_starts[number], store.episode_ends[number])


def _model(snapshots: Snapshots) -> dict[str, Any]:
    return {"model": snapshots.model} if snapshots.model else {}


def frame_faults(recorded: Mapping[str, Sequence[Any]], rendered: Mapping[str, Sequence[Any]]) -> Iterator[str]:
    """Yield a sentence on each camera whose frames are the simulator's after a common fault, and on swapped cameras.

    Frames are (n, H, W, C) of the same n states, or of any states: then their means are compared.
    """
    shown = {name: np.stack(x) for name, x in rendered.items()}
    for name, frames in ((name, np.stack(x)) for name, x in recorded.items()):
        own = {fault: _difference(change(frames), shown[name]) for fault, (_, change) in _FAULTS.items()}
        fault = min(own, key=lambda key: own[key])
        others = {o: _difference(frames, x) for o, x in shown.items() if o != name and x.shape[1:] == frames.shape[1:]}
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
    same = len(frames) == len(others)
    one, other = ((x if same else x.mean(0, keepdims=True)).astype(np.float32) for x in (frames, others))
    return float(np.abs(one - other).mean())


def frames_of(env: gymnasium.Env, store: Store) -> tuple[dict[str, Any], dict[str, Any]]:
    """Recorded first frames of episodes that are spread evenly, and the frames of a reset: uint8 (n, H, W, C)."""
    rows = store.episode_starts[np.linspace(0, store.episodes - 1, min(_FRAMES, store.episodes)).astype(int)]
    if all(x.ndim < 4 for x in store.observations.values()):
        return {}, {}
    seen = by_name(env.reset(seed=0)[0])
    cameras = [name for name, x in store.observations.items() if x.ndim == 4 and np.ndim(seen[name]) == 3]
    recorded = {name: np.stack([np.asarray(store.observations[name][row]) for row in rows]) for name in cameras}
    return recorded, {name: np.asarray(seen[name])[None] for name in cameras}
