from collections.abc import Iterator
from pathlib import Path

import h5py
import numpy as np
import pytest

from gtp_vision.core.errors import GtpVisionError
from gtp_vision.datasets.formats import episodes

STEPS = 4


@pytest.fixture
def file(tmp_path: Path) -> Iterator[h5py.File]:
    with h5py.File(tmp_path / "some.h5", "w") as opened:
        yield opened


def observation(file: h5py.File, name: str, array: np.ndarray) -> episodes.Piece | None:
    file[name] = array
    file.flush()
    return episodes.observation(file, name, Path(file.filename), len(array))


def add(recording: episodes.Recording, file: h5py.File, frames: int, *, done: bool = False) -> None:
    """Add an episode of `STEPS` actions with the observation `state` of that many frames."""
    piece = observation(file, f"episode{len(file)}", np.random.default_rng(0).normal(size=(frames, 3)))
    assert piece is not None
    terminals = np.arange(STEPS) == (STEPS - 1 if done else -1)
    name = f"episode{len(file) - 1}"
    recording.add(name, {"state": [piece]}, np.ones((STEPS, 2), np.float32), np.ones(STEPS), terminals)


@pytest.mark.parametrize("frames", [STEPS, STEPS + 1])
@pytest.mark.parametrize("done", [False, True])
def test_an_episode_ends_in_a_terminal_or_a_timeout(file: h5py.File, frames: int, done: bool) -> None:
    recording = episodes.Recording(Path(file.filename))
    for _ in range(2):
        add(recording, file, frames, done=done)
    arrays = recording.file_arrays({"a": 1})
    assert arrays.attributes == {"a": 1}
    assert arrays.episode_ends.tolist() == [frames, 2 * frames]
    assert arrays.terminals.sum() == 2 * done
    is_timeout = frames > STEPS or not done
    assert arrays.timeouts[arrays.episode_ends - 1].tolist() == [is_timeout] * 2
    assert arrays.timeouts.sum() == 2 * is_timeout
    assert arrays.rewards.sum() == arrays.actions.sum() / 2 == 2 * STEPS


@pytest.mark.parametrize("frames", [STEPS - 1, STEPS + 2])
def test_frames_that_do_not_match_the_actions_are_refused(file: h5py.File, frames: int) -> None:
    with pytest.raises(GtpVisionError, match=rf"'episode0' has {frames} frames for {STEPS} actions"):
        add(episodes.Recording(Path(file.filename)), file, frames)


@pytest.mark.parametrize("dtype", ["<f8", ">f4", "<f2", "i4", "u1", "?"])
def test_numbers_of_any_kind_become_float32(file: h5py.File, dtype: str) -> None:
    values = np.arange(12).reshape(4, 3).astype(dtype)
    piece = observation(file, "x", values)
    assert piece is not None
    assert (piece.rows, piece.shape, piece.dtype, piece.place) == (4, (3,), np.float32, None)
    assert piece.read(1, 3).dtype == np.float32
    np.testing.assert_array_equal(piece.read(1, 3), values[1:3].astype(np.float32))


@pytest.mark.parametrize("array", [np.arange(8, dtype=np.float32), np.arange(96, dtype=np.uint8).reshape(8, 2, 2, 3)])
def test_the_last_row_is_read_and_placed_where_it_lies(file: h5py.File, array: np.ndarray) -> None:
    piece = observation(file, "x", array)
    assert piece is not None
    last = episodes.last_row(piece)
    np.testing.assert_array_equal(last.read(0, 1).reshape(array[7:].shape), array[7:])
    assert last.rows == 1
    assert last.place is not None
    raw = np.fromfile(last.place[0], array.dtype, array[7:].size, offset=last.place[1])
    np.testing.assert_array_equal(raw.reshape(array[7:].shape), array[7:])


@pytest.mark.parametrize(
    ("shape", "dtype"), [((4, 8, 8, 1), np.float32), ((4, 32, 40), np.uint16), ((4, 3, 16, 16), np.int64)]
)
def test_images_that_are_not_bytes_are_left_out(file: h5py.File, shape: tuple[int, ...], dtype: type) -> None:
    assert observation(file, "x", np.zeros(shape, dtype)) is None


@pytest.mark.parametrize("name", ["", ".", "..", "a\nb", "\udcff", "a" * 256])
def test_names_that_cannot_be_shown_are_refused(name: str) -> None:
    with pytest.raises(GtpVisionError) as error:
        episodes.check_name(name, Path("some.h5"))
    assert str(error.value).isascii()
