"""What a file or folder of no known format nearly is, and what to rename, write or name instead."""

from __future__ import annotations

import itertools
import os
import re
from collections.abc import Callable, Collection, Iterator
from pathlib import Path

import h5py

from gtp_vision.core import sandbox
from gtp_vision.datasets import hdf5
from gtp_vision.datasets.formats import native

_OTHER_NAMES = {
    "action": "actions",
    "acts": "actions",
    "obs": "observations",
    "observation": "observations",
    "states": "observations",
    "state": "observations",
    "images": "observations",
    "reward": "rewards",
    "rews": "rewards",
    "done": "terminals",
    "dones": "terminals",
    "terminal": "terminals",
    "terminations": "terminals",
    "timeout": "timeouts",
    "truncated": "timeouts",
    "truncations": "timeouts",
}
_EPISODE = re.compile("(demo|episode|ep|traj|trajectory)_?[0-9]+")
_LOOKED_AT = 2000  # members of a folder and its folders
_LEVELS = 3  # as deep as Minari's root holds data sets
_NAMED = 6


def in_hdf5(file: h5py.File, path: Path) -> str | None:
    """A clause about an open HDF5 file of no known format; None if it resembles none.

    Raises:
        GtpVisionError: it is damaged, or what matters in it is a link.
    """
    names = hdf5.children(file, path)
    numbered = next((name for name in names if _EPISODE.fullmatch(name)), "")
    grouped = "observations" in names and isinstance(hdf5.child(file, "observations", path), h5py.Group)
    if grouped and "action" in names:
        return (
            "it looks like one episode of ALOHA's; write all episodes, one after another, into one gtp-vision file, "
            "with 'action' as 'actions' and 'observations/images/NAME' as 'observations/NAME' (docs/data.md)"
        )
    if (grouped and "actions" in names) or "episode_ends" in names:
        return (
            f"it looks like a gtp-vision file without its attribute 'format'; set "
            f"file.attrs.update(format='{native.FORMAT}', version={native.VERSION})"
        )
    if numbered.startswith("demo_"):
        return f"it looks like robomimic's without the group 'data'; move '{numbered}' and the others into it"
    if numbered.startswith("episode_") and {"action", "actions"} & _members(file, numbered, path):
        others = [name for name in names if not _EPISODE.fullmatch(name)]
        beside = f" with '{others[0][:40]}' beside its episodes; remove that" if others else ""
        return f"it looks like Minari's main_data.hdf5{beside}"
    if numbered:
        return _grouped(f"'{numbered}'")
    if "data" in names and isinstance(data := hdf5.child(file, "data", path), h5py.Group):
        inside = next((name for name in hdf5.children(data, path) if _EPISODE.fullmatch(name)), "")
        if inside:
            return _grouped(f"'data/{inside}'")
    return _renamed(names)


def in_folder(path: Path, is_data_set: Callable[[Path], bool]) -> str | None:
    """A clause about a folder that is not a data set; None if it neither holds nor resembles one.

    Args:
        path: the folder.
        is_data_set: whether a path below it is a data set of a known format.
    """
    if (path / "data" / "main_data.hdf5").is_file() or (path / "main_data.hdf5").is_file():
        return "it looks like Minari's without metadata.json; copy the whole folder"
    if not (path / "meta" / "info.json").is_file() and (
        any((path / "meta" / name).exists() for name in ("tasks.parquet", "stats.json", "episodes", "tasks.jsonl"))
        or next(itertools.islice(path.glob("data/chunk-*"), 1), None) is not None
    ):
        return "it looks like LeRobot's without meta/info.json; copy the whole folder, with meta"
    found = list(itertools.islice(_data_sets(path, is_data_set, _LEVELS, itertools.count()), _NAMED + 1))
    if not found:
        return None
    named = ", ".join(str(inside.relative_to(path)) for inside in found[:_NAMED])
    named += ", ..." if len(found) > _NAMED else ""
    if len(found) == 1:
        return f"it holds one data set; name {found[0]}"
    return f"it holds several data sets; name one of them, e.g. {found[0]} (it holds {named})"


def _grouped(name: str) -> str:
    return (
        f"it has a group an episode ({name}), as robomimic's has; rename them to data/demo_0, data/demo_1, ... with "
        f"obs/NAME, actions, rewards and dones in each"
    )


def _renamed(names: Collection[str]) -> str | None:
    """What to rename in a file of flat arrays under other names."""
    wanted = {old: new for old, new in _OTHER_NAMES.items() if old in names and new not in names}
    first = {new: old for old, new in reversed(wanted.items())}  # of several for one, the likeliest
    if not {"actions", "observations"} <= {*first, *names} or not first:
        return None
    *before, last = [f"'{old}' to '{new}'" for new, old in reversed(first.items())]
    renaming = f"{', '.join(before)} and {last}" if before else last
    missing = [name for name in ("rewards", "terminals") if name not in {*first, *names}]
    more = f", and add {' and '.join(repr(name) for name in missing)}" if missing else ""
    return f"it looks like D4RL's under other names; rename {renaming}{more}"


def _members(file: h5py.File, name: str, path: Path) -> set[str]:
    found = hdf5.child(file, name, path)
    return set(hdf5.children(found, path)) if isinstance(found, h5py.Group) else set()


def _data_sets(
    folder: Path, is_data_set: Callable[[Path], bool], levels: int, counted: Iterator[int]
) -> Iterator[Path]:
    """Data sets in a folder, by name; a folder that is one is not looked into."""
    try:
        members = sorted(itertools.islice(os.scandir(folder), _LOOKED_AT), key=lambda member: member.name)
    except OSError:
        return
    for member in members:
        sandbox.alive()
        if next(counted) >= _LOOKED_AT:
            return
        inside = Path(member.path)
        is_folder = member.is_dir(follow_symlinks=False)
        if (is_folder or member.is_file()) and is_data_set(inside):
            yield inside
        elif is_folder and levels > 1:
            yield from _data_sets(inside, is_data_set, levels - 1, counted)
