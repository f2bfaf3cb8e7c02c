"""What a run does about a step that was not finite: stop with an error, or roll back and leave the step out."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from gtp_vision.agents import Agent
from gtp_vision.core.distributed import any_rank
from gtp_vision.core.errors import GtpVisionError
from gtp_vision.training import checkpoint
from gtp_vision.training.nonfinite import Fault, diagnose
from gtp_vision.training.run import TrainingRun, pending_metrics_of

ROLLBACKS = 3  # to one checkpoint
IDLE = 2  # readings of metrics without an applied step


def handle_fault(mode: str, members: Sequence[TrainingRun], fault: Fault, tell: Callable[[str], None]) -> int:
    """Roll back, note the step to leave out, and return the step to continue from; all processes together.

    All runs roll back, and only the one with the fault leaves its step out.

    Raises:
        GtpVisionError: the mode is not rollback, there were too many rollbacks, or no checkpoint exists.
    """
    member = members[fault.member]
    diagnosis = diagnose(member.parts, member.config, member.folder, fault.step, fault.names)
    paths = checkpoint.newest_of_all([run.folder / "checkpoints" for run in members]) if mode == "rollback" else None
    if paths is None:
        raise member.diverged(fault.step, fault.what, diagnosis)
    start = checkpoint.step_of(paths[0])
    before = sum(step > start for step in member.skips)
    if before >= ROLLBACKS or fault.step <= start or fault.step in member.skips:
        raise member.diverged(fault.step, f"{fault.what} after {before} rollbacks to step {start}", diagnosis)
    for run, path in zip(members, paths, strict=True):
        state = restore(path, run.parts.agent, run.parts.optimizer)
        run.go_back(start, pending_metrics_of(state, path))
    member.skips.add(fault.step)
    message = (
        f"step {fault.step}: {fault.what}, {diagnosis}; rolled back to step {start} and left step {fault.step} out"
    )
    for line in member.health.add(fault.step, "rollback", message):
        tell(line)
    return start


@torch.no_grad()
def restore(path: Path, agent: Agent, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Load a checkpoint into an agent and Adam's moments in place (engines hold their tensors); return its state."""
    state = checkpoint.load(path, agent)
    stored = checkpoint.moments_of(path, agent)
    for name, parameter in agent.named_parameters():
        for moment, value in optimizer.state.get(parameter, {}).items():
            saved = stored.get(f"{name}.{moment}")
            value.zero_() if saved is None else value.copy_(saved)
    return state


def check_parameters(members: Sequence[TrainingRun], done: int) -> None:
    """Check everything that a checkpoint would hold. Raises Fault: something is not finite, in any process."""
    for index, member in enumerate(members):
        wrong = [name for name, x in member.parts.agent.state_dict().items() if not bool(x.isfinite().all())]
        if any_rank(bool(wrong), device=member.parts.accelerator.device)[0]:
            what = wrong[0] if wrong else "a parameter"
            raise Fault(index, done, f"{what} is not finite", [what])


def check_idle(members: Sequence[TrainingRun], done: int) -> None:
    """Stop by a GtpVisionError when every run has skipped every step of the last readings."""
    if all(member.idle >= IDLE for member in members):
        since = min(member.idle_since for member in members)
        raise members[0].diverged(done, f"no step since step {since} was finite, and all were skipped", "")


def skips_of(state: Mapping[str, Any], path: Path) -> set[int]:
    """The steps, from 1, that a checkpoint's state says to leave out, if it holds a list of positive integers."""
    stored = state.get("skip_steps", [])
    if not isinstance(stored, list) or not all(isinstance(step, int) and step > 0 for step in stored):
        raise GtpVisionError(f"{path / 'state.json'}: skip_steps is not a list of steps; use an earlier checkpoint")
    return set(stored)
