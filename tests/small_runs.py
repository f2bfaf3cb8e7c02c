"""Tiny runs: their configurations, composed once for all tests of a process, and what they leave behind."""

from __future__ import annotations

import copy
import functools
import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from gtp_vision.agents import AGENTS
from gtp_vision.config.schema import Config, from_command_line

STATES = (
    *("task=own", "task.name=small", "encoder=state", "encoder.share=true", "training.device=cpu"),
    *("training.batch_size=16", "training.learning_rate=1e-3", "training.eval_episodes=0"),
    *("training.log_every=2", "training.checkpoint_every=3"),
    *("agent.policy.hidden=[16]", "agent.policy.grid=2", "agent.critic.hidden=[16]", "agent.critic.next_steps=2"),
    *("agent.acting.steps=2", "agent.improvement.value_samples=3", "agent.improvement.q_steps=2"),
    *("agent.improvement.distill_steps=2", "agent.improvement.support_actions=4", "agent.improvement.support_steps=2"),
)
"""A run on states of a data set without a simulator; small, but of every agent's own kind."""
PIXELS = ("encoder=impala_tiny", "encoder.features=8", "encoder.augmentation.shift=2", "task.frame_stack=2")
"""Added to `STATES`: frames instead."""
_LATE = {  # set after the composition, which takes a quarter of a second
    "run_dir": ("", str),
    "seed": ("", int),
    "task.dataset": ("task", str),
    **{f"training.{name}": ("training", int) for name in ("steps", "seeds", "checkpoint_every", "log_every")},
    "training.on_nonfinite": ("training", str),
}


@functools.cache
def _composed(overrides: tuple[str, ...]) -> Config:
    return from_command_line(list(overrides))


def composed(*overrides: str) -> Config:
    """A configuration of one's own; paths, seeds and lengths, which differ between runs, are not composed anew."""
    pairs = [override.split("=", 1) for override in overrides]
    late = {key: value for key, value in pairs if key in _LATE}
    placeholders = [f"{key}=unused" for key in ("run_dir", "task.dataset") if key in late]
    config = copy.deepcopy(_composed((*(o for o in overrides if o.split("=", 1)[0] not in _LATE), *placeholders)))
    for key, value in late.items():
        section, kind = _LATE[key]
        setattr(getattr(config, section) if section else config, key.rpartition(".")[2], kind(value))
    return config


def small(name: str) -> list[str]:
    """An agent, with the lengths that only its kind has."""
    recipe = AGENTS[name]
    overrides = [f"agent={name}"]
    overrides += ["agent.improvement.pretrain_steps=2"] if recipe.improvement == "alignment" else []
    overrides += ["agent.critic.next_actions=3"] if recipe.backup == "softmax" else []
    return overrides


def small_run(data: Path, run: Path | str, *more: str, agent: str = "gtp") -> Config:
    """A tiny run of an agent on a data set."""
    return composed(*STATES, *small(agent), f"task.dataset={data}", f"run_dir={run}", *more)


def saved(run: Path, which: str = "last") -> dict[str, torch.Tensor]:
    """The agent and the optimizer of a run's checkpoint."""
    path = run / "checkpoints" / which
    return load_file(path / "agent.safetensors") | load_file(path / "optimizer.safetensors")


def lines(run: Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl."""
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def assert_equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    """The same names, and bit for bit the same numbers."""
    assert one.keys() == other.keys()
    assert [name for name in one if not torch.equal(one[name], other[name])] == []


def assert_close(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor], rtol: float, atol: float) -> None:
    """The same names, and up to rounding the same numbers."""
    assert one.keys() == other.keys()
    for name, value in one.items():
        torch.testing.assert_close(value, other[name], rtol=rtol, atol=atol, msg=lambda text, n=name: f"{n}: {text}")
