"""What a run does about a step that was not finite: it stops with a sentence, or goes back and leaves the step out."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from gtp_vision.agents import Agent
from gtp_vision.core.distributed import any_rank
from gtp_vision.core.errors import GtpVisionError
from gtp_vision.training import checkpoint
from gtp_vision.training.nonfinite import Fault, report
from gtp_vision.training.run import TrainingRun, pending_metrics_of

ROLLBACKS = 3  # to one checkpoint
IDLE = 2  # readings without a step that could be applied


def answer(mode: str, members: Sequence[TrainingRun], fault: Fault, tell: Callable[[str], None]) -> int:
    """The step to go on from, with the steps to leave out noted; all processes together.

    Args:
        mode: `training.on_nonfinite`.
        members: the runs; all go back together, and only the one with the fault leaves its step out.
        fault: what happened.
        tell: is given a sentence.

    Raises:
        GtpVisionError: the run is to stop, has gone back too often, or has nothing to go back to.
    """
    member = members[fault.member]
    told = report(member.parts, member.config, member.folder, fault.step, fault.names)
    found = checkpoint.newest_of_all([one.folder / "checkpoints" for one in members]) if mode == "rollback" else None
    if found is None:
        raise member.diverged(fault.step, fault.what, told)
    start = checkpoint.step_of(found[0])
    before = sum(step > start for step in member.skips)
    if before >= ROLLBACKS or fault.step <= start or fault.step in member.skips:
        raise member.diverged(fault.step, f"{fault.what} after {before} rollbacks to step {start}", told)
    for one, path in zip(members, found, strict=True):
        state = restore(path, one.parts.agent, one.parts.optimizer)
        one.go_back(start, pending_metrics_of(state, path))
    member.skips.add(fault.step)
    what = f"step {fault.step}: {fault.what}, {told}; went back to step {start} and left step {fault.step} out"
    for line in member.health.note(fault.step, "rollback", what):
        tell(line)
    return start


@torch.no_grad()
def restore(path: Path, agent: Agent, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Fill an agent and Adam's moments from a checkpoint, in place: an engine may hold their tensors. Its state.

    Raises:
        GtpVisionError: see `checkpoint.load`.
    """
    state = checkpoint.load(path, agent)
    stored = load_file(path / "optimizer.safetensors")
    for name, parameter in agent.named_parameters():
        for moment, value in optimizer.state.get(parameter, {}).items():
            kept = stored.get(f"{name}.{moment}")
            value.zero_() if kept is None else value.copy_(kept)
    return state


def check_parameters(members: Sequence[TrainingRun], done: int) -> None:
    """Look at all that a checkpoint would hold, so that none is written that nobody can go on from.

    Raises:
        Fault: a parameter or buffer is not finite, in any process.
    """
    for index, member in enumerate(members):
        wrong = [name for name, x in member.parts.agent.state_dict().items() if not bool(x.isfinite().all())]
        if any_rank(bool(wrong), device=member.parts.accelerator.device)[0]:
            what = wrong[0] if wrong else "a parameter"
            raise Fault(index, done, f"{what} is not finite", [what])


def check_idle(members: Sequence[TrainingRun], done: int) -> None:
    """Stop when nothing moves any more.

    Raises:
        GtpVisionError: of every run, no step of the last readings was applied.
    """
    if all(member.idle >= IDLE for member in members):
        since = min(member.idle_since for member in members)
        raise members[0].diverged(done, f"no step since step {since} was finite, and all were skipped", "")


def skips_of(state: Mapping[str, Any], path: Path) -> set[int]:
    """The steps, from 1, that a checkpoint's state says are left out.

    Raises:
        GtpVisionError: it holds something else.
    """
    stored: Iterable[Any] = state.get("skip_steps", [])
    if not isinstance(stored, list) or not all(isinstance(step, int) and step > 0 for step in stored):
        raise GtpVisionError(f"{path / 'state.json'} names steps to skip that are none; use an earlier checkpoint")
    return set(stored)
