"""Checkpoints: safetensors and JSON, written aside, manifest last, renamed; nothing is ever pickled.

checkpoints/step_1000/agent.safetensors      parameters and targets
                      optimizer.safetensors  Adam's moments, by the parameter's name
                      state.json             step and whatever else the trainer needs
                      manifest.json          sizes and hashes of the above, written last
checkpoints/last, checkpoints/best           links, replaced atomically
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from gtp_vision.core import manifest
from gtp_vision.core.errors import GtpVisionError

_PREFIX = "step_"
_NAME = re.compile(_PREFIX + r"(0|[1-9]\d{0,14})")
_FILES = {"agent.safetensors", "optimizer.safetensors", "state.json"}
_MOMENTS = {"step", "exp_avg", "exp_avg_sq"}
_ELSE = "use another checkpoint"
_DTYPES = {
    **{torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16", torch.bool: "BOOL"},
    **{torch.int64: "I64", torch.int32: "I32", torch.int16: "I16", torch.int8: "I8", torch.uint8: "U8"},
}


def save(
    folder: Path,
    step: int,
    agent: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    state: Mapping[str, Any],
    *,
    keep: int | None = 2,
) -> Path:
    """Write checkpoint `step_N` into `folder`, point `last` to it, and then prune all but the newest `keep`, if given.

    Raises:
        GtpVisionError: the disk is full or the folder cannot be written; earlier checkpoints are untouched.
    """
    target = folder / f"{_PREFIX}{step}"
    aside = folder / f".{target.name}.{os.getpid()}.part"
    try:
        shutil.rmtree(aside, ignore_errors=True)
        aside.mkdir(parents=True)
        save_file({k: v.contiguous() for k, v in agent.state_dict().items()}, aside / "agent.safetensors")
        save_file(_optimizer_tensors(optimizer, agent), aside / "optimizer.safetensors")
        (aside / "state.json").write_text(json.dumps({"step": step, **state}))
        manifest.seal(aside)
        if target.exists():  # the same step again: a directory cannot be replaced in one move
            os.replace(target, aside.with_suffix(".old"))
        os.replace(aside, target)
        shutil.rmtree(aside.with_suffix(".old"), ignore_errors=True)
        manifest.sync(folder)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(aside, ignore_errors=True)
        kept = newest(folder)
        raise GtpVisionError(
            f"checkpoint {step} could not be written to {folder} ({error}); make room and go on with --resume"
            + (f" from {kept.name}" if kept else "")
        ) from error
    link(folder, "last", target)
    if keep is not None:
        prune(folder, keep)
    return target


def link(folder: Path, name: str, target: Path) -> None:
    """Point `folder/name` to a checkpoint beside it, atomically."""
    aside = folder / f".{name}.{os.getpid()}.link"
    aside.unlink(missing_ok=True)
    aside.symlink_to(target.name)
    os.replace(aside, folder / name)


def prune(folder: Path, keep: int) -> None:
    """Remove all but the newest `keep` checkpoints and the one that `best` points to."""
    best = (folder / "best").resolve()
    for old in _all(folder)[:-keep]:
        if old.resolve() != best:
            shutil.rmtree(old)


def newest(folder: Path) -> Path | None:
    """The newest whole checkpoint, or None. Damaged ones are passed over."""
    for path in reversed(_all(folder)):
        if not problem(path):
            return path
    return None


def forget_after(folder: Path, step: int) -> None:
    """Remove the checkpoints of later steps: those of a run that is gone on with from step `step`."""
    for path in _all(folder):
        if _step(path) > step:
            shutil.rmtree(path)
    for name in ("last", "best"):
        if (folder / name).is_symlink() and not (folder / name).exists():
            (folder / name).unlink()


def newest_of_all(folders: Sequence[Path], tell: Callable[[str], None] = lambda sentence: None) -> list[Path] | None:
    """The checkpoints of the newest step of which every folder has a whole one; None if there are no checkpoints.

    Args:
        folders: of checkpoints, one a run.
        tell: is given a sentence about each damaged checkpoint that is passed over.

    Raises:
        GtpVisionError: there are checkpoints, and all are damaged, or the folders have none in common.
    """
    steps: list[dict[int, Path]] = []
    damaged: list[str] = []
    for path_of in ({_step(path): path for path in _all(folder)} for folder in folders):
        faults = {step: problem(path) for step, path in path_of.items()}
        steps.append({step: path for step, path in path_of.items() if not faults[step]})
        damaged += [f"the checkpoint {path_of[step]} is damaged: {fault}" for step, fault in faults.items() if fault]
    if damaged and not any(steps):
        raise GtpVisionError(f"{damaged[-1]}, and there is no whole one; start over with --overwrite")
    for sentence in damaged:
        tell(f"{sentence}; it is passed over")
    shared = set.intersection(*(set(of) for of in steps))
    if not shared and any(steps):
        latest = [f"{at.parent.name}: {max(of, default='none')}" for at, of in zip(folders, steps, strict=True)]
        raise GtpVisionError(
            f"there is no step of which all seeds have a whole checkpoint (newest: {', '.join(latest)}); train with "
            f"the seeds that there are, or start over with --overwrite"
        )
    if not shared:
        return None
    return [of[max(shared)] for of in steps]


def problem(path: Path) -> str:
    """What is wrong with a checkpoint, or "" if its files are those that its manifest describes."""
    return manifest.problem(path, _FILES)


def load(path: Path, agent: torch.nn.Module, optimizer: torch.optim.Optimizer | None = None) -> dict[str, Any]:
    """Fill agent and optimiser from a checkpoint, and return its state.

    Raises:
        GtpVisionError: damaged, of another architecture (how many tensors differ, and one by name), or made while other
            parameters were trained.
    """
    fault = problem(path)
    if fault:
        raise GtpVisionError(f"the checkpoint {path} is damaged: {fault}; use an earlier one")
    stored, present = manifest.shapes(path / "agent.safetensors"), _described(agent.state_dict())
    differing = sorted(name for name in stored.keys() | present.keys() if stored.get(name) != present.get(name))
    if differing:
        name = differing[0]
        kinds = [" ".join(map(str, where[name])) if name in where else "absent" for where in (stored, present)]
        raise GtpVisionError(
            f"the checkpoint {path} is of another architecture: {len(differing)} tensors differ, first '{name}' "
            f"({kinds[0]} in the file, {kinds[1]} here); use the configuration it was trained with"
        )
    state = _state(path / "state.json", path.name)
    agent.load_state_dict(load_file(path / "agent.safetensors"))
    if optimizer is not None:
        _fill_optimizer(optimizer, agent, path / "optimizer.safetensors")
    return state


def step_of(path: Path) -> int:
    """The number of steps that were taken when a checkpoint was written."""
    return _step(path)


def _all(folder: Path) -> list[Path]:
    """By step; a name with more digits than steps ever have is no checkpoint's."""
    return sorted((path for path in folder.glob(f"{_PREFIX}*") if _NAME.fullmatch(path.name)), key=_step)


def _step(path: Path) -> int:
    return int(path.name.removeprefix(_PREFIX))


def _described(tensors: Mapping[str, torch.Tensor]) -> dict[str, tuple[tuple[int, ...], str]]:
    """Shape and dtype of tensors, as `sealing.shapes` tells them of a file's."""
    return {name: (tuple(tensor.shape), _DTYPES.get(tensor.dtype, "?")) for name, tensor in tensors.items()}


def _state(path: Path, name: str) -> dict[str, Any]:
    """What the trainer stored of itself in a checkpoint of this name.

    Raises:
        GtpVisionError: it cannot be read, or is of another step than the name says.
    """
    found = manifest.document(path)
    step = found.get("step")
    if type(step) is not int or step < 0 or (_NAME.fullmatch(name) and name != f"{_PREFIX}{step}"):
        raise GtpVisionError(f"{path} is of step {str(step)[:20]}, and lies in {name}; use another checkpoint")
    return found


def _trained(optimizer: torch.optim.Optimizer, agent: torch.nn.Module) -> list[str]:
    """The names of an optimiser's parameters, in the order in which it counts them."""
    names = {parameter: name for name, parameter in agent.named_parameters()}
    return [names[parameter] for group in optimizer.param_groups for parameter in group["params"]]


def _optimizer_tensors(optimizer: torch.optim.Optimizer, agent: torch.nn.Module) -> dict[str, torch.Tensor]:
    names = _trained(optimizer, agent)
    return {
        f"{names[index]}.{moment}": value.contiguous()
        for index, values in optimizer.state_dict()["state"].items()
        for moment, value in values.items()
    }


def _fill_optimizer(optimizer: torch.optim.Optimizer, agent: torch.nn.Module, path: Path) -> None:
    """By name, because the groups, and with them the order, follow the learning rates.

    Raises:
        GtpVisionError: other parameters were trained.
    """
    found: dict[str, dict[str, torch.Tensor]] = {}
    parameters = dict(agent.named_parameters())
    for key, (shape, dtype) in manifest.shapes(path).items():
        name, _, moment = key.rpartition(".")
        like = parameters.get(name)
        if moment not in _MOMENTS or (moment != "step" and like is not None and shape != tuple(like.shape)):
            raise GtpVisionError(f"{path} holds '{key}', {shape} {dtype}, which no Adam of this agent has; {_ELSE}")
        if dtype != "F32" or (moment == "step" and shape):
            raise GtpVisionError(f"{path} holds '{key}', {shape} {dtype}, and float32 is waited for; {_ELSE}")
        found.setdefault(name, {})[moment] = torch.empty(0)
    names = _trained(optimizer, agent)
    differing = sorted(found.keys() ^ set(names)) if found else []  # none before the first step
    if differing:
        raise GtpVisionError(
            f"{path} was written while {len(found)} parameters were trained, and {len(names)} are here: "
            f"{len(differing)} differ, first '{differing[0]}'; go on with the encoder.tuning that it was trained with"
        )
    if any(set(moments) != _MOMENTS for moments in found.values()):
        raise GtpVisionError(f"{path} holds other moments than {sorted(_MOMENTS)} of some parameter; {_ELSE}")
    tensors = load_file(path)
    state = {
        index: {moment: tensors[f"{name}.{moment}"] for moment in found[name]}
        for index, name in enumerate(names)
        if found
    }
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
