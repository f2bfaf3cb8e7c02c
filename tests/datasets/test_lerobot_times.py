"""Rows and frames of LeRobot's videos: what time stamps change, what is reported, and what is refused."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from refusals import entry, open_here, refused
from samples import DATA, EPISODES, FPS, FRONT, INFO, LEROBOT_ROWS, TOP, VIDEO, Copied, brightness, gray_frames, mp4

from gtp_vision.datasets.formats.lerobot_times import match

pytestmark = pytest.mark.usefixtures("cache")
Edit = Callable[[Path], Any]
STAMPS = np.array([0, 0.2, 0.4, 0.6, 0, 0.2, 0.4])  # of the first table
NOISE = np.array([0.01, -0.03, 0.02, 0.04, 0.03, -0.02, 0.01])


def column(member: str, name: str, values: Any) -> Edit:
    def edit(path: Path) -> None:
        data = pq.read_table(path / member)
        pq.write_table(data.set_column(data.schema.get_field_index(name), name, pa.array(values)), path / member)

    return edit


def stamps(values: Any) -> Edit:
    return column(DATA.format(0), "timestamp", values)


def begins(camera: str, seconds: Sequence[float]) -> Edit:
    return column(EPISODES, f"videos/{camera}/from_timestamp", seconds)


def video(rows: Sequence[int], fps: float = FPS, more: Sequence[str] = ()) -> Edit:
    """Another first video of the camera `front`, of the brightness of these rows."""
    return lambda path: mp4(path / VIDEO.format(FRONT, 0), gray_frames(rows, (32, 48)), fps=fps, more=more)


def together(*edits: Edit) -> Edit:
    return lambda path: [edit(path) for edit in edits]


def without_stamps(path: Path) -> None:
    for place in (0, 1):
        data = pq.read_table(path / DATA.format(place))
        pq.write_table(data.drop_columns(["timestamp"]), path / DATA.format(place))
    entry(INFO, "features", "timestamp", value=...)(path)


FREE = "2 of 14 frames belong to no row"  # of the camera `top`
FITTING: dict[str, tuple[Edit, tuple[str, ...]]] = {
    "as recorded": (lambda path: None, (FREE,)),
    "frames after the last": (video([*range(7), 0, 0]), (FREE, "file-000.mp4: 2 of 9 frames belong to no row")),
    "rounded to a tenth of a millisecond": (stamps(STAMPS + 4e-5), (FREE,)),
    "jitter": (stamps(STAMPS + NOISE), ("58.3% are off by up to 0.04 s, first at episode 0, frame 0", FRONT, TOP)),
    "jitter of one row": (stamps(STAMPS + NOISE * (np.arange(7) == 5)), ("8.33% are off by up to 0.02 s", "episode 1")),
    "drift": (stamps(STAMPS * 1.3), ("as at 3.846 frames per second", "41.7% of its rows", "paired by number")),
    "zero": (stamps(STAMPS * 0), ("41.7% are equal to the one before, first at episode 0, frame 1",)),
    "repeated": (stamps([0, 0.2, 0.2, 0.6, 0, 0.2, 0.4]), ("8.33% are equal to the one before", "frame 2")),
    "decreasing": (stamps([0, 0.2, 0.1, 0.6, 0, 0.2, 0.4]), ("8.33% are earlier than the one before",)),
    "not a number": (stamps([0, 0.2, np.nan, 0.6, 0, 0.2, 0.4]), ("8.33% are missing",)),
    "null": (stamps([0, 0.2, None, 0.6, 0, 0.2, 0.4]), ("8.33% are missing",)),
    "missing": (without_stamps, ("100% are missing",)),
    "of a clock": (stamps(STAMPS + 1.7e9), ("58.3% are off by up to 1.7e+09 s",)),
    "in milliseconds": (stamps(STAMPS * 1000), ("41.7% are off by up to 599 s",)),
    "of frames": (stamps(STAMPS * FPS), ("41.7% are off by up to 2.4 s", "a step takes 1 s")),
    "wrong fps": (entry(INFO, "fps", value=10), ("does not fit 10 frames per second", "as at 5 frames per second")),
    "video of another rate": (video(range(7), fps=10), ("up to 0.6 s away, first episode 0, frame 1",)),
    "variable frame rate": (
        video(range(7), more=["-vf", "settb=1/1000,setpts=N*200+mod(N\\,3)*50", "-enc_time_base", "1:1000"]),
        ("up to 0.1 s away, first episode 0, frame 1",),
    ),
    "video that begins late": (video(range(7), more=["-output_ts_offset", "0.07"]), ("100% of its rows", "to 0.07 s")),
    "episode that begins early": (begins(FRONT, [0, 0.75, 0]), ("42.9% of its rows", "up to 0.05 s", "episode 1")),
    "episode that begins a frame late": (begins(FRONT, [0, 1.0, 0]), ("up to 0.2 s away, first episode 1, frame 0",)),
    "episodes that begin together": (begins(FRONT, [0, 0, 0]), ("up to 0.8 s away",)),
}  # fmt: skip


@pytest.mark.parametrize(("edit", "words"), FITTING.values(), ids=FITTING)
def test_rows_keep_their_frames_and_misfits_are_named(copied: Copied, edit: Edit, words: tuple[str, ...]) -> None:
    path = copied("published")
    edit(path)
    store = open_here(path)
    for camera in ("front", "top"):
        levels = np.asarray(store.observations[camera], float).mean((1, 2, 3))
        assert np.abs(levels - [brightness(row) for row in range(LEROBOT_ROWS)]).max() < 8, "of 16 between frames"
    notes = store.attributes["time_stamps"]
    assert all(any(word in note for note in notes) for word in words), notes
    assert FREE not in words or len(notes) == len(words)


def test_rows_that_were_left_out_leave_their_frames_out(copied: Copied) -> None:
    """Their time stamps fit, so the frames are those of LeRobot: every second one of a video with all frames."""
    path = copied("published")
    together(
        video([row for pair in zip(range(7), [11] * 7, strict=True) for row in pair], fps=2 * FPS),
        lambda path: mp4(path / VIDEO.format(TOP, 0), gray_frames([0, 0, *range(12)], (24, 24))),
    )(path)
    store = open_here(path)
    levels = np.asarray(store.observations["front"], float).mean((1, 2, 3))
    assert np.abs(levels - [brightness(row) for row in range(LEROBOT_ROWS)]).max() < 8
    note, other = store.attributes["time_stamps"]
    assert "file-000.mp4: 7 of 14 frames belong to no row, and 71.4% of its rows have the frames of their" in note
    assert FREE in other


REFUSED: dict[str, tuple[Edit, tuple[str, ...]]] = {
    "fewer frames": (video(range(5)), ("5 frames for 7 rows", "28.6%", "first episode 1, frame 1")),
    "half of the frames": (video(range(0, 7, 2), fps=FPS / 2), ("4 frames for 7 rows", "episode 0, frame 1")),
    "more frames, jitter": (together(video(range(9)), stamps(STAMPS + NOISE)), ("9 frames for 7 rows", "100%")),
    "more frames, zero": (together(video(range(9)), stamps(STAMPS * 0)), ("9 frames for 7 rows", "frame 1")),
}  # fmt: skip


@pytest.mark.parametrize(("edit", "words"), REFUSED.values(), ids=REFUSED)
def test_frames_that_cannot_be_told_apart_are_refused(copied: Copied, edit: Edit, words: tuple[str, ...]) -> None:
    path = copied("published")
    edit(path)
    refused(path, *words, FRONT, "from_timestamp")


@pytest.mark.parametrize("seed", range(20))
def test_stamps_that_fit_choose_the_frames_and_others_never_do(seed: int) -> None:
    """Random lengths, rates and gaps: what LeRobot accepts is read as LeRobot does, all else by number."""
    random = np.random.default_rng(seed)
    lengths, fps = random.integers(1, 9, 4), random.uniform(3, 60)
    gaps = random.integers(0, 3, 4) * (seed % 2)
    begin = np.concatenate([[0], np.cumsum(lengths + gaps)[:-1]]) + gaps[0]
    wanted = np.concatenate([np.arange(start, start + length) for start, length in zip(begin, lengths, strict=True)])
    times = np.arange(int((lengths + gaps).sum() + gaps[0])) / fps
    first = np.cumsum(lengths) - lengths
    frame = np.arange(len(wanted)) - np.repeat(first, lengths)
    clean = match(times, begin / fps, (frame / fps).astype(np.float32), first, 1)
    assert clean.frames is not None
    np.testing.assert_array_equal(clean.frames, wanted)
    assert not clean.wrong.any()
    noisy = match(times, begin / fps, frame / fps + random.normal(scale=1 / fps, size=len(frame)), first, 1)
    assert noisy.wrong.any()
    assert (noisy.frames is None) == bool(gaps.any())
    if noisy.frames is not None:
        np.testing.assert_array_equal(noisy.frames, wanted)
