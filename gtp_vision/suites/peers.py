"""Records of official code, which the drivers in benchmarks/peers/ leave, as rows of a suite.

FOLDER/TASK/LABEL/seed_N/evaluations.json, peer.json
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gtp_vision.config.schema import Config
from gtp_vision.core.errors import GtpVisionError
from gtp_vision.suites.plan import Plan, folder_name, record_of
from gtp_vision.suites.records import Record
from gtp_vision.suites.suite import Suite

_PROTOCOL = {
    "steps": "steps",
    "eval_every": "steps between evaluations",
    "episodes": "episodes",
    "hidden": "hidden layers",
    "batch_size": "rows a batch",
    "discount": "discount",
}


@dataclass
class Peers:
    """What a folder of official runs holds for a suite."""

    records: list[Record] = field(default_factory=list)
    sources: dict[str, str] = field(default_factory=dict)  # label to repository and commit
    notes: list[str] = field(default_factory=list)  # sentences about protocols that differ from the suite's


def read(suite: Suite, plan: Plan, folder: Path) -> Peers:
    """The official runs of the suite's tasks and seeds, up to the suite's steps.

    Raises:
        GtpVisionError: there is no such folder, a file in it is damaged, or a label is that of an agent of the suite.
    """
    if not folder.is_dir():
        raise GtpVisionError(f"--peers {folder} is not a folder; give the --out of a driver in benchmarks/peers/")
    found, differing = Peers(), dict[str, list[str]]()
    for task in suite.tasks:
        for path in sorted((folder / folder_name(task.name)).glob("*/seed_*/peer.json")):
            label, (peer, protocol) = path.parent.parent.name, _read(path)
            if label in suite.agents:
                raise GtpVisionError(f"{path.parent} has the name of the suite's agent {label}; rename its folder")
            seed = path.parent.name.removeprefix("seed_")
            if not seed.isdigit() or int(seed) >= suite.seeds:
                continue
            if record := record_of(suite, task, label, int(seed), path.parent):
                found.records.append(record)
            source = f"{peer['repository']} at {str(peer['commit'])[:7]}"
            sources = found.sources.setdefault(label, source)
            if source not in sources.split(" and "):
                found.sources[label] = f"{sources} and {source}"
            ours = _protocol(suite, plan.configs.get(task.name))
            for key, name in _PROTOCOL.items():
                if key in ours and protocol[key] != ours[key]:
                    sentence = f"{label}: {_text(protocol[key])} {name}, and the suite's are {_text(ours[key])}"
                    differing.setdefault(sentence, []).append(task.name)
    for sentence, tasks in differing.items():
        found.notes.append(f"{sentence} ({', '.join(dict.fromkeys(tasks))}).")
    if not found.records:
        found.notes.append(f"{folder} has no evaluations of the suite's tasks; its runs are TASK/LABEL/seed_N.")
    return found


def _read(path: Path) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
    try:
        peer = json.loads(path.read_text())
        protocol = peer["protocol"]
        if missing := [key for key in ("repository", "commit") if key not in peer]:
            raise ValueError(f"it has no {missing[0]}")
        if missing := [key for key in _PROTOCOL if key not in protocol]:
            raise ValueError(f"its protocol has no {missing[0]}")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise GtpVisionError(f"{path} is not the record of a driver ({error}); remove the run folder") from error
    return peer, protocol


def _protocol(suite: Suite, config: Config | None) -> dict[str, Any]:
    """The suite's, with what the settings of its first agent say about networks."""
    ours: dict[str, Any] = {key: getattr(suite, key) for key in ("steps", "eval_every", "episodes")}
    if config is not None:
        ours |= {"hidden": list(config.agent.policy.hidden), "batch_size": config.training.batch_size}
        ours |= {"discount": config.task.discount}
    return ours


def _text(value: Any) -> str:
    return "x".join(map(str, value)) if isinstance(value, list) else f"{value:,}"
