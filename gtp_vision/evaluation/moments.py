"""What a policy does on held-out rows: support coverage, action error, and the moments in which it is worst.

Axes in names: N rows, M draws of the policy, H executed actions of a chunk, A action dimensions, F features.
"""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import torch

from gtp_vision.core import html
from gtp_vision.core.random import counter_rng
from gtp_vision.datasets.pictures import picture
from gtp_vision.datasets.store import Store
from gtp_vision.evaluation.coverage import coverage
from gtp_vision.evaluation.fqe import Evaluated
from gtp_vision.evaluation.held_out import Draws
from gtp_vision.evaluation.recordings import OnRecordings

_NEIGHBOURHOOD, _HELD_ROWS = 20_000, 2_000  # rows among which neighbours are sought, and rows that are compared
_MOMENTS, _APART = 10, 20  # worst moments, and rows between two of one episode
_QUALITY = 85  # of their pictures
_NUMBERS = 64  # of a state that are shown


def on_held_out(
    seen: OnRecordings, held_out: np.ndarray, fitted: Evaluated | None, seed: int
) -> tuple[dict[str, Any], list[list[str]]]:
    """Measure a policy on the held-out ones of its episodes, bool (episodes,).

    Returns:
        `coverage` and `trust` (see `Coverage`), `action_error` and `energy` as
        `evaluation.held_out.Draws` has them, and `moments`, the worst first: those whose value, by `fitted`, is
        farthest below that of the recorded action, or without it those farthest from the data. Then the pictures of
        each moment's cameras, as `data:` URIs.
    """
    store, generator = seen.sampler.store, counter_rng(seed, 4)
    is_held_out = held_out[store.episode_of(store.transitions)]
    halves = (store.transitions[~is_held_out], _NEIGHBOURHOOD), (store.transitions[is_held_out], _HELD_ROWS)
    recorded, held = (np.sort(generator.permutation(rows)[:most]) for rows, most in halves)
    chunks, is_real = seen.sampler.chunks(held)
    actions = torch.from_numpy(np.asarray(store.actions[chunks], np.float32))
    features, plans = seen.features[held], seen.plans[held]
    taken = torch.from_numpy(np.asarray(store.actions[recorded], np.float32)).to(features)
    near = coverage(seen.features[recorded], taken, features, actions[:, 0].to(features), plans[:, :, 0])
    distance = near.distance.mean(1).cpu().numpy()
    loss, advantage = distance, None
    if fitted is not None:
        known = fitted.values(features, actions.to(features).flatten(1)[:, None])
        advantage = (fitted.values(features, plans.flatten(2)) - known).mean(0).cpu().numpy()
        loss = -advantage
    worst = apart(np.argsort(-loss, kind="stable"), held, store.episode_of(held))
    compared = Draws(plans.cpu(), actions, torch.from_numpy(is_real))
    measures = {
        "coverage": near.share,
        "trust": near.trust,
        "action_error": float(np.nanmean(compared.error())),
        "energy": float(compared.energy().mean()),
        "moments": [
            place_of(store, int(held[place]))
            | {
                "distance": float(distance[place]),
                "advantage": None if advantage is None else float(advantage[place]),
                "recorded": actions[place, 0].tolist(),
                "policy": plans[place, :, 0].mean(0).tolist(),
            }
            for place in worst
        ],
    }
    return measures, [pictures(store, int(held[place])) for place in worst]


def apart(order: np.ndarray, rows: np.ndarray, episodes: np.ndarray) -> list[int]:
    """The first ten places of an order whose rows are not close to those of an earlier one in the same episode."""
    taken: list[int] = []
    for place in order.tolist():
        if len(taken) == _MOMENTS:
            break
        if all(episodes[other] != episodes[place] or abs(rows[other] - rows[place]) >= _APART for other in taken):
            taken.append(place)
    return taken


def place_of(store: Store, row: int) -> dict[str, Any]:
    """The number of a row's episode in its file, the step, and the numbers of its states."""
    episode = int(store.episode_of(np.array([row]))[0])
    states = [np.asarray(array[row], np.float64) for array in store.observations.values() if array.ndim == 2]
    return {
        "episode": episode if store.numbers is None else int(store.numbers[episode]),
        "step": row - int(store.episode_starts[episode]),
        "state": np.concatenate([*states, np.empty(0)])[:_NUMBERS].tolist(),
    }


def pictures(store: Store, row: int) -> list[str]:
    """The frames of a row's cameras, JPEG, as `data:` URIs."""
    found = []
    for array in store.observations.values():
        if array.ndim == 4:
            file = io.BytesIO()
            picture(np.asarray(array[row])).save(file, "JPEG", quality=_QUALITY)
            found.append(html.data_uri(file.getvalue(), "image/jpeg"))
    return found
