"""`gtp-vision bench loader`: batches against a bare gather, robomimic's loader and h5py; memory; statistics."""

from __future__ import annotations

import contextlib
import io
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from tqdm import tqdm

from gtp_vision.core.errors import GtpVisionError
from gtp_vision.core.worker_pool import WorkerPool
from gtp_vision.datasets.arrays import Array
from gtp_vision.datasets.formats import native, open_store, robomimic
from gtp_vision.datasets.sampler import Sampler
from gtp_vision.datasets.statistics import array_statistics
from gtp_vision.datasets.store import Store

_BATCH, _STACK, _EPISODE = 256, 4, 100
_CASES: dict[str, tuple[int, dict[str, tuple[int, int, int]]]] = {
    "one_camera": (20_000, {"agentview_image": (64, 64, 3)}),
    "two_cameras": (6_000, {"agentview_image": (84, 84, 3), "robot0_eye_in_hand_image": (84, 84, 3)}),
}
_MEMORY_FRAMES, _MEMORY_BATCHES = 350_000, 200  # 4.3 GB of 64x64x3
_CACHE_BYTES, _COLD_BATCHES = 1 << 30, 12
_WORKERS = 2
_TIMED, _UNTIMED = 10, 3  # batches a round, after some that find the caches full of the way before


def bench_loader(*, rounds: int = 5, progress: bool = True) -> dict[str, Any]:
    """Measure what training waits for: batches of 256 windows of 4 frames, drawn at random from 100-frame episodes.

    Per case the milliseconds of a batch, medians over interleaved rounds:

    * `native`: our sampler's batch: windows of observations and next observations, actions, returns; each distinct
      frame once, windows as indices. `native_stacked` adds the stacking of both windows into (256, 4, ...), which
      training does on its device.
    * `gather`: the same bytes by NumPy's indexing of the mapped arrays, and nothing else.
    * `robomimic`: its SequenceDataset (frame_stack 4, with next observations) and a DataLoader of 2 workers, on the
      same demonstrations in its own format, in its default way for images (`low_dim` cached) and, `robomimic_cached`,
      with everything in memory.
    * `h5py`: one slice a sample from the native file, stacked into both windows.

    `vs_gather` is native / gather; `vs_robomimic` and `vs_h5py` say how many times faster native is, what it hands out
    being stacked later, on the device; `vs_robomimic_stacked` and so on compare native_stacked, the same tensors.
    `private_mb` is the anonymous memory of a process that samples a 4.3 GB file, its libraries included;
    `private_growth_mb` what sampling added. `stats_seconds` is the time of the statistics of 1M x 30 floats.
    `beyond_cache` samples a file twice as large as the page cache may grow, in a control group that sets that limit;
    None where the machine does not let us make one.

    Args:
        rounds: interleaved rounds.
        progress: show a bar.

    Returns:
        One JSON-able object; the first case's numbers on top, those of two cameras under `two_cameras`.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        cases = {}
        for case, (frames, cameras) in _CASES.items():
            files = _files(folder, case, frames, cameras)
            cases[case] = _case(files, cameras, rounds, f"timing {case.replace('_', ' ')}", progress)
        (folder / "one_camera.h5").unlink()
        memory = _in_child(_memory, folder / "large.h5", _MEMORY_FRAMES, _MEMORY_BATCHES)
        cold = _in_child(_beyond_cache, folder / "cold.h5", _CACHE_BYTES)
    rng = np.random.default_rng(0)
    numbers = rng.standard_normal((1_000_000, 30), np.float32)
    spent = [_seconds(lambda: array_statistics(numbers)) for _ in range(3)]
    return {
        **cases["one_camera"],
        "two_cameras": cases["two_cameras"],
        **memory,
        "stats_seconds": round(statistics.median(spent), 3),
        "beyond_cache": cold,
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
    cold = results["beyond_cache"]
    if cold:
        lines.append(
            f"a file of {cold['file_gb']:.1f} GB with {cold['limit_gb']:.1f} GB of memory: {cold['ms']:.0f} ms a "
            f"batch, {cold['vs_gather']:.2f} of a bare gather's time there"
        )
    else:
        lines.append("beyond the page cache: not measured, this machine lets us limit no control group")
    return "\n".join(lines)


def _case(files: tuple[Path, Path], cameras: dict[str, Any], rounds: int, label: str, progress: bool) -> dict[str, Any]:
    ours, theirs = files
    store = open_store(ours)
    sampler = Sampler(store, _BATCH, seed=0, frame_stack=_STACK)
    arrays = list(store.observations.values())
    steps = iter(range(10**9))

    def distinct() -> np.ndarray:
        rows = sampler.rows(next(steps))
        return np.unique(np.concatenate([sampler.windows(rows), sampler.windows(sampler.returns(rows)[2])]))

    def drawn() -> np.ndarray:
        return sampler.rows(next(steps))

    for array in arrays:  # a mapped page is slow the first time it is touched, whoever touches it
        np.add.reduce(np.asarray(array).reshape(-1)[::1024])
    spent: dict[str, list[float]] = {}
    with h5py.File(ours, "r") as file, contextlib.ExitStack() as stack:
        # Each prepares what is not its own before it is timed.
        short: dict[str, tuple[Callable[[], Any], Callable[[Any], Any]]] = {
            "native": (lambda: next(steps), lambda step: sampler.frames(sampler.rows(step))),
            "gather": (distinct, lambda rows: [array[rows] for array in arrays]),
            "native_stacked": (lambda: next(steps), sampler.batch),
            "h5py": (drawn, lambda rows: _by_h5py(file, cameras, rows)),
        }
        ways: dict[str, Callable[[], None]] = {"short": lambda: _in_a_row(short, spent)}
        for name, cached in (("robomimic", "low_dim"), ("robomimic_cached", "all")):
            dataset = stack.enter_context(_sequence_dataset(theirs, cameras, cached))
            ways[name] = lambda name=name, dataset=dataset: _through_dataloader(dataset, spent[name])  # type: ignore[misc]
        for way in (*short, "robomimic", "robomimic_cached"):
            spent[way] = []
        for turn in tqdm(range(rounds + 1), desc=label, unit="round", disable=not progress):
            for time_it in ways.values():
                time_it()
            if not turn:  # the first round warms up
                for times in spent.values():
                    times.clear()
    ms = {name: 1e3 * statistics.median(times) for name, times in spent.items()}
    return {
        "vs_gather": round(ms["native"] / ms["gather"], 3),
        **{
            f"vs_{name}{kind}": round(ms[name] / ms[f"native{kind}"], 1)
            for kind in ("", "_stacked")
            for name in ("robomimic", "robomimic_cached", "h5py")
        },
        "ms": {name: round(value, 3) for name, value in ms.items()},
    }


def _in_a_row(ways: dict[str, tuple[Callable[[], Any], Callable[[Any], Any]]], spent: dict[str, list[float]]) -> None:
    for name, (prepare, work) in ways.items():
        for turn in range(_UNTIMED + _TIMED):  # one after another, as training draws them
            given = prepare()
            seconds = _seconds(lambda: work(given))  # noqa: B023
            if turn >= _UNTIMED:
                spent[name].append(seconds)


def _by_h5py(file: h5py.File, cameras: dict[str, Any], rows: np.ndarray) -> None:
    for name in cameras:
        data = file[f"observations/{name}"]
        seen = [data[max(row + 1 - _STACK, row // _EPISODE * _EPISODE) : row + 2] for row in rows]
        full = np.stack([np.concatenate([window[:1].repeat(_STACK + 1 - len(window), 0), window]) for window in seen])
        full[:, :-1].copy(), full[:, 1:].copy()


def _through_dataloader(dataset: Any, times: list[float]) -> None:
    """Steady batches of a DataLoader: those that its workers had prepared before we count are not counted."""
    from torch.utils.data import DataLoader

    loader = DataLoader(dataset, batch_size=_BATCH, shuffle=True, num_workers=_WORKERS, drop_last=True)
    batches = iter(loader)
    skipped, counted = 4 * _WORKERS, 10  # each worker prepares two ahead
    for _ in range(skipped):
        next(batches)
    started = time.perf_counter()
    for _ in range(counted):
        next(batches)
    times.append((time.perf_counter() - started) / counted)
    del batches


@contextlib.contextmanager
def _sequence_dataset(path: Path, cameras: dict[str, Any], cached: str) -> Iterator[Any]:
    try:
        import robomimic.utils.obs_utils as ObsUtils
        from robomimic.utils.dataset import SequenceDataset
    except ImportError as error:
        raise GtpVisionError(
            "gtp-vision bench loader compares with robomimic, which is not installed: pip install robomimic six"
        ) from error
    with contextlib.redirect_stdout(io.StringIO()):
        ObsUtils.initialize_obs_utils_with_obs_specs({"obs": {"low_dim": ["state"], "rgb": list(cameras)}})
        dataset = SequenceDataset(
            hdf5_path=str(path),
            obs_keys=[*cameras, "state"],
            dataset_keys=("actions", "rewards", "dones"),
            frame_stack=_STACK,
            seq_length=1,
            hdf5_cache_mode=cached,
            load_next_obs=True,
        )
    yield dataset
    dataset.close_and_delete_hdf5_handle()


def _files(folder: Path, case: str, frames: int, cameras: dict[str, tuple[int, int, int]]) -> tuple[Path, Path]:
    """The same demonstrations as a native and as a robomimic file."""
    rng = np.random.default_rng(0)
    ends = np.arange(_EPISODE, frames + 1, _EPISODE)
    last = np.zeros(frames, bool)
    last[ends - 1] = True
    observations: dict[str, Array] = {
        name: rng.integers(0, 256, (frames, *shape), np.uint8) for name, shape in cameras.items()
    }
    store = Store(
        observations=observations | {"state": rng.standard_normal((frames, 9), np.float32)},
        actions=rng.uniform(-1, 1, (frames, 7)).astype(np.float32),
        rewards=np.zeros(frames, np.float32),
        terminals=last,
        timeouts=np.zeros(frames, bool),
        episode_ends=ends,
    )
    robomimic.write(folder / f"{case}.hdf5", store)
    return native.write(folder / f"{case}.h5", store), folder / f"{case}.hdf5"


def _memory(path: Path, frames: int, batches: int) -> dict[str, float]:
    """What a process that samples a large file keeps for itself."""
    _large(path, frames)
    store = open_store(path)
    before = _anonymous_mb()
    sampler = Sampler(store, _BATCH, seed=0, frame_stack=_STACK)
    for step in range(batches):
        sampler.frames(sampler.rows(step))
    after = _anonymous_mb()
    return {
        "private_mb": round(after, 1),
        "private_growth_mb": round(after - before, 1),
        "file_gb": round(path.stat().st_size / 1e9, 2),
    }


def _beyond_cache(path: Path, limit: int) -> dict[str, float] | None:
    """Batches from a file twice as large as the memory of this process's control group."""
    row = 64 * 64 * 3
    frames = 2 * limit // row // _EPISODE * _EPISODE
    with _limited(limit) as limited:
        if not limited:
            return None
        _large(path, frames, holes=False)
        store = open_store(path)
        sampler, array = Sampler(store, _BATCH, seed=0, frame_stack=_STACK), store.observations["camera"]
        assert isinstance(array, np.ndarray)
        spent: dict[str, list[float]] = {"native": [], "gather": []}
        for step in range(2 * _COLD_BATCHES):
            rows = sampler.rows(step)
            if step % 2:
                spent["native"].append(_seconds(lambda: sampler.frames(rows)))  # noqa: B023
            else:
                windows = np.concatenate([sampler.windows(rows), sampler.windows(sampler.returns(rows)[2])])
                spent["gather"].append(_seconds(lambda: array[np.unique(windows)]))  # noqa: B023
    ms = {name: 1e3 * statistics.median(times) for name, times in spent.items()}
    return {
        "ms": round(ms["native"], 1),
        "vs_gather": round(ms["native"] / ms["gather"], 3),
        "limit_gb": round(limit / 1e9, 2),
        "file_gb": round(path.stat().st_size / 1e9, 2),
    }


@contextlib.contextmanager
def _limited(size: int) -> Iterator[bool]:
    """This process in a control group with `size` bytes of memory, page cache included, if we may make one."""
    made: Path | None = None
    for group, limit in _groups():
        try:
            group.mkdir()
            made = group
            (group / limit).write_text(str(size))
            (group / "cgroup.procs").write_text(str(os.getpid()))
            break
        except OSError:
            if made:
                with contextlib.suppress(OSError):
                    made.rmdir()
            made = None
    try:
        yield made is not None
    finally:
        if made:
            with contextlib.suppress(OSError):  # a group is removed when its last process has left it
                (made.parent / "cgroup.procs").write_text(str(os.getpid()))
                made.rmdir()


def _groups() -> Iterator[tuple[Path, str]]:
    """Control groups that could be made below this process's own, and the name of their limit: versions 1 and 2."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/cgroup").read_text().splitlines():
            _, controllers, place = line.split(":", 2)
            name = f"gtp-vision-{os.getpid()}"
            if "memory" in controllers.split(","):
                yield Path(f"/sys/fs/cgroup/memory{place}") / name, "memory.limit_in_bytes"
            elif not controllers:
                yield Path(f"/sys/fs/cgroup{place}") / name, "memory.max"


def _large(path: Path, frames: int, *, holes: bool = True) -> None:
    """A native file of 64x64 frames; with holes it takes no disk, but page cache and time like any other."""
    shapes: dict[str, tuple[tuple[int, ...], Any]] = {
        "observations/camera": ((frames, 64, 64, 3), np.uint8),
        "actions": ((frames, 7), np.float32),
        "rewards": ((frames,), np.float32),
        "terminals": ((frames,), np.uint8),
        "timeouts": ((frames,), np.uint8),
        "episode_ends": ((frames // _EPISODE,), np.int64),
    }
    rng = np.random.default_rng(0)
    with native.create(path, shapes, {}) as made:
        for name, (shape, dtype) in shapes.items():
            if name not in ("observations/camera", "episode_ends"):
                made[name][:] = np.zeros(shape, dtype)
        ends = np.arange(_EPISODE, frames + 1, _EPISODE)
        made["episode_ends"][:] = ends
        made["timeouts"][ends - 1] = 1
        made["observations/camera"][-1] = 7
        for start in range(0, 0 if holes else frames, 1000):
            rows = min(1000, frames - start)
            made["observations/camera"][start : start + rows] = rng.integers(0, 256, (rows, 64, 64, 3), np.uint8)
    with path.open("rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)  # what was written is not read from memory


def _in_child(work: Callable[..., Any], *arguments: Any) -> Any:
    with WorkerPool(1) as pool:
        return pool.submit(work, *arguments).result()


def _anonymous_mb() -> float:
    """Memory that this process alone has and no file backs."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) * 1024 / 1e6
    raise GtpVisionError("gtp-vision bench loader reads memory from /proc/self/status, which this system lacks")


def _seconds(work: Callable[[], Any]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started
