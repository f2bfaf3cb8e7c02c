"""Words of the command line, `key=value`: their check, and their values as Hydra's grammar reads them.

Hydra's grammar reads only some letters without quotes, and reads `1e3`, `true` or `a,b` as something else than a text.
A setting that is a text is therefore quoted for it, so that paths and names mean what they say.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Sequence
from dataclasses import fields
from functools import cache
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, Quote, QuotedString
from hydra.errors import HydraException

from gtp_vision.agents import IMPROVEMENTS
from gtp_vision.config.presets import options, register
from gtp_vision.config.schema import Config
from gtp_vision.core.errors import GtpVisionError, propose
from gtp_vision.core.settings import settings_of
from gtp_vision.encoders import CameraConfig

GROUPS = ("task", "agent", "improvement", "acting", "encoder", "training", "tuned")
IMPROVEMENT = "agent.improvement"
CAMERAS = "encoder.cameras"  # the only table whose keys the user chooses
_SWEEPS = ("hydra.", "hydra/launcher", "hydra/sweeper")
_NESTING = frozenset("'\"[]{}\\")  # in which a comma may separate other things than values


def check_overrides(overrides: Sequence[str]) -> None:
    """Refuse a mistyped key or choice with the nearest right one, before Hydra sees it."""
    for override in overrides:
        check_override(override)
    if not any(_key(override) == "task" for override in overrides):
        raise GtpVisionError(f"no task is given; add task=..., {propose('', options('task'))}")


def check_override(override: str) -> None:
    """Refuse one override as `check_overrides` does."""
    key, value = _key(override), override.partition("=")[2]
    if "=" not in override:
        raise GtpVisionError(f"'{override}' is not a setting; write key=value, e.g. training.steps=1000")
    if key in GROUPS:
        for choice in value.strip("'\"").split(","):  # several in a sweep
            if choice not in options(key):
                raise GtpVisionError(f"there is no {key} '{choice}': {propose(choice, options(key))}")
        if key == "tuned":  # a hundred, which few commands need
            _register_tuned()
        return
    if _pattern(key) not in _types() and not key.startswith(_SWEEPS):
        name = key.rpartition(".")[2]
        moved = [known for known in _types() if known.rpartition(".")[2] == name]  # agent.eta for agent.improvement.eta
        near = f"did you mean '{moved[0]}'?" if len(moved) == 1 else propose(key, [*_types(), *GROUPS])
        raise GtpVisionError(f"the configuration has no setting '{key}': {near}")


@cache
def _register_tuned() -> None:
    register("tuned")


def repeated(overrides: Sequence[str]) -> Iterator[str]:
    """A sentence for each key that is given several values."""
    given: dict[str, list[str]] = {}
    for override in overrides:
        given.setdefault(_key(override), []).append(override.partition("=")[2])
    for key, values in given.items():
        if len(set(values)) > 1:
            yield f"{key} is given {len(values)} times; the last one counts: {values[-1]}"


def parsed(overrides: Sequence[str]) -> Iterator[tuple[list[str], Any]]:
    """The names that lead to each setting, and its value.

    Raises:
        GtpVisionError: a value that cannot be read, or that is for sweeps.
    """
    for override in overrides:
        key = _key(override)
        # The key is checked, and may have letters that Hydra's grammar does not read: a camera's name.
        found = _read(readable(override).partition("=")[2])
        if found is None:
            raise _unreadable(override)
        if key.startswith(_SWEEPS) or found.is_sweep_override():
            raise GtpVisionError(f"'{override}' is for sweeps: add -m, or leave it out")
        if found.value() == "":
            raise GtpVisionError(f"{key} is empty (an unset variable?); write a value, null for none, or leave it out")
        yield path_of(key), found.value()


def path_of(key: str) -> list[str]:
    """The names that lead to a setting; that of a camera may hold dots."""
    if not key.startswith(f"{CAMERAS}."):
        return key.split(".")
    camera = key.removeprefix(f"{CAMERAS}.")
    return [*CAMERAS.split("."), *(camera.rsplit(".", 1))]


def quoted(key: str, value: object) -> str:
    """The override that sets a text, whatever letters it has."""
    return f"{key}={_quoted(str(value))}"


def addable(override: str) -> str:
    """The override for Hydra's own sweeps, which refuse a key that no preset holds unless it begins with `++`."""
    found = readable(override, is_sweep=True)
    if found.lstrip("+").startswith((f"{IMPROVEMENT}.", f"{CAMERAS}.")):
        found = f"++{found.lstrip('+')}"
    try:
        _parser().parse_override(found)
    except (HydraException, RecursionError) as error:
        raise _unreadable(override) from error
    return found


def readable(override: str, *, is_sweep: bool = False) -> str:
    """The override with the quotes that Hydra's grammar needs to read its value as it stands.

    Raises:
        GtpVisionError: one text is wanted, and the value means a list, or several values without a sweep.
    """
    key, _, value = override.partition("=")
    kind = _types().get(_pattern(_key(override)), "")
    if kind.startswith("list[str]"):
        inner = value.strip()[1:-1]
        is_list = value.strip() == f"[{inner}]" and inner.strip() and not _NESTING & set(inner)
        return f"{key}=[{_listed(inner)}]" if is_list else override
    if not kind.startswith("str"):
        return override
    found = _read(value)
    if is_sweep and "," in value and not _NESTING & set(value) and (found is None or "(" not in value):
        return f"{key}={_listed(value)}"
    if found is None:
        return quoted(key, value)
    wanted, is_several = found.value(), found.is_sweep_override()
    if is_several and is_sweep:
        return override
    if is_several or isinstance(wanted, list | dict) or (wanted is None and kind == "str"):
        meaning = "is for sweeps: add -m" if is_several else f"is not the one text that {key} takes; correct it"
        as_text = shlex.quote(quoted(key, value))
        raise GtpVisionError(f"'{override}' {meaning}, or quote it to mean this text: {as_text}")
    is_text = isinstance(wanted, str) and (value == value.strip() or value.strip()[0] in "'\"")
    return override if wanted is None or is_text else quoted(key, value)


def _unreadable(override: str) -> GtpVisionError:
    key = _key(override)
    kind = _types().get(_pattern(key), "a value")
    example = shlex.quote(f'{key}=["one text","another"]')
    advice = f"write it as {example}" if "str" in kind else "correct it"
    return GtpVisionError(f"'{override}' cannot be read as {kind}; {advice}")


def _listed(values: str) -> str:
    """Texts with commas between, quoted."""
    return ",".join(part if part == "null" else _quoted(part) for part in map(str.strip, values.split(",")))


def _quoted(value: str) -> str:
    return str(QuotedString(value, Quote.double).with_quotes())


def _key(override: str) -> str:
    return override.partition("=")[0].lstrip("+")


def _pattern(key: str) -> str:
    """The key as in `_types`: with a star for a camera's name."""
    names = path_of(key)
    return ".".join([*names[:2], "*", *names[3:]]) if key.startswith(f"{CAMERAS}.") else key


@cache
def _read(value: str) -> Override | None:
    """A value as Hydra's grammar reads it; None if it does not."""
    try:
        return _parser().parse_override(f"key={value}")
    except (HydraException, RecursionError):
        return None


_parser = cache(OverridesParser.create)


@cache
def _types() -> dict[str, str]:
    """All settings and their types; those of cameras with a star for the camera's name."""
    declared = list(settings_of(Config()))
    for improvement in IMPROVEMENTS.values():
        declared += settings_of(improvement.Settings(), f"{IMPROVEMENT}.")
    of_cameras = {f"{CAMERAS}.*.{known.name}": str(known.type) for known in fields(CameraConfig)}
    return {**{key: str(known.type) for key, _, known in declared}, f"{CAMERAS}.*": "dict", **of_cameras}
