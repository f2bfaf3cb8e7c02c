import os
from pathlib import Path

import numpy as np
import pytest
from stores import make_store

from gtp_vision.core.errors import GtpVisionError
from gtp_vision.datasets import mapped
from gtp_vision.datasets.batch import Batch
from gtp_vision.datasets.formats import native, open_store
from gtp_vision.datasets.loader import Loader
from gtp_vision.datasets.sampler import Sampler
from gtp_vision.datasets.sources import HostSource


class Shrinks(HostSource):
    def fetch(self, step: int, rank: int = 0, world_size: int = 1) -> Batch:
        batch = super().fetch(step, rank, world_size)
        if step == 2:
            os.truncate(str(self.sampler.store.path), 20_000)
        return batch


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
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


def test_no_batch_is_read_from_a_file_that_shrank(path: Path) -> None:
    """Reading it would kill the process by SIGBUS."""
    source, batches = Shrinks(Sampler(native.read(path), 4, 0)), []
    with pytest.raises(GtpVisionError, match=rf"{path} has become shorter"), Loader(source, start=0, stop=9) as loader:
        batches.extend(loader)
    assert len(batches) == 3
