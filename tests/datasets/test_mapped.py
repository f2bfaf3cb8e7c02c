import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from gtp_vision.core.errors import GtpVisionError
from gtp_vision.datasets import mapped
from gtp_vision.datasets.formats import native, open_store
from gtp_vision.datasets.store import Store

READ = """
import os, sys
from pathlib import Path
from gtp_vision.datasets.formats import native
frames = native.read(Path(sys.argv[1])).observations["front"]
os.truncate(sys.argv[1], 20_000)
frames[-1].sum()
"""


@pytest.fixture
def path(make_store: Callable[..., Store], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(mapped, "_sizes", {})
    return native.write(tmp_path / "frames.h5", make_store((300,), cameras={"front": (32, 32, 3)}))


def test_a_file_that_shrinks_while_it_is_mapped_is_named(path: Path) -> None:
    store = native.read(path)  # keeps the file mapped
    size = path.stat().st_size
    mapped.check_sizes()
    with path.open("r+b") as file:
        file.truncate(20_000)
    with pytest.raises(GtpVisionError, match=rf"{path} has become shorter .*\(20000 of {size} bytes\).*--resume"):
        mapped.check_sizes()
    with pytest.raises(GtpVisionError, match="truncated"):
        open_store(path)
    del store
    mapped.check_sizes()


def test_a_removed_file_stays_readable(path: Path) -> None:
    store = native.read(path)
    path.unlink()
    mapped.check_sizes()
    assert np.asarray(store.observations["front"][-1]).shape == (32, 32, 3)


@pytest.mark.processes
def test_reading_a_missing_page_ends_the_process_by_its_signal(path: Path) -> None:
    ran = subprocess.run([sys.executable, "-P", "-c", READ, str(path)], capture_output=True, timeout=60, check=False)
    assert ran.returncode == -signal.SIGBUS
