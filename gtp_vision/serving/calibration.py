"""What an artifact keeps of its training data, measured when it is exported: see `serving.reference`."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch

from gtp_vision.agents import Agent
from gtp_vision.core.errors import GtpVisionError
from gtp_vision.core.names import GOAL
from gtp_vision.datasets.arrays import Array
from gtp_vision.datasets.sampler import Sampler
from gtp_vision.datasets.scaling import in_file_units
from gtp_vision.datasets.split import drawn
from gtp_vision.datasets.store import Store
from gtp_vision.encoders.views import first_view
from gtp_vision.evaluation.recordings import observation_of
from gtp_vision.serving.reference import (
    MOST_BYTES,
    MOST_ROWS,
    Reference,
    edge_of,
    scale_of_features,
    scale_of_states,
)
from gtp_vision.training.data import TaskData
from gtp_vision.training.probes import evenly_spaced

_HELD_SHARE = 0.1  # of training's episodes, where none are held out of it
_SPARE = 1 << 18  # bytes of the file's header and actions
_PIECE = 256  # rows that are encoded at once
_SCANNED = 20_000  # frames of a camera that are compared with the next one


def reference_of(agent: Agent, data: TaskData, frame_stack: int, seed: int) -> tuple[Reference, Store]:
    """The reference of an agent's training data, without thresholds, and the episodes on which they are to be set.

    These are those that were held out of training, or a tenth of the others, which the reference then leaves out.

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
    edges = {name: edge_of(held_features[name], rows, scale_of_features(rows)) for name, rows in features.items()}
    edges |= {name: edge_of(held_values[name], rows, scale_of_states(rows)) for name, rows in values.items()}
    still = {name: float(longest_still(known, known.observations[name])) for name in cameras}
    actions = torch.from_numpy(in_file_units(known, rows))
    return Reference(features, values, actions, still, edges, {}), others


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
