"""Warm starts: a run that begins with the weights of another run, or of an artifact.

    source -> settings, order of observations, scale of actions, statistics of states, weights, Adam's moments

Weights fit by name and shape. What fits or not does so together (`_unit`): a backbone, or a single layer elsewhere. A
policy, a critic or an improvement is loaded only if all of it fits except for the layers that read the features.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from gtp_vision.agents import Agent, label
from gtp_vision.agents.base import AVERAGE
from gtp_vision.config.compose import checked, derived, from_run
from gtp_vision.config.schema import Config, InitConfig
from gtp_vision.core.errors import GtpVisionError, propose
from gtp_vision.core.files import atomic_write
from gtp_vision.core.manifest import tensor_shapes
from gtp_vision.core.names import GOAL
from gtp_vision.core.tied import with_aliases
from gtp_vision.datasets.record import DataRecord
from gtp_vision.encoders import present_names
from gtp_vision.report.rounds import FILE, rounds_of
from gtp_vision.training import checkpoint
from gtp_vision.training.data import kept_scale
from gtp_vision.training.guard import optimizer_moments
from gtp_vision.training.rounds import appended
from gtp_vision.training.seeds import folders
from gtp_vision.training.segments import past_of, with_free

_INSTEAD = {  # of a part that the source lacks: artifacts hold the networks that act
    "policy_target": ("policy",),
    "critic": ("critic_target",),
    "critic_target": ("critic",),
    "critic_encoder": ("critic_encoder_target", "actor_encoder"),
    "actor_encoder_target": ("actor_encoder",),
    "critic_encoder_target": ("critic_encoder", "actor_encoder"),
}
_NOTES = 4  # lines about one part
_FIRST_LAYER = re.compile(r"(observe|\bq\.layers\.0|\bv\.0)$")  # reads the features, whose number may be another
_BOUNDS = re.compile(r"\.(lower|upper)$")  # of a policy; the data's
_MEAN = "mean"  # frame of a backbone, of the frames' size, which the backbone's weights may not depend on
_ADAPTER = re.compile(r"\.lora_[AB]\.")
_BASE = ".base_layer."  # the name of a layer beside its adapter


@dataclass(frozen=True)
class Source:
    """A checkpoint or an artifact whose weights a run begins with.

    Attributes:
        path: of the checkpoint or artifact.
        run: the run folder; None of an artifact.
        config: its settings.
        data: the record of its data set; None if an earlier version of this package wrote the checkpoint.
        scale: attributes by which its actions were scaled; None if they are unknown.
        weights: safetensors file of the agent's modules.
        step: training steps that were taken.
        rounds: until the source, see `rounds_of`.
        note: a sentence about what the source does not hold; empty if it holds all.
    """

    path: Path
    run: Path | None
    config: Config
    data: DataRecord | None
    scale: Mapping[str, Any] | None
    weights: Path
    step: int
    rounds: Sequence[Mapping[str, Any]] = ()
    note: str = ""

    def new_run(self, overrides: Sequence[str], append: Sequence[str] = ()) -> Config:
        """The settings of a new run that begins with these weights.

        Args:
            overrides: as of `derived`.
            append: further data, as of `appended`.

        Raises:
            GtpVisionError: overrides or data that are refused or do not fit.
        """
        start = replace(self.config, run_dir="", init=InitConfig(source=str(self.path)))
        config = derived(start, self.path, overrides)
        if append:
            config = appended(config, append, keeps_shares=any(text.startswith("task.shares=") for text in overrides))
        if config.task.datasets == []:
            raise GtpVisionError(
                f"{self.path} does not name the files of its data; give data with --append DATA, or set task.dataset"
            )
        task, encoder = config.task.name, config.encoder.name.replace("/", "-")
        name = f"{label(config.agent)}-{encoder}-seed{config.seed}-round{len(self.rounds) + 1}"
        return checked(config if config.run_dir else replace(config, run_dir=f"runs/{task}/{name}"))

    def known_scale(self, config: Config) -> Mapping[str, Any] | None:
        """The attributes by which the actions of the new run's data are scaled; None: their scale is fitted anew."""
        if config.init.refit:
            return None
        return self.scale if self.data is None else kept_scale(config, self.data)

    def check_folder(self, folder: Path) -> None:
        """Refuse the source's own run folder for the new run, which would be replaced."""
        if self.run is not None and self.run.resolve() == folder.resolve():
            raise GtpVisionError(
                f"run_dir={folder} is the run whose weights the new one would begin with; choose another run_dir=..., "
                f"or continue it with --resume"
            )


def open_run(given: str) -> Source:
    """The run, or the checkpoint of a run, at a path `RUN`, `RUN/checkpoints/best` or `RUN/checkpoints/step_N`.

    Raises:
        GtpVisionError: it is missing, damaged, of several seeds or of another version.
    """
    path = Path(given).expanduser()
    is_run = (path / "config.yaml").is_file()
    folder = path if is_run else path.parent.parent
    if not (folder / "config.yaml").is_file():
        raise GtpVisionError(
            f"{given} is not a run (it has no config.yaml), a checkpoint of one or an artifact; check the path"
        )
    config = from_run(folder)
    if config.training.seeds > 1:
        runs = folders(replace(config, run_dir=str(folder)))
        raise GtpVisionError(f"{folder} holds {len(runs)} runs, one for each seed; give one of them, e.g. {runs[0]}")
    if is_run and (newest := checkpoint.newest_of_all([folder / "checkpoints"])) is None:
        raise GtpVisionError(f"{folder} has no checkpoint to begin with; train it first")
    at = newest[0] if is_run and newest else path
    if not at.exists():
        known = [other.name for other in (folder / "checkpoints").glob("[!.]*")]
        raise GtpVisionError(f"{folder} has no checkpoint '{path.name}': {propose(path.name, known)}")
    at = at.resolve()
    if fault := checkpoint.problem(at):
        raise GtpVisionError(f"the checkpoint {at} is damaged: {fault}; use another one")
    last = past_of(at, folder)[-1]
    trained = replace(with_free(last.config, config), run_dir=str(folder))
    return Source(
        path=at,
        run=folder,
        config=trained,
        data=last.data,
        scale=kept_scale(trained, last.data),
        weights=at / "agent.safetensors",
        step=(step := int(checkpoint.read_state(at)["step"])),
        rounds=rounds_of(folder, step),
    )


@dataclass(frozen=True)
class Part:
    """A part of the agent: how many of its numbers were loaded, how many are new, and why these are."""

    name: str
    loaded: int
    new: int
    notes: Sequence[str] = ()


@dataclass(frozen=True)
class Match:
    """What of a source fits an agent.

    Attributes:
        source: the source.
        names: the agent's tensors that are loaded, to those of the source's file.
        parts: in the agent's order.
    """

    source: Source
    names: Mapping[str, str]
    parts: Sequence[Part]

    @torch.no_grad()
    def fill(self, agent: Agent) -> None:
        """Load into an agent what fits. Raises GtpVisionError: a weight of the source is not finite."""
        own = agent.state_dict()
        with safe_open(self.source.weights, "pt") as file:
            for name, stored in self.names.items():
                tensor = file.get_tensor(stored)
                if not bool(tensor.isfinite().all()):
                    raise GtpVisionError(
                        f"{self.source.weights} holds numbers that are not finite ('{stored}'); use another checkpoint"
                    )
                own[name].copy_(tensor)
        if agent.average is not None:
            agent.keep_average()

    @torch.no_grad()
    def fill_optimizer(self, optimizer: torch.optim.Optimizer, agent: Agent) -> int:
        """Load Adam's moments of the trained parameters that were loaded, and return their number; others start at 0.

        Raises:
            GtpVisionError: the source holds no moments.
        """
        path = self.source.path / "optimizer.safetensors"
        if self.source.run is None:
            raise GtpVisionError(
                f"{self.source.path} is an artifact and holds no moments of Adam; leave --init-optimizer out, or give "
                f"the run that it was exported from"
            )
        shapes, filled = tensor_shapes(path), 0
        optimizer_moments(optimizer)
        with safe_open(path, "pt") as file:
            for name, parameter in agent.named_parameters():
                state = optimizer.state.get(parameter, {})
                stored = {moment: f"{self.names.get(name)}.{moment}" for moment in state}
                if state and all(shapes.get(stored[m], (None,))[0] == tuple(x.shape) for m, x in state.items()):
                    for moment, value in state.items():
                        value.copy_(file.get_tensor(stored[moment]))
                    filled += 1
        return filled

    def table(self) -> str:
        """A line for each part: numbers loaded, numbers new, and why."""
        width = max(len(part.name) for part in self.parts)
        lines = [f"weights of {self.source.path} (step {self.source.step:,})"]
        for part in self.parts:
            status = "loaded" if not part.new else "partly" if part.loaded else "new"
            lines.append(f"  {part.name:<{width}}  {status:<6}  {part.loaded:>12,} loaded  {part.new:>12,} new")
            lines += [f"  {'':<{width}}  {note}" for note in part.notes]
        return "\n".join([*lines, *([self.source.note] if self.source.note else [])])

    def write(self, folder: Path, data: Sequence[Mapping[str, Any]], moments: int) -> None:
        """Write init.json into a run folder, see `report.rounds`; `moments` counts parameters with the source's."""
        source = self.source
        found = {"source": str(source.path), "step": source.step, "parts": [vars(part) for part in self.parts]}
        found |= {"moments": moments, "data": list(data), "rounds": list(source.rounds)}
        with atomic_write(folder / FILE) as aside:
            aside.write_text(json.dumps(found, indent=1))


def match(agent: Agent, source: Source) -> Match:
    """Compare an agent with a source, by the names and shapes of tensors alone."""
    shapes = tensor_shapes(source.weights)
    seen = [name for name in agent.actor_encoder.shapes if not name.startswith(GOAL)]
    is_same = source.data is None or list(source.data.observations) == seen
    present = present_names(agent, shapes) if is_same else {name: name for name in shapes}
    stored = with_aliases({present[name]: name for name in shapes}, agent)  # the file's own names
    state = agent.state_dict()
    own: dict[str, dict[str, list[str]]] = {}  # part to unit to names
    for name in state:
        if name.startswith(AVERAGE):
            continue  # it begins anew, see `Match.fill`
        if not _BOUNDS.search(name) or agent.representation is not None:
            own.setdefault(name.partition(".")[0], {}).setdefault(_unit(name), []).append(name)
    names: dict[str, str] = {}
    parts = []
    for part, units in own.items():
        given = next((p for p in (part, *_INSTEAD.get(part, ())) if any(x.startswith(f"{p}.") for x in stored)), part)
        held = {part + name.removeprefix(given): at for name, at in stored.items() if name.startswith(f"{given}.")}
        fitting = {unit: _fitting(of_unit, state, held, shapes) for unit, of_unit in units.items()}
        misfits = {unit: reason for unit, (_, reason) in fitting.items() if reason}
        loaded = {name: at for found, _ in fitting.values() for name, at in found.items()}
        deeper = [unit for unit in misfits if not _FIRST_LAYER.search(unit)]
        if deeper and not part.startswith(("actor_encoder", "critic_encoder")):
            loaded, misfits = {}, {unit: misfits[unit] for unit in deeper}
        names |= loaded
        shown = misfits.keys() - {f"{unit}.{_MEAN}" for unit in misfits}
        notes = [f"{unit.removeprefix(f'{part}.')}: {why}" for unit, why in misfits.items() if unit in shown]
        if not held:
            notes = ["the source lacks it"]
        elif given != part and loaded:
            notes = [f"from the source's {given}", *notes]
        notes = notes if len(notes) <= _NOTES else [*notes[:_NOTES], f"and {len(notes) - _NOTES} more"]
        numbers = sum(state[name].numel() for of_unit in units.values() for name in of_unit)
        known = sum(state[name].numel() for name in loaded)
        parts.append(Part(part, known, numbers - known, notes))
    return Match(source, names, parts)


def _unit(name: str) -> str:
    """What a tensor fits or does not fit together with: its backbone, its layer, or nothing for an encoder's buffer."""
    encoder, towers, inside = name.partition(".towers.")
    if towers:
        tower, _, tensor = inside.partition(".")
        return name if tensor == _MEAN else f"{encoder}.towers.{tower}"
    layer = name.rpartition(".")[0]
    return name if layer.endswith(("encoder", "encoder_target")) else layer


def _fitting(
    names: Sequence[str], state: Mapping[str, torch.Tensor], held: Mapping[str, str], shapes: Mapping[str, Any]
) -> tuple[dict[str, str], str]:
    """The source's names of a unit's tensors, and why they do not fit; adapters may be new, and change nothing then."""
    found = {name: held.get(name) or held.get(name.replace(_BASE, ".")) for name in names}
    unit = _unit(names[0])
    if any(_ADAPTER.search(name) and name not in names for name in held if _unit(name) == unit):
        return {}, "the source has adapters (encoder.tuning=lora) that this run has not"
    for name, stored in found.items():
        if stored is None and not _ADAPTER.search(name):
            return {}, "absent in the source"
        if stored is not None and shapes[stored][0] != tuple(state[name].shape):
            there, here = ("x".join(map(str, shape)) or "1" for shape in (shapes[stored][0], state[name].shape))
            return {}, f"{there} in the source, {here} here"
    return {name: stored for name, stored in found.items() if stored is not None}, ""


def check_match(found: Match, agent: Agent, config: Config) -> None:
    """Refuse a source whose policy or backbones do not fit, unless `init.partial` accepts it, or of which nothing does.

    Raises GtpVisionError: it says why.
    """
    source, partial = found.source, "set init.partial=true to load only what fits"
    actions = None if source.data is None else source.data.actions
    here = agent.actions if agent.representation is None else len(agent.representation.file_low)
    if not found.names:
        raise GtpVisionError(f"nothing of {source.path} fits this agent; leave --init out, or take its settings")
    if config.init.partial:
        return
    if actions not in (None, here):
        raise GtpVisionError(
            f"{source.path} acts in {actions} dimensions, and the data have {here}; record the same actions, or "
            f"{partial}"
        )
    policy = next(part for part in found.parts if part.name == "policy")
    if not policy.loaded:
        raise GtpVisionError(
            f"the policy of {source.path} is of another architecture ({policy.notes[0]}); take its agent.policy "
            f"settings, or {partial}"
        )
    if agent.actor_encoder.towers and len(missing_backbones(found, agent)) == len(agent.actor_encoder.towers):
        why = next((note for note in found.parts[0].notes if note.startswith("towers.")), "")
        raise GtpVisionError(
            f"no backbone of {source.path} fits (encoder={source.config.encoder.name} there, "
            f"encoder={config.encoder.name} here; {why}); take its encoder settings, or {partial}"
        )


def missing_backbones(found: Match, agent: Agent) -> list[str]:
    """The backbones of an agent that are not loaded, so that their trained weights are needed."""
    loaded = {_unit(name) for name in found.names}
    return [name for name in agent.actor_encoder.towers if f"actor_encoder.towers.{name}" not in loaded]
