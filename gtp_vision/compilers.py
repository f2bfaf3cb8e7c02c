"""What torch.compile finds here."""

from __future__ import annotations

import os
import shutil


def has_compiler() -> bool:
    """Whether torch.compile can compile for a CPU here."""
    return any(shutil.which(name) for name in (os.environ.get("CXX", ""), "g++", "clang++") if name)


def first_line(error: BaseException) -> str:
    """What an error says first."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
