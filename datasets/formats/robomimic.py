"""robomimic's HDF5: a group per demonstration, with the observations before and after every action.

    /data                      attributes env_args (JSON), total
    /data/demo_<i>             attribute num_samples = N
        actions                (N, A)
        rewards dones          (N,)
        obs/<key>              (N, ...) before each action; pictures are uint8 (N, H, W, C); a key may be a group
        next_obs/<key>         (N, ...) after each action; may be missing
        states                 (N, D) of the simulator; not an observation, see `snapshots`
    /mask/<filter>             names of demonstrations

`dones` are terminals, as robomimic's own algorithms use them: no value is taken from beyond such a row. The store
holds every frame once: `next_obs` is the following row of `obs`, except its last row. That one, the observation after
the last action, becomes an additional row, a timeout. A demonstration without `next_obs` (of all its keys), or whose
attribute `final_observation_recorded` is 0, has no such row: its last action has no outcome unless it is done. Missing
`rewards` are 0, missing `dones` are 0. Success is what a demonstration's attribute or array `success` (or `is_success`)
says, else the filters `success` and `failed`, else a reward of 1. Demonstrations are in the order of their numbers; if
these are not 0, 1, ..., the attribute `demonstrations` holds their names, which the writer uses again.

Files of other programs with the same layout:

    Isaac Lab (Mimic)  observations in nested groups, whose names are joined by `_`; `obs/datagen_info`, which its
                       generator needs and no policy has (object poses, targets, signals of subtasks), is left out
    LIBERO             `problem_info` of /data holds the instruction; `macros_image_convention` "opengl" says that
                       images have their lowest row first (`IMAGE_CONVENTION` of robosuite, scripts/create_dataset.py):
                       they are turned upright, and the attribute `turned_upright` names them. Its rows are paired as
                       LIBERO's own training pairs them, though its script recorded each observation after the action
    RoboCasa           the JSON attribute `ep_meta` of a demonstration holds its instruction as `lang`

A store's attributes are JSON in the attribute `gtp_vision` of /data. Files of other writers get `suite`, `source`,
`env`, `env_args`, `rendering`, and both get `filters`: name to numbers of episodes.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from gtp_vision.core import sandbox
from gtp_vision.core.errors import GtpVisionError
from gtp_vision.core.files import atomic_write
from gtp_vision.core.progress import Progress
from gtp_vision.datasets import hdf5
from gtp_vision.datasets.arrays import Array, Segmented, view
from gtp_vision.datasets.formats import episodes
from gtp_vision.datasets.formats.format import Format, Snapshots, units_notes
from gtp_vision.datasets.layout import PROGRESS_BYTES, FileArrays, Layout, check_filters, row_ranges
from gtp_vision.datasets.store import Store
from gtp_vision.datasets.success import MARKS, attributes_of, episodes_with, rate, unknown
from gtp_vision.datasets.unpacking import through_cache

_PREFIX = "demo_"
_GYM = 2  # robomimic's number of the environment type, for stores that do not hold one
_NAMES = "demonstrations"
_FINAL = "final_observation_recorded"
_CONVENTION = "macros_image_convention"
_UNREAD = ("datagen_info",)


def recognises(file: h5py.File, path: Path) -> bool:
    """Whether an open HDF5 file holds demonstrations."""
    if "data" not in hdf5.children(file, path):
        return False
    data = hdf5.member(file, "data", path)
    return isinstance(data, h5py.Group) and any(name.startswith(_PREFIX) for name in hdf5.children(data, path))


def layout(path: Path) -> Layout:
    """Return the layout of a robomimic file: large contiguous cameras in place, all else in the cache.

    Raises:
        GtpVisionError: damage, missing arrays or ones of a wrong type, lengths that disagree, two demonstrations of the
            same number, a filter that names an unknown demonstration.
    """
    return through_cache(path, lambda: _opened(path), "robomimic")


def snapshots(path: Path, numbers: Sequence[int]) -> list[dict[str, Any]]:
    """Return `states` and `model_file` of some demonstrations; empty if one has no states."""
    found = []
    with hdf5.open_file(path) as file:
        data = hdf5.group(file, "data", path)
        demos = episodes.numbered_members(data, _PREFIX, path)
        for number in numbers:
            demo = hdf5.group(data, demos[number], path)
            if "states" not in hdf5.children(demo, path):
                return []
            states = hdf5.array(demo, "states", path, kinds="f", ndim=2)
            rows = episodes.read_rows(states, 0, states.shape[0], path)
            found.append(Snapshots({"states": rows}, hdf5.text_attribute(demo, "model_file", path, "") or "").record())
            sandbox.heartbeat()
    return found


def write(path: Path, store: Store) -> Path:
    """Write a store as a file that robomimic's own `SequenceDataset` reads, with `next_obs` and the filters.

    If the last row of an episode has no outcome, its observation becomes the last `next_obs`, and its action and reward
    are dropped. If it is a terminal, no later observation is recorded: the last frame is repeated, and
    `final_observation_recorded` is 0. Raises GtpVisionError: an episode without an outcome, or filters that name
    unknown episodes.
    """
    outcome, demos = store.has_outcome, _numbers(store)
    filters = _checked_filters(store)
    for episode, (start, stop) in enumerate(zip(store.episode_starts, store.episode_ends, strict=True)):
        if stop - start == 1 and not outcome[start]:
            raise GtpVisionError(
                f"{store.path or 'data set'}: episode {episode} has one frame and no outcome, which robomimic's format "
                f"cannot hold; convert it to native instead"
            )
    attributes = {name: value for name, value in store.attributes.items() if name != "filters"}
    with atomic_write(path) as temporary, h5py.File(temporary, "w") as file:
        data = file.create_group("data")
        data.attrs["env_args"] = json.dumps(_env_args(store.attributes), indent=4)
        data.attrs["gtp_vision"] = json.dumps(attributes)
        data.attrs["total"] = len(store.transitions)
        for number in Progress(
            range(store.episodes), desc=f"writing {path.name}", disable=store.nbytes() < PROGRESS_BYTES
        ):
            start, stop = int(store.episode_starts[number]), int(store.episode_ends[number])
            steps = stop - start - (not outcome[stop - 1])
            kept = slice(start, start + steps)
            write_demo(
                data,
                demos[number],
                obs={name: view(array, start, start + steps) for name, array in store.observations.items()},
                next_obs={name: _later(array, start, stop, steps) for name, array in store.observations.items()},
                actions=np.asarray(store.actions[kept]),
                rewards=np.asarray(store.rewards[kept]),
                dones=np.asarray(store.terminals[kept]),
                attributes={_FINAL: 0} if outcome[stop - 1] else None,
            )
        for name, numbers in filters.items():
            file[f"mask/{name}"] = np.array(_numbered(demos[number] for number in numbers), dtype="S")
    return path


def write_demo(
    data: h5py.Group,
    number: int,
    *,
    obs: Mapping[str, Array],
    next_obs: Mapping[str, Array],
    actions: np.ndarray,
    rewards: np.ndarray,
    dones: np.ndarray,
    states: np.ndarray | None = None,
    model_file: str | None = None,
    attributes: Mapping[str, Any] | None = None,
) -> h5py.Group:
    """Write one demonstration of N steps as robomimic's own scripts do, and return its group.

    Arrays are contiguous and uncompressed: `obs` before and `next_obs` after each action, by key; actions (N, A),
    rewards (N,), dones (N,), not 0 where the MDP ended, and the simulator's states (N, D) and XML.
    """
    demo = data.create_group(f"{_PREFIX}{number}")
    demo["actions"] = np.asarray(actions, np.float32)
    demo["rewards"] = np.asarray(rewards, np.float32)
    demo["dones"] = (np.asarray(dones) != 0).astype(np.int64)
    if states is not None:
        demo["states"] = np.asarray(states)
    for group, observations in (("obs", obs), ("next_obs", next_obs)):
        for name, frames in observations.items():
            target = demo.create_dataset(f"{group}/{name}", frames.shape, frames.dtype)
            for start, stop in row_ranges(frames):
                target[start:stop] = frames[start:stop]
    demo.attrs["num_samples"] = len(actions)
    if model_file is not None:
        demo.attrs["model_file"] = model_file
    demo.attrs.update(attributes or {})
    return demo


def _later(array: Array, start: int, stop: int, steps: int) -> Array:
    """Return the frames after each of an episode's first `steps` rows; a missing last one is repeated."""
    later = view(array, start + 1, stop)
    return later if len(later) == steps else Segmented([later, view(array, stop - 1, stop)])


@contextmanager
def _opened(path: Path) -> Iterator[FileArrays]:
    with hdf5.open_file(path) as file:
        data = hdf5.group(file, "data", path)
        demos = episodes.numbered_members(data, _PREFIX, path)
        if not demos:
            raise GtpVisionError(f"{path} has no demonstration ('data/{_PREFIX}0' and so on); write the file again")
        recording = episodes.Recording(path)
        is_upside_down = hdf5.text_attribute(data, _CONVENTION, path) == "opengl"
        omitted: dict[str, list[str]] = {}
        marks: list[bool | None] = []
        instructions: list[str] = []
        common = _instruction(data, "problem_info", "language_instruction", path)
        for name in demos:
            demo = hdf5.group(data, name, path)
            omitted = _add(recording, demo, path, is_upside_down)
            marks.append(episodes.mark(demo, path))
            instructions.append(_instruction(demo, "ep_meta", "lang", path) or common)
            sandbox.heartbeat()
        attributes = _attributes(file, data, demos, path) | omitted | episodes.tasks(instructions)
        if MARKS not in attributes:
            attributes |= _marks(marks, attributes.get("filters", {}))
        yield recording.file_arrays(attributes)


def _marks(marks: list[bool | None], filters: dict[str, list[int]]) -> dict[str, Any]:
    """Return the attributes of marks of demonstrations, or of the filters `success` and `failed`."""
    if found := attributes_of(marks, "demonstrations marked so", filters):
        return found
    if "success" not in filters:
        return {}
    failed = filters.get("failed", range(len(marks)))
    marks = [True if n in filters["success"] else False if n in failed else None for n in range(len(marks))]
    return attributes_of(marks, "demonstrations in the filter 'success'", filters)


def _instruction(node: h5py.Group, attribute: str, key: str, path: Path) -> str:
    """Return the text under a key of a JSON attribute; LIBERO also has a list of its characters."""
    held = hdf5.json_attribute(node, attribute, path).get(key, "")
    return "".join(map(str, held)) if isinstance(held, list) else str(held)


def _add(recording: episodes.Recording, demo: h5py.Group, path: Path, is_upside_down: bool) -> dict[str, list[str]]:
    """Add a demonstration and return the attributes `left_out` and `turned_upright`."""
    full_name = demo.name.lstrip("/")
    members = episodes.member_names(demo, path)
    actions = episodes.matrix(demo, "actions", path, kinds="fiu")
    count = len(actions)
    _check_samples(demo, count, path)
    if "obs" not in members:
        is_raw = hdf5.text_attribute(demo.parent, "env_args", path) is None  # as robosuite records it
        first = "conversion/convert_robosuite.py and then " if is_raw else ""
        raise GtpVisionError(
            f"{path}: '{full_name}' has no 'obs', only states of the simulator; run robomimic's {first}"
            f"dataset_states_to_obs.py on the file"
        )
    obs = hdf5.group(demo, "obs", path)
    found = episodes.observations(obs, path, count, unread=_UNREAD) if count else {}
    pieces = {name: [piece] for name, piece in episodes.usable(found, full_name, path).items()} if count else {}
    if "next_obs" in members and count and hdf5.text_attribute(demo, _FINAL, path, "1") != "0":
        later = episodes.observations(hdf5.group(demo, "next_obs", path), path, count, unread=_UNREAD)
        if pieces.keys() <= later.keys():
            for name, last in later.items():
                if last is not None and name in pieces:
                    pieces[name].append(episodes.last_row(last))
    turned = []
    if is_upside_down:
        turned = [name for name, (piece, *_) in pieces.items() if len(piece.shape) == 3]
        pieces |= {name: [episodes.upside_down(piece) for piece in pieces[name]] for name in turned}
    zeros = np.zeros(count, np.float32)
    recording.add(
        full_name,
        pieces,
        actions,
        episodes.column(demo, "rewards", path, count) if "rewards" in members else zeros,
        episodes.flags(demo, "dones", path, count) if "dones" in members else zeros != 0,
    )
    return episodes.left_out(found) | ({"turned_upright": turned} if turned else {})


def _check_samples(demo: h5py.Group, count: int, path: Path) -> None:
    declared = hdf5.text_attribute(demo, "num_samples", path)
    if declared is not None and declared.removesuffix(".0") != str(count):
        raise GtpVisionError(
            f"{path}: '{demo.name.lstrip('/')}' has {count} actions, but num_samples says {declared[:20]!r}; "
            f"write the file again"
        )


def _attributes(file: h5py.File, data: h5py.Group, demos: Sequence[str], path: Path) -> dict[str, Any]:
    env_args = hdf5.json_attribute(data, "env_args", path)
    ours = hdf5.json_attribute(data, "gtp_vision", path)
    for name in ("filters", _NAMES):
        ours.pop(name, None)  # the file itself says it
    theirs = {
        "suite": "robomimic",
        "source": path.name,
        "env": str(env_args.get("env_name", "")),
        "env_args": env_args,
        "rendering": {},
    }
    filters = _filters(file, demos, path)
    names = {} if list(demos) == _numbered(range(len(demos))) else {_NAMES: list(demos)}
    return theirs | ours | names | ({"filters": filters} if filters else {})


def _numbered(numbers: Iterable[int]) -> list[str]:
    return [f"{_PREFIX}{number}" for number in numbers]


def _numbers(store: Store) -> list[int]:
    """Return the numbers of the demonstrations to be written: of those that the store was read from, else 0, 1, ..."""
    names = store.attributes.get(_NAMES)
    if isinstance(names, list) and len(names) == store.episodes:
        found = [re.fullmatch(f"{_PREFIX}([0-9]{{1,18}})", str(name)) for name in names]
        numbers = [int(match[1]) for match in found if match]
        if numbers == sorted(set(numbers)) and len(numbers) == store.episodes:
            return numbers
    return list(range(store.episodes))


def _filters(file: h5py.File, demos: Sequence[str], path: Path) -> dict[str, list[int]]:
    """Return the numbers of the episodes of each filter."""
    if "mask" not in hdf5.children(file, path):
        return {}
    masks = hdf5.group(file, "mask", path)
    numbers = {name: number for number, name in enumerate(demos)}
    found: dict[str, list[int]] = {}
    for key in episodes.member_names(masks, path):
        data = hdf5.array(masks, key, path, kinds="SO", ndim=1)
        if data.dtype.kind == "O" and h5py.check_string_dtype(data.dtype) is None:
            raise GtpVisionError(f"{path}: 'mask/{key}' does not hold names of demonstrations; write it again")
        named = [hdf5.text(name) for name in episodes.read_rows(data, 0, data.shape[0], path)]
        for name in named:
            if name not in numbers:
                raise GtpVisionError(
                    f"{path}: 'mask/{key}' names {name[:40]!a}, which is not a demonstration; correct it"
                )
        found[key] = [numbers[name] for name in named]
    return found


def _env_args(attributes: Mapping[str, Any]) -> dict[str, Any]:
    """Return robomimic's description of the environment."""
    known = attributes.get("env_args")
    if isinstance(known, Mapping) and known:
        return dict(known)
    return {"env_name": str(attributes.get("env", "")), "type": _GYM, "env_kwargs": {}}


def _checked_filters(store: Store) -> dict[str, list[int]]:
    check_filters(store)
    filters = store.attributes.get("filters", {})
    place = store.path or "data set"
    for name in filters:
        if "/" in episodes.check_name(name, place):
            raise GtpVisionError(f"{place}: the filter '{name}' cannot be written; give it a plain name")
    return dict(filters)


def _notes(store: Store) -> list[str]:
    name = str(store.attributes.get("env", ""))[:80]
    made_up = f"env_args are made up (env_name {name!r}), so robomimic cannot evaluate by them"
    ended = int(np.count_nonzero(store.has_outcome[store.episode_ends - 1]))
    repeated = (
        f"the last next_obs of {ended} episodes that end in a terminal was not recorded, and repeats their last frame"
    )
    return [
        *units_notes(store),
        *([] if store.attributes.get("env_args") else [made_up]),
        *([repeated] if ended else []),
    ]


def _success(store: Store) -> dict[str, Any]:
    rewards = np.asarray(store.rewards)
    if not rewards.any():
        return unknown("robomimic marks success with a reward of 1, and this file has no rewards (0 everywhere)")
    if not np.isin(rewards, (0, 1)).all():
        return unknown("robomimic marks success with a reward of 1, and these rewards are not 0 and 1")
    return rate(episodes_with(store, rewards == 1), store.episodes, "episodes with a reward of 1")


ROBOMIMIC = Format(
    "robomimic",
    "robomimic HDF5",
    lambda path, _: layout(path),
    hdf5=recognises,
    write=write,
    snapshots=snapshots,
    success=_success,
    notes=_notes,
)
