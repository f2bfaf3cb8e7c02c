import contextlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from gtp_vision.core.errors import GtpVisionError
from gtp_vision.datasets import layout
from gtp_vision.datasets.arrays import Segmented
from gtp_vision.datasets.layout import FileArrays, Piece, piece_in_memory, piece_of, through_cache, to_store
from gtp_vision.datasets.store import Store

LENGTHS = (9, 12)
SIZE = (60, 60, 3)  # an episode of these frames is worth mapping


@pytest.fixture
def frames() -> list[np.ndarray]:
    random = np.random.default_rng(0)
    return [random.integers(0, 256, (length, *SIZE), np.uint8) for length in LENGTHS]


@pytest.fixture
def path(tmp_path: Path, frames: list[np.ndarray]) -> Path:
    """A foreign file: an array an episode, one camera contiguous and one compressed."""
    with h5py.File(tmp_path / "theirs.hdf5", "w") as file:
        for number, images in enumerate(frames):
            file[f"{number}/plain"] = images
            file.create_dataset(f"{number}/small", data=images[:, ::2, ::2], compression="gzip", chunks=(2, 30, 30, 3))
            file[f"{number}/state"] = images[:, :2, 0, 0].astype(np.float64)
    return tmp_path / "theirs.hdf5"


def source(observations: dict[str, Sequence[Piece]], **changed: Any) -> FileArrays:
    rows = sum(LENGTHS)
    last = np.isin(np.arange(rows), np.cumsum(LENGTHS) - 1)
    fields: dict[str, Any] = {
        "actions": np.zeros((rows, 2)),
        "rewards": np.arange(rows),
        "terminals": np.zeros(rows),
        "timeouts": last,
        "episode_ends": np.cumsum(LENGTHS),
        "attributes": {"suite": "theirs"},
    }
    return FileArrays(observations, **fields | changed)


@contextlib.contextmanager
def opened(path: Path) -> Iterator[FileArrays]:
    with h5py.File(path) as file:
        yield source(
            {
                name: [piece_of(file[f"{number}/{name}"], path) for number in range(2)]
                for name in ("plain", "small", "state")
            }
        )


def read(path: Path) -> Store:
    return to_store(through_cache(path, lambda: opened(path), "test"), path)


def test_large_contiguous_arrays_are_mapped_in_place_and_others_unpacked(
    path: Path, frames: list[np.ndarray], cache: Path
) -> None:
    for _ in range(2):  # the second time from the cache
        store = read(path)
        plain, small, state = (store.observations[name] for name in ("plain", "small", "state"))
        assert isinstance(plain, Segmented)
        assert {Path(str(part.base.filename)) for part in plain.parts} == {path}  # type: ignore[union-attr]
        for array in (small, state):
            assert isinstance(array, np.memmap)
            assert Path(str(array.filename)).parent == cache
        whole = np.concatenate(frames)
        np.testing.assert_array_equal(np.asarray(plain), whole)
        np.testing.assert_array_equal(small, whole[:, ::2, ::2])
        np.testing.assert_array_equal(state, whole[:, :2, 0, 0].astype(np.float32))
        assert store.attributes == {"suite": "theirs"}
    assert sorted(entry.suffix for entry in cache.iterdir()) == [".h5", ".json"]


def test_a_file_that_was_moved_is_found_again(path: Path, frames: list[np.ndarray], cache: Path) -> None:
    read(path)
    moved = path.with_name("moved") / path.name
    moved.parent.mkdir()
    path.rename(moved)
    np.testing.assert_array_equal(np.asarray(read(moved).observations["plain"]), np.concatenate(frames))
    assert len(list(cache.glob("*.h5"))) == 1


def test_a_source_is_opened_once(path: Path, cache: Path) -> None:
    count = 0

    def counted() -> contextlib.AbstractContextManager[FileArrays]:
        nonlocal count
        count += 1
        return opened(path)

    for _ in range(2):
        through_cache(path, counted, "test")
    assert count == 1
    through_cache(path, counted, "test", "with another option")
    assert count == 2


def test_only_the_cache_may_point_elsewhere(path: Path, cache: Path) -> None:
    """A file that came with a note beside it, as the cache has them, is read without the note."""
    read(path)
    (entry,) = cache.glob("*.h5")
    stranger = path.with_name("stranger.h5")
    entry.rename(stranger)
    entry.with_suffix(".json").rename(stranger.with_suffix(".json"))
    from gtp_vision.datasets.formats import open_store

    assert "plain" not in open_store(stranger).observations


def test_a_file_that_shrinks_after_its_layout_was_made_is_told(path: Path, cache: Path) -> None:
    found = through_cache(path, lambda: opened(path), "test")
    with path.open("r+b") as file:
        file.truncate(1000)
    with pytest.raises(GtpVisionError, match="shorter"):
        to_store(found, path)


def test_a_layout_is_json(path: Path, cache: Path) -> None:
    found = through_cache(path, lambda: opened(path), "test")
    assert json.loads(json.dumps(found)) == found


@pytest.mark.parametrize(
    ("pieces", "words"),
    [
        ([np.zeros((9, 4)), np.zeros((12, 5))], "episode 1"),
        ([np.zeros((9, 4)), np.zeros((12, 4), np.float32)], "float32"),
        ([np.zeros((9, 4)), np.zeros((11, 4))], "20 frames for 21 actions"),
    ],
)
def test_pieces_that_do_not_fit_are_refused(path: Path, cache: Path, pieces: list[np.ndarray], words: str) -> None:
    made = source({"state": [piece_in_memory(values) for values in pieces]})
    with pytest.raises(GtpVisionError, match=words):
        through_cache(path, lambda: contextlib.nullcontext(made), "test")
    assert not list(cache.glob("*"))


def test_failing_in_the_middle_leaves_nothing(path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layout, "COPY_BYTES", 100)

    def fails(start: int, stop: int) -> np.ndarray:
        if start > 5:
            raise GtpVisionError("the video ends here")
        return np.zeros((stop - start, 3))

    broken = source({"state": [Piece(21, (3,), np.dtype(np.float64), fails)]})
    with pytest.raises(GtpVisionError, match="the video ends here"):
        through_cache(path, lambda: contextlib.nullcontext(broken), "test")
    assert not list(cache.iterdir())


def test_a_full_cache_makes_room(path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read(path)
    size = sum(entry.stat().st_size for entry in cache.glob("*.h5"))
    monkeypatch.setenv("GTP_VISION_CACHE_SIZE", str(1.5 * size / 1e9))
    through_cache(path, lambda: opened(path), "another")
    assert len(list(cache.glob("*.h5"))) == 1


@pytest.mark.parametrize("name", ["*.h5", "*.json"])
@pytest.mark.parametrize("content", [b"", b"rubbish"])
def test_a_damaged_entry_of_the_cache_is_made_anew(path: Path, cache: Path, name: str, content: bytes) -> None:
    expected = np.array(read(path).observations["small"])  # not mapped: a file cut short under a map is fatal
    next(cache.glob(name)).write_bytes(content)
    np.testing.assert_array_equal(read(path).observations["small"], expected)


def test_an_entry_that_is_evicted_before_it_is_mapped_is_a_sentence(path: Path, cache: Path) -> None:
    found = through_cache(path, lambda: opened(path), "test")
    next(cache.glob("*.h5")).unlink()
    with pytest.raises(GtpVisionError, match=r"theirs.hdf5: .*was removed a moment ago; try again"):
        to_store(found, path)
