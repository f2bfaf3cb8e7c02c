"""Untrusted configuration files: YAML that can hold only what this package writes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from gtp_vision.core.errors import GtpVisionError

_BYTES = 1 << 20
_DEPTH = 20


def plain_yaml(path: Path) -> Any:
    """Read a YAML file of mappings, lists, words and numbers.

    Aliases, by which a small file becomes a large one, and `${...}`, by which a configuration reads the environment,
    are refused: this package writes neither.

    Raises:
        GtpVisionError: it is too large or nested too deeply, or holds one of these.
        yaml.YAMLError: it is not YAML.
        ValueError: it is not text.
    """
    if path.stat().st_size > _BYTES:
        raise GtpVisionError(f"{path} is too large for a configuration ({path.stat().st_size} bytes); check the path")
    text = path.read_text(encoding="utf-8")
    depth = 0
    for event in yaml.parse(text, yaml.SafeLoader):
        if isinstance(event, yaml.AliasEvent):
            raise GtpVisionError(f"{path} has an alias (*{event.anchor}), which is not allowed here; write it out")
        if isinstance(event, yaml.ScalarEvent) and "${" in event.value:
            raise GtpVisionError(f"{path} holds '{event.value[:40]}', which is not filled in here; write the value")
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > _DEPTH:
            raise GtpVisionError(f"{path} is nested deeper than {_DEPTH} levels; check the path")
    return yaml.safe_load(text)
