"""The replay store: episodes that are recorded while a policy acts, in a folder to which files are only added.

    replay/000000.h5  000001.h5  ...

Each is a native file of whole episodes, written atomically and never changed, so a kill loses at most the file that was
being written. `open_store(folder)` reads the folder as one data set.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from gtp_vision.core.errors import GtpVisionError
from gtp_vision.datasets.formats import native, open_store
from gtp_vision.datasets.formats.episodes import tasks
from gtp_vision.datasets.store import EPISODE_ATTRIBUTES, Store, difference_of_tasks
from gtp_vision.datasets.success import attributes_of
from gtp_vision.datasets.validation import validate

_NAME = re.compile(r"[0-9]{6,9}\.h5")


@dataclass(frozen=True)
class RecordedEpisode:
    """An episode of T actions.

    Attributes:
        observations: name to (T + 1, ...), the last one after the last action; images uint8 (H, W, C), states (D,).
        actions: float32 (T, A) in [-1, 1].
        rewards: (T,), of taking each action.
        terminal: whether the MDP ended by the last action; if not, the recording stopped there.
        success: None if unknown.
        task: what was to be done; empty if unknown.
    """

    observations: Mapping[str, np.ndarray]
    actions: np.ndarray
    rewards: np.ndarray
    terminal: bool
    success: bool | None = None
    task: str = ""


class ReplayStore:
    """The files of a folder, by number; another process may add some meanwhile."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def path(self, number: int) -> Path:
        """The file of a number."""
        return self.folder / f"{number:06d}.h5"

    def numbers(self) -> list[int]:
        """The numbers of the files that exist, in order."""
        return sorted(int(path.stem) for path in self.folder.glob("*.h5") if _NAME.fullmatch(path.name))

    def append(
        self,
        episodes: Sequence[RecordedEpisode],
        attributes: Mapping[str, Any],
        number: int | None = None,
        *,
        beside: Mapping[str, np.ndarray] | None = None,
    ) -> Path:
        """Write episodes into a new file, numbered after the last one unless `number` is given; return its path.

        `attributes` are of the data set, e.g. `action_low`, `action_high` and `rendering`; `beside` as in
        `formats.native.write`.

        Raises:
            GtpVisionError: the store holds another task, a number is not finite, the disk is full.
        """
        held = self.numbers()
        target = self.path(held[-1] + 1 if held and number is None else number or 0)
        store = validate(store_of(episodes, attributes))
        if held and (fault := difference_of_tasks(self.open(held[0]), store)):
            raise GtpVisionError(
                f"{self.folder} is the replay store of another task: {fault}; choose another folder, or remove it"
            )
        return native.write(target, store, beside=beside)

    def open(self, number: int) -> Store:
        """The validated episodes of a file. Raises GtpVisionError: it is missing or damaged."""
        return validate(open_store(self.path(number)))

    def forget_from(self, number: int) -> None:
        """Remove the files from a number on: a run that is resumed records them again."""
        for held in self.numbers():
            if held >= number:
                self.path(held).unlink()


def store_of(episodes: Sequence[RecordedEpisode], attributes: Mapping[str, Any]) -> Store:
    """The episodes, one after another, as a store.

    An episode that did not end in a terminal has one more row: its last observation, with action 0 and a timeout.
    """
    rows = [len(episode.actions) + (not episode.terminal) for episode in episodes]
    ends = np.cumsum(rows, dtype=np.int64)

    def column(values: Sequence[np.ndarray], dtype: Any = None) -> np.ndarray:
        """Arrays of T or T + 1 rows each, cut or filled with zeros to the rows of their episodes."""
        joined = np.zeros((int(ends[-1]), *values[0].shape[1:]), dtype or values[0].dtype)
        for own, end, count in zip(values, ends, rows, strict=True):
            joined[end - count : end - count + min(count, len(own))] = own[:count]
        return joined

    terminals, timeouts = np.zeros((2, int(ends[-1])), np.uint8)
    for episode, end in zip(episodes, ends, strict=True):
        (terminals if episode.terminal else timeouts)[end - 1] = 1
    own = {name: value for name, value in attributes.items() if name not in EPISODE_ATTRIBUTES}
    return Store(
        observations={
            name: column([episode.observations[name] for episode in episodes]) for name in episodes[0].observations
        },
        actions=column([episode.actions for episode in episodes], np.float32),
        rewards=column([episode.rewards for episode in episodes], np.float32),
        terminals=terminals,
        timeouts=timeouts,
        episode_ends=ends,
        attributes=own
        | attributes_of([episode.success for episode in episodes], "episodes marked so")
        | tasks([episode.task for episode in episodes]),
    )
