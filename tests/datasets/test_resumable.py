import json
import os
import resource
import signal
import threading
from pathlib import Path

import h5py
import numpy as np
import pytest

from gtp_vision.core.errors import GtpVisionError
from gtp_vision.datasets import resumable

FLOAT = np.dtype(np.float32)
pytestmark = pytest.mark.usefixtures("cache")


def _values(start: int, stop: int) -> np.ndarray:
    return np.arange(start, stop, dtype=np.float64)[:, None] + np.array([0, 0.25])


class StoppedError(Exception):
    pass


def test_an_array_is_made_in_pieces_and_read_by_anybody(tmp_path: Path) -> None:
    spans = []

    def compute(start: int, stop: int) -> np.ndarray:
        spans.append((start, stop))
        return _values(start, stop)

    target = tmp_path / "entry.h5"
    assert resumable.whole(target) is None
    made = resumable.made(target, (10, 2), FLOAT, 4, compute, "an entry")
    assert spans == [(0, 4), (4, 8), (8, 10)]
    np.testing.assert_array_equal(made, _values(0, 10))
    assert isinstance(made, np.memmap)
    with h5py.File(target) as file:
        np.testing.assert_array_equal(file["features"], _values(0, 10))
    again = resumable.made(target, (10, 2), FLOAT, 4, compute, "an entry")
    assert len(spans) == 3
    np.testing.assert_array_equal(again, _values(0, 10))


def test_what_was_interrupted_goes_on_from_the_last_whole_piece_in_the_same_dtype(tmp_path: Path) -> None:
    target, spans = tmp_path / "entry.h5", []

    def stops(start: int, stop: int) -> np.ndarray:
        if start == 8:
            raise StoppedError
        return _values(start, stop)

    with pytest.raises(StoppedError):
        resumable.made(target, (10, 2), np.dtype(np.float16), 4, stops, "an entry")
    assert resumable.whole(target) is None

    def compute(start: int, stop: int) -> np.ndarray:
        spans.append(start)
        return _values(start, stop)

    made = resumable.made(target, (10, 2), FLOAT, 3, compute, "an entry")
    assert spans == [6, 9], "8 rows were done, and pieces begin at multiples of 3 now"
    assert made.dtype == np.float16
    np.testing.assert_array_equal(made, _values(0, 10))


def test_an_entry_of_another_shape_is_made_anew_under_who_has_mapped_it(tmp_path: Path) -> None:
    target = tmp_path / "entry.h5"
    old = resumable.made(target, (10, 2), FLOAT, 4, _values, "an entry")
    new = resumable.made(target, (6, 2), FLOAT, 4, _values, "an entry")
    assert new.shape == (6, 2)
    np.testing.assert_array_equal(old, _values(0, 10))


def test_of_two_at_once_one_computes_and_the_other_waits(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    target, begun, go = tmp_path / "entry.h5", threading.Event(), threading.Event()

    def slow(start: int, stop: int) -> np.ndarray:
        begun.set()
        assert go.wait(60)
        return _values(start, stop)

    def never(start: int, stop: int) -> np.ndarray:
        raise AssertionError("the other one has made it")

    found: list[np.ndarray] = []
    first = threading.Thread(target=lambda: found.append(resumable.made(target, (4, 2), FLOAT, 4, slow, "it")))
    second = threading.Thread(target=lambda: found.append(resumable.made(target, (4, 2), FLOAT, 4, never, "it")))
    first.start()
    assert begun.wait(60)
    second.start()
    second.join(0.2)
    assert second.is_alive()
    go.set()
    first.join(60)
    second.join(60)
    assert len(found) == 2
    assert f"waiting for another process ({os.getpid()} on " in capfd.readouterr().err


def test_values_that_are_not_finite_are_refused_with_their_row(tmp_path: Path) -> None:
    def broken(start: int, stop: int) -> np.ndarray:
        return np.where(np.arange(start, stop)[:, None] == 6, np.nan, _values(start, stop))

    with pytest.raises(GtpVisionError, match=r"an entry: what comes of frame 6 is not finite"):
        resumable.made(tmp_path / "entry.h5", (10, 2), FLOAT, 4, broken, "an entry")


def test_values_that_the_dtype_does_not_hold_are_told_apart(tmp_path: Path) -> None:
    with pytest.raises(resumable.OutOfRangeError):
        resumable.made(tmp_path / "e.h5", (4, 2), np.dtype(np.float16), 4, lambda a, b: 1e6 + _values(a, b), "an entry")


def test_more_than_the_cache_may_hold_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GTP_VISION_CACHE_SIZE", "1e-8")
    with pytest.raises(GtpVisionError, match=r"set GTP_VISION_CACHE_SIZE to more"):
        resumable.made(tmp_path / "entry.h5", (10, 2), FLOAT, 4, _values, "an entry")


def test_a_disk_that_takes_no_more_is_told_with_the_mend(tmp_path: Path) -> None:
    target, size = tmp_path / "entry.h5", 1 << 16
    rows = 4 * size // 8

    def stops(start: int, stop: int) -> np.ndarray:
        if start:
            # Every write beyond this fails as on a full disk; what was laid out before may be larger.
            resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
        return _values(start, stop)

    limits, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        with pytest.raises(GtpVisionError, match=r"entry.h5 cannot be written .*make room, or set GTP_VISION_CACHE"):
            resumable.made(target, (rows, 2), FLOAT, rows // 4, stops, "an entry")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    done = json.loads(target.with_suffix(".json").read_text())["done"]
    assert rows // 4 <= done < rows
    np.testing.assert_array_equal(resumable.made(target, (rows, 2), FLOAT, 1000, _values, "an entry"), _values(0, rows))
    assert not [name for name in os.listdir(tmp_path) if name.endswith(".part")]
