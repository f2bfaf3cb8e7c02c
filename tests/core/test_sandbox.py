import os
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from gtp_vision.core import sandbox
from gtp_vision.core.errors import GtpVisionError

HERE = f"{__name__}:"
pytestmark = pytest.mark.processes


@pytest.fixture(autouse=True)
def _fresh(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A child that finds this module, ended after the test."""
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))
    sandbox.stop()
    yield
    sandbox.stop()


# Functions that the child runs --------------------------------------------------------------------------------------


def echo(path: Path, *arguments: Any) -> Any:
    return [str(path), *arguments, os.getpid()]


def refuses(path: Path) -> None:
    raise GtpVisionError(f"{path} is damaged; fix it")


def breaks(path: Path) -> None:
    raise ZeroDivisionError("a defect")


def hangs(path: Path) -> None:
    time.sleep(60)


def crashes(path: Path) -> None:
    os.kill(os.getpid(), signal.SIGSEGV)


def takes(path: Path, size: int) -> int:
    return int(np.ones(size, np.uint8).sum(dtype=np.int64))


def works_long(path: Path, seconds: float) -> str:
    ends = time.monotonic() + seconds
    while time.monotonic() < ends:
        time.sleep(0.05)
        sandbox.heartbeat()
    return "done"


def simulates(path: Path, seconds: float, size: int) -> int:
    with sandbox.unlimited_memory():
        time.sleep(seconds)
        kept = np.ones(size, np.uint8)
    return int(kept.sum(dtype=np.int64)) + takes(path, 50_000_000)


def prints(path: Path) -> str:
    print("noise on the standard output", flush=True)
    os.write(1, b"and by the file's number\n")
    return "result"


def ceiling(path: Path) -> int:
    return resource.getrlimit(resource.RLIMIT_DATA)[0]


def environment(path: Path) -> list[str | None]:
    return [os.environ.get("GTP_VISION_CACHE"), os.getcwd()]


# Tests ---------------------------------------------------------------------------------------------------------------


def call(name: str, path: Path, *arguments: Any) -> Any:
    return sandbox.call(HERE + name, path, *arguments)


def test_a_function_runs_in_one_process_apart(tmp_path: Path) -> None:
    *first, child = call("echo", tmp_path, 1, ["a", None])
    assert first == [str(tmp_path), 1, ["a", None]]
    assert child != os.getpid()
    assert call("echo", tmp_path)[-1] == child, "the second call found the same process"


def test_refusals_cross_as_they_are_and_defects_with_their_traceback(tmp_path: Path) -> None:
    with pytest.raises(GtpVisionError, match="is damaged; fix it"):
        call("refuses", tmp_path)
    with pytest.raises(RuntimeError, match=r"(?s)ZeroDivisionError: a defect"):
        call("breaks", tmp_path)


def test_a_file_that_keeps_its_reader_busy_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    call("echo", tmp_path)
    monkeypatch.setenv("GTP_VISION_PATIENCE", "1")
    child = sandbox._child
    assert child is not None
    with pytest.raises(GtpVisionError, match=r"no progress for 1 s.*damaged.*GTP_VISION_PATIENCE"):
        call("hangs", tmp_path)
    assert child.poll() is not None, "the process was ended"
    monkeypatch.delenv("GTP_VISION_PATIENCE")
    assert call("echo", tmp_path)[0] == str(tmp_path), "and another one started"


def test_signs_of_life_keep_a_long_reading_going(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    call("echo", tmp_path)
    monkeypatch.setenv("GTP_VISION_PATIENCE", "1")
    assert call("works_long", tmp_path, 2.0) == "done"


def test_a_crash_of_the_library_is_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(GtpVisionError, match=r"damaged.*crash.*copy it again") as error:
        call("crashes", tmp_path)
    assert str(tmp_path) in str(error.value)
    assert call("echo", tmp_path)[0] == str(tmp_path)


def test_memory_is_bounded_by_the_files_size(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"x")
    with pytest.raises(GtpVisionError, match=r"more memory than its 1 bytes and 200 MB"):
        call("takes", path, 400_000_000)
    assert call("takes", path, 100_000_000) == 100_000_000
    with path.open("r+b") as file:
        file.truncate(400_000_000)
    assert call("takes", path, 400_000_000) == 400_000_000


def test_what_does_not_depend_on_the_file_is_not_bounded_by_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    call("echo", tmp_path)
    monkeypatch.setenv("GTP_VISION_PATIENCE", "2.5")
    assert call("simulates", tmp_path, 3.5, 300_000_000) == 350_000_000


def test_a_lower_limit_of_the_surroundings_is_kept(tmp_path: Path) -> None:
    call("echo", tmp_path)
    child = sandbox._child
    assert child is not None
    resource.prlimit(child.pid, resource.RLIMIT_DATA, (300_000_000, 300_000_000))  # as `ulimit -d` or a cluster sets it
    with (tmp_path / "large").open("wb") as file:
        file.truncate(1 << 30)
    assert call("ceiling", tmp_path / "large") == 300_000_000


def test_what_libraries_print_is_no_answer(tmp_path: Path) -> None:
    assert call("prints", tmp_path) == "result"


def test_settings_and_the_folder_are_those_of_the_call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    call("echo", tmp_path)
    monkeypatch.setenv("GTP_VISION_CACHE", "there")
    monkeypatch.chdir(tmp_path)
    assert call("environment", tmp_path) == ["there", str(tmp_path)]
    monkeypatch.delenv("GTP_VISION_CACHE")
    assert call("environment", tmp_path)[0] is None


def test_several_threads_take_turns(tmp_path: Path) -> None:
    found: list[Any] = []
    threads = [threading.Thread(target=lambda k=k: found.append(call("echo", tmp_path, k)[1])) for k in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(found) == list(range(8))


@pytest.mark.parametrize("seconds", ["long", "0", "-1", "nan"])
def test_a_number_of_seconds_that_is_none_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seconds: str
) -> None:
    monkeypatch.setenv("GTP_VISION_PATIENCE", seconds)
    with pytest.raises(GtpVisionError, match=f"GTP_VISION_PATIENCE={seconds} is not a number of seconds"):
        call("echo", tmp_path)


def test_no_process_is_left_behind(tmp_path: Path) -> None:
    script = (
        "import sys, os; from pathlib import Path; from gtp_vision.core import sandbox;"
        "print(sandbox.call('test_sandbox:echo', Path('.'))[-1]);"
        "sys.stdout.flush(); os.kill(os.getpid(), 9) if sys.argv[1] == 'killed' else None"
    )
    for how in ("ends", "killed"):
        done = subprocess.run([sys.executable, "-P", "-c", script, how], capture_output=True, text=True, check=False)
        child = int(done.stdout)
        for _ in range(100):
            if not psutil.pid_exists(child) or psutil.Process(child).status() == psutil.STATUS_ZOMBIE:
                break
            time.sleep(0.05)
        else:
            pytest.fail(f"the process of a program that {how} is still there")
