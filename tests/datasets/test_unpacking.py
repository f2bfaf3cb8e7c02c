import contextlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import h5py
import numpy as np
import pytest

from gtp_vision.core.errors import GtpVisionError
from gtp_vision.datasets import unpacking
from gtp_vision.datasets.arrays import Segmented
from gtp_vision.datasets.formats import open_store
from gtp_vision.datasets.layout import FileArrays, Layout, Piece, piece_in_memory, piece_of, to_store
from gtp_vision.datasets.store import Store
from gtp_vision.datasets.unpacking import through_cache

LENGTHS = (9, 12)
SIZE = (60, 60, 3)  # an episode of these frames is mapped in place


@pytest.fixture
def frames() -> list[np.ndarray]:
    random = np.random.default_rng(0)
    return [random.integers(0, 256, (length, *SIZE), np.uint8) for length in LENGTHS]


@pytest.fixture
def path(tmp_path: Path, frames: list[np.ndarray]) -> Path:
    """A file of another format: an array per episode, one camera contiguous and one compressed."""
    with h5py.File(tmp_path / "theirs.hdf5", "w") as file:
        for number, images in enumerate(frames):
            file[f"{number}/plain"] = images
            file.create_dataset(f"{number}/small", data=images[:, ::2, ::2], compression="gzip", chunks=(2, 30, 30, 3))
            file[f"{number}/state"] = images[:, :2, 0, 0].astype(np.float64)
    return tmp_path / "theirs.hdf5"


def file_arrays(observations: dict[str, Sequence[Piece]]) -> FileArrays:
    rows, ends = sum(LENGTHS), np.cumsum(LENGTHS)
    return FileArrays(
        observations,
        actions=np.zeros((rows, 2)),
        rewards=np.arange(rows),
        terminals=np.zeros(rows),
        timeouts=np.isin(np.arange(rows), ends - 1),
        episode_ends=ends,
        attributes={"suite": "theirs"},
    )


@contextlib.contextmanager
def opened(path: Path) -> Iterator[FileArrays]:
    with h5py.File(path) as file:
        names = ("plain", "small", "state")
        yield file_arrays({name: [piece_of(file[f"{n}/{name}"], path) for n in range(2)] for name in names})


def layout_of(path: Path, *options: str) -> Layout:
    return through_cache(path, lambda: opened(path), "test", *options)


def read(path: Path) -> Store:
    return to_store(layout_of(path), path)


def test_large_arrays_are_mapped_and_others_unpacked(path: Path, frames: list[np.ndarray], cache: Path) -> None:
    for _ in range(2):  # the second time from the cache
        store = read(path)
        plain, small, state = (store.observations[name] for name in ("plain", "small", "state"))
        assert isinstance(plain, Segmented)
        assert {Path(str(segment.base.filename)) for segment in plain.segments} == {path}  # type: ignore[union-attr]
        for array in (small, state):
            assert isinstance(array, np.memmap)
            assert Path(str(array.filename)).parent == cache
        whole = np.concatenate(frames)
        np.testing.assert_array_equal(np.asarray(plain), whole)
        np.testing.assert_array_equal(small, whole[:, ::2, ::2])
        np.testing.assert_array_equal(state, whole[:, :2, 0, 0].astype(np.float32))
        assert store.attributes == {"suite": "theirs"}
    assert sorted(entry.suffix for entry in cache.iterdir()) == [".h5", ".json"]
    assert json.loads(json.dumps(layout_of(path))) == layout_of(path)
    moved = path.with_name("moved") / path.name
    moved.parent.mkdir()
    path.rename(moved)
    np.testing.assert_array_equal(np.asarray(read(moved).observations["plain"]), whole)
    assert len(list(cache.glob("*.h5"))) == 1


def test_only_the_cache_may_refer_to_other_files(path: Path, cache: Path) -> None:
    """A file that comes with a JSON file, as entries of the cache have it, is read without that."""
    read(path)
    (entry,) = cache.glob("*.h5")
    untrusted = path.with_name("untrusted.h5")
    entry.rename(untrusted)
    entry.with_suffix(".json").rename(untrusted.with_suffix(".json"))
    assert "plain" not in open_store(untrusted).observations


def test_files_that_change_after_their_layout_was_made_are_named(path: Path, cache: Path) -> None:
    found = layout_of(path)
    next(cache.glob("*.h5")).unlink()
    with pytest.raises(GtpVisionError, match=r"theirs.hdf5: .*was removed a moment ago; try again"):
        to_store(found, path)
    found = layout_of(path)
    with path.open("r+b") as file:
        file.truncate(1000)
    with pytest.raises(GtpVisionError, match="shorter"):
        to_store(found, path)


@pytest.mark.parametrize(
    ("second", "words"),
    [
        (np.zeros((12, 5)), "episode 1"),
        (np.zeros((12, 4), np.float32), "float32"),
        (np.zeros((11, 4)), "20 frames for 21 actions"),
    ],
)
def test_pieces_that_differ_are_refused(path: Path, cache: Path, second: np.ndarray, words: str) -> None:
    arrays = file_arrays({"state": [piece_in_memory(np.zeros((9, 4))), piece_in_memory(second)]})
    with pytest.raises(GtpVisionError, match=words):
        through_cache(path, lambda: contextlib.nullcontext(arrays), "test")
    assert not list(cache.glob("*"))


def test_a_failure_in_the_middle_leaves_nothing(path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unpacking, "COPY_BYTES", 100)

    def fails(start: int, stop: int) -> np.ndarray:
        if start > 5:
            raise GtpVisionError("the video ends here")
        return np.zeros((stop - start, 3))

    broken = file_arrays({"state": [Piece(21, (3,), np.dtype(np.float64), fails)]})
    with pytest.raises(GtpVisionError, match="the video ends here"):
        through_cache(path, lambda: contextlib.nullcontext(broken), "test")
    assert not list(cache.iterdir())


def test_a_full_cache_makes_room(path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read(path)
    size = sum(entry.stat().st_size for entry in cache.glob("*.h5"))
    monkeypatch.setenv("GTP_VISION_CACHE_SIZE", str(1.5 * size / 1e9))
    layout_of(path, "another")
    assert len(list(cache.glob("*.h5"))) == 1


@pytest.mark.parametrize("name", ["*.h5", "*.json"])
def test_a_damaged_entry_of_the_cache_is_made_again(path: Path, cache: Path, name: str) -> None:
    expected = np.array(read(path).observations["small"])  # a copy: a mapped file must not be cut
    next(cache.glob(name)).write_bytes(b"rubbish")
    np.testing.assert_array_equal(read(path).observations["small"], expected)
