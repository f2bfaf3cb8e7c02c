"""`gtp-vision train ... --explain`: every setting, its value, what set it, and its meaning."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

from gtp_vision.agents import unused_settings
from gtp_vision.config.compose import COMMAND_LINE, from_command_line, layers
from gtp_vision.config.schema import Config
from gtp_vision.core.settings import settings_of

_WIDEST = 44  # characters of the columns; longer values push the rest of their line


def explain(overrides: Sequence[str]) -> str:
    """One aligned line for each setting, in the order of the schema: key, value, source and help.

    The source is `default`, a YAML file below configs/, a generated preset, or `command line`.

    Raises:
        GtpVisionError: overrides that are refused, as for training.
    """
    config, composed = from_command_line(overrides), layers(overrides)
    composed.reverse()
    return _table(config, lambda key: next((each.source for each in composed if _sets(each.values, key)), "default"))


def explain_warm_start(config: Config, start: Config, path: str) -> str:
    """The same of a run that begins with the weights of another: what is not `path`'s setting is `command line`'s."""
    inherited = {key: value for key, value, _ in settings_of(start)}
    own = {key for key, value, _ in settings_of(config) if value != inherited.get(key)}
    return _table(config, lambda key: COMMAND_LINE if key in own else path)


def _table(config: Config, source_of: Callable[[str], str]) -> str:
    rows, unused = [], unused_settings(config.agent)
    for key, value, declared in settings_of(config):
        source = source_of(key)
        if key == "training.eval_episodes" and config.task.env is None:
            source = "task.env=null"
        if key == "training.steps" and config.online.steps:
            source = "online.steps"
        help = f"no effect with agent.{unused[key]}" if key in unused else declared.metadata["help"]
        rows.append((key, _text(value), source, help))
    first, second, third = (min(_WIDEST, max(len(row[column]) for row in rows)) for column in range(3))
    return "\n".join(f"{key:<{first}}  {text:<{second}}  {source:<{third}}  {help}" for key, text, source, help in rows)


def without_effect(config: Config, overrides: Sequence[str]) -> list[str]:
    """A sentence about each setting of a command line that changes nothing in the configuration that it gave."""
    given = [layer.values for layer in layers(overrides) if layer.source == COMMAND_LINE]
    return [
        f"{key} has no effect with agent.{because}"
        for key, because in unused_settings(config.agent).items()
        if any(_sets(values, key) for values in given)
    ]


def _sets(values: Any, key: str) -> bool:
    for name in key.split("."):
        if not isinstance(values, dict) or name not in values:
            return False
        values = values[name]
    return True


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, default=asdict)
