"""Marks of success as simulators and recorders write them: yes, no, or unknown."""

from __future__ import annotations

from typing import Any

import numpy as np

KEYS = ("success", "is_success")
"""Names of such marks: of entries of an environment's info, of arrays and of attributes."""


def marked(value: Any) -> bool | None:
    """Read a mark: a flag, a number (above 0.5), a text or an array, whose entries must all hold; None if unknown."""
    if isinstance(value, str | bytes):
        text = value.decode("utf-8", "replace") if isinstance(value, bytes) else value
        value = {"true": 1, "false": 0}.get(text.strip().lower(), text)
    try:
        numbers = np.asarray(value, np.float64)  # None becomes NaN
    except (TypeError, ValueError):
        return None
    if not numbers.size or np.isnan(numbers).any():
        return None
    return bool((numbers > 0.5).all())
