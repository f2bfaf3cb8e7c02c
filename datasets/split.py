"""The episodes that are held out of training, to measure what it makes of others.

Of each data set, in this order: the group `valid` that its recorder named (robomimic), the file `NAME-val.npz` beside
it (OGBench), or a share of its episodes, drawn in proportion from each task and from successes and failures. A copy of
a held-out episode, in whatever file, is held out with it, so that nothing that is measured was trained on.
"""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from gtp_vision.core.errors import GtpVisionError
from gtp_vision.core.random import counter_rng
from gtp_vision.datasets.store import Store
from gtp_vision.datasets.success import MARKS

MOST = 50
"""Episodes that are held out at most: more would not measure better, and are missing in training."""
FEWEST = 5
"""Different episodes of which one can be held out."""
_GROUPS = ("valid", "validation", "val")
_TOGETHER = 64  # first observations of episodes that are read together
_SALT = 0x5B117  # keeps the draw of episodes apart from other draws of the same seed


@dataclass(frozen=True)
class Split:
    """Data sets in two parts.

    Attributes:
        training: the first part of each data set.
        held_out: the second part of those that have one.
        origin: for each data set, its path, the numbers of its held-out episodes, and `how` they were chosen.
        sentence: for whoever starts a training.
    """

    training: list[Store]
    held_out: list[Store]
    origin: list[dict[str, Any]]
    sentence: str


def divided(
    stores: Sequence[Store], *, group: str | None, share: float, seed: int, others: Sequence[Store | None] = ()
) -> Split:
    """Divide data sets by whole episodes; a function of their content, `share` and `seed` alone.

    Args:
        stores: whole data sets, in the units of their files.
        group: of the file's groups of episodes, the one that training takes; None for all.
        share: of the episodes that are drawn, rounded down, at least one and at most `MOST`; 0 holds out nothing.
        seed: of the draw.
        others: for each data set a recorded part that nothing trains on, e.g. OGBench's; None where there is none.

    Raises:
        GtpVisionError: the group is missing or empty, or all episodes would be held out.
    """
    wholes = [store if group is None else store.filtered(group) for store in stores]
    if not share:
        return Split(wholes, [], [], "")
    pairs = [
        _divided(store, whole, group, share, seed, other)
        for store, whole, other in zip(stores, wholes, others or [None] * len(stores), strict=True)
    ]
    hashes = [[_hashes(part) if part is not None else [] for part in pair[:2]] for pair in pairs]
    held = {digest for _, own in hashes for digest in own}
    training, copies = [], 0
    for (store, _, _), (own, _) in zip(pairs, hashes, strict=True):
        kept = [episode for episode, digest in enumerate(own) if digest not in held]
        if not kept and store.episodes:
            raise GtpVisionError(
                f"{store.path or 'the data set'}: all episodes are copies of held-out ones, so none is left to train "
                f"on; name each recording once, or set task.validation=0"
            )
        copies += store.episodes - len(kept)
        training.append(store if len(kept) == store.episodes else store.subset(kept))
    held_out = [part for _, part, _ in pairs if part is not None]
    origin = [
        {"path": str(part.path or store.path or ""), "episodes": _numbers(part), "how": how}
        for store, part, how in pairs
        if part is not None
    ]
    return Split(training, held_out, origin, _sentence(training, pairs, copies))


def recorded_part(path: Path, open_store: Callable[[Path], Store]) -> Store | None:
    """The file for validation that OGBench has beside a data set, `NAME-val.npz` beside `NAME.npz`; None without it."""
    beside = path.with_name(f"{path.stem}-val.npz")
    return open_store(beside) if path.suffix == ".npz" and beside.is_file() else None


def _divided(
    store: Store, whole: Store, group: str | None, share: float, seed: int, other: Store | None
) -> tuple[Store, Store | None, str]:
    """The two parts of a data set, and how they were found; `whole` is what training would take without them."""
    if other is not None:
        return whole, other, "its validation file"
    groups = {name: episodes for name, episodes in (store.attributes.get("filters") or {}).items() if episodes}
    named = next((name for name in _valid_groups(group) if name in groups), None)
    if named is not None:
        if group is None:
            whole = store.subset(sorted(set(range(store.episodes)) - set(groups[named])))
        return whole, store.filtered(named), f"its group '{named}'"
    times = Counter(hashes := _hashes(whole))
    candidates = np.array([times[digest] == 1 for digest in hashes], bool)
    if candidates.sum() < FEWEST:
        return whole, None, f"{candidates.sum()} different episodes, too few to hold one out"
    chosen = drawn(whole, share, seed, candidates)
    return whole.subset(np.setdiff1d(np.arange(whole.episodes), chosen)), whole.subset(chosen), "drawn"


def _valid_groups(group: str | None) -> tuple[str, ...]:
    """Names of the group of episodes that belongs to a group for training."""
    if group is None or group == "train":
        return _GROUPS
    stem = group.removesuffix("train")
    return tuple(stem + name for name in _GROUPS) if stem != group else ()


def drawn(store: Store, share: float, seed: int, candidates: np.ndarray | None = None) -> np.ndarray:
    """Draw episodes to hold out, int64, increasing: of each task, and of successes and failures, the same share.

    Only `candidates`, bool (E,), that have a transition are drawn; at least one of them is not.
    """
    may = store.last_outcomes >= store.episode_starts
    if candidates is not None:
        may = may & candidates
    places = np.full(store.episodes, np.inf)
    for members in _strata(store):
        members = members[may[members]]
        shuffled = counter_rng(seed, store.episodes, _SALT).permutation(len(members))
        places[members] = (shuffled + 0.5) / max(1, len(members))
    count = max(1, min(math.floor(share * store.episodes), MOST, int(may.sum()) - 1))
    return np.sort(np.argsort(places, kind="stable")[:count])


def _strata(store: Store) -> list[np.ndarray]:
    """Episodes of one task that all succeeded or all failed, as far as the data say."""
    columns = [store.attributes.get(name) for name in ("episode_tasks", MARKS)]
    known = [column for column in columns if isinstance(column, list) and len(column) == store.episodes]
    if not isinstance(columns[1], list):
        known.append((np.asarray(store.rewards)[store.last_outcomes.clip(0)] > 0).tolist())
    labels = np.array([repr(key) for key in zip(*known, strict=True)])
    return [np.flatnonzero(labels == label) for label in np.unique(labels)]


def _hashes(store: Store) -> list[bytes]:
    """A hash of each episode's actions and of its first observation."""
    digests = [
        hashlib.blake2b(np.ascontiguousarray(store.actions[start:stop]).data, digest_size=16)
        for start, stop in zip(store.episode_starts, store.episode_ends, strict=True)
    ]
    for name in sorted(store.observations):
        for first in range(0, store.episodes, _TOGETHER):
            rows = store.episode_starts[first : first + _TOGETHER]
            for digest, row in zip(digests[first:], store.observations[name][rows], strict=False):
                digest.update(np.ascontiguousarray(row).data)
    return [digest.digest() for digest in digests]


def _numbers(store: Store) -> list[int]:
    return list(range(store.episodes)) if store.numbers is None else [int(number) for number in store.numbers]


def _sentence(training: Sequence[Store], pairs: Sequence[tuple[Store, Store | None, str]], copies: int) -> str:
    held_out = [part.episodes for _, part, _ in pairs if part is not None]
    if not held_out:
        return f"no episode is held out to validate on: {', '.join(dict.fromkeys(how for *_, how in pairs))}"
    how = ", ".join(dict.fromkeys(how for _, _, how in pairs))
    kept = sum(store.episodes for store in training)
    twice = f"; {copies} cop{'y' if copies == 1 else 'ies'} of them left out of training" if copies else ""
    return f"{sum(held_out)} episodes are held out to validate on ({how}), {kept} train{twice}"
