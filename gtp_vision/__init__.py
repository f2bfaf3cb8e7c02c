"""Offline reinforcement learning and imitation from cameras with generative trajectory policies."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from gtp_vision.core.names import __version__

if TYPE_CHECKING:
    from gtp_vision.agents.base import Agent
    from gtp_vision.core.errors import GtpVisionError
    from gtp_vision.datasets.formats import open_store as open_dataset
    from gtp_vision.datasets.store import Store
    from gtp_vision.runs import Run, evaluate, fine_tune, open_run, train
    from gtp_vision.serving.artifact import load_policy
    from gtp_vision.serving.policy import Policy

__all__ = [
    "Agent",
    "GtpVisionError",
    "Policy",
    "Run",
    "Store",
    "__version__",
    "evaluate",
    "fine_tune",
    "load_policy",
    "open_dataset",
    "open_run",
    "train",
]
_FOUND_IN = {
    "Agent": ("agents.base", "Agent"),
    "GtpVisionError": ("core.errors", "GtpVisionError"),
    "Policy": ("serving.policy", "Policy"),
    "Run": ("runs", "Run"),
    "Store": ("datasets.store", "Store"),
    "evaluate": ("runs", "evaluate"),
    "fine_tune": ("runs", "fine_tune"),
    "load_policy": ("serving.artifact", "load_policy"),
    "open_dataset": ("datasets.formats", "open_store"),
    "open_run": ("runs", "open_run"),
    "train": ("runs", "train"),
}


def __getattr__(name: str) -> Any:
    """Import a name at its first use: most import PyTorch."""
    if name not in _FOUND_IN:
        raise AttributeError(f"module 'gtp_vision' has no attribute '{name}'")
    module, attribute = _FOUND_IN[name]
    return getattr(importlib.import_module(f"gtp_vision.{module}"), attribute)
