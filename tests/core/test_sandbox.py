import os
import resource
import signal
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from commands import ended, wait_for

from gtp_vision.core import sandbox
from gtp_vision.core.errors import GtpVisionError

HERE = f"{__name__}:"
pytestmark = pytest.mark.processes


@pytest.fixture(autouse=True)
def _fresh(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A child that finds this module, ended after the test."""
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(map(str, Path(__file__).parents[:2])))
    sandbox.stop()
    yield
    sandbox.stop()


def echo(path: Path, *arguments: Any) -> Any:
    return [str(path), *arguments, os.getpid()]


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


def environment(path: Path) -> list[str | None]:
    return [os.environ.get("GTP_VISION_CACHE"), os.getcwd()]


def fails(path: Path, kind: str) -> str:
    print("noise on the standard output", flush=True)
    os.write(1, b"and by the file's number\n")
    if kind == "refuses":
        raise GtpVisionError(f"{path} is damaged; fix it")
    if kind == "crashes":
        os.kill(os.getpid(), signal.SIGSEGV)
    if kind == "breaks":
        raise ZeroDivisionError("a defect")
    return "result"


def counts(path: Path, size: int) -> memoryview:
    return memoryview(np.arange(size, dtype=np.uint8))  # the bytes of line ends, too


def ceiling(path: Path) -> int:
    return resource.getrlimit(resource.RLIMIT_DATA)[0]


def call(name: str, path: Path, *arguments: Any) -> Any:
    return sandbox.call(HERE + name, path, *arguments)


def test_all_threads_share_one_process(tmp_path: Path) -> None:
    *first, child = call("echo", tmp_path, 1, ["a", None])
    assert first == [str(tmp_path), 1, ["a", None]]
    assert child != os.getpid()
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda k: call("echo", tmp_path, k), range(8)))
    assert found == [[str(tmp_path), k, child] for k in range(8)]


def test_bytes_fill_memory_of_the_caller(tmp_path: Path) -> None:
    out = np.zeros(3_000_000, np.uint8)
    for _ in range(2):
        sandbox.fill(HERE + "counts", tmp_path, memoryview(out), len(out), size=10 * len(out))
        np.testing.assert_array_equal(out, np.arange(len(out), dtype=np.uint8))
    with pytest.raises(GtpVisionError, match=r"needs more memory than its 5 bytes"):
        sandbox.fill(HERE + "counts", tmp_path, memoryview(out), 1_000_000_000, size=5)
    with pytest.raises(GtpVisionError, match="its reader returned 7 bytes"):
        sandbox.fill(HERE + "counts", tmp_path, memoryview(out), 7, size=5)
    assert call("takes", tmp_path, 5) == 5


@pytest.mark.parametrize(
    ("kind", "error", "words"),
    [
        ("refuses", GtpVisionError, "is damaged; fix it$"),
        ("crashes", GtpVisionError, r"damaged.*crash.*copy it again"),
        ("breaks", RuntimeError, r"(?s)Traceback.*ZeroDivisionError: a defect"),
    ],
)
def test_an_error_of_the_function_is_raised(tmp_path: Path, kind: str, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words) as raised:
        call("fails", tmp_path, kind)
    assert str(tmp_path) in str(raised.value) or kind == "breaks"
    assert call("fails", tmp_path, "not") == "result", "in a new process after a crash"


@pytest.mark.parametrize(
    ("name", "arguments", "result"), [("works_long", (5.0,), "done"), ("simulates", (5.0, 300_000_000), 350_000_000)]
)
def test_signs_of_life_and_work_apart_from_the_file_are_not_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, arguments: tuple[Any, ...], result: Any
) -> None:
    call("echo", tmp_path)
    monkeypatch.setenv("GTP_VISION_PATIENCE", "4")
    assert call(name, tmp_path, *arguments) == result


def test_a_slow_start_is_not_taken_for_a_damaged_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "sitecustomize.py").write_text("import time; time.sleep(1.5)")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), os.environ["PYTHONPATH"]]))
    monkeypatch.setenv("GTP_VISION_PATIENCE", "1")
    assert call("echo", tmp_path)[0] == str(tmp_path)


def test_a_lower_limit_of_the_surroundings_is_kept(tmp_path: Path) -> None:
    child = call("echo", tmp_path)[-1]
    resource.prlimit(child, resource.RLIMIT_DATA, (300_000_000, 300_000_000))  # as `ulimit -d` or a cluster sets it
    with (tmp_path / "large").open("wb") as file:
        file.truncate(1 << 30)
    assert call("ceiling", tmp_path / "large") == 300_000_000


def test_a_file_that_keeps_its_reader_busy_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    child = call("echo", tmp_path)[-1]
    monkeypatch.setenv("GTP_VISION_PATIENCE", "1")
    with pytest.raises(GtpVisionError, match=r"no progress for 1 s.*damaged.*GTP_VISION_PATIENCE"):
        call("hangs", tmp_path)
    assert not psutil.pid_exists(child), "the process was ended"
    monkeypatch.delenv("GTP_VISION_PATIENCE")
    assert call("echo", tmp_path)[-1] != child, "and another one started"


def test_memory_is_bounded_by_the_files_size(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"x")
    with pytest.raises(GtpVisionError, match=r"more memory than its 1 bytes and 200 MB"):
        call("takes", path, 400_000_000)
    assert call("takes", path, 100_000_000) == 100_000_000
    with path.open("r+b") as file:
        file.truncate(400_000_000)
    assert call("takes", path, 400_000_000) == 400_000_000


def test_settings_and_the_folder_are_those_of_the_call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    call("echo", tmp_path)
    monkeypatch.setenv("GTP_VISION_CACHE", "there")
    monkeypatch.chdir(tmp_path)
    assert call("environment", tmp_path) == ["there", str(tmp_path)]
    monkeypatch.delenv("GTP_VISION_CACHE")
    assert call("environment", tmp_path)[0] is None


def test_a_number_of_seconds_that_is_none_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for seconds in ("long", "0", "-1", "nan"):
        monkeypatch.setenv("GTP_VISION_PATIENCE", seconds)
        with pytest.raises(GtpVisionError, match=f"GTP_VISION_PATIENCE={seconds} is not a number of seconds"):
            call("echo", tmp_path)


@pytest.mark.parametrize("how", ["ends", "killed"])
def test_no_process_is_left_behind(tmp_path: Path, how: str) -> None:
    script = (
        "import sys, os; from pathlib import Path; from gtp_vision.core import sandbox;"
        "print(sandbox.call('test_sandbox:echo', Path('.'))[-1]);"
        "sys.stdout.flush(); os.kill(os.getpid(), 9) if sys.argv[1] == 'killed' else None"
    )
    child = int(ended("-c", script, how, status=-signal.SIGKILL * (how == "killed"))[0])
    wait_for(lambda: not psutil.pid_exists(child) or psutil.Process(child).status() == psutil.STATUS_ZOMBIE)
