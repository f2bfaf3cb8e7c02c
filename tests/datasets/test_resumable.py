import json
import os
import resource
import signal
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from gtp_vision.core.errors import GtpVisionError
from gtp_vision.datasets import resumable

pytestmark = pytest.mark.usefixtures("cache")
FLOAT, HALF = np.dtype(np.float32), np.dtype(np.float16)


def values(start: int, stop: int) -> np.ndarray:
    return np.arange(start, stop, dtype=np.float64)[:, None] + np.array([0, 0.25])


def compute(
    target: Path, rows: int = 10, piece: int = 4, function: Callable[[int, int], Any] = values, dtype: np.dtype = FLOAT
) -> np.ndarray:
    return resumable.compute_array(target, (rows, 2), dtype, piece, function, "an entry")


@pytest.fixture
def target(tmp_path: Path) -> Path:
    return tmp_path / "entry.h5"


def test_an_array_is_computed_in_pieces_once(target: Path) -> None:
    spans = []

    def counted(start: int, stop: int) -> np.ndarray:
        spans.append((start, stop))
        return values(start, stop)

    assert resumable.finished_array(target) is None
    array = compute(target, function=counted)
    assert spans == [(0, 4), (4, 8), (8, 10)]
    assert isinstance(array, np.memmap)
    with h5py.File(target) as file:
        np.testing.assert_array_equal(file["features"], values(0, 10))
    np.testing.assert_array_equal(compute(target, function=counted), values(0, 10))
    assert len(spans) == 3
    finished = resumable.finished_array(target)
    assert finished is not None
    np.testing.assert_array_equal(finished, array)
    assert compute(target, rows=6).shape == (6, 2), "an entry of another shape is made again"
    np.testing.assert_array_equal(array, values(0, 10))


def test_an_interrupted_computation_continues_from_the_last_piece_in_the_same_dtype(target: Path) -> None:
    starts = []

    def counted(start: int, stop: int) -> np.ndarray:
        starts.append(start)
        if starts == [0, 4, 8]:
            raise KeyboardInterrupt
        return values(start, stop)

    with pytest.raises(KeyboardInterrupt):
        compute(target, function=counted, dtype=HALF)
    assert resumable.finished_array(target) is None
    array = compute(target, piece=3, function=counted)
    assert starts[3:] == [6, 9], "8 rows were finished, and pieces begin at multiples of 3 now"
    assert array.dtype == HALF
    np.testing.assert_array_equal(array, values(0, 10))


def test_of_two_at_once_one_computes_and_the_other_waits(target: Path, capfd: pytest.CaptureFixture[str]) -> None:
    begun, proceed = threading.Event(), threading.Event()

    def slow(start: int, stop: int) -> np.ndarray:
        begun.set()
        assert proceed.wait(60)
        return values(start, stop)

    def never(start: int, stop: int) -> np.ndarray:
        raise AssertionError("the other one has computed it")

    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(compute, target, 4, function=slow)
        assert begun.wait(60)
        second = pool.submit(compute, target, 4, function=never)
        assert not wait([second], 0.2).done
        proceed.set()
        np.testing.assert_array_equal(first.result(60), second.result(60))
    assert f"waiting for another process ({os.getpid()} on " in capfd.readouterr().err


def test_values_that_cannot_be_stored_are_refused(target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(GtpVisionError, match=r"an entry: the result of frame 6 is not finite"):
        compute(target, function=lambda a, b: np.where(np.arange(a, b)[:, None] == 6, np.nan, values(a, b)))
    resumable.discard(target)
    with pytest.raises(resumable.OutOfRangeError):
        compute(target, function=lambda a, b: 1e6 + values(a, b), dtype=HALF)
    resumable.discard(target)
    monkeypatch.setenv("GTP_VISION_CACHE_SIZE", "1e-8")
    with pytest.raises(GtpVisionError, match=r"set GTP_VISION_CACHE_SIZE to more"):
        compute(target)


def test_a_full_disk_is_named_and_what_is_finished_stays(target: Path) -> None:
    size = 1 << 16
    rows = 4 * size // 8

    def stops(start: int, stop: int) -> np.ndarray:
        if start:
            # Every write beyond this fails as on a full disk; what was allocated before may be larger.
            resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
        return values(start, stop)

    limits, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        with pytest.raises(GtpVisionError, match=r"entry.h5 cannot be written .*make room, or set GTP_VISION_CACHE"):
            compute(target, rows, rows // 4, stops)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    done = json.loads(target.with_suffix(".json").read_text())["done"]
    assert rows // 4 <= done < rows
    np.testing.assert_array_equal(compute(target, rows, 1000), values(0, rows))
    assert not [name for name in os.listdir(target.parent) if name.endswith(".part")]
