"""A process apart, in which files of strangers are opened.

A damaged HDF5 file can make its library hang, crash or ask for all the memory there is. So data sets are opened by a
child process, which is started once, answers with JSON, may take little more memory than the file is large, and is
killed when it shows no sign of life; each of these ends in a sentence about the file.
"""

from __future__ import annotations

import atexit
import contextlib
import importlib
import itertools
import json
import os
import resource
import selectors
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from tqdm import tqdm

from gtp_vision.core import processes
from gtp_vision.core.errors import GtpVisionError
from gtp_vision.core.registry import QUIET

_PATIENCE = 20.0  # seconds without a sign of life
_ALLOWANCE = 200_000_000  # bytes of memory beyond the file's size
_FAREWELL = 0.5  # seconds to tidy up
_COUNTED = 100_000  # files of a folder
_BEAT = b"\n"
_STATUS = "/proc/self/status"  # Linux tells there what RLIMIT_DATA counts; elsewhere memory is not limited
_PASSED_ON = (
    *("GTP_VISION_CACHE", "GTP_VISION_CACHE_SIZE", "GTP_VISION_PATIENCE"),
    *("XDG_CACHE_HOME", "HOME", "TQDM_DISABLE"),
)

_lock = threading.Lock()
_child: subprocess.Popen | None = None
_answers: IO[bytes] | None = None  # in the child: where signs of life and answers go
_last_beat = 0.0


def call(function: str, path: Path, *arguments: Any) -> Any:
    """Call a function in the process apart.

    Args:
        function: `module:name` of a function of (path, *arguments), JSON-able, that returns what is JSON-able.
        path: the file or folder that it reads; its size bounds the memory.
        *arguments: JSON-able.

    Raises:
        GtpVisionError: what the function raised as such; the file made it hang, crash or run out of memory.
    """
    with _lock:
        request = {"function": function, "path": str(path), "arguments": arguments, "bytes": _size(path)}
        environment = {key: value for key, value in os.environ.items() if key in _PASSED_ON}
        return _call(request | {"folder": os.getcwd(), "environment": environment}, path)


def alive() -> None:
    """Tell who waits that work goes on; to be called between pieces of long work. Outside the child it does nothing."""
    global _last_beat
    if _answers is not None and time.monotonic() - _last_beat > 0.2:
        _last_beat = time.monotonic()
        _answers.write(_BEAT)
        _answers.flush()


@contextlib.contextmanager
def unlimited() -> Iterator[None]:
    """Lift the memory's limit for a block that does not depend on the file: a simulator, say."""
    soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
    before = _data_bytes()
    resource.setrlimit(resource.RLIMIT_DATA, (hard, hard))
    stop = threading.Event()
    beating = threading.Thread(target=_beat_until, args=(stop,), daemon=True)
    beating.start()
    try:
        yield
    finally:
        stop.set()
        beating.join()
        if soft != resource.RLIM_INFINITY:  # what the block keeps, its modules, is not the file's
            _limit(soft + max(0, _data_bytes() - before))


def patience() -> float:
    """Seconds without a sign of life after which a file is given up: $GTP_VISION_PATIENCE, else 20."""
    try:
        seconds = float(os.environ.get("GTP_VISION_PATIENCE", _PATIENCE))
        if not seconds > 0:
            raise ValueError("a file needs some time")
        return seconds
    except ValueError as error:
        raise GtpVisionError(
            f"GTP_VISION_PATIENCE={os.environ['GTP_VISION_PATIENCE']} is no number of seconds; set it to one"
        ) from error


def _call(request: dict[str, Any], path: Path) -> Any:
    child = _started()
    assert child.stdin is not None
    try:
        child.stdin.write(json.dumps(request).encode() + b"\n")
        child.stdin.flush()
        answer = _answer(child, path)
    except BaseException:  # also Ctrl-C: what the child would still answer belongs to nobody
        stop()
        raise
    if "refused" in answer:
        raise GtpVisionError(answer["refused"])
    if "failed" in answer:
        raise RuntimeError(f"reading {path} failed:\n{answer['failed']}")
    return answer["result"]


def _answer(child: subprocess.Popen, path: Path) -> dict[str, Any]:
    """The next line that is more than a sign of life."""
    limit = patience()
    assert child.stdout is not None
    buffer = b""
    with selectors.DefaultSelector() as selector:
        selector.register(child.stdout, selectors.EVENT_READ)
        while True:
            if not selector.select(limit):
                raise GtpVisionError(
                    f"{path} keeps its reader busy for {limit:g} s without a result: it is damaged (copy it again), or "
                    f"on a very slow disk (set GTP_VISION_PATIENCE to more seconds)"
                )
            piece = os.read(child.stdout.fileno(), 1 << 20)
            if not piece:
                status = child.wait()
                raise GtpVisionError(
                    f"{path} makes the library that reads it crash (status {status}): it is damaged; copy it again"
                )
            *lines, buffer = (buffer + piece).split(b"\n")
            for line in filter(None, lines):
                return dict(json.loads(line))


def _started() -> subprocess.Popen:
    global _child
    if _child is None or _child.poll() is not None:
        # In a session of its own: Ctrl-C is for the parent, which then ends the child.
        _child = processes.start(
            "gtp_vision.core.sandbox",
            environment={QUIET: "1"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,
        )
    return _child


@atexit.register
def stop() -> None:
    """End the process apart, if there is one; the next call starts another."""
    global _child
    if _child is not None:
        processes.stop(_child, _FAREWELL)  # at SIGTERM it removes what it has half written
        for stream in (_child.stdin, _child.stdout):
            if stream:
                with contextlib.suppress(OSError):
                    stream.close()
        _child = None


def _forget() -> None:
    """After a fork the child belongs to the parent."""
    global _child, _lock
    _child, _lock = None, threading.Lock()


os.register_at_fork(after_in_child=_forget)


def _size(path: Path) -> int:
    """Bytes of a file, or of a folder's first files: somebody may name a whole disk."""
    if not os.path.isdir(path):
        return _bytes(path)
    files = (os.path.join(folder, name) for folder, _, names in os.walk(path) for name in names)
    return sum(map(_bytes, itertools.islice(files, _COUNTED)))


def _bytes(path: str | Path) -> int:
    try:
        return os.path.getsize(path) if os.path.isfile(path) else 0
    except OSError:  # it has just gone
        return 0


def _beat_until(stop: threading.Event) -> None:
    while not stop.wait(1.0):
        alive()


def _serve() -> None:
    """The child: a line of JSON in, a line of JSON out."""
    global _answers
    _answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # whatever a library prints must not be taken for an answer
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    tqdm.monitor_interval = 0  # its thread could not start at the memory's limit
    os.environ.setdefault("MUJOCO_GL", "disable")  # OGBench's rewards need a simulator, but nothing is rendered here
    for line in sys.stdin.buffer:
        request = json.loads(line)
        _answers.write(json.dumps(_result(request)).encode() + b"\n")
        _answers.flush()


def _result(request: dict[str, Any]) -> dict[str, Any]:
    module, name = request["function"].split(":")
    function = getattr(importlib.import_module(module), name)
    os.chdir(request["folder"])
    for key in _PASSED_ON:
        os.environ.pop(key, None)
    os.environ.update(request["environment"])
    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    if os.path.exists(_STATUS):
        _limit(_data_bytes() + request["bytes"] + _ALLOWANCE)
    try:
        return {"result": function(Path(request["path"]), *request["arguments"])}
    except GtpVisionError as error:
        return {"refused": str(error)}
    except MemoryError:
        return {
            "refused": f"{request['path']} asks for more memory than its size of {request['bytes']} bytes and "
            f"{_ALLOWANCE / 1e6:.0f} MB: it is damaged; copy it again"
        }
    except OSError as error:
        at = f" at {error.filename}" if error.filename and str(error.filename) != request["path"] else ""
        return {"refused": f"{request['path']} cannot be read ({error.strerror or error}{at}); mend that, or copy it"}
    except Exception:  # a defect of the reader: told with its traceback by who asked
        import traceback

        return {"failed": traceback.format_exc()}
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, (hard, hard))


def _limit(wanted: int) -> None:
    """Let this process have so much private memory, or what its surroundings allow if that is less."""
    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    resource.setrlimit(resource.RLIMIT_DATA, (wanted if hard == resource.RLIM_INFINITY else min(wanted, hard), hard))


def _data_bytes() -> int:
    """Private memory of this process that RLIMIT_DATA counts."""
    if not os.path.exists(_STATUS):
        return 0
    with open(_STATUS) as status:
        return next((1024 * int(line.split()[1]) for line in status if line.startswith("VmData:")), 0)


if __name__ == "__main__":
    from gtp_vision.core import sandbox

    sandbox._serve()  # the module of this name, whose `alive` the readers call
