"""Readers and writers, one file per on-disk format. `open_store` chooses the reader by the content of a file."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any, Literal

from gtp_vision.core import sandbox
from gtp_vision.core.errors import GtpVisionError, first_line, propose
from gtp_vision.core.files import lfs_pointer, require_space
from gtp_vision.core.framing import Framing
from gtp_vision.core.registry import Registry
from gtp_vision.datasets import hdf5, located, names, npz
from gtp_vision.datasets.formats import near_misses
from gtp_vision.datasets.formats.format import Format, Snapshots
from gtp_vision.datasets.labelled import labelled
from gtp_vision.datasets.layout import Layout, to_store
from gtp_vision.datasets.names import Names
from gtp_vision.datasets.scaling import scaled
from gtp_vision.datasets.store import Store
from gtp_vision.datasets.unpacking import framed, with_frames
from gtp_vision.datasets.validation import problems, shape_errors

FORMATS: Registry[Format] = Registry(__name__, "gtp_vision.formats", Format)
"""Every `Format` at the top of a file beside this one, and those of plug-ins."""


def detect(path: str | Path, features: Names | None = None) -> str:
    """Return the name of a data set's format, by its content; `features` as in `open_store`.

    Raises:
        GtpVisionError: the path is missing, or its format is unknown.
    """
    return str(sandbox.call(f"{__name__}:_detected", located(path), features))


def open_store(
    path: str | Path,
    env: str | None = None,
    features: Names | None = None,
    *,
    framing: Framing | None = None,
    labels: Path | Literal[False] | None = None,
    video: str = "unpacked",
) -> Store:
    """Open a data set of any known format, or raise a GtpVisionError.

    The file is read by a child process (see `core.sandbox`); this process only maps its arrays. The path `demo` is the
    data set of this package, see `datasets.located`. `env` is the environment's name, for formats whose rewards depend
    on the task (OGBench). `features` are names in the store to those in the file, see `datasets.names`; `framing` crops
    and resizes the frames; `labels` is the file of labels, or the folder of several, if it is not beside the data
    (False: leave them out), see `datasets.labels`. `video="seek"` leaves frames in their videos, see `datasets.videos`.
    """
    path = located(path)
    found = sandbox.call(f"{__name__}:_layout", path, env, features, framing and framing.record(), video == "seek")
    store = to_store(found, path)
    return store if labels is False else labelled(store, path, labels)


def open_states(
    path: Path, features: Names | None = None, *, labels: Path | None = None, video: str = "unpacked"
) -> Store:
    """Open a data set with every recorded state as an observation, and without cameras.

    OGBench's files have additional states, which no policy reads: `qpos`, `qvel` and `button_states`.
    """
    found = sandbox.call(f"{__name__}:_states", path, features, video == "seek")
    return labelled(to_store(found, path), path, labels)


def open_snapshots(path: Path, numbers: Sequence[int], features: Names | None = None) -> list[Snapshots]:
    """Return what the data set holds of its simulator in some episodes; empty if it holds nothing."""
    return [Snapshots.of(found) for found in sandbox.call(f"{__name__}:_snapshots", path, list(numbers), features)]


def check_writable(name: str) -> Callable[[Path, Store], Any]:
    """Return the function that writes a format. Raises GtpVisionError: the format is unknown or cannot be written."""
    write = FORMATS[name].write if name in FORMATS else None
    if write is None:
        known = [each for each, known in FORMATS.items() if known.write]
        raise GtpVisionError(f"'{name}' is not a format that can be written: {propose(name, known)}")
    return write


def convert(
    source: Path,
    target: Path,
    to: str,
    env: str | None = None,
    features: Names | None = None,
    *,
    fps: float | None = None,
    framing: Framing | None = None,
    scale: str = "none",
    overwrite: bool = False,
    video: str = "unpacked",
) -> Store:
    """Write a data set of any known format in another one, and return it, read back; options as in `open_store`.

    `fps` is the rate of data that do not say theirs, or say a wrong one; `scale` brings actions to [-1, 1], see
    `scaling.MODES`.

    Raises:
        GtpVisionError: the source cannot be read, its lengths disagree, it has faults and is to be scaled, or the
            format cannot hold it; the target exists or cannot be written.
    """
    write = check_writable(to)
    if os.path.lexists(target) and not overwrite:
        raise GtpVisionError(f"{target} exists; give --overwrite to replace it, or choose another place")
    if FORMATS[to].hdf5 and target.is_dir():
        raise GtpVisionError(f"{target} is a folder, but {FORMATS[to].title} is a file; name a file")
    if any(parent.exists() and not parent.is_dir() for parent in target.parents):
        raise GtpVisionError(f"{target} lies below a file; choose another place")
    store = open_store(source, env, features, framing=framing, video=video)
    if fps is not None:
        store.attributes = dict(store.attributes) | {"fps": fps}
    if faults := shape_errors(store):
        raise GtpVisionError(f"{source}: {faults[0]}")
    (store,) = scaled([store], scale)
    if scale != "none" and (faults := problems(store)):
        raise GtpVisionError(f"{source} cannot be scaled: {faults[0]}")
    require_space(target.parent, store.nbytes(), f"writing {target.name}", "choose another place")
    try:
        write(target, store)
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno else first_line(error)
        raise GtpVisionError(f"{target} cannot be written ({reason}); make room or choose another place") from error
    return open_store(target, env)


@cache
def _formats() -> tuple[Format, ...]:
    with sandbox.unlimited_memory():  # what the readers' modules take does not depend on the file
        return tuple(FORMATS.values())


def _detect(path: Path) -> str:
    if not path.exists():
        raise GtpVisionError(f"found no data set at {path}; check the path")
    if not path.is_file() and not path.is_dir():
        raise GtpVisionError(f"{path} is a device, a pipe or a socket; give a file or a folder")
    found, held, near = _recognised(path)
    if path.is_dir() and not found:
        near = near_misses.in_folder(path, _is_data_set, _hint)
    if not found:
        if path.name.startswith("._"):
            near = f"it is macOS's note on another file; name {path.with_name(path.name[2:])}"
        near = near or f"known: {', '.join(known.title for known in _formats())}"
        raise GtpVisionError(f"the format of {path} is unknown ({held}); {near}")
    return found


def _recognised(path: Path) -> tuple[str, str, str | None]:
    """Return a path's format, empty if it is unknown; what it holds; and the hint about a file of an unknown format."""
    if path.is_file() and _magic(path) == hdf5.MAGIC:
        with hdf5.open_file(path) as file:
            found = next((known.name for known in _formats() if known.hdf5 and known.hdf5(file, path)), "")
            held = f"HDF5 with {', '.join(sorted(hdf5.children(file, path))[:6]) or 'nothing'} in it"
            return found, held, None if found else near_misses.in_hdf5(file, path)
    if path.is_file() and (pointer := lfs_pointer(path)):
        return "", "text", pointer
    found = next((known.name for known in _formats() if known.other and known.other(path)), "")
    if path.is_dir():
        return found, "a folder", None
    if arrays := npz.names(path):
        held = f"npz with {', '.join(sorted(arrays)[:6])} in it"
        return found, held, None if found else near_misses.in_arrays(arrays)
    magic = _magic(path)
    near = near_misses.in_bytes(magic) or near_misses.of_streams(magic) or near_misses.of_archive(path)
    return found, f"it begins with {magic[:4]!r}", None if found else near


def _hint(path: Path) -> str | None:
    """Return the hint about a file of an unknown format in a folder; None also if it is damaged."""
    with contextlib.suppress(GtpVisionError):
        return _recognised(path)[2]
    return None


def _is_data_set(path: Path) -> bool:
    """Whether a path in a folder may be a data set, judged by its first bytes where it is HDF5, by names where npz."""
    with contextlib.suppress(OSError):
        magic = _magic(path) if path.is_file() else b""
        if magic == hdf5.MAGIC or near_misses.of_streams(magic) or (magic and (npz.names(path) or lfs_pointer(path))):
            return True
        return any(known.other(path) for known in _formats() if known.other)
    return False


def _layout(
    path: Path, env: str | None, features: Names | None = None, framing: Any = None, seeks: bool = False
) -> Layout:
    chosen = Framing.of(framing)
    if chosen and features:  # cameras have their names in the file until the layout is made
        sizes = {re.split("[./]", features.get(name, name))[-1]: size for name, size in chosen.sizes.items()}
        chosen = replace(chosen, sizes=sizes)
    with names.reading(features), framed(chosen, seeks=seeks):
        return names.renamed(with_frames(FORMATS[_detect(path)].layout(path, env), path), path)


def _detected(path: Path, features: Names | None) -> str:
    with names.reading(features):
        return _detect(path)


def _states(path: Path, features: Names | None = None, seeks: bool = False) -> Layout:
    known, prefix = FORMATS[_detected(path, features)], "observations/"
    found = _layout(path, None, features, seeks=seeks)
    arrays = {
        name: entry
        for name, entry in found["arrays"].items()
        if not name.startswith(prefix) or len(entry["shape"]) == 2
    }
    beside = known.states(path) if known.states else {}
    return found | {"arrays": arrays | {f"{prefix}{name}": entry for name, entry in beside.items()}}


def _snapshots(path: Path, numbers: Sequence[int], features: Names | None = None) -> list[dict[str, Any]]:
    with names.reading(features):
        snapshots = FORMATS[_detect(path)].snapshots
        return snapshots(path, numbers) if snapshots else []


def _magic(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(8)


__all__ = [
    "FORMATS",
    "Format",
    "Snapshots",
    "check_writable",
    "convert",
    "detect",
    "open_snapshots",
    "open_states",
    "open_store",
]
