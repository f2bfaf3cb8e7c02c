"""ManiSkill's trajectories: an HDF5 file of its recorder, with a JSON file of the same name beside it.

    /traj_<i>
        obs                              T + 1 rows: nested groups, or one array of states; empty if not recorded
        actions                          (T, A)
        terminated truncated success fail rewards    (T,), some of them; ManiSkill 2 has success alone
        env_states                       of the simulator, not read
    NAME.json                            env_info (env_id, env_kwargs), episodes; not needed

(mani_skill/utils/wrappers/record.py.) `terminated` are terminals, also inside an episode. Success is `success` in any
step. Nested names are joined by `_`, without `sensor_data`: `sensor_data/base_camera/rgb` is `base_camera_rgb`. The
cameras' matrices (`sensor_param`, `camera_param`) are left out.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from gtp_vision.core import sandbox
from gtp_vision.core.errors import GtpVisionError
from gtp_vision.core.files import fingerprint
from gtp_vision.core.safe_json import read_json
from gtp_vision.datasets import hdf5
from gtp_vision.datasets.formats import episodes
from gtp_vision.datasets.formats.format import Format
from gtp_vision.datasets.layout import FileArrays, Layout, Piece
from gtp_vision.datasets.success import attributes_of
from gtp_vision.datasets.unpacking import through_cache

_PREFIX = "traj_"
_MARKS = {"terminated", "success", "env_states"}
_SENSORS = "sensor_data_"


def recognises(file: h5py.File, path: Path) -> bool:
    """Whether an open HDF5 file holds trajectories."""
    first = next((name for name in hdf5.children(file, path) if name.startswith(_PREFIX)), "")
    found = hdf5.member(file, first, path) if first else None
    members = set(hdf5.children(found, path)) if isinstance(found, h5py.Group) else set()
    return "actions" in members and bool(members & _MARKS)


def layout(path: Path) -> Layout:
    """Return the layout of a file of trajectories.

    Raises:
        GtpVisionError: damage, trajectories without observations or with others than the first.
    """
    notes = path.with_suffix(".json")
    return through_cache(path, lambda: _opened(path, notes), "maniskill", fingerprint(notes) if notes.is_file() else "")


@contextmanager
def _opened(path: Path, notes: Path) -> Iterator[FileArrays]:
    with hdf5.open_file(path) as file:
        recording = episodes.Recording(path)
        marks, omitted = list[bool | None](), dict[str, list[str]]()
        for name in episodes.numbered_members(file, _PREFIX, path):
            trajectory = hdf5.group(file, name, path)
            omitted = _add(recording, trajectory, path)
            marks.append(episodes.mark(trajectory, path))
            sandbox.heartbeat()
        attributes = {"suite": "maniskill", "source": path.name} | _environment(notes) | omitted
        yield recording.file_arrays(attributes | attributes_of(marks, "trajectories with 'success' in a step"))


def _add(recording: episodes.Recording, trajectory: h5py.Group, path: Path) -> dict[str, list[str]]:
    """Add a trajectory and return the attribute `left_out`."""
    full_name, members = trajectory.name.lstrip("/"), hdf5.children(trajectory, path)
    actions = episodes.matrix(trajectory, "actions", path, kinds="f")
    found = _observations(trajectory, path, len(actions) + 1) if "obs" in members else {}
    if not found:
        raise GtpVisionError(
            f"{path}: '{full_name}' has no observations, only states of the simulator; run python -m "
            f"mani_skill.trajectory.replay_trajectory --traj-path {path.name} --save-traj --obs-mode rgb"
        )
    zeros = np.zeros(len(actions), np.float32)
    recording.add(
        full_name,
        {name: [piece] for name, piece in episodes.usable(found, full_name, path).items()},
        actions,
        episodes.column(trajectory, "rewards", path, len(actions)) if "rewards" in members else zeros,
        episodes.flags(trajectory, "terminated", path, len(actions)) if "terminated" in members else zeros != 0,
    )
    return episodes.left_out(found)


def _observations(trajectory: h5py.Group, path: Path, rows: int) -> dict[str, Piece | None]:
    held = hdf5.member(trajectory, "obs", path)
    if not isinstance(held, h5py.Group):
        return {"state": episodes.observation(trajectory, "obs", path, rows)} if held.size else {}
    found = episodes.observations(held, path, rows, unread=("sensor_param", "camera_param"))
    return {name.removeprefix(_SENSORS): piece for name, piece in found.items()}


def _environment(notes: Path) -> dict[str, Any]:
    """Return the attributes `env` and `env_args` of the file beside the trajectories."""
    if not notes.is_file():
        return {}
    described = read_json(notes, what="the environment", advice="copy it again").get("env_info")
    return {"env": str(described.get("env_id", "")), "env_args": described} if isinstance(described, dict) else {}


MANISKILL = Format("maniskill", "ManiSkill trajectories, HDF5", lambda path, _: layout(path), hdf5=recognises)
