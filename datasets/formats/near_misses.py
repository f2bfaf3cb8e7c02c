"""Hints for files and folders of an unknown format: which format they resemble, and what to rename or name instead."""

from __future__ import annotations

import itertools
import os
import re
import tarfile
from collections.abc import Callable, Collection, Iterator
from pathlib import Path

import h5py

from gtp_vision.core import sandbox
from gtp_vision.core.files import is_clutter
from gtp_vision.datasets import hdf5, npz
from gtp_vision.datasets.formats import minari, native
from gtp_vision.datasets.formats.native_checks import FLAT

_OTHER_NAMES = {
    "actions": ("action", "acts"),
    "observations": ("obs", "observation", "states", "state", "images"),
    "next_observations": ("next_obs", "next_observation", "next_states", "next_state"),
    "rewards": ("reward", "rews"),
    "terminals": ("terminations", "terminated", "terminal", "dones", "done"),
    "timeouts": ("truncations", "truncated", "timeout"),
}
"""D4RL's names and others for the same, the likeliest first."""
_WANTED = {
    "rewards": "'rewards', of taking the row's action",
    "terminals": "'terminals', 1 where the MDP ended",
    "timeouts": "'timeouts', 1 in the last row of each other episode",
}
_FINAL = "an episode's last row is its final observation, with action 0, reward 0, terminal 0 and timeout 1"
_GUIDE = 'docs/data.md, "Recordings of other programs", has a script'
_STREAMS = {
    b"#ROSBAG ": "a ROS 1 bag",
    b"\x89MCAP0\r\n": "an MCAP file",
    b"SQLite f": "an SQLite file, as ROS 2 writes its bags",
}
"""How files of streams begin, in 8 bytes, to what they are."""
_BAG = b"rosbag2_bagfile_information"  # how the metadata.yaml of a ROS 2 bag begins
RLDS = (
    f"its rows are those of RLDS or DreamerV3 (is_first): {_FINAL}, and terminals[t] = is_terminal[t + 1]; of the "
    f"other rows RLDS keeps action and reward, and DreamerV3 has the reward of row t in reward[t + 1]: {_GUIDE}"
)
"""The hint about rows that may be RLDS's."""
_DM_ENV = (
    "its rows are those of dm_env (step_type, discount), where the action, reward and discount of a row led to it; "
    "call them observation, action, reward and discount, in flat arrays with step_type or in an npz for each episode: "
    "they are then moved up by one row when they are read"
)
_EPISODE = re.compile("(demo|episode|ep|traj|trajectory)_?[0-9]+")
_SNAPSHOTS = "snapshots"  # beside blobs, without names, and refs
_MAX_MEMBERS = 2000  # of a folder and its folders that are examined
_LEVELS = 3  # the depth at which Minari's root holds data sets
_MAX_NAMES = 6


def in_hdf5(file: h5py.File, path: Path) -> str | None:
    """Return a hint about an open HDF5 file of an unknown format; None if it resembles no format."""
    names = set(hdf5.children(file, path))
    numbered = next((name for name in sorted(names) if _EPISODE.fullmatch(name)), "")
    has_group = "observations" in names and isinstance(hdf5.member(file, "observations", path), h5py.Group)
    if (has_group and "actions" in names) or "episode_ends" in names:
        missing = [f"'{name}'" for name in FLAT if name not in names]
        add = f', and add {", ".join(missing)} (docs/data.md, "Your own arrays")' if missing else ""
        return (
            f"it looks like a gtp-vision file without its attribute 'format'; set "
            f"file.attrs.update(format='{native.FORMAT}', version={native.VERSION}){add}"
        )
    if numbered.startswith("demo_"):
        return f"it looks like a robomimic file without the group 'data'; move '{numbered}' and the others into it"
    if numbered.startswith("episode_") and _members(file, numbered, path) >= minari.MEMBERS:
        others = sorted(name for name in names if not _EPISODE.fullmatch(name))
        beside = f" with '{others[0][:40]}' beside its episodes; remove that" if others else ""
        return f"it looks like Minari's main_data.hdf5{beside}"
    if numbered:
        return _grouped(numbered, _members(file, numbered, path))
    if "data" in names and isinstance(data := hdf5.member(file, "data", path), h5py.Group):
        inside = next((name for name in hdf5.children(data, path) if _EPISODE.fullmatch(name)), "")
        if inside:
            return _grouped(f"data/{inside}", _members(data, inside, path))
    return in_arrays(names)


def in_bytes(start: bytes) -> str | None:
    """Return a hint about a file of an unknown format by its first bytes; None if they are of no format."""
    advice = "load it where it was written, and write its arrays by np.savez(path, **arrays)"
    if start.startswith(b"\x80") and start[1:2] in b"\x02\x03\x04\x05":
        return f"it is a pickle, which is not opened, since it may run a program; {advice}"
    if start.startswith(b"\x93NUMPY"):
        return f"it is one array of NumPy, or a pickled dict; {advice}"
    return None


def in_arrays(names: Collection[str]) -> str | None:
    """Return a hint about a file of arrays of an unknown format, by their names; None if it resembles no format."""
    names = set(names)
    if hint := other_rows(names):
        return hint
    if {"observations", "actions", "valids"} <= names:
        return "it looks like what OGBench's loader returns with compact_dataset; name the file that it loaded"
    renamed = {
        new: next((old for old in others if old in names), new) if new not in names else new
        for new, others in _OTHER_NAMES.items()
    }
    if not {renamed["actions"], renamed["observations"]} <= names:
        return None
    renamings = [f"'{old}' to '{new}'" for new, old in renamed.items() if new != old and old in names]
    absent = [name for name in _WANTED if renamed[name] not in names]
    missing = [_WANTED[name] for name in absent if name != "timeouts" or "terminals" in absent]
    steps = [f"rename {' and '.join(filter(None, [', '.join(renamings[:-1]), renamings[-1]]))}"] if renamings else []
    steps += [f"add {'; '.join(missing)}"] if missing else []
    what = "a D4RL file with other names" if renamings else "a D4RL file that is not complete"
    if renamed["terminals"] in ("done", "dones") and renamed["timeouts"] not in names:
        steps.append("but write 'timeouts' and not 'terminals' where only the recording stopped")
    return f"it looks like {what}; {', '.join(steps)}" if steps else None


def other_rows(names: Collection[str]) -> str | None:
    """Return the hint about rows that do not hold an observation and the action taken in it."""
    names = set(names)
    if {"is_first", "is_last"} & names:
        return RLDS
    is_dm_env = "step_type" in names or {"action", "discount"} <= names
    return _DM_ENV if is_dm_env and not {"next_observation", "next_observations"} & names else None


def of_streams(magic: bytes) -> str | None:
    """Return the hint about a recorder's streams, by the first 8 bytes of a file; None if it holds none."""
    return _of_bag(_STREAMS[magic]) if magic in _STREAMS else None


def of_archive(path: Path) -> str | None:
    """Return the hint about an archive, zip or tar; None if a file is none."""
    if npz.members(path) or tarfile.is_tarfile(path):
        return "it is an archive; unpack it, and name the data set in it"
    return None


def _begins_with(path: Path, content: bytes) -> bool:
    with path.open("rb") as file:
        return file.read(len(content)) == content


def _of_bag(what: str) -> str:
    return (
        f"it is {what}: streams with a rate of each, not rows; write them as rows with the script of docs/data.md, "
        f'"I have ROS bags or MCAP", which reads them by rosbags'
    )


def in_folder(path: Path, is_data_set: Callable[[Path], bool], hint_of: Callable[[Path], str | None]) -> str | None:
    """Return a hint about a folder that is not a data set; None if it neither holds nor resembles one.

    `is_data_set` says whether a path in it may be one, `hint_of` the hint about one that is of an unknown format.
    """
    of_minari = ("main_data.hdf5", "0/part-0.arrow", "0/part-0.parquet")
    if any((folder / name).is_file() for folder in (path, path / "data") for name in of_minari):
        return "it looks like a Minari data set without metadata.json; copy the whole folder"
    if not (path / "meta" / "info.json").is_file() and (
        any((path / "meta" / name).exists() for name in ("tasks.parquet", "stats.json", "episodes", "tasks.jsonl"))
        or next(itertools.islice(path.glob("data/chunk-*"), 1), None) is not None
    ):
        return "it looks like a LeRobot data set without meta/info.json; copy the whole folder, with meta"
    if (path / "metadata.yaml").is_file() and _begins_with(path / "metadata.yaml", _BAG):
        return _of_bag("a ROS 2 bag")
    if next(path.glob("*.tfrecord-*"), None) is not None:
        return "it looks like RLDS without features.json and dataset_info.json; copy the whole folder"
    if any((path / name).is_file() for name in (".zgroup", ".zarray", "zarr.json")):
        return (
            "it looks like zarr without the arrays of a replay buffer; write data/action and data/NAME, with a row a "
            "frame, and meta/episode_ends, the row after the last one of each episode"
        )
    found = list(itertools.islice(_data_sets(path, is_data_set, _LEVELS, itertools.count()), _MAX_NAMES + 1))
    if not found:
        return None
    if unknown := hint_of(found[0]):
        return f"in it lies {found[0].relative_to(path)}: {unknown}"
    named = ", ".join(str(inside.relative_to(path)) for inside in found[:_MAX_NAMES])
    named += ", ..." if len(found) > _MAX_NAMES else ""
    if len(found) == 1:
        return f"it holds one data set; name {found[0]}"
    return f"it holds several data sets; name one of them, e.g. {found[0]} (it holds {named})"


def _grouped(name: str, members: Collection[str]) -> str:
    return other_rows(members) or (
        f"it has a group per episode ('{name}'), as robomimic has; rename them to data/demo_0, data/demo_1, ... with "
        f"obs/NAME, actions, rewards and dones in each; where an episode has one observation more than actions, leave "
        f"the last one out of obs/NAME and the first one out of next_obs/NAME"
    )


def _members(file: h5py.File, name: str, path: Path) -> set[str]:
    found = hdf5.member(file, name, path)
    return set(hdf5.children(found, path)) if isinstance(found, h5py.Group) else set()


def _data_sets(
    folder: Path, is_data_set: Callable[[Path], bool], levels: int, counted: Iterator[int]
) -> Iterator[Path]:
    """Yield the data sets in a folder, by name; of a repository in the cache of the Hugging Face hub, its snapshots."""
    try:
        members = sorted(itertools.islice(os.scandir(folder), _MAX_MEMBERS), key=lambda member: member.name)
    except OSError:
        return
    is_hub = {_SNAPSHOTS, "blobs"} <= {member.name for member in members}
    for member in members:
        sandbox.heartbeat()
        if next(counted) >= _MAX_MEMBERS:
            return
        if is_clutter(member.name) or (is_hub and member.name != _SNAPSHOTS):
            continue
        inside = Path(member.path)
        is_folder = member.is_dir(follow_symlinks=False)
        if (is_folder or member.is_file()) and is_data_set(inside):
            yield inside
        elif is_folder and levels > 1:
            yield from _data_sets(inside, is_data_set, levels - (not is_hub and folder.name != _SNAPSHOTS), counted)
