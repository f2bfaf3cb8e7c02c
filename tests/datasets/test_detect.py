from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest

from gtp_vision.datasets.formats import detect, native, open_store
from gtp_vision.datasets.store import Store
from gtp_vision.errors import GtpVisionError

MakeStore = Callable[..., Store]


@pytest.fixture
def files(make_store: MakeStore, tmp_path: Path) -> dict[str, Path]:
    """A file of each format, under names that say nothing."""
    ends = np.arange(12) % 6 == 5
    np.savez_compressed(
        tmp_path / "a.npz", observations=np.zeros((12, 3)), actions=np.zeros((12, 2), np.float32), terminals=ends
    )
    (tmp_path / "a.npz").rename(tmp_path / "a.data")
    return {"native": native.write(tmp_path / "b.data", make_store()), "ogbench": tmp_path / "a.data"}


def test_formats_are_known_by_content_not_by_name(files: dict[str, Path]) -> None:
    assert {name: detect(path) for name, path in files.items()} == {"native": "native", "ogbench": "ogbench"}


def test_any_known_format_opens_as_a_store(files: dict[str, Path], cache: Path) -> None:
    for path in files.values():
        store = open_store(path, "cube-single-play-v0")
        assert len(store) == 12
        assert store.path == path


@pytest.mark.parametrize("content", [b"", b"\x00" * 64, b"%PDF-1.7", b"PK\x05\x06"])
def test_an_unknown_format_is_refused_with_the_known_ones(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "what.bin"
    path.write_bytes(content)
    with pytest.raises(GtpVisionError, match=r"known: gtp-vision HDF5, .*OGBench npz") as told:
        open_store(path)
    assert str(path) in str(told.value)


def test_what_holds_nothing_known_is_named(tmp_path: Path) -> None:
    for path, words in ((tmp_path / "gone.h5", "no data set at"), (tmp_path, "a folder")):
        with pytest.raises(GtpVisionError, match=words) as told:
            open_store(path)
        assert str(path) in str(told.value)


def test_hdf5_of_others_is_refused_with_what_it_holds(tmp_path: Path) -> None:
    path = tmp_path / "theirs.h5"
    with h5py.File(path, "w") as file:
        file["pictures"] = np.zeros((3, 2))
    with pytest.raises(GtpVisionError, match="HDF5 with pictures in it"):
        open_store(path)
