"""Hints for files and folders of an unknown format: which format they resemble, and what to rename or name instead."""

from __future__ import annotations

import itertools
import os
import re
from collections.abc import Callable, Collection, Iterator
from pathlib import Path

import h5py

from gtp_vision.core import sandbox
from gtp_vision.core.files import is_clutter
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
_MAX_MEMBERS = 2000  # of a folder and its folders that are examined
_LEVELS = 3  # the depth at which Minari's root holds data sets
_MAX_NAMES = 6


def in_hdf5(file: h5py.File, path: Path) -> str | None:
    """Return a hint about an open HDF5 file of an unknown format; None if it resembles no format."""
    names = hdf5.children(file, path)
    numbered = next((name for name in names if _EPISODE.fullmatch(name)), "")
    has_group = "observations" in names and isinstance(hdf5.member(file, "observations", path), h5py.Group)
    if has_group and "action" in names:
        return (
            "it looks like an episode of ALOHA; write all episodes, one after another, into one gtp-vision file, with "
            "'action' as 'actions' and 'observations/images/NAME' as 'observations/NAME' (docs/data.md)"
        )
    if (has_group and "actions" in names) or "episode_ends" in names:
        return (
            f"it looks like a gtp-vision file without its attribute 'format'; set "
            f"file.attrs.update(format='{native.FORMAT}', version={native.VERSION})"
        )
    if numbered.startswith("demo_"):
        return f"it looks like a robomimic file without the group 'data'; move '{numbered}' and the others into it"
    if numbered.startswith("episode_") and {"action", "actions"} & _members(file, numbered, path):
        others = [name for name in names if not _EPISODE.fullmatch(name)]
        beside = f" with '{others[0][:40]}' beside its episodes; remove that" if others else ""
        return f"it looks like Minari's main_data.hdf5{beside}"
    if numbered:
        return _grouped(f"'{numbered}'")
    if "data" in names and isinstance(data := hdf5.member(file, "data", path), h5py.Group):
        inside = next((name for name in hdf5.children(data, path) if _EPISODE.fullmatch(name)), "")
        if inside:
            return _grouped(f"'data/{inside}'")
    return _renamed(names)


def in_folder(path: Path, is_data_set: Callable[[Path], bool]) -> str | None:
    """Return a hint about a folder that is not a data set; None if it neither holds nor resembles one."""
    if (path / "data" / "main_data.hdf5").is_file() or (path / "main_data.hdf5").is_file():
        return "it looks like a Minari data set without metadata.json; copy the whole folder"
    if not (path / "meta" / "info.json").is_file() and (
        any((path / "meta" / name).exists() for name in ("tasks.parquet", "stats.json", "episodes", "tasks.jsonl"))
        or next(itertools.islice(path.glob("data/chunk-*"), 1), None) is not None
    ):
        return "it looks like a LeRobot data set without meta/info.json; copy the whole folder, with meta"
    found = list(itertools.islice(_data_sets(path, is_data_set, _LEVELS, itertools.count()), _MAX_NAMES + 1))
    if not found:
        return None
    named = ", ".join(str(inside.relative_to(path)) for inside in found[:_MAX_NAMES])
    named += ", ..." if len(found) > _MAX_NAMES else ""
    if len(found) == 1:
        return f"it holds one data set; name {found[0]}"
    return f"it holds several data sets; name one of them, e.g. {found[0]} (it holds {named})"


def _grouped(name: str) -> str:
    return (
        f"it has a group per episode ({name}), as robomimic has; rename them to data/demo_0, data/demo_1, ... with "
        f"obs/NAME, actions, rewards and dones in each"
    )


def _renamed(names: Collection[str]) -> str | None:
    """Return what to rename in a file of flat arrays under other names."""
    wanted = {old: new for old, new in _OTHER_NAMES.items() if old in names and new not in names}
    first = {new: old for old, new in reversed(wanted.items())}  # of several old names, the likeliest
    if not {"actions", "observations"} <= {*first, *names} or not first:
        return None
    *before, last = [f"'{old}' to '{new}'" for new, old in reversed(first.items())]
    renaming = f"{', '.join(before)} and {last}" if before else last
    missing = [name for name in ("rewards", "terminals") if name not in {*first, *names}]
    more = f", and add {' and '.join(repr(name) for name in missing)}" if missing else ""
    return f"it looks like a D4RL file with other names; rename {renaming}{more}"


def _members(file: h5py.File, name: str, path: Path) -> set[str]:
    found = hdf5.member(file, name, path)
    return set(hdf5.children(found, path)) if isinstance(found, h5py.Group) else set()


def _data_sets(
    folder: Path, is_data_set: Callable[[Path], bool], levels: int, counted: Iterator[int]
) -> Iterator[Path]:
    """Yield the data sets in a folder, by name."""
    try:
        members = sorted(itertools.islice(os.scandir(folder), _MAX_MEMBERS), key=lambda member: member.name)
    except OSError:
        return
    for member in members:
        sandbox.heartbeat()
        if next(counted) >= _MAX_MEMBERS:
            return
        if is_clutter(member.name):
            continue
        inside = Path(member.path)
        is_folder = member.is_dir(follow_symlinks=False)
        if (is_folder or member.is_file()) and is_data_set(inside):
            yield inside
        elif is_folder and levels > 1:
            yield from _data_sets(inside, is_data_set, levels - 1, counted)
