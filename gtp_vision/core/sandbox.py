"""A child process that opens untrusted files.

A damaged HDF5 file can make its library hang, crash or allocate all memory. So data sets are opened by a child process
that is started once, answers with JSON or bytes, may use little more memory than the size of the file, and is killed
when its heartbeat stops. Each of these failures becomes one sentence about the file.
"""

from __future__ import annotations

import atexit
import contextlib
import gc
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

_PATIENCE = 20.0  # seconds without a heartbeat
_ALLOWANCE = 200_000_000  # bytes of memory beyond the file's size
_TERMINATION = 0.5  # seconds for the child to clean up
_MAX_FILES = 100_000  # of a folder, whose sizes are added up
_BEAT = b"\n"
_PIPE = 1 << 20  # bytes, as many as a process may ask for: frames go through it
_STATUS = "/proc/self/status"  # where Linux shows what RLIMIT_DATA counts; elsewhere memory is not limited
_ENVIRONMENT = (
    *("GTP_VISION_CACHE", "GTP_VISION_CACHE_SIZE", "GTP_VISION_PATIENCE"),
    *("XDG_CACHE_HOME", "HOME", "TQDM_DISABLE", "TERM", "CI"),
)

_lock = threading.Lock()
_child: subprocess.Popen | None = None
_answers: IO[bytes] | None = None  # in the child: the stream of heartbeats and answers
_last_beat = 0.0


def call(function: str, path: Path, *arguments: Any) -> Any:
    """Call a function in the child process.

    Args:
        function: `module:name` of a function of (path, *arguments) that returns a JSON-able value.
        path: the file or folder that the function reads; its size bounds the child's memory.
        *arguments: JSON-able values.

    Raises:
        GtpVisionError: the function raised one; the file made it hang, crash or run out of memory.
        RuntimeError: any other exception of the function, with its traceback.
    """
    return _call(_request(function, path, arguments, _size(path)), path)


def fill(function: str, path: Path, out: memoryview, *arguments: Any, size: int) -> None:
    """Call a function that returns a `memoryview` of bytes, and write them to `out`, bytes of that number.

    Args:
        function: as in `call`.
        path: what the function reads, for messages.
        out: contiguous and writable.
        *arguments: JSON-able values.
        size: bytes of memory that the function needs beside those of every call.

    Raises:
        GtpVisionError, RuntimeError: as `call`.
    """
    _call(_request(function, path, arguments, size), path, out)


def heartbeat() -> None:
    """Report progress to the waiting parent; call this between pieces of long work. Does nothing outside the child."""
    global _last_beat
    if _answers is not None and time.monotonic() - _last_beat > 0.2:
        _last_beat = time.monotonic()
        _answers.write(_BEAT)
        _answers.flush()


@contextlib.contextmanager
def unlimited_memory() -> Iterator[None]:
    """Lift the memory limit, and keep the heartbeat, for a block that does not depend on the file, e.g. a simulator."""
    soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
    before = _data_bytes()
    resource.setrlimit(resource.RLIMIT_DATA, (hard, hard))
    try:
        with _beating():
            yield
    finally:
        if soft != resource.RLIM_INFINITY:  # the memory that the block keeps (its modules) is not the file's
            _limit(soft + max(0, _data_bytes() - before))


@contextlib.contextmanager
def _beating() -> Iterator[None]:
    """Keep the heartbeat for a block that does not depend on the file, e.g. imports on a busy machine."""
    finished = threading.Event()
    thread = threading.Thread(target=_beat_until, args=(finished,), daemon=True)
    thread.start()
    try:
        yield
    finally:
        finished.set()
        thread.join()


def patience() -> float:
    """Return the seconds without a heartbeat after which reading is aborted: $GTP_VISION_PATIENCE, else 20."""
    chosen = os.environ.get("GTP_VISION_PATIENCE", str(_PATIENCE))
    try:
        seconds = float(chosen)
    except ValueError:
        seconds = 0.0
    if not seconds > 0:
        raise GtpVisionError(f"GTP_VISION_PATIENCE={chosen} is not a number of seconds above 0; set it to one")
    return seconds


def _request(function: str, path: Path, arguments: tuple[Any, ...], size: int) -> dict[str, Any]:
    return {
        "function": function,
        "path": str(path),
        "arguments": arguments,
        "bytes": size,
        "folder": os.getcwd(),
        "environment": {key: value for key, value in os.environ.items() if key in _ENVIRONMENT},
    }


def _call(request: dict[str, Any], path: Path, out: memoryview | None = None) -> Any:
    with _lock:
        try:
            try:
                child = _send(request)
            except BrokenPipeError:  # it was killed between two calls, which says nothing of this file
                stop()
                child = _send(request)
            answer = _answer(child, path, out)
        except BaseException:  # also Ctrl-C: a late answer must not be taken for that of the next call
            stop()
            raise
    if "refused" in answer:
        raise GtpVisionError(answer["refused"])
    if "failed" in answer:
        raise RuntimeError(f"reading {path} failed:\n{answer['failed']}")
    return answer.get("result")


def _send(request: dict[str, Any]) -> subprocess.Popen:
    child = _started()
    assert child.stdin is not None
    child.stdin.write(json.dumps(request).encode() + b"\n")
    child.stdin.flush()
    return child


def _answer(child: subprocess.Popen, path: Path, out: memoryview | None) -> dict[str, Any]:
    """Wait for the next line that is more than a heartbeat, and for the bytes that follow it if it announces some."""
    limit = patience()
    assert child.stdout is not None
    descriptor = child.stdout.fileno()

    def check(ready: object) -> None:
        if not ready:
            raise GtpVisionError(
                f"{path}: its reader made no progress for {limit:g} s; the file is damaged (copy it again) or on a "
                f"very slow disk (set GTP_VISION_PATIENCE to more seconds)"
            )

    def crash() -> GtpVisionError:
        return GtpVisionError(
            f"{path} is damaged: the library that reads it crashed (status {child.wait()}); copy it again"
        )

    buffer, line = b"", b""
    with selectors.DefaultSelector() as selector:
        selector.register(descriptor, selectors.EVENT_READ)
        while not line:
            check(selector.select(limit))
            piece = os.read(descriptor, 1 << 20)
            if not piece:
                raise crash()
            buffer = (buffer + piece).lstrip(_BEAT)
            line, end, rest = buffer.partition(b"\n")
            line, buffer = (line, rest) if end else (b"", buffer)
        answer = dict(json.loads(line))
        if out is not None and "bytes" in answer:
            if answer["bytes"] != len(out) or len(buffer) > len(out):
                raise GtpVisionError(f"{path} is damaged: its reader returned {answer['bytes']} bytes; copy it again")
            at = len(buffer)
            out[:at] = buffer
            while at < len(out):
                check(selector.select(limit))
                count = os.readv(descriptor, [out[at:]])
                if not count:
                    raise crash()
                at += count
    return answer


def _started() -> subprocess.Popen:
    global _child
    if _child is None or _child.poll() is not None:
        # In a session of its own: Ctrl-C is for the parent, which then ends the child.
        _child = processes.start(
            "gtp_vision.core.sandbox",
            environment={QUIET: "1"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            pipesize=_PIPE,
            start_new_session=True,
        )
        assert _child.stdout is not None
        os.read(_child.stdout.fileno(), 1)  # its first heartbeat: starting may take long, and says nothing of a file
    return _child


@atexit.register
def stop() -> None:
    """End the child process, if there is one; the next call starts another."""
    global _child
    if _child is not None:
        processes.stop(_child, _TERMINATION)  # the child removes its unfinished files, unless it is inside a library
        for stream in (_child.stdin, _child.stdout):
            if stream:
                with contextlib.suppress(OSError):
                    stream.close()
        _child = None


def _forget() -> None:
    """Leave the child to the parent after a fork."""
    global _child, _lock
    _child, _lock = None, threading.Lock()


os.register_at_fork(after_in_child=_forget)


def _size(path: Path) -> int:
    """Return the bytes of a file, or of a folder's first files: the path may be a whole disk."""
    if not os.path.isdir(path):
        return _bytes(path)
    files = (os.path.join(folder, name) for folder, _, names in os.walk(path) for name in names)
    return sum(map(_bytes, itertools.islice(files, _MAX_FILES)))


def _bytes(path: str | Path) -> int:
    try:
        return os.path.getsize(path) if os.path.isfile(path) else 0
    except OSError:  # removed just now
        return 0


def _beat_until(finished: threading.Event) -> None:
    while not finished.wait(0.25):
        heartbeat()


def _serve() -> None:
    """Run the child's loop: a line of JSON in, a line of JSON out."""
    global _answers
    _answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # the output of a library must not be taken for an answer
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    tqdm.monitor_interval = 0  # its thread could not start at the memory limit
    os.environ["MUJOCO_GL"] = "disable"  # OGBench's rewards need a simulator, but nothing is rendered here
    heartbeat()
    for line in sys.stdin.buffer:
        answer = _result(json.loads(line))
        content = answer.pop("content", b"")
        _answers.write(json.dumps(answer).encode() + b"\n")
        _answers.write(content)
        _answers.flush()


def _result(request: dict[str, Any]) -> dict[str, Any]:
    module, name = request["function"].split(":")
    with _beating():
        function = getattr(importlib.import_module(module), name)
    if not gc.get_freeze_count():
        gc.freeze()  # of modules: a file of many arrays makes many objects, each of whose collections visited them
    os.chdir(request["folder"])
    for key in _ENVIRONMENT:
        os.environ.pop(key, None)
    os.environ.update(request["environment"])
    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    if os.path.exists(_STATUS):
        _limit(_data_bytes() + request["bytes"] + _ALLOWANCE)
    try:
        result = function(Path(request["path"]), *request["arguments"])
        return {"bytes": len(result), "content": result} if isinstance(result, memoryview) else {"result": result}
    except GtpVisionError as error:
        return {"refused": str(error)}
    except MemoryError:
        return {
            "refused": f"{request['path']} is damaged: reading it needs more memory than its {request['bytes']} bytes "
            f"and {_ALLOWANCE / 1e6:.0f} MB; copy it again"
        }
    except OSError as error:
        at = f" at {error.filename}" if error.filename and str(error.filename) != request["path"] else ""
        return {"refused": f"{request['path']} cannot be read ({error.strerror or error}{at}); fix that or copy it"}
    except Exception:  # a defect of the reader, which the parent raises with this traceback
        import traceback

        return {"failed": traceback.format_exc()}
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, (hard, hard))


def _limit(wanted: int) -> None:
    """Limit this process's private memory to `wanted` bytes, or to a lower limit that was set from outside."""
    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    resource.setrlimit(resource.RLIMIT_DATA, (wanted if hard == resource.RLIM_INFINITY else min(wanted, hard), hard))


def _data_bytes() -> int:
    """Return the private memory of this process that RLIMIT_DATA counts."""
    if not os.path.exists(_STATUS):
        return 0
    with open(_STATUS) as status:
        return next((1024 * int(line.split()[1]) for line in status if line.startswith("VmData:")), 0)


if __name__ == "__main__":
    from gtp_vision.core import sandbox

    sandbox._serve()  # in the module of this name, whose `heartbeat` the readers call
