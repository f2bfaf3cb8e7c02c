"""Presets of agents and backbones that have none in configs/: what their own file says of them, and defaults."""

from __future__ import annotations

import importlib.resources
from pathlib import Path
from typing import Any

from hydra.core.config_store import ConfigStore

from gtp_vision.agents import AGENTS
from gtp_vision.encoders import backbones


def options(group: str) -> list[str]:
    """The choices of a config group, e.g. `gtp` and `gtp_bc` of `agent`."""
    return sorted({*_files(group), *_made(group)})


def register() -> None:
    """Tell Hydra of the presets that stand in no file."""
    for group in ("agent", "encoder"):
        for name, node in _made(group).items():
            ConfigStore.instance().store(group=group, name=name, node=node)


def _files(group: str) -> list[str]:
    folder = Path(str(importlib.resources.files("gtp_vision.configs") / group))
    return [str(path.relative_to(folder).with_suffix("")) for path in folder.rglob("*.yaml")]


def _made(group: str) -> dict[str, dict[str, Any]]:
    nodes: dict[str, dict[str, Any]] = {}
    if group == "agent":
        nodes = {
            name: {
                "name": name,
                "policy": {"family": recipe.family},
                "critic": {"backup": recipe.backup},
                "improvement": {"name": recipe.improvement},
            }
            for name, recipe in AGENTS.items()
        }
    elif group == "encoder":
        nodes = {name: {"name": name} for name in backbones.known() if "/" not in name}
    there = _files(group)
    return {name: node for name, node in nodes.items() if name not in there}
