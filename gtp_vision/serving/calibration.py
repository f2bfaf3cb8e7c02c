"""What an artifact keeps of its training data, and from when on it doubts, measured when it is exported.

training episodes -> reference      (`serving.reference`)
other episodes    -> thresholds     (`serving.doubt`)
the same, shifted -> what doubt tells from them (`serving.shifts`)
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from scipy.stats import mannwhitneyu

from gtp_vision.agents import Agent
from gtp_vision.agents.acting import FrameStack
from gtp_vision.core.errors import GtpVisionError
from gtp_vision.core.names import GOAL
from gtp_vision.core.random import EpisodeNoise, counter_rng
from gtp_vision.datasets.arrays import Array
from gtp_vision.datasets.sampler import Sampler
from gtp_vision.datasets.scaling import in_file_units
from gtp_vision.datasets.split import drawn
from gtp_vision.datasets.store import Store
from gtp_vision.encoders.views import first_view
from gtp_vision.evaluation.coverage import QUANTILE
from gtp_vision.evaluation.recordings import observation_of
from gtp_vision.serving.doubt import SALT, Doubter, check, is_still
from gtp_vision.serving.reactions import OnDoubt
from gtp_vision.serving.reference import (
    MOST_BYTES,
    MOST_ROWS,
    Nearest,
    Reference,
    scale_of_features,
    scale_of_states,
)
from gtp_vision.serving.schema import Schema
from gtp_vision.serving.shifts import Shift, shifts_of
from gtp_vision.training.data import TaskData
from gtp_vision.training.probes import evenly_spaced

_HELD_SHARE = 0.1  # of training's episodes, where none are held out of it
_SPARE = 1 << 18  # bytes of the file's header and actions
_ORDINARY, _SHIFTED = 1000, 500  # frames
_QUANTILE = 0.99
_PIECE = 256  # rows that are encoded at once
_SCANNED = 20_000  # frames of a camera that are compared with the next one


def reference_of(agent: Agent, data: TaskData, frame_stack: int, seed: int) -> tuple[Reference, Store]:
    """The reference of an agent's training data, and the episodes by which its thresholds are to be raised.

    These are those that were held out of training, or a tenth of the others, which the reference then leaves out. They
    may be few and alike, so the thresholds begin where each of the reference's episodes is ordinary beside the others.

    Raises:
        GtpVisionError: a single episode, so none is left to compare with.
    """
    known, others = data.training, data.held_out
    if others is None:
        if (known.last_outcomes >= known.episode_starts).sum() < 2:
            raise GtpVisionError("the data are a single episode, and doubt is measured on others than it knows")
        chosen = drawn(known, _HELD_SHARE, seed)
        known, others = known.subset(np.setdiff1d(np.arange(known.episodes), chosen)), known.subset(chosen)
    encoder = agent.actor_encoder
    cameras = [name for name in encoder.cameras if not name.startswith(GOAL)]
    states = [name for name in encoder.states if not name.startswith(GOAL)]
    width = 2 * sum(encoder.tower(name).width for name in cameras)
    width += 4 * sum(known.observations[name].shape[1] for name in states)
    count = min(MOST_ROWS, max(1, (MOST_BYTES - _SPARE) // max(1, width)))
    rows = evenly_spaced(known.transitions, count, seed)
    held = evenly_spaced(others.transitions, MOST_ROWS, seed)
    features, values = _encoded(agent, known, rows, frame_stack, cameras, states)
    held_features, held_values = _encoded(agent, others, held, frame_stack, cameras, states)
    nearest = {name: Nearest(some, scale_of_features(some)) for name, some in features.items()}
    nearest |= {name: Nearest(some, scale_of_states(some)) for name, some in values.items()}
    episodes = np.searchsorted(known.episode_ends, rows, side="right")
    held_distances = {name: nearest[name](some).numpy() for name, some in (held_features | held_values).items()}
    own_distances = {name: near.own(episodes).numpy() for name, near in nearest.items()}
    edges = {name: max(map(_edge, (held_distances[name], own_distances[name]))) for name in nearest}
    own = {
        f"{'camera' if name in features else 'state'} {name}": found / edges[name]
        for name, found in own_distances.items()
    }
    both = (known, others)
    still = {name: float(max(longest_still(store, store.observations[name]) for store in both)) for name in cameras}
    actions = torch.from_numpy(in_file_units(known, rows))
    return Reference(features, values, actions, still, edges, _thresholds(own)), others


def _edge(distances: np.ndarray) -> float:
    """The distance below which 95 % are."""
    return max(1e-6, float(np.quantile(distances, QUANTILE))) if distances.size else 1e-6


@torch.no_grad()
def _encoded(
    agent: Agent, store: Store, rows: np.ndarray, frame_stack: int, cameras: list[str], states: list[str]
) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """Of some rows, each camera's features, rounded as the file rounds them, and each state's values."""
    sampler, encoder = Sampler(store, 1, seed=0, frame_stack=frame_stack), agent.actor_encoder
    pieces = []
    for start in range(0, len(rows), _PIECE):
        seen = first_view(observation_of(sampler, rows[start : start + _PIECE]))
        pieces.append({name: encoder.camera_features(name, seen[name]).half().float() for name in cameras})
    features = {name: torch.cat([piece[name] for piece in pieces]) for name in cameras}
    values = {name: torch.from_numpy(np.asarray(store.observations[name][rows], np.float32)) for name in states}
    return features, values


def longest_still(store: Store, frames: Array) -> int:
    """The longest run of equal frames (N, H, W, C), one after another in an episode; 1 if all differ.

    Of a large data set some episodes are read, spread evenly.
    """
    longest = 1
    step = max(1, len(store) // _SCANNED)
    for start, end in zip(store.episode_starts[::step], store.episode_ends[::step], strict=True):
        run = 1
        for is_same in _repeats(frames, int(start), int(end)):
            run = run + 1 if is_same else 1
            longest = max(longest, run)
    return longest


def _repeats(frames: Array, start: int, end: int) -> Iterator[bool]:
    """Whether each frame of an episode but the first equals the one before it."""
    for first in range(start, end - 1, _PIECE):
        some = np.asarray(frames[first : min(end, first + _PIECE + 1)])
        yield from (some[1:] == some[:-1]).reshape(len(some) - 1, -1).all(1).tolist()


def signals_of(
    doubter: Doubter, frame_stack: int, episode: Sequence[Mapping[str, np.ndarray]], shift: Shift | None = None
) -> list[dict[str, float]]:
    """The signals of an episode's observations, in their order; with a shift, of those that it changes."""
    doubter.reset()
    frames, found = FrameStack(frame_stack), []
    for step, seen in enumerate(episode):
        shown, counts = (dict(seen), True) if shift is None else shift(seen)
        frames.push({name: array[None] for name, array in shown.items()})
        stacks = frames.tensors()
        noise = EpisodeNoise(SALT, [0], [step], torch.device("cpu"))
        signals = doubter.signals(shown, stacks | doubter.features(stacks), noise)
        if counts:
            found.append(signals)
    return found


def episodes_of(store: Store, names: Sequence[str], most: int) -> Iterator[list[dict[str, np.ndarray]]]:
    """Whole episodes of a store, spread evenly, of `most` frames or little more; a goal is the last frame."""
    count = max(1, round(store.episodes * min(1.0, most / len(store))))
    for episode in np.linspace(0, store.episodes - 1, count).astype(int):
        rows = range(int(store.episode_starts[episode]), int(store.episode_ends[episode]))

        def frame(name: str, row: int) -> np.ndarray:
            own, last = name.removeprefix(GOAL), rows[-1]  # noqa: B023
            found = np.asarray(store.observations[own][row if own == name else last])
            return found if found.dtype == np.uint8 else found.astype(np.float32)

        yield [{name: frame(name, row) for name in names} for row in rows]


@torch.no_grad()
def calibrate(
    agent: Agent, schema: Schema, reference: Reference, settings: OnDoubt, others: Store, seed: int
) -> tuple[Reference, dict[str, Any]]:
    """Raise the thresholds to an agent's signals on ordinary episodes, and measure on shifted ones what these tell.

    Shifted frames set nothing: who tunes on some shifts is blind for others.

    Returns:
        The reference with thresholds, and for provenance.json: `frames`, the share of ordinary frames beyond the
        `thresholds`, and `auroc` of each shift, of the doubt and of each signal.
    """
    check(settings, agent, schema)
    names = [*schema.cameras, *schema.states]
    doubter = Doubter(agent, replace(reference, thresholds={}), settings.signals)
    ordinary = [
        signals
        for episode in episodes_of(others, names, _ORDINARY)
        for signals in signals_of(doubter, schema.frame_stack, episode)
    ]
    thresholds = {name: max(x, reference.thresholds.get(name, 0.0)) for name, x in thresholds_of(ordinary).items()}
    aurocs = dict[str, dict[str, float]]()
    for name, make in shifts_of(reference).items():
        shifted = []
        for number, episode in enumerate(episodes_of(others, names, _SHIFTED)):
            shift = make(reference, counter_rng(seed, number))
            shifted += signals_of(doubter, schema.frame_stack, episode, shift)
        if shifted:
            aurocs[name] = separation(ordinary, shifted, thresholds)
    beyond = np.mean([largest(signals, thresholds) > 1 for signals in ordinary])
    report = {"frames": len(ordinary), "beyond": float(beyond), "thresholds": thresholds, "auroc": aurocs}
    return replace(reference, thresholds=thresholds), report


def thresholds_of(ordinary: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Thresholds of which ordinary frames exceed one or another in 1 % of all; that of `still` is in its unit.

    Each signal's 99 % quantile, times the one factor with which all of them together are exceeded so rarely.
    """
    values = {name: np.array([signals[name] for signals in ordinary]) for name in ordinary[0]}
    found = _thresholds({name: x for name, x in values.items() if not is_still(name)})
    return found | {name: 1.0 for name in values if name not in found}


def _thresholds(values: Mapping[str, np.ndarray]) -> dict[str, float]:
    """The thresholds of signals (N,) of the same frames; none without frames."""
    if not any(x.size for x in values.values()):
        return {}
    found = {name: max(float(np.quantile(x, _QUANTILE, method="higher")), 1e-6) for name, x in values.items()}
    worst = np.max([values[name] / x for name, x in found.items()], 0)
    factor = max(1.0, float(np.quantile(worst, _QUANTILE, method="higher")))  # 0 where all frames are equal
    return {name: factor * x for name, x in found.items()}


def largest(signals: Mapping[str, float], thresholds: Mapping[str, float]) -> float:
    """The doubt of a frame."""
    return max(value / thresholds[name] for name, value in signals.items())


def separation(
    ordinary: Sequence[Mapping[str, float]], shifted: Sequence[Mapping[str, float]], thresholds: Mapping[str, float]
) -> dict[str, float]:
    """The area under the ROC curve that tells shifted frames from ordinary ones: of the `doubt`, and of each signal."""
    found = {"doubt": auroc(*([largest(signals, thresholds) for signals in x] for x in (ordinary, shifted)))}
    return found | {
        name: auroc(*([signals[name] for signals in x] for x in (ordinary, shifted))) for name in thresholds
    }


def auroc(negative: Sequence[float], positive: Sequence[float]) -> float:
    """The probability that a positive is larger than a negative; equal ones count half."""
    return float(mannwhitneyu(positive, negative).statistic) / (len(positive) * len(negative))
