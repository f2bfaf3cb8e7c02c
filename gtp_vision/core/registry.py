"""Registries that fill themselves: what stands at the top of a package's modules is found by its type.

So an agent, a backbone or a format is one file, and nothing else need name it.
"""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from collections.abc import Iterable, Iterator
from types import ModuleType
from typing import Any, TypeVar

T = TypeVar("T")


def instances(package: str, kind: type[T]) -> list[T]:
    """The objects of a type at the top of a package's modules, each once, in the order of modules and then of lines."""
    found: dict[int, T] = {}
    for module in _modules(package):
        for value in vars(module).values():
            if isinstance(value, kind):
                found.setdefault(id(value), value)
    return list(found.values())


def subclasses(package: str, kind: type[T]) -> list[type[T]]:
    """The classes of a package's modules that can be made of an abstract one, in the order of modules and lines."""
    return [
        value
        for module in _modules(package)
        for value in vars(module).values()
        if inspect.isclass(value)
        and issubclass(value, kind)
        and value is not kind
        and not inspect.isabstract(value)
        and value.__module__ == module.__name__
    ]


def by_name(found: Iterable[Any]) -> dict[str, Any]:
    """A registry of what has a `name`.

    Raises:
        ValueError: two have the same.
    """
    registry: dict[str, Any] = {}
    for each in found:
        if each.name in registry:
            raise ValueError(f"two are called '{each.name}': {registry[each.name]!r} and {each!r}; rename one of them")
        registry[each.name] = each
    return registry


def _modules(package: str) -> Iterator[ModuleType]:
    for module in sorted(pkgutil.iter_modules(importlib.import_module(package).__path__), key=lambda found: found.name):
        if not module.ispkg and not module.name.startswith("_"):
            yield importlib.import_module(f"{package}.{module.name}")
