"""The reader of untrusted JSON: an object of bounded size and depth, or one sentence with the path."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from gtp_vision.core.errors import GtpVisionError, first_line, reason

_MAX_BYTES = 64 << 20  # a million numbers take a third of it
_MAX_DEPTH = 100  # JSON's own functions fail at about 1000 levels, earlier the deeper they are called


def read_json(path: Path, *, what: str = "", limit: int = _MAX_BYTES, advice: str = "copy it again") -> dict[str, Any]:
    """Read a JSON object of at most `limit` bytes from a regular file, or raise a GtpVisionError.

    `what` says what the file holds, e.g. "the spaces of the data set", `advice` what to do about a damaged one.
    """
    meaning = f", which holds {what}," if what else ""
    try:
        if not path.is_file():
            raise FileNotFoundError("no such file")
        if (size := path.stat().st_size) > limit:
            raise ValueError(f"{size} bytes, at most {limit} are read")
        return _parsed(path.read_bytes())
    except (OSError, ValueError) as error:
        advice = f"; {advice}" if advice else ""
        raise GtpVisionError(f"{path}{meaning} cannot be read as a JSON object ({reason(error)}){advice}") from error


def read_json_lines(path: Path, *, limit: int = _MAX_BYTES, advice: str = "copy it again") -> list[dict[str, Any]]:
    """Read a file of one JSON object a line, as `read_json`; blank lines are passed over."""
    try:
        if (size := path.stat().st_size) > limit:
            raise ValueError(f"{size} bytes, at most {limit} are read")
        return [_parsed(line) for line in path.read_bytes().splitlines() if line.strip()]
    except (OSError, ValueError) as error:
        raise GtpVisionError(f"{path} cannot be read as lines of JSON ({reason(error)}); {advice}") from error


def parse_json(text: str | bytes, what: str, *, advice: str = "write it again") -> dict[str, Any]:
    """Parse a JSON object of at most 100 levels, or raise a GtpVisionError; `what` is where the text comes from."""
    try:
        return _parsed(text)
    except ValueError as error:
        raise GtpVisionError(f"{what} is not a JSON object ({first_line(error)}); {advice}") from error


def _parsed(text: str | bytes) -> dict[str, Any]:
    try:
        found = json.loads(text)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error
    if not isinstance(found, dict):
        raise ValueError("not an object")
    level: list[Any] = [found]
    for _ in range(_MAX_DEPTH):
        level = [
            inner
            for value in level
            for inner in (value.values() if isinstance(value, dict) else value)
            if isinstance(inner, dict | list)
        ]
        if not level:
            return found
    raise ValueError(f"nested deeper than {_MAX_DEPTH} levels")
