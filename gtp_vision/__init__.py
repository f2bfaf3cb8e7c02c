"""Offline reinforcement learning and imitation from cameras with generative trajectory policies."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from gtp_vision.core.names import __version__

if TYPE_CHECKING:
    from gtp_vision.serving.artifact import load_policy

__all__ = ["__version__", "load_policy"]


def __getattr__(name: str) -> Any:
    """Import `load_policy` at its first use: it imports PyTorch."""
    if name == "load_policy":
        from gtp_vision.serving.artifact import load_policy

        return load_policy
    raise AttributeError(f"module 'gtp_vision' has no attribute '{name}'")
