"""Packages of this distribution's extras. Where one is missing, one sentence says how to install it."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from gtp_vision.core.errors import GtpVisionError, first_line


@contextmanager
def importing(extra: str, purpose: str) -> Iterator[None]:
    """Report a package that the block cannot import: `purpose` needs it, and `extra` installs it.

    Raises:
        GtpVisionError: the package is missing, or fails in its own imports.
    """
    try:
        yield
    except ImportError as error:
        if error.name and error.name.partition(".")[0] == "gtp_vision":
            raise  # a defect of this package
        if isinstance(error, ModuleNotFoundError) and error.name:
            raise _missing(extra, purpose, error.name) from error
        raise GtpVisionError(
            f"{purpose} needs a package that fails ({first_line(error)}); run pip install 'gtp-vision[{extra}]'"
        ) from error


def require(extra: str, purpose: str, *modules: str) -> None:
    """Check, without importing them, that modules are installed. Raises GtpVisionError as `importing`."""
    for module in modules:
        if importlib.util.find_spec(module) is None:
            raise _missing(extra, purpose, module)


def optional(module: str, extra: str, purpose: str) -> Any:
    """Import a module for the top of a file; where it is missing, its first use raises the error of `importing`."""
    try:
        with importing(extra, purpose):
            return importlib.import_module(module)
    except GtpVisionError as error:
        return _Missing(str(error))


class _Missing:
    def __init__(self, sentence: str) -> None:
        self._sentence = sentence

    def __getattr__(self, name: str) -> Any:
        raise GtpVisionError(self._sentence)


def _missing(extra: str, purpose: str, module: str) -> GtpVisionError:
    name = module.partition(".")[0]
    return GtpVisionError(f"{purpose} needs {name}, which is not installed; run pip install 'gtp-vision[{extra}]'")
