"""Video files by the ffmpeg of imageio: one process per file, raw frames through its pipe."""

from __future__ import annotations

import os
import select
import subprocess
import tempfile
from array import array
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO

import imageio_ffmpeg  # type: ignore[import-untyped]
import numpy as np

from gtp_vision.core import depth, sandbox
from gtp_vision.core.errors import GtpVisionError
from gtp_vision.core.framing import Framing

CRF = 18  # x264's quality: visually lossless
_STALL = 0.75  # share of the sandbox's patience after which a stalled ffmpeg is stopped
_EXACT = "accurate_rnd+full_chroma_int+full_chroma_inp"  # conversion of colors
_ACCURATE = ["-sws_flags", _EXACT]
_X265 = "lossless=1:keyint=2:bframes=0:pools=2:log-level=error"
_LOSSLESS = ["-c:v", "libx265", "-x265-params", _X265, "-tag:v", "hvc1"]  # the tag that players know
_PIECE = 1 << 20  # bytes that ffmpeg may be ahead: several frames
_LARGE = 1 << 25  # bytes of a frame, of which a decoder needs several
_MAX_FRAMES = 1 << 24  # of a video
_PIXELS = {
    1: ("gray", "pgm", b"P5\n%d %d\n255\n"),
    2: ("gray16be", "pgm", b"P5\n%d %d\n65535\n"),
    3: ("rgb24", "ppm", b"P6\n%d %d\n255\n"),
}  # channels: ffmpeg's pixels, its codec, its header
CHANNELS = (1, 3)
"""Numbers of channels of videos of bytes; frames of 16 bits have two, the high byte first."""


class _Output:
    """The output of an ffmpeg process, piece by piece; `ended` says why there is no more."""

    def __init__(self, process: subprocess.Popen[bytes], errors: IO[bytes]) -> None:
        assert process.stdout is not None
        self.ended = ""
        self._process, self._errors, self._stdout = process, errors, process.stdout
        self._poll = select.poll()
        self._poll.register(self._stdout, select.POLLIN)
        self._limit = _STALL * sandbox.patience()

    def piece(self) -> bytes:
        """Return the next bytes; none at the end."""
        if not self._poll.poll(1000 * self._limit):
            self.ended = f"ffmpeg returned no frame for {self._limit:g} s"
            return b""
        sandbox.heartbeat()
        piece = os.read(self._stdout.fileno(), _PIECE)
        if not piece:
            status = self._process.wait()
            self.ended = f"ffmpeg: {_error_message(self._errors, status)}" if status else "it has no more frames"
        return piece


class Frames:
    """An iterator over the frames of a video, uint8 (H, W, C); after its end it says why it ended, and what to do.

    `after` changes each frame.
    """

    def __init__(
        self,
        output: _Output,
        shape: tuple[int, int, int],
        after: Callable[[np.ndarray], np.ndarray] | None = None,
    ) -> None:
        self._after = after
        height, width, channels = shape
        self.ended, self.advice = "", "copy the data set again"
        self._output, self._shape, self._size = output, shape, height * width * channels
        self._header = _PIXELS[channels][2] % (width, height)
        self._buffer = bytearray()

    def __iter__(self) -> Frames:
        return self

    def __next__(self) -> np.ndarray:
        try:
            frame = self._frame()
        except MemoryError:  # the sandbox limits the memory
            self._buffer, frame = bytearray(), None
            self._end_too_large("out of memory for its frames")
        if frame is None:
            raise StopIteration
        sandbox.heartbeat()
        return frame if self._after is None else self._after(frame)

    def _frame(self) -> np.ndarray | None:
        size = len(self._header) + self._size
        while self._has_wanted_size() and len(self._buffer) < size:
            self._buffer += self._output.piece()
            self.ended = self._output.ended
            # ffmpeg inherits the sandbox's limit, and does not always say so.
            if "allocat" in self.ended or "memory" in self.ended or ("ffmpeg" in self.ended and size > _LARGE):
                self._end_too_large(self.ended)
        if self.ended:
            return None
        frame = np.frombuffer(self._buffer, np.uint8, self._size, len(self._header)).reshape(self._shape).copy()
        del self._buffer[:size]
        return frame

    def _end_too_large(self, reason: str) -> None:
        self.ended = reason
        self.advice = f"if the file is complete, {self._shape[1]}x{self._shape[0]} is too large: scale the video down"

    def _has_wanted_size(self) -> bool:
        """Whether the bytes so far may be a frame of the expected size."""
        head = bytes(self._buffer[: len(self._header)])
        if not self.ended and not self._header.startswith(head):
            size = "x".join(word.decode("ascii", "replace") for word in bytes(self._buffer[:32]).split()[1:3])
            self.ended = f"its frames are {size} pixels and not {self._shape[1]}x{self._shape[0]}"
        return not self.ended


@contextmanager
def decoding(
    path: Path, shape: tuple[int, int, int], framing: Framing | None = None, camera: str = ""
) -> Iterator[Frames]:
    """Decode a video from its first frame on, in frames (H, W, C); ffmpeg is stopped when the block ends.

    With a framing they are cropped and resized by ffmpeg, before colors are converted: within the rounding of what the
    framing makes of decoded frames, in a quarter of the time.
    Only mp4 is accepted, only this file is opened, and a damaged frame ends the iteration.
    """
    pixels, codec, _ = _PIXELS[shape[2]]
    chain, wanted, after = filters(shape, framing, camera)
    filtered = ["-vf", ",".join(f"{name}={values}" for name, values in chain)] if chain else []
    options = ["-fps_mode", "passthrough", *filtered, *_ACCURATE, "-f", "image2pipe", "-c:v", codec, "-pix_fmt", pixels]
    with _reading(path, options) as output:
        yield Frames(output, wanted, after)


def filters(
    shape: tuple[int, int, int], framing: Framing | None, camera: str
) -> tuple[list[tuple[str, str]], tuple[int, int, int], Callable[[np.ndarray], np.ndarray] | None]:
    """Return how decoded frames (H, W, C) of a camera are cropped and resized.

    Returns:
        ffmpeg's filters, names and arguments; the shape of the frames behind them; what changes each frame then.
    """
    if framing is None:
        return [], shape, None
    top, left, height, width = framing.window(camera, shape)
    if framing.crop is not None and any(side % 2 for side in (top, left, height, width)):
        # Two pixels of a row share a color: a cut between them would move colors.
        return [], shape, partial(framing, camera)
    wanted = framing.shape(camera, shape)  # swscale's bilinear filter is that of `Framing`, antialiased
    scale = f"{wanted[1]}:{wanted[0]}:flags=bilinear+{_EXACT}"
    return [("crop", f"{width}:{height}:{left}:{top}:exact=1"), ("scale", scale)], wanted, None


def pixel_filters(chain: list[tuple[str, str]], channels: int) -> list[tuple[str, str]]:
    """Return the filters of `filters`, and those that make frames of bytes, with exact colors."""
    return [*(chain or [("scale", f"flags={_EXACT}")]), ("format", f"pix_fmts={_PIXELS[channels][0]}")]


@dataclass(frozen=True)
class Packets:
    """The M packets of a video, in the order in which their frames are shown.

    Attributes:
        seconds: float64 (M,), when that is, increasing.
        pts: int64 (M,), the same in the stream's unit of time.
        dts: int64 (M,), when they are decoded, in that unit.
        is_key: bool (M,), whether decoding can begin at them.
    """

    seconds: np.ndarray
    pts: np.ndarray
    dts: np.ndarray
    is_key: np.ndarray


def packets(path: Path, size: tuple[int, int]) -> Packets:
    """List the packets of a video; nothing is decoded.

    Raises:
        GtpVisionError: it has no frame that can be read, or too many to list, or none of the height and width `size`.
    """
    wanted, found_size = f"{size[1]}x{size[0]}", ""
    found, unit, rest = array("q"), 0.0, b""  # dts, pts and flags; times in units of so many seconds
    with _reading(path, ["-c", "copy", "-copyts", "-f", "framecrc"]) as output:
        while (piece := output.piece()) and len(found) < 3 * _MAX_FRAMES:
            *lines, rest = (rest + piece).split(b"\n")
            for line in lines:
                if line.startswith(b"#tb 0:"):
                    numerator, denominator = line.removeprefix(b"#tb 0:").split(b"/")
                    unit = int(numerator) / int(denominator)
                elif line.startswith(b"#dimensions 0: "):
                    found_size = line.removeprefix(b"#dimensions 0: ").decode()
                elif not line.startswith(b"#"):
                    _, time, shown_at, *more = line.split(b",")
                    mark = next((word for word in more if word.startswith(b" F=")), b" F=0x1")  # left out if 1
                    found.extend((int(time), int(shown_at), int(mark[3:], 16)))
    if not found or not output.ended:
        reason = "more frames than can be listed" if found else output.ended
        raise GtpVisionError(f"{path} cannot be read as a video ({reason}); copy the data set again")
    if found_size != wanted:  # ffmpeg would resize it without a word
        raise GtpVisionError(f"{path}: its frames are {found_size} pixels and not {wanted}; copy the data set again")
    dts, pts, flags = np.array(found).reshape(-1, 3).T
    shown = np.argsort(pts, kind="stable")
    return Packets(pts[shown] * unit, pts[shown], dts[shown], flags[shown] & 1 == 1)


@contextmanager
def encoding(
    path: Path, shape: Sequence[int], fps: float, *, keyframes: int = 2
) -> Iterator[Callable[[np.ndarray], None]]:
    """Write an mp4 (H.264) of frames (H, W, C), C 1 or 3; every second frame is a keyframe, for fast seeking.

    Yields a function that takes frames, uint8 (n, H, W, C). If C is 2, they are numbers of 12 bits, uint16 (n, H, W),
    which are written without loss (H.265), as LeRobot writes depth. `keyframes` is their distance in H.264.

    Raises GtpVisionError: ffmpeg fails, as on a full disk.
    """
    height, width, channels = shape
    is_depth = channels == depth.BYTES
    codec = _LOSSLESS if is_depth else ["-c:v", "libx264", "-crf", str(CRF), "-g", f"{keyframes}", "-bf", "0"]
    pixels = pixel_format(shape) if is_depth else _PIXELS[channels][0]
    command = [
        *(_ffmpeg(), "-nostdin", "-loglevel", "error", "-y", "-f", "rawvideo", "-pix_fmt", pixels),
        *("-s", f"{width}x{height}", "-r", f"{fps:.10g}", "-i", "-", *_ACCURATE, *codec, "-threads", "2"),
        *("-pix_fmt", pixel_format(shape), "-flush_packets", "1", "-f", "mp4", f"file:{path}"),
    ]
    with tempfile.TemporaryFile() as errors:
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=errors)
        stdin = process.stdin
        assert stdin is not None
        try:
            yield lambda frames: (stdin.write(np.ascontiguousarray(frames).data), None)[1]
            stdin.close()
            if status := process.wait():
                raise BrokenPipeError(status)
        except BrokenPipeError as error:
            message = _error_message(errors, process.wait())
            raise GtpVisionError(f"{path} cannot be encoded ({message}); make room on the disk") from error
        finally:
            _end(process, stdin)


@contextmanager
def _reading(path: Path, options: Sequence[str]) -> Iterator[_Output]:
    """Run ffmpeg on the first video stream of an mp4 and yield its output."""
    command = [
        *(_ffmpeg(), "-nostdin", "-loglevel", "error", "-xerror", "-threads", "2"),
        *("-protocol_whitelist", "file", "-f", "mp4", "-noautorotate", "-i", f"file:{path.resolve()}"),
        *("-map", "0:v:0", *options, "-"),
    ]
    with tempfile.TemporaryFile() as errors:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=errors, pipesize=_PIECE
        )
        try:
            yield _Output(process, errors)
        finally:
            _end(process, process.stdout)


def pixel_format(shape: Sequence[int]) -> str:
    """Return ffmpeg's pixel format: four pixels share a color if both sides are even, else none do."""
    if shape[2] == depth.BYTES:
        return "gray12le"
    return "yuv420p" if shape[0] % 2 == 0 and shape[1] % 2 == 0 else "yuv444p"


def _ffmpeg() -> str:
    try:
        return str(imageio_ffmpeg.get_ffmpeg_exe())
    except RuntimeError as error:
        raise GtpVisionError("ffmpeg, which decodes videos, is missing; install imageio[ffmpeg] again") from error


def _error_message(errors: IO[bytes], status: int) -> str:
    """Return the first line of ffmpeg's standard error."""
    errors.seek(0)
    lines = errors.read(500).decode("utf-8", "replace").splitlines()
    return lines[0] if lines else f"ended with status {status}"


def _end(process: subprocess.Popen[bytes], pipe: IO[bytes] | None) -> None:
    process.kill()
    process.wait()
    if pipe is not None:
        with suppress(BrokenPipeError):  # unwritten data are dropped
            pipe.close()
