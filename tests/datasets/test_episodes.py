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


def path(file: h5py.File) -> Path:
    return Path(file.filename)


def added(recording: episodes.Recording, file: h5py.File, frames: int, *, done: bool = False) -> None:
    """Add an episode of `STEPS` actions with the observation `state` of that many frames."""
    name = f"episode{len(file)}"
    file[f"{name}/state"] = np.random.default_rng(len(file)).normal(size=(frames, 3)).astype(np.float32)
    piece = episodes.observation(file[name], "state", path(file), frames)
    assert piece is not None
    terminals = np.arange(STEPS) == (STEPS - 1 if done else -1)
    recording.add(name, {"state": [piece]}, np.ones((STEPS, 2), np.float32), np.ones(STEPS), terminals)


def test_members_stand_in_the_order_of_their_numbers(file: h5py.File) -> None:
    for name in ("demo_10", "demo_9", "demo_007", "other", "demo"):
        file.create_group(name)
    assert episodes.numbered(file, "demo_", path(file)) == ["demo_007", "demo_9", "demo_10"]


@pytest.mark.parametrize("frames", [STEPS, STEPS + 1])
@pytest.mark.parametrize("done", [False, True])
def test_an_episode_ends_in_a_terminal_or_a_timeout(file: h5py.File, frames: int, done: bool) -> None:
    recording = episodes.Recording(path(file))
    for _ in range(2):
        added(recording, file, frames, done=done)
    source = recording.source({"a": 1})
    assert source.attributes == {"a": 1}
    assert source.episode_ends.tolist() == [frames, 2 * frames]
    assert source.terminals.sum() == 2 * done
    final = frames > STEPS
    assert source.timeouts[source.episode_ends - 1].tolist() == [final or not done] * 2
    assert source.timeouts.sum() == 2 * (final or not done)
    assert source.rewards.sum() == source.actions.sum() / 2 == 2 * STEPS


@pytest.mark.parametrize("frames", [STEPS - 1, STEPS + 2])
def test_frames_that_do_not_fit_the_actions_are_refused(file: h5py.File, frames: int) -> None:
    with pytest.raises(GtpVisionError, match=rf"'episode0' has {frames} frames for {STEPS} actions"):
        added(episodes.Recording(path(file)), file, frames)


@pytest.mark.parametrize("dtype", ["<f8", ">f4", "<f2", "i4", "u1", "?"])
def test_numbers_of_any_kind_become_float32(file: h5py.File, dtype: str) -> None:
    values = np.arange(12).reshape(4, 3).astype(dtype)
    file["x"] = values
    piece = episodes.observation(file, "x", path(file), 4)
    assert piece is not None
    assert (piece.rows, piece.shape, piece.dtype, piece.place) == (4, (3,), np.float32, None)
    read = piece.read(1, 3)
    assert read.dtype == np.float32
    np.testing.assert_array_equal(read, values[1:3].astype(np.float32))


@pytest.mark.parametrize("array", [np.arange(8, dtype=np.float32), np.arange(96, dtype=np.uint8).reshape(8, 2, 2, 3)])
def test_the_last_row_is_read_and_placed_where_it_lies(file: h5py.File, array: np.ndarray) -> None:
    file["x"] = array
    file.flush()
    whole = episodes.observation(file, "x", path(file), 8)
    assert whole is not None
    last = episodes.last_row(whole)
    np.testing.assert_array_equal(last.read(0, 1).reshape(array[7:].shape), array[7:])
    assert last.rows == 1
    assert last.place is not None
    raw = np.fromfile(last.place[0], array.dtype, array[7:].size, offset=last.place[1])
    np.testing.assert_array_equal(raw.reshape(array[7:].shape), array[7:])


@pytest.mark.parametrize(
    ("shape", "dtype"), [((4, 8, 8, 1), np.float32), ((4, 32, 40), np.uint16), ((4, 3, 16, 16), np.int64)]
)
def test_pictures_that_are_no_bytes_are_no_observation(file: h5py.File, shape: tuple[int, ...], dtype: type) -> None:
    file["x"] = np.zeros(shape, dtype)
    assert episodes.observation(file, "x", path(file), 4) is None
    assert episodes.left_out({"x": None}) == {"left_out": ["x"]}
    with pytest.raises(GtpVisionError, match="no observation that a policy reads"):
        episodes.usable({"x": None}, "episode0", path(file))


@pytest.mark.parametrize("name", ["", ".", "..", "a\nb", "\udcff", "a" * 256])
def test_names_that_cannot_be_shown_are_refused(name: str) -> None:
    with pytest.raises(GtpVisionError) as told:
        episodes.checked(name, Path("some.h5"))
    assert str(told.value).isascii()
    assert "\n" not in str(told.value)
