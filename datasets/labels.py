"""Labels of episodes, in a JSON file beside the data and never in them: `DATA.labels.json` of a file or folder `DATA`.

    {"format": "gtp-vision labels", "version": 7,
     "episodes": {"3": {"success": true, "frame": 31, "content": HASH, "by": "keys", "time": ..., "version": 7}},
     "groups": {"helps": {"by": ..., "time": ..., "episodes": {"3": HASH}}}}

Episodes have the numbers of the file. `content` is a hash of an episode's actions, so that a changed file is noticed;
`version` counts the writes, and a label has that of its own. A label of `null` says that success is unknown, whatever
the file's own mark. Labels replace the recorder's marks of success (`datasets.success`), and groups become filters.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from gtp_vision.core.errors import GtpVisionError
from gtp_vision.core.files import LABELS as SUFFIX
from gtp_vision.core.files import atomic_write
from gtp_vision.core.locks import FileLock
from gtp_vision.core.safe_json import read_json
from gtp_vision.datasets.store import Store

_FORMAT = "gtp-vision labels"
_LARGEST = 1 << 40  # of a number of an episode, a frame or a version
_MAX_TEXT = 300


@dataclass(frozen=True)
class Label:
    """What is known about the success of an episode.

    Attributes:
        success: None says that it is unknown.
        frame: number of the episode's first frame that shows the success; None: its last one.
        content: hash of the episode, see `contents`.
        by: who or what set it: `keys`, `column NAME`, `pattern ...`, `classifier ...`.
        time: when, in UTC.
        version: of the file, when it was set.
        probability: of success, by a classifier.
    """

    success: bool | None
    frame: int | None = None
    content: str = ""
    by: str = ""
    time: str = ""
    version: int = 0
    probability: float | None = None

    def record(self) -> dict[str, Any]:
        """As JSON-able values."""
        values = asdict(self)
        return {name: value for name, value in values.items() if value is not None or name == "success"}


@dataclass(frozen=True)
class Group:
    """A named group of episodes, number to `contents`; `task.filter` takes it."""

    episodes: Mapping[int, str]
    by: str = ""
    time: str = ""


@dataclass(frozen=True)
class Labels:
    """The content of a file of labels."""

    version: int = 0
    episodes: Mapping[int, Label] = field(default_factory=dict)
    groups: Mapping[str, Group] = field(default_factory=dict)

    def of(self, store: Store) -> dict[int, Label]:
        """The labels that fit episodes of the data set, by their numbers."""
        held = dict(enumerate(contents(store)))
        return {number: label for number, label in self.episodes.items() if held.get(number) == label.content}


def labels_path(data: Path, chosen: Path | None = None) -> Path:
    """Return the file of labels of a data set: beside it, in the folder `chosen`, or the file `chosen`."""
    if chosen is not None and not chosen.is_dir():
        return chosen
    whole = Path(os.path.abspath(data))  # `.` has a name, and links keep theirs
    return (whole.parent if chosen is None else chosen) / (whole.name + SUFFIX)


def contents(store: Store) -> list[str]:
    """Return a hash of each episode: of its actions in the units of the file, which no cropping of frames changes."""
    actions = np.asarray(store.actions, np.float32)
    return [
        hashlib.blake2b(np.ascontiguousarray(actions[start:end]).tobytes(), digest_size=8).hexdigest()
        for start, end in zip(store.episode_starts, store.episode_ends, strict=True)
    ]


def read(path: Path) -> Labels:
    """Read a file of labels, empty if it is missing. Raises GtpVisionError: it is damaged, or something else."""
    if not path.exists():
        return Labels()
    stored = read_json(path, what="labels of episodes", advice="restore it, or remove it to label the episodes again")
    try:
        if stored["format"] != _FORMAT:
            raise ValueError(f"its format is {str(stored['format'])[:40]!a}")
        return Labels(
            _number(stored["version"]),
            {_number(int(name)): _label(label) for name, label in stored["episodes"].items()},
            {
                _text(name): Group(
                    {_number(int(key)): _text(content) for key, content in group["episodes"].items()},
                    _text(group["by"]),
                    _text(group["time"]),
                )
                for name, group in stored["groups"].items()
            },
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise GtpVisionError(
            f"{path} does not hold labels of episodes ({type(error).__name__}: {error}); restore it, or remove it to "
            f"label the episodes again"
        ) from error


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Let one process at a time change a file of labels. Raises GtpVisionError: it cannot be written."""
    try:
        with FileLock(path.with_name(f".{path.name}.lock"), f"writes {path}", waits=True):
            yield
    except OSError as error:
        raise GtpVisionError(
            f"{path} cannot be written ({error.strerror}); give --labels FILE for another place, and task.labels=FILE "
            f"to train with it"
        ) from error


def change(path: Path, changed: Callable[[Labels], Labels]) -> Labels:
    """Replace a file of labels by what `changed` makes of its content, and return that, with the next version.

    Processes change it one after another; a reader sees the file before or after a change.

    Raises:
        GtpVisionError: the file is damaged or cannot be written, or `changed` raises one.
    """
    with writing(path):
        before = read(path)
        after = replace(changed(before), version=before.version + 1)
        stored = {
            "format": _FORMAT,
            "version": after.version,
            "episodes": {str(number): label.record() for number, label in sorted(after.episodes.items())},
            "groups": {name: asdict(group) for name, group in after.groups.items()},
        }
        with atomic_write(path) as aside:
            aside.write_text(json.dumps(stored, indent=1), encoding="utf-8")
        return after


class ConflictError(GtpVisionError):
    """A label was set by somebody else since it was looked at; `label` is what it is now."""

    def __init__(self, number: int, label: Label) -> None:
        super().__init__(f"episode {number} was labelled meanwhile (by {label.by}); look at that label first")
        self.label = label


def set_labels(
    path: Path, store: Store, labels: Mapping[int, Label], by: str, seen: Mapping[int, int] | None = None
) -> Labels:
    """Label episodes of a data set, by number; other labels stay as they are.

    `seen` are versions of labels that the caller knows and replaces, 0 where it knows of none.

    Raises:
        GtpVisionError: as `change`; `ConflictError`, and nothing is set, if a label has another version than `seen`.
    """
    held, now = contents(store), _now()

    def changed(before: Labels) -> Labels:
        for number, version in (seen or {}).items():
            current = before.episodes.get(number)
            if current is not None and current.version != version:
                raise ConflictError(number, current)
        made = {
            number: replace(label, content=held[number], by=by, time=now, version=before.version + 1)
            for number, label in labels.items()
        }
        return replace(before, episodes={**before.episodes, **made})

    return change(path, changed)


def add_labels(path: Path, store: Store, labels: Mapping[int, Label], by: str) -> tuple[int, int]:
    """Label the episodes that have no label, or one by the same source; return how many, and how many have another.

    The source is the first word of `by`. Raises as `change`.
    """
    held = read(path).of(store)
    source = by.partition(" ")[0]
    free = {
        number: label
        for number, label in labels.items()
        if number not in held or held[number].by.partition(" ")[0] == source
    }
    set_labels(path, store, free, by)
    return len(free), len(labels) - len(free)


def set_group(path: Path, store: Store, name: str, episodes: list[int], by: str) -> Labels:
    """Name a group of episodes, by number, for `task.filter`; it replaces one of the same name. Raises as `change`."""
    held = contents(store)
    group = Group({number: held[number] for number in sorted(episodes)}, by, _now())
    return change(path, lambda before: replace(before, groups={**before.groups, name: group}))


def prune(path: Path, store: Store) -> int:
    """Remove labels of episodes that do not exist or have changed, also from groups; return how many."""
    held = dict(enumerate(contents(store)))
    dropped = 0

    def changed(before: Labels) -> Labels:
        nonlocal dropped
        kept = before.of(store)
        groups = {
            name: replace(group, episodes={n: x for n, x in group.episodes.items() if held.get(n) == x})
            for name, group in before.groups.items()
        }
        dropped = len(before.episodes) - len(kept)
        dropped += sum(len(group.episodes) - len(groups[name].episodes) for name, group in before.groups.items())
        return replace(before, episodes=kept, groups=groups)

    change(path, changed)
    return dropped


def _label(stored: Any) -> Label:
    success, frame, chance = stored["success"], stored.get("frame"), stored.get("probability")
    if success is not None and not isinstance(success, bool):
        raise ValueError("a success is neither true, false nor null")
    return Label(
        success,
        None if frame is None else _number(frame),
        _text(stored["content"]),
        _text(stored["by"]),
        _text(stored["time"]),
        _number(stored["version"]),
        None if chance is None else min(1.0, max(0.0, float(chance))),
    )


def _number(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < _LARGEST:
        raise ValueError(f"{str(value)[:20]!a} is not a number of an episode, a frame or a version")
    return value


def _text(value: Any) -> str:
    if not isinstance(value, str) or len(value) > _MAX_TEXT:
        raise ValueError(f"{str(value)[:20]!a} is not a short text")
    return value


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
