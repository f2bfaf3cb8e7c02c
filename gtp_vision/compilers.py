"""What torch.compile finds here."""

from __future__ import annotations

import os
import shutil


def has_compiler() -> bool:
    """Whether torch.compile can compile for a CPU here."""
    return any(shutil.which(name) for name in (os.environ.get("CXX", ""), "g++", "clang++") if name)


def first_words(error: BaseException) -> str:
    """What an error says first, in one line: the second often names what the first says has failed."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return " ".join(lines[:2]) or type(error).__name__
