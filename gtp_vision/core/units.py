"""Conversion between a policy's actions in [-1, 1] and the units that their bounds are given in."""

from __future__ import annotations

from typing import Any

import numpy as np


def in_units(actions: Any, low: Any, high: Any) -> np.ndarray:
    """Convert actions (..., A) from [-1, 1] to [low, high]: float64, clipped to the bounds (A,)."""
    low, high = np.asarray(low, np.float64), np.asarray(high, np.float64)
    return np.clip(low + (np.asarray(actions, np.float64) + 1) / 2 * (high - low), low, high)


def to_policy(values: Any, low: Any, high: Any) -> np.ndarray:
    """Convert actions (..., A) from [low, high] to [-1, 1]: float64, 0 where both bounds are the same."""
    low, high = np.asarray(low, np.float64), np.asarray(high, np.float64)
    changes = high > low
    return np.where(changes, 2 * (np.asarray(values, np.float64) - low) / np.where(changes, high - low, 1) - 1, 0)
