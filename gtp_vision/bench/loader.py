"""`gtp-vision bench loader`: batches against a bare gather, robomimic's loader and h5py; memory; videos unpacked."""

from __future__ import annotations

import contextlib
import io
import os
import statistics
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from gtp_vision.bench.recordings import noise_store
from gtp_vision.bench.unpacking import seeking, unpacking
from gtp_vision.core.errors import GtpVisionError
from gtp_vision.core.extras import importing
from gtp_vision.core.timing import Work, median_ms, seconds
from gtp_vision.core.worker_pool import WorkerPool
from gtp_vision.datasets.formats import native, open_store, robomimic
from gtp_vision.datasets.sampler import Sampler
from gtp_vision.datasets.statistics import array_statistics

_BATCH, _STACK, _EPISODE = 256, 4, 100
_CASES: dict[str, tuple[int, dict[str, tuple[int, int, int]]]] = {
    "one_camera": (20_000, {"agentview_image": (64, 64, 3)}),
    "two_cameras": (6_000, {"agentview_image": (84, 84, 3), "robot0_eye_in_hand_image": (84, 84, 3)}),
}
_MEMORY_FRAMES, _MEMORY_BATCHES = 350_000, 200  # 4.3 GB of 64x64x3
_CACHE_BYTES, _COLD_BATCHES = 1 << 30, 12
_WORKERS, _LOADED, _SKIPPED = 2, 10, 8  # batches of a DataLoader: each of its workers prepares two ahead
_TIMED, _UNTIMED = 10, 3  # batches in each round; the first ones find the caches full of the work before


def bench_loader(*, rounds: int = 5, progress: bool = True) -> dict[str, Any]:
    """Measure the data side of training: batches of 256 windows of 4 frames, drawn from 100-frame episodes.

    Per case the milliseconds of a batch, medians over interleaved rounds:

    * `native`: our sampler's batch: windows of observations and next observations, actions, returns; each distinct
      frame once, windows as indices. `native_stacked` adds the stacking of both windows into (256, 4, ...), which
      training does on its device.
    * `gather`: the same bytes by NumPy's indexing of the mapped arrays, and nothing else.
    * `robomimic`: its SequenceDataset (frame_stack 4, with next observations) and a DataLoader of 2 workers, on the
      same demonstrations in its own format, in its default way for images (`low_dim` cached) and, `robomimic_cached`,
      with everything in memory.
    * `h5py`: one slice a sample from the native file, stacked into both windows.

    `vs_gather` is native / gather; `vs_robomimic` and `vs_h5py` say how many times faster native is, whose batches are
    stacked later, on the device; `vs_robomimic_stacked` and so on compare native_stacked, the same tensors.
    `private_mb` is the anonymous memory of a process that samples a 4.3 GB file, its libraries included;
    `private_growth_mb` what sampling added. `stats_seconds` is the time of the statistics of 1M x 30 floats.
    `unpacking` is that of videos, `seeking` batches without it, see `bench.unpacking`.
    `beyond_cache` samples a file twice as large as the page cache may grow, in a control group that sets that limit;
    None where the user may not create one.

    Returns:
        One JSON-able object; the first case's numbers on top, those of two cameras under `two_cameras`.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        cases = {}
        for case, (frames, cameras) in _CASES.items():
            files = _write_files(folder, case, frames, cameras)
            cases[case] = _time_case(files, cameras, rounds, f"timing {case.replace('_', ' ')}", progress)
        (folder / "one_camera.h5").unlink()
        memory = _in_child(_measure_memory, folder / "large.h5", _MEMORY_FRAMES, _MEMORY_BATCHES)
        beyond_cache = _in_child(_time_beyond_cache, folder / "cold.h5", _CACHE_BYTES)
        videos = unpacking(folder, rounds=min(rounds, 3))
        sought = seeking(folder, rounds=min(rounds, 3))
    numbers = np.random.default_rng(0).standard_normal((1_000_000, 30), np.float32)
    return {
        **cases["one_camera"],
        "two_cameras": cases["two_cameras"],
        **memory,
        "stats_seconds": round(statistics.median(seconds(lambda: array_statistics(numbers)) for _ in range(3)), 3),
        "unpacking": videos,
        "seeking": sought,
        "beyond_cache": beyond_cache,
        "threads": os.cpu_count(),
        "rounds": rounds,
    }


def table(results: dict[str, Any]) -> str:
    """The results as lines of text."""
    names = list(results["ms"])
    lines = [f"{'ms a batch, median of ' + str(results['rounds']):<28}" + "".join(f"{name:>18}" for name in names)]
    for label, case in (("64x64, one camera", results), ("84x84, two cameras", results["two_cameras"])):
        lines.append(f"{label:<28}" + "".join(f"{case['ms'][name]:>18.1f}" for name in names))
        lines.append(
            f"{'':<28}{case['vs_gather']:.2f} of a bare gather's time; {case['vs_robomimic']:.0f} times faster than "
            f"robomimic ({case['vs_robomimic_cached']:.0f} with all in memory), {case['vs_h5py']:.0f} than h5py;"
        )
        lines.append(
            f"{'':<28}stacked on the CPU, {case['vs_robomimic_stacked']:.0f}, "
            f"{case['vs_robomimic_cached_stacked']:.0f} and {case['vs_h5py_stacked']:.0f} times"
        )
    lines.append(
        f"sampling {results['file_gb']:.1f} GB: {results['private_mb']:.0f} MB private, of which sampling added "
        f"{results['private_growth_mb']:.0f}; statistics of 1M x 30: {results['stats_seconds']:.2f} s"
    )
    videos, cold = results["unpacking"], results["beyond_cache"]
    lines.append(
        f"two cameras of 640x480 at 224x224: {videos['frames_per_s']:.0f} frames a second unpacked, "
        f"{videos['vs_one_core']:.1f} times faster than frame by frame on one core; the cache is "
        f"{videos['cache_ratio']:.2f} of these frames"
    )
    sought = results["seeking"]
    lines.append(
        f"batches of 64 of them: {sought['unpacked_per_s']:.1f} a second; decoded from their videos "
        f"{sought['2_per_s']:.1f} with a keyframe every 2 frames, {sought['30_per_s']:.1f} every 30 "
        f"({sought['vs_unpacked_2']:.0f} and {sought['vs_unpacked_30']:.0f} times longer)"
    )
    if cold:
        lines.append(
            f"a file of {cold['file_gb']:.1f} GB with {cold['limit_gb']:.1f} GB of memory: {cold['ms']:.0f} ms a "
            f"batch, {cold['vs_gather']:.2f} of a bare gather's time there"
        )
    else:
        lines.append("beyond the page cache: not measured, this user may not create a memory-limited control group")
    return "\n".join(lines)


def _time_case(
    files: tuple[Path, Path], cameras: dict[str, Any], rounds: int, label: str, progress: bool
) -> dict[str, Any]:
    native_file, robomimic_file = files
    store = open_store(native_file)
    sampler = Sampler(store, _BATCH, seed=0, frame_stack=_STACK)
    arrays = list(store.observations.values())
    steps = count()

    def next_step() -> int:
        return next(steps)

    for array in arrays:  # the first access to a mapped page is slow for any reader
        np.add.reduce(np.asarray(array).reshape(-1)[::1024])
    with h5py.File(native_file, "r") as file, contextlib.ExitStack() as stack:
        calls: dict[str, tuple[Callable[[Any], object], Callable[[], Any]]] = {
            "native": (lambda step: sampler.frames(sampler.rows(step)), next_step),
            "gather": (
                lambda rows: [array[rows] for array in arrays],
                lambda: np.unique(_frames_read(sampler, sampler.rows(next(steps)))),
            ),
            "native_stacked": (sampler.batch, next_step),
            "h5py": (lambda rows: _read_by_h5py(file, cameras, rows), lambda: sampler.rows(next(steps))),
        }
        works = {name: Work(*call, untimed=_UNTIMED, timed=_TIMED) for name, call in calls.items()}
        for name, cache_mode in (("robomimic", "low_dim"), ("robomimic_cached", "all")):
            dataset = stack.enter_context(_sequence_dataset(robomimic_file, cameras, cache_mode))
            works[name] = Work(_load, partial(_running_loader, dataset), units=_LOADED)
        ms = median_ms(works, rounds, label=label, progress=progress)
    return {
        "vs_gather": round(ms["native"] / ms["gather"], 3),
        **{
            f"vs_{name}{kind}": round(ms[name] / ms[f"native{kind}"], 2)
            for kind in ("", "_stacked")
            for name in ("robomimic", "robomimic_cached", "h5py")
        },
        "ms": {name: round(value, 3) for name, value in ms.items()},
    }


def _frames_read(sampler: Sampler, rows: np.ndarray) -> np.ndarray:
    """The frames in both windows of each row."""
    return np.concatenate([sampler.windows(rows), sampler.windows(sampler.returns(rows)[2])])


def _read_by_h5py(file: h5py.File, cameras: dict[str, Any], rows: np.ndarray) -> None:
    for name in cameras:
        data = file[f"observations/{name}"]
        slices = [data[max(row + 1 - _STACK, row // _EPISODE * _EPISODE) : row + 2] for row in rows]
        padded = [np.concatenate([window[:1].repeat(_STACK + 1 - len(window), 0), window]) for window in slices]
        windows = np.stack(padded)
        windows[:, :-1].copy(), windows[:, 1:].copy()


def _running_loader(dataset: Any) -> Iterator[Any]:
    """The batches of a DataLoader after those that its workers prepared at the start."""
    from torch.utils.data import DataLoader

    batches = iter(DataLoader(dataset, batch_size=_BATCH, shuffle=True, num_workers=_WORKERS, drop_last=True))
    for _ in range(_SKIPPED):
        next(batches)
    return batches


def _load(batches: Iterator[Any]) -> None:
    for _ in range(_LOADED):
        next(batches)


@contextlib.contextmanager
def _sequence_dataset(path: Path, cameras: dict[str, Any], cache_mode: str) -> Iterator[Any]:
    with importing("robomimic", "gtp-vision bench loader, which compares with robomimic,"):
        import robomimic.utils.obs_utils as ObsUtils
        from robomimic.utils.dataset import SequenceDataset
    with contextlib.redirect_stdout(io.StringIO()):
        ObsUtils.initialize_obs_utils_with_obs_specs({"obs": {"low_dim": ["state"], "rgb": list(cameras)}})
        dataset = SequenceDataset(
            hdf5_path=str(path),
            obs_keys=[*cameras, "state"],
            dataset_keys=("actions", "rewards", "dones"),
            frame_stack=_STACK,
            seq_length=1,
            hdf5_cache_mode=cache_mode,
            load_next_obs=True,
        )
    yield dataset
    dataset.close_and_delete_hdf5_handle()


def _write_files(folder: Path, case: str, frames: int, cameras: dict[str, tuple[int, int, int]]) -> tuple[Path, Path]:
    """Write the same demonstrations as a native and as a robomimic file."""
    store = noise_store(frames, cameras=cameras, state=9, actions=7, episode=_EPISODE, is_terminal=True)
    robomimic.write(folder / f"{case}.hdf5", store)
    return native.write(folder / f"{case}.h5", store), folder / f"{case}.hdf5"


def _measure_memory(path: Path, frames: int, batches: int) -> dict[str, float]:
    """The anonymous memory of a process that samples a large file."""
    _write_large(path, frames, sparse=True)
    store = open_store(path)
    before = anonymous_mb()
    sampler = Sampler(store, _BATCH, seed=0, frame_stack=_STACK)
    for step in range(batches):
        sampler.frames(sampler.rows(step))
    after = anonymous_mb()
    return {
        "private_mb": round(after, 1),
        "private_growth_mb": round(after - before, 1),
        "file_gb": round(path.stat().st_size / 1e9, 2),
    }


def _time_beyond_cache(path: Path, limit: int) -> dict[str, float] | None:
    """Time batches from a file twice as large as the memory of this process's control group."""
    frames = 2 * limit // (64 * 64 * 3) // _EPISODE * _EPISODE
    with _limited(limit) as is_limited:
        if not is_limited:
            return None
        _write_large(path, frames, sparse=False)
        store, steps = open_store(path), count()
        sampler, array = Sampler(store, _BATCH, seed=0, frame_stack=_STACK), store.observations["camera"]

        def rows() -> np.ndarray:
            return sampler.rows(next(steps))

        works = {
            "gather": Work(lambda frames: array[np.unique(frames)], lambda: _frames_read(sampler, rows())),
            "native": Work(sampler.frames, rows),
        }
        ms = median_ms(works, _COLD_BATCHES)
    return {
        "ms": round(ms["native"], 1),
        "vs_gather": round(ms["native"] / ms["gather"], 3),
        "limit_gb": round(limit / 1e9, 2),
        "file_gb": round(path.stat().st_size / 1e9, 2),
    }


@contextlib.contextmanager
def _limited(size: int) -> Iterator[bool]:
    """Move this process into a control group with `size` bytes of memory, page cache included; whether that worked."""
    created: Path | None = None
    for group, limit in _control_groups():
        try:
            group.mkdir()
            created = group
            (group / limit).write_text(str(size))
            (group / "cgroup.procs").write_text(str(os.getpid()))
            break
        except OSError:
            if created:
                with contextlib.suppress(OSError):
                    created.rmdir()
            created = None
    try:
        yield created is not None
    finally:
        if created:
            with contextlib.suppress(OSError):  # a group is removed when its last process has left it
                (created.parent / "cgroup.procs").write_text(str(os.getpid()))
                created.rmdir()


def _control_groups() -> Iterator[tuple[Path, str]]:
    """Possible control groups below this process's own, with the name of their limit, for versions 1 and 2."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/cgroup").read_text().splitlines():
            _, controllers, parent = line.split(":", 2)
            name = f"gtp-vision-{os.getpid()}"
            if "memory" in controllers.split(","):
                yield Path(f"/sys/fs/cgroup/memory{parent}") / name, "memory.limit_in_bytes"
            elif not controllers:
                yield Path(f"/sys/fs/cgroup{parent}") / name, "memory.max"


def _write_large(path: Path, frames: int, *, sparse: bool) -> None:
    """Write a native file of 64x64 frames; a sparse one takes no disk, but page cache and time like any other."""
    shapes: dict[str, tuple[tuple[int, ...], Any]] = {
        "observations/camera": ((frames, 64, 64, 3), np.uint8),
        "actions": ((frames, 7), np.float32),
        "rewards": ((frames,), np.float32),
        "terminals": ((frames,), np.uint8),
        "timeouts": ((frames,), np.uint8),
        "episode_ends": ((frames // _EPISODE,), np.int64),
    }
    rng = np.random.default_rng(0)
    ends = np.arange(_EPISODE, frames + 1, _EPISODE)
    with native.create(path, shapes, {}) as file:
        for name in ("actions", "rewards", "terminals", "timeouts"):
            file[name][:] = 0
        file["episode_ends"][:] = ends
        file["timeouts"][ends - 1] = 1
        camera = file["observations/camera"]
        camera[-1] = 7
        for start in range(0, 0 if sparse else frames, 1000):
            rows = min(1000, frames - start)
            camera[start : start + rows] = rng.integers(0, 256, (rows, 64, 64, 3), np.uint8)
    with path.open("rb") as written:
        os.fsync(written.fileno())
        os.posix_fadvise(written.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)  # later reads come from the disk


def _in_child(work: Callable[..., Any], *arguments: Any) -> Any:
    with WorkerPool(1) as pool:
        return pool.submit(work, *arguments).result()


def anonymous_mb() -> float:
    """Memory of this process that no file backs."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) * 1024 / 1e6
    raise GtpVisionError(
        "gtp-vision bench loader needs RssAnon in /proc/self/status, which this system lacks; run it on Linux"
    )
