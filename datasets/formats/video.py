"""Video files through the ffmpeg that imageio brings along: one process a file, raw frames through its pipe."""

from __future__ import annotations

import os
import select
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

import imageio_ffmpeg  # type: ignore[import-untyped]
import numpy as np

from gtp_vision.core import sandbox
from gtp_vision.core.errors import GtpVisionError

CRF = 18  # x264's quality: what eyes take for lossless
_STALL = 0.75  # share of the reader's patience after which a silent ffmpeg is given up
_ACCURATE = ["-sws_flags", "accurate_rnd+full_chroma_int+full_chroma_inp"]  # colours without rounding shortcuts
_PIXELS = {1: ("gray", "pgm", b"P5"), 3: ("rgb24", "ppm", b"P6")}  # channels: ffmpeg's pixels, its codec, its magic
CHANNELS = tuple(_PIXELS)
"""Numbers of channels that a video can have here."""


class Frames:
    """The frames of a video, in order, each once: an iterator of uint8 (H, W, C).

    Attributes:
        ended: why there are no more, for messages; empty while there are.
        mend: what can be done about it.
    """

    def __init__(self, process: subprocess.Popen[bytes], complaints: IO[bytes], shape: tuple[int, int, int]) -> None:
        height, width, channels = shape
        assert process.stdout is not None
        self.ended, self.mend = "", "copy the data set again"
        self._process, self._complaints, self._stdout = process, complaints, process.stdout
        self._shape, self._size = shape, height * width * channels
        self._header = b"%s\n%d %d\n255\n" % (_PIXELS[channels][2], width, height)
        self._buffer = bytearray()
        self._arrival = select.poll()
        self._arrival.register(self._stdout, select.POLLIN)
        self._limit = _STALL * sandbox.patience()

    def __iter__(self) -> Frames:
        return self

    def __next__(self) -> np.ndarray:
        try:
            frame = self._frame()
        except MemoryError:  # who reads, too, may take little more than the file is large
            self._buffer, frame = bytearray(), None
            self._too_large("no memory for its frames")
        if frame is None:
            raise StopIteration
        sandbox.alive()
        return frame

    def _frame(self) -> np.ndarray | None:
        whole = len(self._header) + self._size
        while self._fits() and len(self._buffer) < whole:
            self._more()
        if self.ended:
            return None
        frame = np.frombuffer(self._buffer, np.uint8, self._size, len(self._header)).reshape(self._shape).copy()
        del self._buffer[:whole]
        return frame

    def _too_large(self, why: str) -> None:
        self.ended = why
        self.mend = f"if the file is whole, {self._shape[1]}x{self._shape[0]} is too large: scale the video down"

    def _fits(self) -> bool:
        """Whether what came so far may be a frame of the size that is wanted."""
        head = bytes(self._buffer[: len(self._header)])
        if not self.ended and not self._header.startswith(head):
            size = "x".join(word.decode("ascii", "replace") for word in bytes(self._buffer[:32]).split()[1:3])
            self.ended = f"its frames are {size} pixels and not {self._shape[1]}x{self._shape[0]}"
        return not self.ended

    def _more(self) -> None:
        if not self._arrival.poll(1000 * self._limit):
            self.ended = f"ffmpeg gave no frame for {self._limit:g} s"
            return
        piece = os.read(self._stdout.fileno(), 1 << 20)
        self._buffer += piece
        if not piece:
            status = self._process.wait()
            said = _said(self._complaints, status)
            self.ended = f"ffmpeg: {said}" if status else "it has no more frames"
            if "allocat" in said or "memory" in said:  # ffmpeg has the reader's limit
                self._too_large(self.ended)


@contextmanager
def decoding(path: Path, shape: tuple[int, int, int]) -> Iterator[Frames]:
    """Decode a video from its first frame on; ffmpeg ends with the block.

    Only mp4 is accepted, nothing but this file is opened, and a frame that is damaged ends the frames.

    Args:
        path: the file.
        shape: (H, W, C) that its frames must have.
    """
    pixels, codec, _ = _PIXELS[shape[2]]
    command = [
        *(_ffmpeg(), "-nostdin", "-loglevel", "error", "-xerror", "-threads", "2"),
        *("-protocol_whitelist", "file", "-f", "mp4", "-noautorotate", "-i", f"file:{path.resolve()}"),
        *("-map", "0:v:0", "-fps_mode", "passthrough", *_ACCURATE),
        *("-f", "image2pipe", "-c:v", codec, "-pix_fmt", pixels, "-"),
    ]
    with tempfile.TemporaryFile() as complaints:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=complaints)
        try:
            yield Frames(process, complaints, shape)
        finally:
            _end(process, process.stdout)


@contextmanager
def encoding(path: Path, shape: Sequence[int], fps: float) -> Iterator[Callable[[np.ndarray], None]]:
    """Write an mp4 (H.264, every second frame a key frame, as players that jump want it).

    Args:
        path: the file to be.
        shape: (H, W, C) of the frames, 1 or 3 channels.
        fps: frames a second.

    Yields:
        A function that takes frames, uint8 (n, H, W, C).

    Raises:
        GtpVisionError: ffmpeg fails, as on a full disk.
    """
    height, width, channels = shape
    command = [
        *(_ffmpeg(), "-nostdin", "-loglevel", "error", "-y", "-f", "rawvideo", "-pix_fmt", _PIXELS[channels][0]),
        *("-s", f"{width}x{height}", "-r", f"{fps:.10g}", "-i", "-", *_ACCURATE),
        *("-c:v", "libx264", "-crf", str(CRF), "-g", "2", "-bf", "0", "-threads", "2"),
        *("-pix_fmt", pixel_format(shape), "-flush_packets", "1", "-f", "mp4", f"file:{path}"),
    ]
    with tempfile.TemporaryFile() as complaints:
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=complaints)
        stdin = process.stdin
        assert stdin is not None
        try:
            yield lambda frames: (stdin.write(np.ascontiguousarray(frames, np.uint8).data), None)[1]
            stdin.close()
            if status := process.wait():
                raise BrokenPipeError(status)
        except BrokenPipeError as error:
            said = _said(complaints, process.wait())
            raise GtpVisionError(f"{path} could not be encoded ({said}); make room on the disk or shrink it") from error
        finally:
            _end(process, stdin)


def pixel_format(shape: Sequence[int]) -> str:
    """How colours are stored: one for four pixels where both sides are even, one for each where not."""
    return "yuv420p" if shape[0] % 2 == 0 and shape[1] % 2 == 0 else "yuv444p"


def _ffmpeg() -> str:
    try:
        return str(imageio_ffmpeg.get_ffmpeg_exe())
    except RuntimeError as error:
        raise GtpVisionError("no ffmpeg was found for videos; install imageio[ffmpeg] again") from error


def _said(complaints: IO[bytes], status: int) -> str:
    """The first line that ffmpeg wrote to its errors."""
    complaints.seek(0)
    words = complaints.read(500).decode("utf-8", "replace").splitlines()
    return "".join(char for char in words[0] if char.isprintable()) if words else f"ended with status {status}"


def _end(process: subprocess.Popen[bytes], pipe: IO[bytes] | None) -> None:
    process.kill()
    process.wait()
    if pipe is not None:
        with suppress(BrokenPipeError):  # what was not yet written is not wanted any more
            pipe.close()
