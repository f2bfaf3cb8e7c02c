import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np

from gtp_vision.datasets.formats import native, open_store
from gtp_vision.datasets.mapped import mapped, shrunk
from gtp_vision.datasets.store import Store

READ = """
import os, sys
from pathlib import Path
from gtp_vision.datasets.formats import open_store
store = open_store(Path(sys.argv[1]))
frames = store.observations["front"]
print(int(frames[-1].sum()), flush=True)
sys.stdin.readline()
print(int(frames[-1].sum()), flush=True)
"""


def test_a_file_that_shrinks_while_it_is_mapped_is_named_and_ends_the_process(
    make_store: Callable[..., Store], tmp_path: Path
) -> None:
    path = native.write(tmp_path / "frames.h5", make_store((300,), cameras={"front": (32, 32, 3)}))
    reading = subprocess.Popen(
        [sys.executable, "-P", "-c", READ, str(path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert reading.stdout is not None
    assert int(reading.stdout.readline()) > 0
    size = path.stat().st_size
    with path.open("r+b") as file:
        file.truncate(20_000)
    out, told = reading.communicate("go on\n", timeout=60)
    assert reading.returncode == 2
    assert out == ""
    assert (
        told.strip()
        .splitlines()[-1]
        .startswith(f"gtp-vision: {path} has become shorter while it was in use (20000 of {size} bytes)")
    )


def test_another_bus_error_ends_the_process_as_ever() -> None:
    code = (
        "import ctypes, mmap, os, tempfile\n"
        "from gtp_vision.datasets import mapped\n"
        "mapped._watch()\n"
        "file = tempfile.TemporaryFile(); file.write(bytes(8192)); file.flush()\n"
        "page = mmap.mmap(file.fileno(), 8192); os.ftruncate(file.fileno(), 0); page[5000]\n"
    )
    ran = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert ran.returncode == -7, ran.stderr


def test_files_that_are_whole_or_gone_are_not_named(make_store: Callable[..., Store], tmp_path: Path) -> None:
    path = native.write(tmp_path / "frames.h5", make_store((30,), cameras={"front": (32, 32, 3)}))
    store = open_store(path)
    array = mapped(path)
    assert shrunk() == ""
    path.unlink()
    assert shrunk() == ""
    assert len(array)
    assert np.asarray(store.observations["front"][-1]).shape == (32, 32, 3)
