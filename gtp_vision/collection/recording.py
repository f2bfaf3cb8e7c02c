"""Recording episodes in parallel processes, each kept as a part on disk until all are there and joined."""

from __future__ import annotations

import atexit
import json
import math
import os
import shutil
import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import IO, Any, Protocol

import numpy as np
from tqdm import tqdm

from gtp_vision.core.errors import GtpVisionError
from gtp_vision.core.files import atomic_write
from gtp_vision.core.locks import FileLock
from gtp_vision.core.names import __version__
from gtp_vision.core.worker_pool import WorkerPool
from gtp_vision.datasets.hdf5 import first_line
from gtp_vision.envs import close, quiet_worker

_SETTINGS = "settings.json"
_AGAIN = "give the same command again to go on"


class InterruptedCollectionError(GtpVisionError):
    """The user stopped a collection; what is recorded is kept."""

    exit_status = 130


class Recorder(Protocol):
    """What records episodes. It is sent to the worker processes, so it must be picklable."""

    def make(self) -> Any:
        """The environment; made once in a worker."""
        ...

    def record(self, env: Any, episode: int) -> Mapping[str, np.ndarray]:
        """An episode, as a function of its number alone, whatever the environment did before."""
        ...


@dataclass(frozen=True)
class EpisodeParts:
    """The recorded episodes of a collection, a file each.

    Attributes:
        folder: where they lie.
        count: how many there are when all are recorded.
        command: the command line that began the collection.
    """

    folder: Path
    count: int
    command: str

    def path(self, episode: int) -> Path:
        """The file of an episode."""
        return self.folder / f"{episode:06d}.npz"

    def missing(self) -> list[int]:
        """Numbers of the episodes that are not recorded yet."""
        return [episode for episode in range(self.count) if not self.path(episode).exists()]

    def load(self, episode: int, *names: str) -> dict[str, np.ndarray]:
        """An episode's arrays; all, or those of the given names.

        Raises:
            GtpVisionError: the file is damaged.
        """
        try:
            with np.load(self.path(episode), allow_pickle=False) as arrays:
                return {name: arrays[name] for name in names or arrays.files}
        except (OSError, EOFError, KeyError, ValueError, zipfile.BadZipFile, zlib.error) as error:
            raise GtpVisionError(
                f"{self.path(episode)}, the recorded episode {episode}, is damaged ({type(error).__name__}); "
                f"remove it and {_AGAIN}"
            ) from error

    def stack(self, name: str, episodes: Sequence[int], rows: int, stream: IO[bytes], bar: tqdm | None = None) -> None:
        """Write an array of some episodes, one after another, as one NumPy file (.npy), an episode at a time.

        Raises:
            GtpVisionError: a part is damaged, or not of the others' row shape and dtype, or not of the right length.
        """
        first = self.load(episodes[0], name)[name]
        described = {"descr": first.dtype.str, "fortran_order": False, "shape": (rows, *first.shape[1:])}
        np.lib.format.write_array_header_1_0(stream, described)
        for episode in episodes:
            array = self.load(episode, name)[name]
            rows -= len(array)
            fits = rows == 0 if episode == episodes[-1] else rows > 0
            if (array.dtype, array.shape[1:]) != (first.dtype, first.shape[1:]) or not fits:
                raise GtpVisionError(f"{self.path(episode)} does not fit the other parts; remove it and {_AGAIN}")
            stream.write(np.ascontiguousarray(array).tobytes())
            if bar is not None:
                bar.update()

    @contextmanager
    def whole(self, target: Path) -> Iterator[Path]:
        """A name to write what is joined under; it replaces `target` when the block ends well.

        Raises:
            GtpVisionError: there is no room, or another fault of the disk.
        """
        ready = self.folder / f"joined-{target.name}"  # no name of a part
        try:
            with atomic_write(ready) as aside:
                yield aside
            os.replace(ready, target)
        except OSError as error:
            raise GtpVisionError(f"{target} cannot be written ({first_line(error)}); mend that and {_AGAIN}") from error


@contextmanager
def recorded(
    target: Path,
    recorder: Recorder,
    *,
    episodes: int,
    settings: Mapping[str, Any],
    command: str,
    processes: int,
    progress: bool,
    overwrite: bool,
    unit: str = "episode",
) -> Iterator[EpisodeParts]:
    """All episodes of a collection, recorded now or before an interruption; the block joins them into `target`.

    The parts lie in `.NAME.parts` beside the target. They stay there when recording or joining does not come to its
    end, and are removed when the block ends well.

    Args:
        target: the file to be.
        recorder: records an episode.
        episodes: how many.
        settings: JSON-able, everything that the episodes depend on.
        command: the command line, recorded with the data.
        processes: worker processes.
        progress: show a bar.
        overwrite: replace a file that stands at the target.
        unit: what the bar counts.

    Raises:
        InterruptedCollectionError: Ctrl-C.
        GtpVisionError: the target is there and not to be replaced; parts of other settings are there; another process
            collects them right now; a worker died.
    """
    folder = target.with_name(f".{target.name}.parts")
    if target.is_dir():
        raise GtpVisionError(f"{target} is a folder, and a file is to be written there; choose another --out")
    if target.exists() and not overwrite:
        raise GtpVisionError(f"{target} is there already; give --overwrite to replace it, or choose another --out")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise GtpVisionError(f"{folder} cannot be made ({error.strerror}); choose another --out") from error
    with collection_lock(folder):
        parts = EpisodeParts(folder, episodes, _agreed(folder, settings, command))
        try:
            _record(parts, recorder, processes, progress, unit)
            yield parts
        except KeyboardInterrupt:
            raise InterruptedCollectionError(f"interrupted; {_kept(parts)}") from None
        finally:
            if len(parts.missing()) == episodes:
                shutil.rmtree(folder)  # nothing is lost
        shutil.rmtree(folder, ignore_errors=True)


def require_at_least(**settings: tuple[float, float]) -> None:
    """Raise unless each option's (value, lowest value) are in order; `option_name` is told as --option-name."""
    for name, (value, lowest) in settings.items():
        if not lowest <= value < math.inf:
            raise GtpVisionError(f"--{name.replace('_', '-')} {value} must be at least {lowest}")


def seed_of(seed: int, episode: int) -> int:
    """The seed of one episode of a collection: 32 bits."""
    return int(np.random.SeedSequence((seed, episode)).generate_state(1)[0])


def _agreed(folder: Path, settings: Mapping[str, Any], command: str) -> str:
    """Check that the parts are of these settings, or note the settings: the command that began the collection."""
    wanted = json.loads(json.dumps(settings))
    path = folder / _SETTINGS
    if not any(folder.glob("[0-9]*.npz")):
        with atomic_write(path) as aside:
            aside.write_text(json.dumps({"settings": wanted, "command": command}))
        return command
    try:
        noted = json.loads(path.read_text())
        found, command = dict(noted["settings"]), str(noted["command"])
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise GtpVisionError(f"{path} is damaged; remove the folder {folder} to begin anew") from error
    for name in sorted({*wanted, *found}):
        if found.get(name) != wanted.get(name):
            raise GtpVisionError(
                f"{folder} holds parts of a collection with {name} {_short(found.get(name))}, not "
                f"{_short(wanted.get(name))}; "
                f"use the same settings to go on with it, or remove the folder to begin anew"
            )
    return command


def _short(value: Any) -> str:
    told = repr(value)
    return told if len(told) <= 120 else f"{told[:117]}..."


def collection_lock(folder: Path) -> FileLock:
    """The lock that one process at a time holds while it collects into a folder."""
    return FileLock(folder / ".lock", f"collects into {folder}")


def _record(parts: EpisodeParts, recorder: Recorder, processes: int, progress: bool, unit: str) -> None:
    missing = parts.missing()
    if not missing:
        return
    try:
        with (
            WorkerPool(min(processes, len(missing)), quiet_worker) as pool,
            tqdm(total=parts.count, desc="collecting", unit=unit, disable=not progress) as bar,
        ):
            bar.update(parts.count - len(missing))
            for future in as_completed([pool.submit(_keep, recorder, n, parts.path(n)) for n in missing]):
                future.result()
                bar.update()
    except BrokenProcessPool as error:
        raise GtpVisionError(
            f"a worker process died: it was killed or ran out of memory; {_kept(parts)}, perhaps with fewer --processes"
        ) from error


def _kept(parts: EpisodeParts) -> str:
    done = parts.count - len(parts.missing())
    return f"{done} of {parts.count} recordings are kept in {parts.folder}: {_AGAIN}"


_env: Any = None  # of a worker process


def _keep(recorder: Recorder, episode: int, path: Path) -> None:
    global _env
    first = _env is None
    if first:
        _env = recorder.make()
    try:
        arrays = recorder.record(_env, episode)
    finally:
        if first:
            # After OpenGL, which the first frame loads, has registered its own end: so this comes before it.
            atexit.register(close, _env)
    try:
        with atomic_write(path) as aside, aside.open("wb") as file:
            np.savez_compressed(file, **arrays)  # type: ignore[arg-type]
    except OSError as error:
        raise GtpVisionError(f"{path} cannot be written ({error.strerror}); mend that and {_AGAIN}") from error


def versions(*packages: str, pixels: bool) -> dict[str, str]:
    """Versions of the given packages, of NumPy and of this one, and the OpenGL that frames are rendered with."""
    found = {name: version(name) for name in (*packages, "numpy")} | {"gtp-vision": __version__}
    return found | ({"MUJOCO_GL": os.environ.get("MUJOCO_GL", "")} if pixels else {})
