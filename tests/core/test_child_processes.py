import importlib
import os
import signal
import time
from pathlib import Path

import psutil
import pytest
from commands import started, wait_for

from gtp_vision.core.processes import start, stop
from gtp_vision.core.worker_pool import WorkerPool

pytestmark = pytest.mark.processes
SLEEPER = "import os, pathlib, sys, time; pathlib.Path(sys.argv[1]).write_text(str(os.getpid())); time.sleep(600)"


def sleep_in(folder: Path) -> None:
    (folder / str(os.getpid())).write_text("")
    time.sleep(600)


def is_running(pid: int) -> bool:
    return psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE


def test_a_module_runs_with_its_arguments_environment_and_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REMOVED", "1")
    code = "import os, sys\nprint(sys.argv[1:], os.environ.get('ADDED'), os.environ.get('REMOVED'), __name__)"
    (tmp_path / "module.py").write_text(code)
    environment = {"ADDED": "x", "REMOVED": None, "PYTHONPATH": str(tmp_path)}
    assert start("module", "a", "b c", environment=environment, log=tmp_path / "log").wait() == 0
    assert (tmp_path / "log").read_text() == "['a', 'b c'] x None __main__\n"


def test_stop_kills_what_ignores_sigterm(tmp_path: Path) -> None:
    (tmp_path / "deaf.py").write_text("import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN)\n" + SLEEPER)
    process = start("deaf", str(tmp_path / "pid"), environment={"PYTHONPATH": str(tmp_path)})
    wait_for((tmp_path / "pid").exists)
    stop(process, 0.1)
    assert process.returncode == -signal.SIGKILL


@pytest.mark.parametrize("thread", ["main", "other"])
def test_a_process_ends_with_its_parent(tmp_path: Path, thread: str) -> None:
    (tmp_path / "sleeper.py").write_text(SLEEPER)
    script = f"""
import threading, time
from gtp_vision.core.processes import start
if {thread == "main"}:
    start("sleeper", {str(tmp_path / "pid")!r})
else:  # the process outlives the thread that started it
    thread = threading.Thread(target=start, args=("sleeper", {str(tmp_path / "pid")!r}))
    thread.start()
    thread.join()
time.sleep(600)
"""
    parent = started("-c", script, environment={"PYTHONPATH": str(tmp_path)})
    wait_for(lambda: (tmp_path / "pid").exists() and (tmp_path / "pid").read_text())
    pid = int((tmp_path / "pid").read_text())
    assert is_running(pid)
    parent.kill()
    parent.communicate()
    wait_for(lambda: not is_running(pid))


def test_an_error_ends_the_workers_of_a_pool(tmp_path: Path) -> None:
    def fail() -> None:
        with WorkerPool(2) as pool:
            pool.submit(sleep_in, tmp_path)
            wait_for(lambda: list(tmp_path.iterdir()))
            pool.submit(int, "x").result()

    with pytest.raises(ValueError, match="invalid literal"):
        fail()
    wait_for(lambda: not any(is_running(int(path.name)) for path in tmp_path.iterdir()))


def test_a_worker_is_tied_to_its_parent_before_it_imports_what_it_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = (
        "import ctypes, pathlib\nfound = ctypes.c_int()\nctypes.CDLL(None).prctl(2, ctypes.byref(found))\n"
        "def begin(path):\n    pathlib.Path(path).write_text(str(found.value))"
    )
    (tmp_path / "slow_to_import.py").write_text(code)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.syspath_prepend(tmp_path)
    begin = importlib.import_module("slow_to_import").begin
    with WorkerPool(1, begin, str(tmp_path / "signal")) as pool:
        assert pool.submit(int, "1").result() == 1
    assert (tmp_path / "signal").read_text() == str(int(signal.SIGKILL))
