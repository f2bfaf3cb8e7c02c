"""Recording of episodes in parallel processes; each is a part on disk until all are complete and joined."""

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

from gtp_vision.core.errors import GtpVisionError, first_line
from gtp_vision.core.files import atomic_write, make_folder
from gtp_vision.core.locks import FileLock
from gtp_vision.core.names import __version__
from gtp_vision.core.progress import Progress
from gtp_vision.core.worker_pool import WorkerPool
from gtp_vision.envs import close, quiet_worker

_SETTINGS = "settings.json"
_AGAIN = "give the same command again to resume"


class InterruptedCollectionError(GtpVisionError):
    """The user stopped a collection; its recorded parts are kept."""

    exit_status = 130


class Recorder(Protocol):
    """Records episodes. It is sent to the worker processes, so it must be picklable."""

    def make(self) -> Any:
        """Create the environment, once in a worker."""
        ...

    def record(self, env: Any, episode: int) -> Mapping[str, np.ndarray]:
        """Record an episode, as a function of its number only, whatever the environment did before."""
        ...


@dataclass(frozen=True)
class Execution:
    """How a collection is run, on which the data do not depend; `command` is recorded with them."""

    processes: int = 1
    command: str = ""
    progress: bool = True
    overwrite: bool = False


@dataclass(frozen=True)
class EpisodeParts:
    """The recorded episodes of a collection, one file each in `folder`; `count` is the number of all."""

    folder: Path
    count: int
    command: str

    def path(self, episode: int) -> Path:
        """The file of an episode."""
        return self.folder / f"{episode:06d}.npz"

    def missing(self) -> list[int]:
        """Numbers of the episodes that are not yet recorded."""
        return [episode for episode in range(self.count) if not self.path(episode).exists()]

    def load(self, episode: int, *names: str) -> dict[str, np.ndarray]:
        """Load an episode's arrays; all, or those of the given names. Raises GtpVisionError: the file is damaged."""
        try:
            with np.load(self.path(episode), allow_pickle=False) as arrays:
                return {name: arrays[name] for name in names or arrays.files}
        except (OSError, EOFError, KeyError, ValueError, zipfile.BadZipFile, zlib.error) as error:
            raise GtpVisionError(
                f"{self.path(episode)}, the recorded episode {episode}, is damaged ({type(error).__name__}); "
                f"remove it and {_AGAIN}"
            ) from error

    def stack(
        self, name: str, episodes: Sequence[int], rows: int, stream: IO[bytes], bar: Progress | None = None
    ) -> None:
        """Write an array of some episodes, one after another, as one NumPy file (.npy), an episode at a time.

        Raises:
            GtpVisionError: a part is damaged, or differs in row shape, dtype or length.
        """
        first = self.load(episodes[0], name)[name]
        header = {"descr": first.dtype.str, "fortran_order": False, "shape": (rows, *first.shape[1:])}
        np.lib.format.write_array_header_1_0(stream, header)
        for episode in episodes:
            array = self.load(episode, name)[name]
            rows -= len(array)
            fits = rows == 0 if episode == episodes[-1] else rows > 0
            if (array.dtype, array.shape[1:]) != (first.dtype, first.shape[1:]) or not fits:
                raise GtpVisionError(f"{self.path(episode)} does not fit the other parts; remove it and {_AGAIN}")
            stream.write(np.ascontiguousarray(array).tobytes())
            if bar is not None:
                bar.update()

    def stacked(self, name: str, rows: int, episodes: Sequence[int] | None = None) -> np.ndarray:
        """Return an array of some episodes, or of all, one after another, mapped from a file beside the parts."""
        path = self.folder / f"{name.replace('/', '-')}.npy"
        with self.whole(path) as aside, aside.open("wb") as stream:
            self.stack(name, range(self.count) if episodes is None else episodes, rows, stream)
        return np.load(path, mmap_mode="r")

    @contextmanager
    def whole(self, target: Path) -> Iterator[Path]:
        """Yield a temporary path, which replaces `target` when the block succeeds.

        Raises:
            GtpVisionError: a full disk, or another fault of the disk.
        """
        ready = self.folder / f"joined-{target.name}"  # not the name of a part
        try:
            with atomic_write(ready) as aside:
                yield aside
            os.replace(ready, target)
        except OSError as error:
            raise GtpVisionError(f"{target} cannot be written ({first_line(error)}); fix that and {_AGAIN}") from error


@contextmanager
def recorded(
    target: Path,
    recorder: Recorder,
    *,
    episodes: int,
    settings: Mapping[str, Any],
    execution: Execution,
    unit: str = "episode",
) -> Iterator[EpisodeParts]:
    """Record all missing episodes of a collection; the block joins them into `target`.

    The parts are in `.NAME.parts` beside the target. They stay there when recording or joining fails, and are removed
    when the block succeeds. `settings` are JSON-able, everything that the episodes depend on; `unit` is what the bar
    counts.

    Raises:
        InterruptedCollectionError: Ctrl-C.
        GtpVisionError: the target exists and may not be replaced; parts of other settings exist; another process is
            collecting them; a worker died.
    """
    require_at_least(processes=(execution.processes, 1))
    folder = target.with_name(f".{target.name}.parts")
    if target.is_dir():
        raise GtpVisionError(f"{target} is a folder, and a file must be written there; choose another --out")
    if target.exists() and not execution.overwrite:
        raise GtpVisionError(f"{target} exists; give --overwrite to replace it, or choose another --out")
    make_folder(folder)
    with collection_lock(folder):
        parts = EpisodeParts(folder, episodes, _check_settings(folder, settings, execution.command))
        try:
            _record(parts, recorder, execution, unit)
            yield parts
        except KeyboardInterrupt:
            raise InterruptedCollectionError(f"interrupted; {_kept(parts)}") from None
        finally:
            if len(parts.missing()) == episodes:
                shutil.rmtree(folder)  # nothing was recorded
        shutil.rmtree(folder, ignore_errors=True)


def require_at_least(**settings: tuple[float, float]) -> None:
    """Raise unless each (value, minimum) is in order; `option_name` is reported as --option-name."""
    for name, (value, minimum) in settings.items():
        if not minimum <= value < math.inf:
            raise GtpVisionError(f"--{name.replace('_', '-')} {value} must be at least {minimum}")


def seed_of(seed: int, episode: int) -> int:
    """The seed of one episode of a collection: 32 bits."""
    return int(np.random.SeedSequence((seed, episode)).generate_state(1)[0])


def _check_settings(folder: Path, settings: Mapping[str, Any], command: str) -> str:
    """Compare the settings with those of existing parts, or store them; returns the command that started it."""
    given = json.loads(json.dumps(settings))
    path = folder / _SETTINGS
    if not any(folder.glob("[0-9]*.npz")):
        with atomic_write(path) as aside:
            aside.write_text(json.dumps({"settings": given, "command": command}))
        return command
    try:
        content = json.loads(path.read_text())
        stored, command = dict(content["settings"]), str(content["command"])
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise GtpVisionError(f"{path} is damaged; remove the folder {folder} to start again") from error
    for name in sorted({*given, *stored}):
        if stored.get(name) != given.get(name):
            raise GtpVisionError(
                f"{folder} has parts of a collection with {name} {_short(stored.get(name))}, not "
                f"{_short(given.get(name))}; use the same settings to resume it, or remove the folder to start again"
            )
    return command


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 120 else f"{text[:117]}..."


def collection_lock(folder: Path) -> FileLock:
    """The lock that one process at a time holds while it collects into a folder."""
    return FileLock(folder / ".lock", f"collects into {folder}")


def _record(parts: EpisodeParts, recorder: Recorder, execution: Execution, unit: str) -> None:
    missing = parts.missing()
    if not missing:
        return
    try:
        with (
            WorkerPool(min(execution.processes, len(missing)), quiet_worker) as pool,
            Progress(total=parts.count, desc="collecting", unit=unit, disable=not execution.progress) as bar,
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
            # Registered after the exit handler of OpenGL, which the first frame loads, so that this one runs first.
            atexit.register(close, _env)
    try:
        with atomic_write(path) as aside, aside.open("wb") as file:
            np.savez_compressed(file, **arrays)  # type: ignore[arg-type]
    except OSError as error:
        raise GtpVisionError(f"{path} cannot be written ({error.strerror}); fix that and {_AGAIN}") from error


def versions(*packages: str, pixels: bool) -> dict[str, str]:
    """Versions of the given packages, of NumPy and of this one, and the OpenGL backend of frames."""
    found = {name: version(name) for name in (*packages, "numpy")} | {"gtp-vision": __version__}
    return found | ({"MUJOCO_GL": os.environ.get("MUJOCO_GL", "")} if pixels else {})
