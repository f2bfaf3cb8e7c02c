"""Configurations that came from somewhere: text that can only say what ours say."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import yaml

from gtp_vision.core.errors import GtpVisionError

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


def whole_numbers(value: Any, name: str = "") -> list[tuple[str, int]]:
    """Dotted name and value of each whole number in settings: dataclasses, maps and lists within each other."""
    if isinstance(value, int) and not isinstance(value, bool):
        return [(name, value)]
    if is_dataclass(value):
        inner = [(field.name, getattr(value, field.name)) for field in fields(value)]
    elif isinstance(value, Mapping):
        inner = [(str(key), one) for key, one in value.items()]
    elif isinstance(value, list):
        inner = [(str(index), one) for index, one in enumerate(value)]
    else:
        return []
    return [found for key, one in inner for found in whole_numbers(one, f"{name}.{key}".strip("."))]
