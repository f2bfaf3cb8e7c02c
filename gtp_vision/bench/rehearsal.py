"""`gtp-vision bench rehearse`: whether a rehearsal names faults that are planted in sound recordings, and only these.

Every fault is planted in other episodes, drawn from the recordings; sound ones are rehearsed, too, some by a server.
What nothing can show is not planted: signs and orders of actions that the policy does not predict.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from gtp_vision.bench.serve import server_of
from gtp_vision.core.errors import GtpVisionError
from gtp_vision.core.names import GOAL
from gtp_vision.core.progress import Progress
from gtp_vision.core.random import counter_rng
from gtp_vision.datasets.formats import open_store
from gtp_vision.datasets.scaling import in_file_units
from gtp_vision.datasets.store import ACTION_BOUNDS, Store
from gtp_vision.serving.artifact import load_policy
from gtp_vision.serving.corrections import correlation
from gtp_vision.serving.findings import NOTE
from gtp_vision.serving.players import Local, Player, connected
from gtp_vision.serving.policy import Policy
from gtp_vision.serving.rehearse import Rehearsal, rehearse

_PREDICTED = 0.5  # correlation of recorded and predicted actions from which signs and places are planted
_OCCLUDED = 0.5  # of a frame's height and width
_SERVED = 2  # sound cases by a server
_MEASURED = ("late", "rate")  # no alarms where recordings are sound: these are measured on this machine
_SALT = 0x7E4EA


@dataclass(frozen=True)
class Case:
    """A fault that is planted: what changes in the recordings, and the kinds of finding that name it.

    `subject` is the camera, state, or `actions`; None: any.
    """

    name: str
    kinds: tuple[str, ...]
    plant: Callable[[Store], Store]
    subject: str | None = None


def bench_rehearse(
    folder: Path,
    data: Path,
    *,
    episodes: int = 8,
    first: int = 0,
    last: int | None = None,
    clean: int = 10,
    rate: float | None = None,
    seed: int = 0,
    progress: bool = True,
) -> dict[str, Any]:
    """Rehearse sound recordings and planted faults.

    Args:
        folder: of the artifact.
        data: sound recordings that the policy was not trained on.
        episodes: of each case.
        first: number of the first episode that is used: thresholds may have been chosen on those before.
        last: number of the last one, exclusive; None is all.
        clean: how many sound cases, of which two are by a server.
        rate: actions a second at which the server is asked; None is the artifact's, or else the data's.
        seed: of the draws.
        progress: show a bar.

    Returns:
        JSON-able: `named` of `planted`, `alarms` of `clean`, and in `cases` each one's findings; of sound ones without
        late answers and a rate that --rate sets, which are measured and not inferred.

    Raises:
        GtpVisionError: too few recordings, or a server that does not start.
    """
    policy, store = load_policy(folder), open_store(data, labels=False)
    whole = np.flatnonzero(store.last_outcomes >= store.episode_starts)
    whole = whole[(whole >= first) & (whole < (store.episodes if last is None else last))]
    if len(whole) < episodes:
        raise GtpVisionError(
            f"{data} has {len(whole)} episodes between --first and --last, fewer than --episodes {episodes}"
        )
    found: list[dict[str, Any]] = []

    def drawn() -> Store:
        chosen = counter_rng(seed, len(found), _SALT).permutation(whole)[:episodes]
        return store.subset(np.sort(chosen))

    def run(case: Case, player: Player | None = None, rate: float | None = None) -> Rehearsal:
        player = Local(policy, None, seed + len(found)) if player is None else player
        rehearsal = rehearse(policy, case.plant(drawn()), player, rate=rate, episodes=episodes)
        worst = rehearsal.findings[0] if rehearsal.findings else None
        is_named = worst is not None and worst.kind in case.kinds and case.subject in (None, worst.subject)
        texts = [str(x) for x in rehearsal.findings if x.severity != NOTE and (case.kinds or x.kind not in _MEASURED)]
        found.append({"case": case.name, "kinds": case.kinds, "is_named": is_named, "findings": texts})
        if progress:
            Progress.write(_line(found[-1]), file=sys.stderr)
        return rehearsal

    sound, late = (Case(name, kinds, lambda store: store) for name, kinds in (("sound", ()), ("late", ("late",))))
    for _ in range(max(1, clean - _SERVED)):
        rehearsal = run(sound)
    with server_of(folder, 1, None) as (address, _), connected(address, policy.schema) as server:
        for _ in range(_SERVED):
            seen = run(replace(sound, name="sound, by a server"), server, rate).record()
        run(replace(late, name="server half as fast as the robot"), server, 2e3 / seen["median_ms"])
    for case in planted(policy, store, rehearsal):
        run(case)
    planted_cases = [each for each in found if each["kinds"]]
    sound_cases = [each for each in found if not each["kinds"]]
    return {
        "planted": len(planted_cases),
        "named": sum(each["is_named"] for each in planted_cases),
        "clean": len(sound_cases),
        "alarms": sum(bool(each["findings"]) for each in sound_cases),
        "cases": found,
    }


def planted(policy: Policy, store: Store, sound: Rehearsal) -> Iterator[Case]:
    """The faults that fit the policy's cameras, states and actions; `sound` is a rehearsal of sound recordings."""
    schema = policy.schema
    cameras = [name for name in schema.cameras if not name.startswith(GOAL)]
    for name in cameras:
        for label, kinds, change in _CAMERA:
            yield Case(f"{name} {label}", kinds, _changed(name, change), name)
    for one, other in pairwise(cameras):
        if schema.cameras[one] == schema.cameras[other]:
            yield Case(f"{one} and {other} swapped", ("swapped",), _swapped(one, other))
    for name in (name for name in schema.states if not name.startswith(GOAL)):
        first, *others = np.argsort(-np.asarray(store.observations[name], np.float64).std(0)).tolist()
        width, second = 1 + len(others), next(iter(others), None)
        for label, factor in (("in degrees", 180 / np.pi), ("in millimeters", 1000.0)):
            yield Case(f"{name} {label}", ("units",), _changed(name, _linear(factor)), name)
        yield Case(f"{name}[{first}] negated", ("sign",), _changed(name, _linear(_negating(width, first))), name)
        if second is not None:
            what, change = f"{name}[{first}] and [{second}] exchanged", _linear(order=_exchange(width, first, second))
            yield Case(what, ("order",), _changed(name, change), name)
    yield from _of_actions(sound)


def _of_actions(sound: Rehearsal) -> Iterator[Case]:
    assert sound.evidence is not None
    recorded, predicted = sound.evidence.recorded, sound.evidence.predicted
    follows, width = correlation(recorded, predicted), recorded.shape[1]
    switches = np.array([len(np.unique(column)) == 2 for column in recorded.T])
    ranked = [each for each in np.argsort(-follows).tolist() if not switches[each] and follows[each] > _PREDICTED][:2]
    yield Case("actions x 57.3", ("units",), _acted(_linear(180 / np.pi)), "actions")
    yield Case("actions x 0.01", ("units",), _acted(_linear(0.01)), "actions")
    yield Case("actions a step late", ("lag",), _late, "actions")
    for each in ranked:
        yield Case(f"actions[{each}] negated", ("sign",), _acted(_linear(_negating(width, each))), "actions")
    for each in (each for each in np.flatnonzero(switches).tolist() if follows[each] > _PREDICTED):
        shift = np.where(np.arange(width) == each, recorded.max(0) + recorded.min(0), 0)
        change = _linear(_negating(width, each), shift)
        yield Case(f"actions[{each}] inverted, a gripper", ("gripper",), _acted(change), "actions")
    if len(ranked) == 2:
        change = _linear(order=_exchange(width, *ranked))
        yield Case(f"actions[{ranked[0]}] and [{ranked[1]}] exchanged", ("order",), _acted(change), "actions")


def _linear(
    scale: float | np.ndarray = 1.0, shift: float | np.ndarray = 0.0, order: np.ndarray | None = None
) -> Callable[[np.ndarray], np.ndarray]:
    return lambda rows: (rows if order is None else rows[:, order]) * scale + shift


def _negating(width: int, number: int) -> np.ndarray:
    return np.where(np.arange(width) == number, -1, 1)


def _gain(factor: float) -> Callable[[np.ndarray], np.ndarray]:
    return lambda frames: np.clip(np.round(frames.astype(np.float32) * factor), 0, 255).astype(np.uint8)


def _occluded(frames: np.ndarray) -> np.ndarray:
    height, width = (int(_OCCLUDED * side) for side in frames.shape[1:3])
    covered = frames.copy()
    covered[:, height // 2 : height // 2 + height, width // 2 : width // 2 + width] = 60
    return covered


_CAMERA: tuple[tuple[str, tuple[str, ...], Callable[[np.ndarray], np.ndarray]], ...] = (
    ("at half the brightness", ("brightness",), _gain(0.5)),
    ("at 1.6 times the brightness", ("brightness",), _gain(1.6)),
    ("with blue and red exchanged", ("colors",), lambda frames: frames[..., ::-1]),
    ("mirrored", ("mirrored",), lambda frames: frames[:, :, ::-1]),
    ("upside down", ("upside_down",), lambda frames: frames[:, ::-1]),
    ("rotated by 180 degrees", ("rotated",), lambda frames: frames[:, ::-1, ::-1]),
    ("frozen", ("frozen",), lambda frames: np.repeat(frames[:1], len(frames), 0)),
    ("occluded", ("unlike",), _occluded),
    ("black", ("black",), np.zeros_like),
)


def _changed(name: str, change: Callable[[np.ndarray], np.ndarray]) -> Callable[[Store], Store]:
    """An observation changed, episode by episode."""

    def plant(store: Store) -> Store:
        rows = zip(store.episode_starts, store.episode_ends, strict=True)
        made = np.concatenate([change(np.asarray(store.observations[name][start:end])) for start, end in rows])
        made = made if made.dtype == np.uint8 else made.astype(np.float32)
        return replace(store, observations=store.observations | {name: np.ascontiguousarray(made)})

    return plant


def _swapped(one: str, other: str) -> Callable[[Store], Store]:
    def plant(store: Store) -> Store:
        held = store.observations
        return replace(store, observations=held | {one: held[other], other: held[one]})

    return plant


def _acted(change: Callable[[np.ndarray], np.ndarray]) -> Callable[[Store], Store]:
    """Actions changed, in the units of the file."""

    def plant(store: Store) -> Store:
        attributes = {name: value for name, value in store.attributes.items() if name not in ACTION_BOUNDS}
        return replace(store, actions=change(in_file_units(store)).astype(np.float32), attributes=attributes)

    return plant


def _late(store: Store) -> Store:
    """Each action recorded a step after the observation that it answers."""
    rows = np.arange(len(store)) - 1
    rows[store.episode_starts] = store.episode_starts
    return _acted(lambda actions: actions[rows])(store)


def _exchange(width: int, one: int, other: int) -> np.ndarray:
    order = np.arange(width)
    order[[one, other]] = other, one
    return order


def _line(case: Mapping[str, Any]) -> str:
    verdict = "named" if case["is_named"] else "MISSED"
    verdict = verdict if case["kinds"] else "ALARM" if case["findings"] else "-"
    return f"{case['case']:<48} {verdict:<7} {next(iter(case['findings']), '')[:160]}"


def table(results: Mapping[str, Any]) -> str:
    """The results as text: what was planted, whether it was named first, and the first finding."""
    named, alarms = (f"{results[x]} of {results[y]}" for x, y in (("named", "planted"), ("alarms", "clean")))
    summary = f"{named} planted faults named first; {alarms} sound cases with an alarm"
    return "\n".join([*map(_line, results["cases"]), summary])
