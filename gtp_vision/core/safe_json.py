"""JSON of strangers: an object, and not nested so deeply that writing it again would fail."""

from __future__ import annotations

import json
from typing import Any

_DEEPEST = 100  # levels; JSON's own functions fail at about 1000, the sooner the more functions are around them


def json_object(text: str | bytes) -> dict[str, Any]:
    """A JSON object.

    Raises:
        ValueError: the text is no JSON, no object, or has more than 100 levels.
    """
    try:
        found = json.loads(text)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error
    if not isinstance(found, dict):
        raise ValueError("no object")
    level: list[Any] = [found]
    for _ in range(_DEEPEST):
        level = [
            inner
            for value in level
            for inner in (value.values() if isinstance(value, dict) else value)
            if isinstance(inner, dict | list)
        ]
        if not level:
            return found
    raise ValueError(f"more than {_DEEPEST} levels")
