"""Tiny runs: their configurations, composed once for all tests of a process, and what they leave behind."""

from __future__ import annotations

import copy
import functools
import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from gtp_vision.agents import AGENTS, improvement_settings
from gtp_vision.config.compose import from_command_line
from gtp_vision.config.schema import Config
from gtp_vision.core.settings import choices_of

STATES = (
    *("task=own", "task.name=small", "encoder=state", "encoder.share=true", "training.device=cpu"),
    *("training.batch_size=16", "training.learning_rate=1e-3", "training.eval_episodes=0"),
    *("training.log_every=2", "training.checkpoint_every=3"),
    *("agent.policy.hidden=[16]", "agent.policy.grid=2", "agent.critic.hidden=[16]", "agent.critic.next_steps=2"),
    "agent.acting.steps=2",
)
"""A run on states of a data set without a simulator; `small` adds an agent."""
_SIZES = {"value_samples": 3, "q_steps": 2, "distill_steps": 2, "support_actions": 4, "support_steps": 2}
_SIZES |= {"pretrain_steps": 2}
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
    pairs = dict(override.split("=", 1) for override in overrides)
    late = {key: value for key, value in pairs.items() if key in _LATE and value != "null"}
    placeholders = [f"{key}=unused" for key in ("run_dir", "task.dataset") if key in late]
    early = (f"{key}={value}" for key, value in pairs.items() if key not in late)
    config = copy.deepcopy(_composed((*early, *placeholders)))
    for key, value in late.items():
        section, kind = _LATE[key]
        setattr(getattr(config, section) if section else config, key.rpartition(".")[2], kind(value))
    return config


def small(name: str, *more: str) -> list[str]:
    """An agent, with the lengths that only its kind has; `more` overrides may choose another improvement."""
    chosen = [override.partition("=")[2] for override in more if override.startswith("improvement=")]
    own = vars(improvement_settings((chosen or [AGENTS[name].improvement])[-1]))
    overrides = [f"agent={name}", *(f"agent.improvement.{key}={size}" for key, size in _SIZES.items() if key in own)]
    overrides += ["agent.critic.next_actions=3"] if AGENTS[name].backup == "softmax" else []
    overrides += ["task.goals=hindsight", "task.n_step=1", "agent.critic.latent=8"] if AGENTS[name].goals else []
    return overrides


def other_value(config: Any, name: str, value: Any) -> Any:
    """Another valid value of a setting."""
    if isinstance(value, str):
        return next(word for word in choices_of(type(config), name) if word != value)
    return not value if isinstance(value, bool) else 0.5 * value if isinstance(value, float) else 2 * value


def small_run(data: Path, run: Path | str, *more: str, agent: str = "gtp") -> Config:
    return composed(*STATES, *small(agent, *more), f"task.dataset={data}", f"run_dir={run}", *more)


def saved(run: Path, which: str = "last") -> dict[str, torch.Tensor]:
    """The agent and the optimizer of a run's checkpoint."""
    path = run / "checkpoints" / which
    return load_file(path / "agent.safetensors") | load_file(path / "optimizer.safetensors")


def lines(run: Path) -> list[dict[str, Any]]:
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
