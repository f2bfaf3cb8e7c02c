"""Settings: fields of dataclasses, each with its default, its range or choices, and one line of help."""

from __future__ import annotations

import copy
import math
from collections.abc import Collection, Iterator, Mapping
from dataclasses import Field, field, fields, is_dataclass
from typing import Any

from gtp_vision.core.errors import GtpVisionError, propose

_INTEGER_LIMIT = 2**63  # PyTorch and NumPy hold no larger integers


def setting(
    default: Any,
    help: str,
    *,
    low: float | None = None,
    high: float | None = None,
    above: float | None = None,
    choices: Collection[str] | None = None,
    free: bool = False,
) -> Any:
    """Declare a setting: a field of a dataclass that `check_settings` and `--explain` understand.

    A list's elements lie in [low, high] or are among the choices, too; `above` is below all allowed numbers. Lists are
    copied, and a dataclass is instantiated, for each object. A `free` setting changes no step, so that a run may be
    resumed with another value.
    """
    metadata = {"help": help, "low": low, "high": high, "above": above, "choices": choices, "free": free}
    if isinstance(default, type):
        return field(default_factory=default, metadata=metadata)
    if isinstance(default, list | dict):
        return field(default_factory=lambda: copy.copy(default), metadata=metadata)
    return field(default=default, metadata=metadata)


def settings_of(config: Any, prefix: str = "") -> Iterator[tuple[str, Any, Field[Any]]]:
    """Dotted key, value and field of each setting, also of nested dataclasses, in the order of declaration."""
    for declared in fields(config):
        key, value = f"{prefix}{declared.name}", getattr(config, declared.name)
        if is_dataclass(value):
            yield from settings_of(value, f"{key}.")
        else:
            yield key, value, declared


def choices_of(kind: type, name: str) -> tuple[str, ...]:
    """The allowed words of a setting, e.g. `choices_of(EncoderConfig, "tuning")`."""
    return next(tuple(declared.metadata["choices"]) for declared in fields(kind) if declared.name == name)


def numbers(value: Any, key: str = "") -> Iterator[tuple[str, int | float]]:
    """Dotted key of each number in settings: dataclasses, mappings and lists within each other."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        yield key, value
    elif is_dataclass(value):
        yield from numbers({declared.name: getattr(value, declared.name) for declared in fields(value)}, key)
    elif isinstance(value, Mapping):
        for name, inner in value.items():
            yield from numbers(inner, f"{key}.{name}".strip("."))
    elif isinstance(value, list):
        yield from numbers(dict(enumerate(value)), key)


def check_settings(config: Any, prefix: str = "") -> None:
    """Check the range or choices of each setting; a GtpVisionError names the key of the first one outside."""
    for key, number in numbers(config, prefix.rstrip(".")):
        if isinstance(number, int) and abs(number) >= _INTEGER_LIMIT:
            raise GtpVisionError(f"{key} is a number of {number.bit_length()} bits; set it below 2^63")
        if not math.isfinite(number):
            raise GtpVisionError(f"{key}={number} must be finite")
    for key, value, declared in settings_of(config, prefix):
        allowed = declared.metadata
        if value is None or not allowed:
            continue
        values = value if isinstance(value, list) else [value]
        for word in values if allowed["choices"] is not None else ():
            if word not in allowed["choices"]:
                raise GtpVisionError(f"{key}={word} is unknown: {propose(str(word), allowed['choices'])}")
        low, high, above = (allowed[bound] for bound in ("low", "high", "above"))
        for number in values:
            if any((low is not None and number < low, high is not None and number > high)) or (
                above is not None and number <= above
            ):
                raise GtpVisionError(f"{key}={value} must be {_range(low, high, above)}")


def _range(low: float | None, high: float | None, above: float | None) -> str:
    if low is not None and high is not None:
        return f"between {low:g} and {high:g}"
    limits = {"at least": low, "above": above, "at most": high}
    return " and ".join(f"{words} {limit:g}" for words, limit in limits.items() if limit is not None)
