"""Frames that stay in their videos: arrays of a store whose rows are decoded when they are read.

    Videos[rows] -> sandbox process -> formats/seeking.py: decoders -> frames, through its pipe

Which frame of which file is a row's was found when the data set was opened (`formats/lerobot_times.py`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from gtp_vision.core import sandbox
from gtp_vision.core.errors import GtpVisionError

MODES = ("unpacked", "seek")
"""Of `task.video`."""
DECODERS = 16  # that stay open
_FRAMES = 24  # of recorded size, that a decoder holds at most: H.264 refers to 16
_TOGETHER = 1 << 25  # bytes of frames that are decoded together
_DECODE = "gtp_vision.datasets.formats.seeking:decode"


@dataclass(frozen=True)
class VideoFile:
    """A video of a camera.

    Attributes:
        path: the file.
        shape: (H, W, C) of its frames.
        framing: how they are cropped and resized, as `Framing.record`; None: not at all.
        camera: its name in that framing.
    """

    path: str
    shape: tuple[int, int, int]
    framing: dict[str, Any] | None
    camera: str


class Videos:
    """An array uint8 (N, H, W, C) of frames of videos.

    Args:
        source: the data set, for messages.
        files: the videos.
        places: int64 (N, 5), for each row the number of its file, then dts and pts of the keyframe from which its frame
            is decoded, pts of the frame, and the row's number in the data set.
        shape: (H, W, C) of the frames, cropped and resized.
    """

    dtype, ndim = np.dtype(np.uint8), 4

    def __init__(
        self, source: Path, files: Sequence[VideoFile], places: np.ndarray, shape: tuple[int, int, int]
    ) -> None:
        self.source, self.files, self.places = source, files, places
        self.shape = (len(places), *shape)

    @property
    def nbytes(self) -> int:
        """Bytes of all frames, which are nowhere."""
        return int(np.prod(self.shape, dtype=np.int64))

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: Any) -> np.ndarray:
        """Decode the rows of an integer, a slice, or an integer or boolean array."""
        chosen = np.arange(len(self))[rows]
        out = np.empty((chosen.size, *self.shape[1:]), np.uint8)
        self.take(chosen.ravel(), out)
        return out.reshape(*chosen.shape, *self.shape[1:])

    def take(self, rows: np.ndarray, out: np.ndarray) -> None:
        """Decode rows, integers in [0, N), into `out` (rows, H, W, C)."""
        distinct, position = np.unique(rows, return_inverse=True)
        together = max(1, _TOGETHER // max(1, self.nbytes // max(1, len(self))))
        for start in range(0, len(distinct), together):
            frames = self._decoded(self.places[distinct[start : start + together]])
            here = (position >= start) & (position < start + together)
            out[here] = frames[position[here] - start]

    def view(self, start: int, stop: int) -> Videos:
        """Return rows `start` to `stop - 1`, not decoded."""
        return Videos(self.source, self.files, self.places[start:stop], self.shape[1:])

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        try:
            return self[:].astype(dtype or self.dtype, copy=False)
        except MemoryError as error:
            raise GtpVisionError(
                f"{self.source}: all frames of a camera at once need {self.nbytes / 1e9:.3g} GB of memory; set "
                f"task.video=unpacked"
            ) from error

    @staticmethod
    def joined(parts: Sequence[Videos]) -> Videos:
        """Return the rows of several arrays of one row shape, one after another."""
        files, places, known = list[VideoFile](), [], dict[int, int]()
        for part in parts:
            if id(part.files) not in known:
                known[id(part.files)] = len(files)
                files += part.files
            own = np.array(part.places)
            own[:, 0] += known[id(part.files)]
            places.append(own)
        return Videos(parts[0].source, files, np.concatenate(places), parts[0].shape[1:])

    def rows_per_keyframe(self) -> float:
        """Return the mean number of rows that begin at the same keyframe."""
        return len(self) / max(1, len(np.unique(self.places[:, :2], axis=0)))

    def _decoded(self, places: np.ndarray) -> np.ndarray:
        """Decode the frames of some places; those of a keyframe together."""
        order = np.lexsort((places[:, 3], places[:, 2], places[:, 0]))
        wanted = [
            {"file": vars(self.files[number]), "frames": [[int(i), *places[i, 1:].tolist()] for i in order[own]]}
            for number in np.unique(places[:, 0])
            for own in [places[order, 0] == number]
        ]
        frames = np.empty((len(places), *self.shape[1:]), np.uint8)
        recorded = max(int(np.prod(self.files[number].shape)) for number in np.unique(places[:, 0]))
        size = frames.nbytes + DECODERS * _FRAMES * recorded
        sandbox.fill(_DECODE, self.source, frames.data.cast("B"), wanted, list(frames.shape), size=size)
        return frames
