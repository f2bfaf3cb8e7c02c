"""A data set with the labels of its episodes: as marks of success, as filters, and with who set them."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from gtp_vision.core.errors import GtpVisionError
from gtp_vision.datasets.labels import Labels, contents, labels_path, read
from gtp_vision.datasets.store import LABELS, Store
from gtp_vision.datasets.success import FRAMES, MARKS, WORDS, marks_of


def labelled(store: Store, data: Path, chosen: Path | None = None) -> Store:
    """Return a data set just opened from `data` with its labels, if there are any; `chosen` as in `labels_path`.

    Labels replace marks of the recorder. Groups, `success`, `failed` and, where some episodes are not labelled,
    `labelled` are filters.

    Raises:
        GtpVisionError: the chosen file is missing; labels of episodes that do not exist or have changed, or of another
            data set.
    """
    if chosen is not None and not chosen.exists():
        raise GtpVisionError(f"{chosen}, named as the labels of {data}, does not exist; check the path")
    path = labels_path(data, chosen)
    if not path.exists():
        return store
    found = read(path)
    _check(found, store, path, data)
    marks = marks_of(store)
    frames: list[int | None] = [None] * store.episodes
    for number, label in found.episodes.items():
        marks[number], frames[number] = label.success, label.frame
    known = [episode for episode, mark in enumerate(marks) if mark is not None]
    groups = {name: list(group.episodes) for name, group in found.groups.items()}
    groups |= {"success": [n for n in known if marks[n]], "failed": [n for n in known if not marks[n]]}
    groups |= {"labelled": known if len(known) < store.episodes else []}
    filters = {**(store.attributes.get("filters") or {}), **groups}
    by = Counter(label.by for label in found.episodes.values() if label.success is not None)
    about: dict[str, Any] = {name: len(groups[name]) for name in ("success", "failed")}
    about |= {"unlabelled": store.episodes - len(known), "by": dict(by.most_common())}
    attributes = {name: value for name, value in store.attributes.items() if name not in (MARKS, WORDS, FRAMES)}
    attributes |= {"filters": {name: kept for name, kept in filters.items() if kept}, LABELS: {data.name: about}}
    if known:
        attributes |= {MARKS: marks, WORDS: "episodes labelled so"}
    if any(frame is not None for frame in frames):
        attributes[FRAMES] = frames
    return replace(store, attributes=attributes)


def _check(found: Labels, store: Store, path: Path, data: Path) -> None:
    held = contents(store)
    named = {number: label.content for number, label in found.episodes.items()}
    named = {n: content for group in found.groups.values() for n, content in group.episodes.items()} | named
    missing = sorted(number for number in named if number >= store.episodes)
    changed = sorted(number for number in named if number < store.episodes and held[number] != named[number])
    lengths = np.diff(store.episode_ends, prepend=0)
    for number, label in found.episodes.items() if not missing and not changed else ():
        if label.frame is not None and label.frame >= lengths[number]:
            raise GtpVisionError(
                f"{path} marks frame {label.frame} of episode {number}, which has {lengths[number]}; label it again: "
                f"gtp-vision data label {data}"
            )
    if not missing and not changed:
        return
    if len(missing) + len(changed) == len(named) > 1:
        raise GtpVisionError(
            f"{path} is of another data set: none of its {len(named)} labels fits {data}; move it away, or give the "
            f"right one as task.labels (--labels)"
        )
    parts = [
        f"{len(missing)} episodes that do not exist (first {missing[0]}, of {store.episodes})" if missing else "",
        f"{len(changed)} episodes that have changed (first {changed[0]})" if changed else "",
    ]
    raise GtpVisionError(
        f"{path} holds labels of {' and of '.join(filter(None, parts))} in {data}; remove them: gtp-vision data label "
        f"{data} --prune"
    )
