"""Configurations that came from somewhere: text that can only say what ours say."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from gtp_vision.errors import GtpVisionError

_BYTES = 1 << 20
_DEPTH = 20


def plain_yaml(path: Path) -> Any:
    """The content of a YAML file of mappings, lists, words and numbers.

    Aliases, by which a small file becomes a large one, and `${...}`, by which a configuration reads the environment,
    are refused: what this package writes has neither.

    Raises:
        GtpVisionError: it is too large or too deep, or has one of these.
        yaml.YAMLError: it is no YAML.
        ValueError: it is no text.
    """
    if path.stat().st_size > _BYTES:
        raise GtpVisionError(f"{path} is too large for a configuration ({path.stat().st_size} bytes); check the path")
    text = path.read_text(encoding="utf-8")
    depth = 0
    for event in yaml.parse(text, yaml.SafeLoader):
        if isinstance(event, yaml.AliasEvent):
            raise GtpVisionError(f"{path} has an alias (*{event.anchor}), which no configuration needs; write it out")
        if isinstance(event, yaml.ScalarEvent) and "${" in event.value:
            raise GtpVisionError(f"{path} holds '{event.value[:40]}', and nothing is filled in here; write the value")
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > _DEPTH:
            raise GtpVisionError(f"{path} is nested deeper than any configuration ({_DEPTH} levels); check the path")
    return yaml.safe_load(text)
