"""ALOHA's and ACT's recordings: a folder with an HDF5 file for each episode, or one such file.

    /observations/{qpos,qvel,effort}    (T, D), before each action
    /observations/images/<camera>       uint8 (T, H, W, 3), or JPEG files padded to one length: (T, L), or text (T,)
    /observations/images_depth/<camera> uint16 (T, H, W) of millimeters
    /action                             (T, A), of both arms
    /base_action                        (T, 2): of a mobile base, appended to `action` as ACT's own loader does
    attributes sim, compress; /compress_len, the length of each JPEG file, is not needed

(record_episodes.py of tonyzhaozh/act and MarkFzp/mobile-aloha.) The action of a row is taken in it; what follows the
last one is not recorded, so that an episode's last row is a timeout. There are no rewards and no terminals. Episodes
are in the order of the numbers in their names.

The recorder compresses by OpenCV, which takes an array for blue, green, red: the colors of such a file are swapped, and
swapped back here, as ACT and LeRobot read it. A recorder that wrote files with true colors has red and blue exchanged
(`data inspect --sheet`); all its frames have it alike.

Names in other groups are joined by `_`, names in `images` stay as they are.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path

import h5py
import numpy as np

from gtp_vision.core import sandbox
from gtp_vision.core.errors import GtpVisionError
from gtp_vision.datasets import hdf5
from gtp_vision.datasets.formats import episodes, jpeg
from gtp_vision.datasets.formats.format import Format
from gtp_vision.datasets.layout import FileArrays, Layout, Piece
from gtp_vision.datasets.success import attributes_of
from gtp_vision.datasets.unpacking import through_cache

_SUFFIXES = (".hdf5", ".h5")
_IMAGES = "images"
_ACTIONS = ("action", "base_action")


def is_episode(file: h5py.File, path: Path) -> bool:
    """Whether an open HDF5 file is an episode."""
    if not {"observations", "action"} <= set(hdf5.children(file, path)):
        return False
    return isinstance(hdf5.member(file, "observations", path), h5py.Group)


def is_folder(path: Path) -> bool:
    """Whether the first HDF5 file of a folder is an episode."""
    found = episodes.files_in(path, *_SUFFIXES)
    if not found:
        return False
    try:
        with hdf5.open_file(found[0]) as file:
            return is_episode(file, found[0])
    except GtpVisionError:
        return False


def layout(path: Path) -> Layout:
    """Return the layout of a folder of episodes or of one.

    Raises:
        GtpVisionError: damage, a file of another kind in the folder, episodes with other arrays.
    """
    files = episodes.files_in(path, *_SUFFIXES) or [path]
    return through_cache(path, lambda: _opened(path, files), "aloha")


@contextmanager
def _opened(path: Path, files: list[Path]) -> Iterator[FileArrays]:
    recording = episodes.Recording(path)
    marks, omitted = list[bool | None](), dict[str, list[str]]()
    widths: list[int] = []
    for each in files:
        with hdf5.open_file(each) as file:
            if not is_episode(file, each):
                raise GtpVisionError(
                    f"{each} is not an episode of ALOHA ('observations' and 'action'), as the other files of its "
                    f"folder are; move it elsewhere"
                )
            parts = [name for name in _ACTIONS if name in hdf5.children(file, each)]
            actions = [episodes.matrix(file, name, each, kinds="f") for name in parts]
            count = len(actions[0])
            if any(len(part) != count for part in actions):
                raise GtpVisionError(
                    f"{each}: 'base_action' has {len(actions[1])} rows and 'action' {count}; copy it again"
                )
            found = {
                name: None if piece is None else episodes.reopened(piece, each, partial(_again, name, each, count))
                for name, piece in _observations(file, each, count).items()
            }
            zeros = np.zeros(count, np.float32)
            pieces = {name: [piece] for name, piece in episodes.usable(found, each.name, path).items()}
            recording.add(each.name, pieces, np.concatenate(actions, 1), zeros, zeros != 0)
            marks.append(episodes.mark(file, each))
            omitted, widths = episodes.left_out(found), [part.shape[1] for part in actions]
        sandbox.heartbeat()
    parted = {"action_parts": dict(zip(parts, widths, strict=True))} if len(parts) > 1 else {}
    attributes = {"suite": "aloha", "source": path.name} | omitted | parted
    yield recording.file_arrays(attributes | attributes_of(marks, "episodes marked so"))


def _observations(file: h5py.File, path: Path, count: int) -> dict[str, Piece | None]:
    """Return an episode's observations by name."""
    group = hdf5.group(file, "observations", path)
    found = episodes.observations(group, path, count, unread=(_IMAGES,))
    if found.pop(_IMAGES, 0) is None:
        images = hdf5.group(group, _IMAGES, path)
        for name in episodes.member_names(images, path):
            if name in found:
                raise GtpVisionError(f"{path}: a state and a camera have the name '{name}'; rename one")
            found[name] = _camera(images, name, path, count)
    return found


def _again(name: str, path: Path, count: int, file: h5py.File) -> Piece | None:
    return _observations(file, path, count)[name]


def _camera(images: h5py.Group, name: str, path: Path, count: int) -> Piece | None:
    data = hdf5.array(images, name, path, kinds=episodes.NUMBERS + "SO", rows=count)
    if count and (data.dtype.kind in "SO" or jpeg.is_encoded(data)):
        colors = jpeg.piece(data, images, path)
        return replace(colors, read=lambda start, stop: colors.read(start, stop)[..., ::-1])
    return episodes.observation(images, name, path, count)


ALOHA = Format(
    "aloha",
    "ALOHA/ACT episodes, HDF5",
    lambda path, _: layout(path),
    hdf5=is_episode,
    other=is_folder,
)
