"""Registries that fill themselves: from the modules of a package, and from plug-ins.

An agent, a format, a simulator, a backbone, a metric or a verb is one file: no other file names it. A plug-in is an
installed distribution with an entry point, in the group of a registry, that names a module of the same kind.
"""

from __future__ import annotations

import importlib
import inspect
import os
import pkgutil
import sys
from collections.abc import Iterator, Mapping
from dataclasses import is_dataclass
from functools import cache, cached_property
from types import ModuleType
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

T = TypeVar("T")

QUIET = "GTP_VISION_QUIET_PLUGINS"
"""Environment variable of processes whose parent has warned of faulty plug-ins already."""


class Registry(Mapping[str, T]):
    """What stands at the top of a package's modules and of its plug-ins, by name. It is filled at the first look-up.

    Of a dataclass these are the instances, of any other class the subclasses that can be built.

    Args:
        package: its modules are searched, but not its subpackages and not `_private` modules.
        group: of the plug-ins' entry points, e.g. `gtp_vision.agents`.
        kind: the class.
        key: the attribute that holds the name.
        beside: other classes that the same plug-ins add to (their registries have the same package and group): a
            plug-in with a name that is taken is left out of all of them.

    Raises:
        ValueError: at the first look-up, if two in the package have the same name.
    """

    def __init__(
        self, package: str, group: str, kind: type, *, key: str = "name", beside: tuple[type, ...] = ()
    ) -> None:
        self._package, self._group, self._key = package, group, key
        self._kinds = tuple(sorted({kind, *beside}, key=lambda known: known.__name__))
        self._index = self._kinds.index(kind)

    def __getitem__(self, name: str) -> T:
        return self._found[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._found)

    def __len__(self) -> int:
        return len(self._found)

    @cached_property
    def _found(self) -> dict[str, T]:
        return _scan(self._package, self._group, self._kinds, self._key)[self._index]


@cache
def _scan(package: str, group: str, kinds: tuple[type, ...], key: str) -> tuple[dict, ...]:
    """For each kind, what the package and the plug-ins of a group hold, by name."""
    from importlib.metadata import entry_points  # here: a reader's process that finds nothing must start fast

    registries: tuple[dict, ...] = tuple({} for _ in kinds)
    for module in _modules(package):
        for registry, kind in zip(registries, kinds, strict=True):
            for name, value in _members(module, kind, key):
                if registry.setdefault(name, value) is not value:
                    raise ValueError(f"two of {package} have the name '{name}': {registry[name]!r} and {value!r}")
    for entry in entry_points(group=group):
        try:
            module = importlib.import_module(entry.module)
            members = [_members(module, kind, key) for kind in kinds]
        except Exception as error:  # code that is not ours may raise anything
            _warn(entry, f"importing {entry.module} raised {type(error).__name__}: {error}")
            continue
        both = zip(registries, members, strict=True)
        taken = [name for registry, new in both for name, value in new if registry.get(name, value) is not value]
        if taken:
            _warn(entry, f"the name '{taken[0]}' is taken already; rename it in {entry.module}")
            continue
        for registry, new in zip(registries, members, strict=True):
            registry.update(new)
    return registries


def _members(module: ModuleType, kind: type, key: str) -> list[tuple[str, object]]:
    """Names and objects of a kind at the top of a module, in the order of lines; imported classes are left out."""
    if is_dataclass(kind):
        return [(getattr(value, key), value) for value in vars(module).values() if isinstance(value, kind)]
    return [
        (getattr(value, key), value)
        for value in vars(module).values()
        if inspect.isclass(value)
        and issubclass(value, kind)
        and value is not kind
        and not inspect.isabstract(value)
        and f"{value.__module__}.".startswith(f"{module.__name__}.")
    ]


def _modules(package: str) -> Iterator[ModuleType]:
    for module in sorted(pkgutil.iter_modules(importlib.import_module(package).__path__), key=lambda found: found.name):
        if not module.ispkg and not module.name.startswith("_"):
            yield importlib.import_module(f"{package}.{module.name}")


def _warn(entry: EntryPoint, reason: str) -> None:
    """Say once, in the main process of the first rank, that a plug-in is left out."""
    from multiprocessing import parent_process

    if os.environ.get(QUIET) or os.environ.get("RANK", "0") != "0" or parent_process() is not None:
        return
    distribution = entry.dist.name if entry.dist else "an installed package"
    sentence = " ".join(f"gtp-vision: the plug-in {distribution} is left out: {reason}".split())
    print("".join(letter if letter.isprintable() else " " for letter in sentence), file=sys.stderr)
