"""Labels from what the data say about themselves: a column or attribute, or names of files."""

from __future__ import annotations

from collections.abc import Mapping
from fnmatch import fnmatchcase
from pathlib import Path

from gtp_vision.core import sandbox
from gtp_vision.core.errors import GtpVisionError
from gtp_vision.core.success import KEYS
from gtp_vision.datasets.formats import detect, episodes, open_store
from gtp_vision.datasets.labels import Label
from gtp_vision.datasets.names import Names
from gtp_vision.datasets.store import Store
from gtp_vision.datasets.success import marks_of

_SUFFIXES = (".hdf5", ".h5", ".npz", ".npy", ".tfrecord")


def by_column(path: Path, env: str | None, features: Names | None, column: str) -> dict[int, Label]:
    """Return labels by what a data set calls `column`: an array, a column or an attribute, of rows or of episodes.

    It is read as marks of recorders are: a flag, a number above 0.5 or a text, true in any row.

    Raises:
        GtpVisionError: the data set has none, or nothing in it can be read as a mark.
    """
    if detect(path, features) == "lerobot":
        marks = sandbox.call("gtp_vision.datasets.formats.lerobot_marks:marks", path, column)
    else:
        chosen = {**(features or {}), **dict.fromkeys(KEYS, column)}
        marks = marks_of(open_store(path, env, chosen, labels=False))
    if all(mark is None for mark in marks):
        raise GtpVisionError(f"{path} has no column, array or attribute '{column}' with marks of success; check --by")
    return {number: Label(mark) for number, mark in enumerate(marks) if mark is not None}


def by_pattern(store: Store, path: Path, patterns: Mapping[bool, str]) -> dict[int, Label]:
    """Return labels by the names of the episodes' files, or of demonstrations; True and False to a pattern with `*`.

    Of a data set in one file, whose episodes have no names, the file's own name is that of each.

    Raises:
        GtpVisionError: a name fits both patterns, or none fits any.
    """
    found: dict[int, Label] = {}
    names = episode_names(store, path)
    for number, name in enumerate(names):
        fits = [mark for mark, pattern in patterns.items() if fnmatchcase(name, pattern)]
        if len(fits) > 1:
            raise GtpVisionError(f"'{name}' fits the patterns of success and of failure; make them exclude each other")
        if fits:
            found[number] = Label(fits[0])
    if not found:
        raise GtpVisionError(
            f"no name of an episode of {path} fits {' or '.join(map(repr, patterns.values()))}; the first is "
            f"'{names[0]}'"
        )
    return found


def episode_names(store: Store, path: Path) -> list[str]:
    """Return a name of each episode: of its file in a folder, of the demonstration, or of the data set's only file."""
    for suffix in _SUFFIXES:
        if len(files := episodes.files_in(path, suffix)) == store.episodes:
            return [file.name for file in files]
    named = store.attributes.get("demonstrations")
    if isinstance(named, list) and len(named) == store.episodes:
        return [str(name) for name in named]
    return [path.name] * store.episodes
