"""Checkpoints: safetensors and JSON in a folder that is written under a temporary name; nothing is ever pickled.

checkpoints/step_1000/agent.safetensors      parameters and targets
                      optimizer.safetensors  Adam's moments, by the parameter's name
                      state.json             step, format, version, and the state of the trainer
                      manifest.json          sizes and hashes of the above, written last
checkpoints/last, checkpoints/best           links, replaced atomically
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from gtp_vision.agents.base import AVERAGE, averaged_name
from gtp_vision.core import manifest
from gtp_vision.core.errors import GtpVisionError
from gtp_vision.core.names import __version__
from gtp_vision.core.safe_json import read_json
from gtp_vision.core.tied import stored_tensors, with_aliases
from gtp_vision.encoders import present_names
from gtp_vision.models import without_bounds

T = TypeVar("T")
FORMAT = 2  # of state.json and of the tensors' names
_FORMATS = (1, FORMAT)  # that are read; 1 numbered the encoders' parts, and 0.1.0 wrote it without a number
_PREFIX = "step_"
_NAME = re.compile(_PREFIX + r"(0|[1-9]\d{0,14})")
_FILES = {"agent.safetensors", "optimizer.safetensors", "state.json"}
_MOMENTS = {"step", "exp_avg", "exp_avg_sq"}
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
    """Write checkpoint `step_N`, point `last` to it, and remove all but the newest `keep`, if given.

    Raises GtpVisionError: the disk is full or the folder cannot be written; earlier checkpoints are untouched.
    """
    target = folder / f"{_PREFIX}{step}"
    temporary = folder / f".{target.name}.{os.getpid()}.part"
    try:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        save_file(stored_tensors(agent), temporary / "agent.safetensors")
        save_file(_optimizer_tensors(optimizer, agent), temporary / "optimizer.safetensors")
        header = {"step": step, "format": FORMAT, "version": __version__}
        (temporary / "state.json").write_text(json.dumps(header | dict(state)))
        manifest.write_manifest(temporary)
        if target.exists():  # the same step again: a folder cannot be replaced in one move
            os.replace(target, temporary.with_suffix(".old"))
        os.replace(temporary, target)
        shutil.rmtree(temporary.with_suffix(".old"), ignore_errors=True)
        manifest.sync(folder)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(temporary, ignore_errors=True)
        existing = newest(folder)
        raise GtpVisionError(
            f"checkpoint {step} could not be written to {folder} ({error}); make room, then use --resume"
            + (f" from {existing.name}" if existing else "")
        ) from error
    link(folder, "last", target)
    if keep is not None:
        prune(folder, keep)
    return target


def link(folder: Path, name: str, target: Path) -> None:
    """Point `folder/name` to a checkpoint beside it, atomically."""
    temporary = folder / f".{name}.{os.getpid()}.link"
    temporary.unlink(missing_ok=True)
    temporary.symlink_to(target.name)
    os.replace(temporary, folder / name)


def prune(folder: Path, keep: int) -> None:
    """Remove all but the newest `keep` checkpoints and the one that `best` points to."""
    best = (folder / "best").resolve()
    for old in _checkpoints(folder)[:-keep]:
        if old.resolve() != best:
            shutil.rmtree(old)


def newest(folder: Path) -> Path | None:
    """The newest undamaged checkpoint, or None."""
    return next((path for path in reversed(_checkpoints(folder)) if not problem(path)), None)


def forget_after(folder: Path, step: int) -> None:
    """Remove the checkpoints after `step`, from which the run is resumed."""
    for path in _checkpoints(folder):
        if step_of(path) > step:
            shutil.rmtree(path)
    for name in ("last", "best"):
        if (folder / name).is_symlink() and not (folder / name).exists():
            (folder / name).unlink()


def newest_of_all(folders: Sequence[Path], tell: Callable[[str], None] = lambda sentence: None) -> list[Path] | None:
    """The undamaged checkpoints of the newest step that every folder has; None without checkpoints.

    `tell` is called with a sentence for each damaged checkpoint that is skipped.

    Raises:
        GtpVisionError: there are checkpoints, and all are damaged, or the folders have no step in common.
    """
    intact: list[dict[int, Path]] = []
    damaged: list[str] = []
    for folder in folders:
        faults = {path: problem(path) for path in _checkpoints(folder)}
        intact.append({step_of(path): path for path, fault in faults.items() if not fault})
        damaged += [f"the checkpoint {path} is damaged: {fault}" for path, fault in faults.items() if fault]
    if damaged and not any(intact):
        raise GtpVisionError(f"{damaged[-1]}, and all others are, too; start over with --overwrite")
    for sentence in damaged:
        tell(f"{sentence}; it is skipped")
    shared = set.intersection(*map(set, intact))
    if not shared and any(intact):
        latest = [f"{at.parent.name}: {max(steps, default='none')}" for at, steps in zip(folders, intact, strict=True)]
        raise GtpVisionError(
            f"the seeds have no step in common of which all have an undamaged checkpoint (newest: "
            f"{', '.join(latest)}); train with the seeds that there are, or start over with --overwrite"
        )
    return [steps[max(shared)] for steps in intact] if shared else None


def problem(path: Path) -> str:
    """What is wrong with a checkpoint, or "" if its files are those that its manifest lists."""
    return manifest.problem(path, _FILES)


def load(path: Path, agent: torch.nn.Module, optimizer: torch.optim.Optimizer | None = None) -> dict[str, Any]:
    """Fill agent and optimizer from a checkpoint, and return its state.

    Raises:
        GtpVisionError: the checkpoint is damaged, of another format or architecture, or of other trained parameters.
    """
    if fault := problem(path):
        raise GtpVisionError(f"the checkpoint {path} is damaged: {fault}; use an earlier one")
    state = read_state(path)
    names, found = _stored(path / "agent.safetensors", agent)
    own = agent.state_dict()
    stored = _with_average(with_aliases(found, agent), own)
    present = {name: (tuple(x.shape), _DTYPES.get(x.dtype, "?")) for name, x in own.items()}
    old = without_bounds(present, stored)
    differing = sorted(name for name in stored.keys() | present.keys() if stored.get(name) != present.get(name))
    differing = [name for name in differing if name not in old]
    if differing:
        name = differing[0]
        kinds = [" ".join(map(str, where[name])) if name in where else "absent" for where in (stored, present)]
        raise GtpVisionError(
            f"the checkpoint {path} is of another architecture: {len(differing)} tensors differ, first '{name}' "
            f"({kinds[0]} in the file, {kinds[1]} here); use the configuration it was trained with"
        )
    tensors = {names[name]: x for name, x in load_file(path / "agent.safetensors").items()}
    agent.load_state_dict(_with_average(with_aliases(tensors, agent), own))
    if optimizer is not None:
        _fill_optimizer(optimizer, agent, path)
    return state


def step_of(path: Path) -> int:
    """The number of steps that were trained when a checkpoint was written."""
    return int(path.name.removeprefix(_PREFIX))


def _checkpoints(folder: Path) -> list[Path]:
    """Checkpoints by step; a name with more digits than steps ever have is not one."""
    return sorted((path for path in folder.glob(f"{_PREFIX}*") if _NAME.fullmatch(path.name)), key=step_of)


def read_state(checkpoint: Path) -> dict[str, Any]:
    """The state in a checkpoint; refuse another format, and another step than the folder's name says."""
    path, name = checkpoint / "state.json", checkpoint.name
    state = read_json(path, advice="")
    number = state.get("format", 1)
    if number not in _FORMATS:
        raise GtpVisionError(
            f"{path} was written by gtp-vision {str(state.get('version', '0.1.0'))[:20]} in checkpoint format "
            f"{str(number)[:20]}, and this is gtp-vision {__version__}, which reads formats up to {FORMAT}; use the "
            f"version that wrote it"
        )
    step = state.get("step")
    if type(step) is not int or step < 0 or (_NAME.fullmatch(name) and name != f"{_PREFIX}{step}"):
        raise GtpVisionError(f"{path} is of step {str(step)[:20]}, but lies in {name}; use another checkpoint")
    return state


def _with_average(stored: Mapping[str, T], expected: Collection[str]) -> dict[str, T]:
    """What a file holds by name, but of the average what is `expected`: its weights where it has none."""
    averages = [name for name in expected if name.startswith(AVERAGE)]
    begun = {name: stored[own] for name in averages if (own := averaged_name(name)) in stored}
    kept = {name: x for name, x in stored.items() if not name.startswith(AVERAGE) or name in averages}
    return begun | kept


def _stored(path: Path, agent: torch.nn.Module) -> tuple[dict[str, str], dict[str, tuple[tuple[int, ...], str]]]:
    """The present name of each tensor of a file, and shape and dtype by present name."""
    tensors = manifest.tensor_shapes(path)
    names = present_names(agent, tensors)
    return names, {names[name]: tensor for name, tensor in tensors.items()}


def moments_of(path: Path, agent: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Adam's moments in a checkpoint, by the agent's present names: `<parameter>.<moment>`."""
    tensors = load_file(path / "optimizer.safetensors")
    names = present_names(agent, tensors)
    return {names[name]: tensor for name, tensor in tensors.items()}


def _parameter_names(optimizer: torch.optim.Optimizer, agent: torch.nn.Module) -> list[str]:
    """Names of an optimizer's parameters, in its order."""
    names = {parameter: name for name, parameter in agent.named_parameters()}
    return [names[parameter] for group in optimizer.param_groups for parameter in group["params"]]


def _optimizer_tensors(optimizer: torch.optim.Optimizer, agent: torch.nn.Module) -> dict[str, torch.Tensor]:
    names = _parameter_names(optimizer, agent)
    return {
        f"{names[index]}.{moment}": value.contiguous()
        for index, values in optimizer.state_dict()["state"].items()
        for moment, value in values.items()
    }


def _fill_optimizer(optimizer: torch.optim.Optimizer, agent: torch.nn.Module, checkpoint: Path) -> None:
    """Fill the moments by name, because the groups, and with them the order, depend on the learning rates."""
    path = checkpoint / "optimizer.safetensors"
    moments: dict[str, set[str]] = {}
    parameters = dict(agent.named_parameters())
    for key, (shape, dtype) in _stored(path, agent)[1].items():
        name, _, moment = key.rpartition(".")
        expected = () if moment == "step" else tuple(parameters[name].shape) if name in parameters else shape
        if moment not in _MOMENTS or shape != expected or dtype != "F32":
            raise GtpVisionError(
                f"{path} holds '{key}', {shape} {dtype}, which is not a moment of Adam for this agent; "
                f"use another checkpoint"
            )
        moments.setdefault(name, set()).add(moment)
    names = _parameter_names(optimizer, agent)
    differing = sorted(moments.keys() ^ set(names)) if moments else []  # none before the first step
    if differing:
        raise GtpVisionError(
            f"{path} was written while {len(moments)} parameters were trained, and {len(names)} are here: "
            f"{len(differing)} differ, first '{differing[0]}'; resume with the encoder.tuning that it was trained with"
        )
    if any(of_one != _MOMENTS for of_one in moments.values()):
        raise GtpVisionError(f"{path} lacks some of the moments {sorted(_MOMENTS)}; use another checkpoint")
    tensors = moments_of(checkpoint, agent)
    state = {
        index: {moment: tensors[f"{name}.{moment}"] for moment in _MOMENTS}
        for index, name in enumerate(names)
        if moments
    }
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
