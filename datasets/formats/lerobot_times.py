"""Which frame of a video belongs to which row of a LeRobot data set, and what does not fit.

LeRobot takes the frame at second `from_timestamp + timestamp`, and stops if the nearest one is 1e-4 s away or more. It
is the same frame here if all rows of the episode have one so near, each a later one than the row before. If not, rows
and frames are paired by number, provided that the episode, or else the whole file, has exactly one frame a row; any
other data set is refused. What does not fit is the attribute `time_stamps`, a list of sentences, which `inspect` and
`train` print as warnings.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from gtp_vision.core.errors import GtpVisionError
from gtp_vision.core.side_by_side import side_by_side
from gtp_vision.datasets import time_stamps
from gtp_vision.datasets.formats import video
from gtp_vision.datasets.formats.lerobot_meta import Episodes, Feature
from gtp_vision.datasets.validation import place

TOLERANCE = 1e-4
"""Seconds that a frame may be away from its row's time stamp: LeRobot's `tolerance_s`."""


@dataclass(frozen=True)
class Pairing:
    """The frames of one camera: per file its path, first and exclusive last episode, packets, and rows' frames (N,)."""

    files: list[tuple[Path, int, int, video.Packets, np.ndarray]]
    notes: list[str]


def stamps_note(stamps: np.ndarray, starts: np.ndarray, fps: float) -> list[str]:
    """Return a sentence about time stamps (N,) that are not `frame_index / fps`, if there are any."""
    found = time_stamps.misfit(stamps, starts, 1 / fps, TOLERANCE)
    if found is None:
        return []
    words, step = found
    return [
        f"'timestamp' does not fit {fps:g} frames per second: {words}{time_stamps.other_rate(step, fps)}; LeRobot "
        f"itself stops at such rows of a video: correct 'timestamp', or 'fps' in meta/info.json"
    ]


def pair(path: Path, fps: float, feature: Feature, episodes: Episodes, stamps: np.ndarray) -> Pairing:
    """Pair the rows' time stamps (N,) with the frames of a camera's videos.

    Raises:
        GtpVisionError: rows without a frame of their own.
    """
    parts, begins = episodes.videos[feature.key]
    starts = np.concatenate([[0], np.cumsum(episodes.lengths)])
    pairing = Pairing([], [])
    height, width, _ = feature.shape
    listed = side_by_side(lambda part: video.packets(part[0], (height, width)), parts)
    for (file, begin, end), held in zip(parts, listed, strict=True):
        times = held.seconds
        here = stamps[starts[begin] : starts[end]]
        first = starts[begin:end] - starts[begin]
        found = match(times, begins[begin:end], here, first, 0.5 / fps)

        def row(marked: np.ndarray, begin: int = begin, first: np.ndarray = first) -> str:
            row = int(np.argmax(marked))
            episode = int(np.searchsorted(first, row, side="right")) - 1
            return f"first {place(begin + episode, row - int(first[episode]))}"

        if found.frames is None:
            at = int(np.argmax(found.wrong))
            raise GtpVisionError(
                f"{file} has {len(times)} frames for {len(here)} rows of the camera '{feature.key}', of which "
                f"{time_stamps.share(found.wrong)} have no frame of their own at their time stamps, {row(found.wrong)} "
                f"(second {found.seconds[at]:.6g}, the nearest frame is at {times[found.nearest[at]]:.6g}); correct "
                f"'timestamp', 'from_timestamp' and 'fps', or copy the data set again"
            )
        name = file.relative_to(path)
        if found.wrong.any():
            away = np.abs(times[found.frames] - found.seconds)
            most = f"up to {away[np.isfinite(away)].max(initial=0):.3g} s away"
            pairing.notes.append(
                f"{name}: the frames of {time_stamps.share(found.wrong)} of its rows are not at their time stamps but "
                f"{most}, {row(found.wrong)}; rows and frames were paired by number, since there is one frame for each "
                f"row"
            )
        elif len(times) != len(here):
            skips = (
                f", and {time_stamps.share(found.skips)} of its rows have the frames of their time stamps, which are "
                f"not those of their numbers, {row(found.skips)}"
            )
            pairing.notes.append(
                f"{name}: {len(times) - len(here)} of {len(times)} frames belong to no row"
                f"{skips if found.skips.any() else ''}"
            )
        pairing.files.append((file, begin, end, held, found.frames))
    if len(pairing.notes) > 1:
        pairing.notes[1:] = [f"{len(pairing.notes) - 1} more videos of the camera '{feature.key}' do not fit either"]
    return pairing


@dataclass(frozen=True)
class Match:
    """How the N rows of one file were paired.

    Attributes:
        frames: int (N,), increasing numbers of the rows' frames; None if they are not known.
        seconds: (N,), where the frames are wanted.
        nearest: int (N,), the frames nearest to that.
        wrong: bool (N,), the row has no frame of its own there; if `frames` is known, it is another one.
        skips: bool (N,), the frame is not the one of the row's number, counted from its episode's first frame.
    """

    frames: np.ndarray | None
    seconds: np.ndarray
    nearest: np.ndarray
    wrong: np.ndarray
    skips: np.ndarray


def match(times: np.ndarray, begins: np.ndarray, stamps: np.ndarray, first: np.ndarray, half: float) -> Match:
    """Pair the rows of one video file with its frames.

    Args:
        times: (M,), seconds of the frames, increasing.
        begins: (E,), seconds at which the episodes begin in the file.
        stamps: (N,), seconds of the rows in their episodes; NaN where missing.
        first: int (E,), first row of each episode.
        half: seconds of half a frame, if the file has a single one.
    """
    lengths = np.diff(first, append=len(stamps))
    episode = np.repeat(np.arange(len(first)), lengths)
    number = np.arange(len(stamps)) - first[episode]
    seconds = begins[episode] + stamps
    if len(times) > 1:
        half = float(np.median(np.diff(times))) / 2
    nearest = np.clip(np.searchsorted((times[1:] + times[:-1]) / 2, seconds), 0, len(times) - 1)
    fits = np.abs(times[nearest] - seconds) < TOLERANCE + np.spacing(np.abs(stamps).astype(np.float32))
    fits[1:] &= (np.diff(nearest) > 0) | (np.diff(episode) > 0)  # each later than the one before
    by_time = np.logical_and.reduceat(fits, first)
    segment = np.searchsorted(times, begins - half)
    by_number = np.diff(segment, append=len(times)) == lengths
    frames = np.where(by_time[episode], nearest, segment[episode] + number)
    overlap = np.diff(frames, prepend=-1) <= 0
    if not (by_time | by_number).all() or overlap.any():
        if len(times) != len(stamps):
            wrong = ~fits if not fits.all() else overlap
            return Match(None, seconds, nearest, wrong, overlap)
        frames = np.arange(len(stamps))
    return Match(frames, seconds, nearest, ~fits | (nearest != frames), frames != frames[first][episode] + number)
