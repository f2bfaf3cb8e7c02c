"""Checkpoints: safetensors and JSON, written aside, manifest last, renamed; nothing is ever pickled.

checkpoints/step_1000/agent.safetensors      parameters and targets
                      optimizer.safetensors  Adam's moments, by the parameter's name
                      state.json             step and whatever else the trainer needs
                      manifest.json          sizes and hashes of the above, written last
checkpoints/last, checkpoints/best           links, replaced atomically
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from gtp_vision.errors import GtpVisionError

_PREFIX = "step_"
_FILES = {"agent.safetensors", "optimizer.safetensors", "state.json"}


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
        manifest = {path.name: _seal(path) for path in sorted(aside.iterdir())}
        (aside / "manifest.json").write_text(json.dumps(manifest, indent=1))
        _sync(aside / "manifest.json")
        if target.exists():  # the same step again: a directory cannot be replaced in one move
            os.replace(target, aside.with_suffix(".old"))
        os.replace(aside, target)
        shutil.rmtree(aside.with_suffix(".old"), ignore_errors=True)
        _sync(folder)
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


def newest_of_all(folders: Sequence[Path]) -> list[Path] | None:
    """The checkpoints of the newest step of which every folder has a whole one; None if there are no checkpoints.

    Raises:
        GtpVisionError: some folders have checkpoints, and all have none in common.
    """
    steps = [{_step(path): path for path in _all(folder) if not problem(path)} for folder in folders]
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
    try:
        manifest = json.loads((path / "manifest.json").read_text())
        if set(manifest) != _FILES:
            return f"{path / 'manifest.json'} names other files than {sorted(_FILES)}"
        for name, sealed in manifest.items():
            if _digest(path / name) != sealed:
                return f"{path / name} is not what was written"
    except FileNotFoundError as error:
        return f"{error.filename} is missing"
    except (OSError, ValueError, TypeError) as error:
        return f"{path / 'manifest.json'} cannot be read ({error})"
    return ""


def load(path: Path, agent: torch.nn.Module, optimizer: torch.optim.Optimizer | None = None) -> dict[str, Any]:
    """Fill agent and optimiser from a checkpoint, and return its state.

    Raises:
        GtpVisionError: damaged, of another architecture (how many tensors differ, and one by name), or made while other
            parameters were trained.
    """
    fault = problem(path)
    if fault:
        raise GtpVisionError(f"the checkpoint {path} is damaged: {fault}; use an earlier one")
    stored, present = load_file(path / "agent.safetensors"), agent.state_dict()
    differing = sorted(
        name
        for name in stored.keys() | present.keys()
        if name not in stored or name not in present or stored[name].shape != present[name].shape
    )
    if differing:
        name = differing[0]
        shapes = [tuple(where[name].shape) if name in where else "absent" for where in (stored, present)]
        raise GtpVisionError(
            f"the checkpoint {path} is of another architecture: {len(differing)} tensors differ, first '{name}' "
            f"({shapes[0]} in the file, {shapes[1]} here); use the configuration it was trained with"
        )
    agent.load_state_dict(stored)
    if optimizer is not None:
        _fill_optimizer(optimizer, agent, path / "optimizer.safetensors")
    return json.loads((path / "state.json").read_text())


def step_of(path: Path) -> int:
    """The number of steps that were taken when a checkpoint was written."""
    return _step(path)


def _all(folder: Path) -> list[Path]:
    found = [path for path in folder.glob(f"{_PREFIX}*") if path.name.removeprefix(_PREFIX).isdigit()]
    return sorted(found, key=_step)


def _step(path: Path) -> int:
    return int(path.name.removeprefix(_PREFIX))


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
    for key, value in load_file(path).items():
        name, _, moment = key.rpartition(".")
        found.setdefault(name, {})[moment] = value
    names = _trained(optimizer, agent)
    differing = sorted(found.keys() ^ set(names)) if found else []  # none before the first step
    if differing:
        raise GtpVisionError(
            f"{path} was written while {len(found)} parameters were trained, and {len(names)} are here: "
            f"{len(differing)} differ, first '{differing[0]}'; go on with the encoder.tuning that it was trained with"
        )
    state = {index: found[name] for index, name in enumerate(names) if found}
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def _seal(path: Path) -> dict[str, Any]:
    _sync(path)
    return _digest(path)


def _digest(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        return {"bytes": path.stat().st_size, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
