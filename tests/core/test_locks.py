import os
import threading
from pathlib import Path

import pytest

from gtp_vision.core.errors import GtpVisionError
from gtp_vision.core.locks import FileLock


def test_a_second_holder_is_refused_and_told_the_first(tmp_path: Path) -> None:
    first = FileLock(tmp_path / ".lock", "trains in x", "choose another run_dir")
    second = FileLock(tmp_path / ".lock", "trains in x", "choose another run_dir")
    with first:
        first.acquire()  # again, without effect
        with pytest.raises(GtpVisionError, match=rf"\({os.getpid()} on .*trains in x; .*choose another run_dir"):
            second.acquire()
        assert (first.is_held, second.is_held) == (True, False)
    with second:
        assert second.is_held


def test_a_lock_that_waits_reports_the_holder(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    order = []

    def wait() -> None:
        with FileLock(tmp_path / ".lock", "downloads", waits=True):
            order.append("second")

    with FileLock(tmp_path / ".lock", "downloads"):
        thread = threading.Thread(target=wait)
        thread.start()
        thread.join(0.1)
        order.append("first")
    thread.join(10)
    assert order == ["first", "second"]
    assert f"waiting for another process ({os.getpid()} on " in capfd.readouterr().err
