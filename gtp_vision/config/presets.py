"""Presets: the YAML files below configs/, and those of what has no file of its own there.

configs/published/AGENT.yaml is a table of published settings; each task in it is an option `tuned=AGENT/TASK`.
"""

from __future__ import annotations

import importlib.resources
from functools import cache, reduce
from pathlib import Path
from typing import Any

import yaml
from hydra.core.config_store import ConfigStore

from gtp_vision.agents import AGENTS, IMPROVEMENTS
from gtp_vision.encoders import backbones
from gtp_vision.models import FAMILIES


def options(group: str) -> list[str]:
    """The choices of a config group, e.g. `gtp` and `gtp_bc` of `agent`."""
    return sorted({*_files(group), *_generated(group)})


def register(group: str) -> None:
    """Add a group's presets without a YAML file to Hydra's store, of which each takes milliseconds."""
    package = {"improvement": "agent.improvement", "tuned": "_global_"}.get(group)
    for option, node in _generated(group).items():
        folder, _, name = f"{group}/{option}".rpartition("/")
        ConfigStore.instance().store(group=folder, name=name, node=node, package=package)


_CONFIGS = Path(str(importlib.resources.files("gtp_vision.configs")))


@cache
def _files(group: str) -> list[str]:
    folder = _CONFIGS / group
    return [str(path.relative_to(folder).with_suffix("")) for path in folder.rglob("*.yaml")]


def _generated(group: str) -> dict[str, dict[str, Any]]:
    """Presets by name; an agent inherits that of its family of policies."""
    nodes: dict[str, dict[str, Any]] = {}
    if group == "agent":
        for name, recipe in AGENTS.items():
            nodes[name] = {
                "defaults": [{"/family@_here_": recipe.family}, "_self_"],
                "name": name,
                "critic": {"backup": recipe.backup},
                "improvement": {"name": recipe.improvement},
            }
    elif group == "family":
        nodes = {name: {"policy": {"family": name}} for name in FAMILIES}
    elif group == "improvement":
        nodes = {name: {"name": name} for name in IMPROVEMENTS}
    elif group == "encoder":
        nodes = {name: {"name": name} for name in backbones.known() if "/" not in name}
    elif group == "tuned":
        nodes = _published()
    files = _files(group)
    return {name: node for name, node in nodes.items() if name not in files}


@cache
def _published() -> dict[str, Any]:
    nodes: dict[str, Any] = {}
    for agent in _files("published"):
        text = (_CONFIGS / "published" / f"{agent}.yaml").read_text()
        for task, settings in yaml.load(text, getattr(yaml, "CSafeLoader", yaml.SafeLoader)).items():
            if task.startswith("."):  # shared by several tasks
                continue
            node = nodes[f"{agent}/{task}"] = {"tuned": f"{agent}/{task}"}
            for key, value in settings.items():
                *parents, last = key.split(".")
                reduce(lambda inner, parent: inner.setdefault(parent, {}), parents, node)[last] = value
    return nodes
