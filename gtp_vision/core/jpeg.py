"""Untrusted JPEG files as frames."""

from __future__ import annotations

import io
import struct
import warnings
from collections.abc import Collection

import numpy as np
from PIL import Image, UnidentifiedImageError

from gtp_vision.core.errors import first_line

JPEG_ERRORS = (
    *(OSError, SyntaxError, ValueError, EOFError, TypeError, IndexError, KeyError, struct.error),
    *(Image.DecompressionBombError, Image.DecompressionBombWarning),
)
"""What decoding a damaged file raises."""


def decoded_jpeg(content: bytes, shapes: Collection[tuple[int, ...]] = ()) -> np.ndarray:
    """Decode a JPEG file to uint8 (H, W, C), which must be one of `shapes`, if any are given.

    Raises one of `JPEG_ERRORS`, for a wrong shape before anything is decoded.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        with Image.open(io.BytesIO(content), formats=["JPEG"]) as picture:
            found = (picture.height, picture.width, len(picture.getbands()))
            if shapes and found not in shapes:
                raise ValueError(f"it is {'x'.join(map(str, found))}")
            return np.asarray(picture).reshape(found)


def reason(error: Exception) -> str:
    """What was wrong with a file, of one of `JPEG_ERRORS`."""
    is_unknown = isinstance(error, UnidentifiedImageError)  # whose message is an address in memory
    return "its bytes are of another format" if is_unknown else first_line(error)
