"""Single frames of videos, by PyAV: decoding begins at the keyframe before. Runs in the sandbox process.

The filters are those of `video.decoding`, so frames have the same bits as those of the cache.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain, groupby
from pathlib import Path
from typing import Any

import numpy as np

from gtp_vision.core import sandbox
from gtp_vision.core.errors import GtpVisionError, first_line
from gtp_vision.core.extras import optional
from gtp_vision.core.framing import Framing
from gtp_vision.core.side_by_side import side_by_side, workers_for
from gtp_vision.datasets.formats import video
from gtp_vision.datasets.videos import DECODERS

av = optional("av", "lerobot", "task.video=seek")

_COPY = "copy the data set again"
_ENCODE = "set task.video=unpacked, or encode the video again"
_NEAR = 2  # frames up to the next keyframe, which are decoded rather than sought
_idle: list[_Decoder] = []  # the least recently used first
_lock = threading.Lock()


def places(path: Path, packets: video.Packets, frames: np.ndarray, first: int) -> np.ndarray:
    """Return where frames of a video, by their numbers int (n,), are found: int64 (n, 4), columns as in `Videos`.

    `first` is the row of the first of them.

    Raises:
        GtpVisionError: no keyframe comes before a frame, or two frames have the same time.
    """
    keys = np.flatnonzero(packets.is_key)
    before = np.searchsorted(keys, frames, side="right") - 1
    if not len(keys):
        raise GtpVisionError(f"{path} has no keyframe from which its frames could be decoded; {_ENCODE}")
    if len(wrong := np.flatnonzero(before < 0)):
        raise GtpVisionError(
            f"{path}: frame {frames[wrong[0]]}, of row {first + wrong[0]}, comes before its first keyframe, frame "
            f"{keys[0]}; {_ENCODE}"
        )
    if not (np.diff(packets.pts) > 0).all():
        raise GtpVisionError(f"{path}: several of its frames have the same time, so none can be sought; {_ENCODE}")
    key = keys[before]
    rows = np.arange(first, first + len(frames))
    return np.stack([packets.dts[key], packets.pts[key], packets.pts[frames], rows], axis=1)


def decode(_: Path, wanted: list[dict[str, Any]], shape: list[int]) -> memoryview:
    """Decode frames: for each video its `VideoFile` and its frames.

    A frame is [number in the result, dts and pts of its keyframe, pts, row]; they are in the order of decoding.

    Returns:
        The bytes of the frames, uint8 of `shape` (n, H, W, C).
    """
    out = np.empty(shape, np.uint8)
    jobs: list[list[tuple[dict[str, Any], list[list[int]]]]] = [[]]
    most, count = -(-len(out) // workers_for(len(out))), 0
    for part in wanted:
        for _, group in groupby(part["frames"], key=lambda frame: frame[2]):
            if count >= most * len(jobs):
                jobs.append([])
            frames = list(group)
            jobs[-1].append((part["file"], frames))
            count += len(frames)

    def work(job: list[tuple[dict[str, Any], list[list[int]]]]) -> None:
        for file, groups in groupby(job, key=lambda each: each[0]):
            with _decoder(**file) as decoder:
                for _, frames in groups:
                    decoder.read(frames, out)

    list(side_by_side(work, jobs))
    return out.data.cast("B")


@contextmanager
def _decoder(path: str, shape: list[int], framing: dict[str, Any] | None, camera: str) -> Iterator[_Decoder]:
    """Yield an idle decoder of a file, or a new one; it stays open unless the block raises."""
    try:
        held = os.stat(path)
    except OSError as error:
        raise GtpVisionError(f"{path} cannot be read ({error.strerror}); {_COPY}") from error
    key = (path, held.st_size, held.st_mtime_ns, held.st_ino, repr(framing))
    with _lock:
        decoder = next((each for each in _idle if each.key == key), None)
        if decoder is not None:
            _idle.remove(decoder)
    if decoder is None:
        decoder = _Decoder(key, tuple(shape), Framing.of(framing), camera)
    try:
        yield decoder
    except BaseException:
        decoder.close()
        raise
    with _lock:
        _idle.append(decoder)
        closed = [_idle.pop(0) for _ in range(len(_idle) - DECODERS)]
    for each in closed:
        each.close()


class _Decoder:
    """An open video; `key` begins with its path."""

    def __init__(self, key: Any, shape: tuple[int, ...], framing: Framing | None, camera: str) -> None:
        self.key, self._path, self._camera = key, key[0], camera
        height, width, channels = shape
        cut, self._wanted, self._after = video.filters((height, width, channels), framing, camera)
        self._size = (width, height)
        self._position: int | None = None  # of the last frame read
        try:
            options = {"protocol_whitelist": "file"}
            self._container = av.open(f"file:{os.path.realpath(self._path)}", format="mp4", options=options)
        except av.FFmpegError as error:
            raise GtpVisionError(f"{self._path} cannot be read as a video ({first_line(error)}); {_COPY}") from error
        streams = self._container.streams.video
        codec = streams[0].codec_context if streams else None
        if codec is None or codec.pix_fmt is None or (codec.width, codec.height) != self._size:
            held = f"frames of {codec.width}x{codec.height}" if codec else "no video that can be decoded"
            self.close()
            raise GtpVisionError(f"{self._path} holds {held}, wanted frames of {width}x{height}; {_COPY}")
        self._stream = streams[0]
        rate, unit = self._stream.average_rate, self._stream.time_base
        self._near = _NEAR / float(rate * unit) if rate else 0.0
        self._pixels = codec.pix_fmt
        self._graph = av.filter.Graph()
        self._graph.threads = 1  # several files, or parts of one, are decoded side by side
        last = self._graph.add_buffer(template=self._stream)
        for name, values in video.pixel_filters(cut, channels):
            last.link_to(node := self._graph.add(name, values))
            last = node
        last.link_to(self._graph.add("buffersink"))
        self._graph.configure()

    def close(self) -> None:
        """Close the file."""
        self._container.close()

    def read(self, frames: list[list[int]], out: np.ndarray) -> None:
        """Decode frames of one keyframe, as `decode` describes them."""
        left = frames[::-1]
        try:
            for frame in self._from(*frames[0][1:4]):
                if frame.pts > left[-1][3]:
                    break
                while left and frame.pts == left[-1][3]:
                    out[left.pop()[0]] = self._pixels_of(frame)
                if not left:
                    return
            reason, advice = "it has no frame there", _COPY
        except av.FFmpegError as error:
            reason, advice = first_line(error), _COPY
        except _DamagedError as error:
            reason, advice = str(error), error.advice
        seconds = float(left[-1][3] * self._stream.time_base)
        raise GtpVisionError(
            f"{self._path} cannot be decoded at second {seconds:.6g}, row {left[-1][4]} of camera '{self._camera}' "
            f"({reason}); {advice}"
        )

    def _from(self, dts: int, pts: int, first: int) -> Iterator[Any]:
        """Decode from a keyframe on to the frame at `first`, or from the last frame read, if that is as near."""
        is_near = self._position is not None and pts - self._near <= self._position < first
        for frame in self._decoded if is_near else self._sought(dts, pts):
            sandbox.heartbeat()
            if frame.is_corrupt:
                raise _DamagedError("the frame is damaged", _COPY)
            if (frame.width, frame.height, frame.format.name) != (*self._size, self._pixels):
                raise _DamagedError(f"frames become {frame.width}x{frame.height} {frame.format.name} there", _COPY)
            self._position = frame.pts
            yield frame
        self._position = None

    def _sought(self, dts: int, pts: int) -> Iterator[Any]:
        """Decode from a keyframe on, or from one before it."""
        for time in (pts, dts):  # whether FFmpeg's index holds the one or the other depends on the file's edit list
            try:
                self._container.seek(time, stream=self._stream)
            except av.FFmpegError:  # no keyframe so early
                continue
            self._decoded = self._container.decode(self._stream)
            frame = next(self._decoded, None)
            if frame is not None and frame.key_frame and frame.pts <= pts:
                return chain([frame], self._decoded)
        raise _DamagedError("its index of keyframes is wrong", _ENCODE)

    def _pixels_of(self, frame: Any) -> np.ndarray:
        self._graph.push(frame)
        pixels = self._graph.pull().to_ndarray().reshape(self._wanted)
        return pixels if self._after is None else self._after(pixels)


class _DamagedError(Exception):
    """What is wrong with a video, and what to do about it."""

    def __init__(self, reason: str, advice: str) -> None:
        super().__init__(reason)
        self.advice = advice
