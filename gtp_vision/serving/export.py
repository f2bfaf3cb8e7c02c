"""Export of a run's policy as an artifact: `gtp-vision export RUN DIR`."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch

from gtp_vision import agents
from gtp_vision.agents import Agent
from gtp_vision.agents.acting import FrameStack
from gtp_vision.config.schema import Config
from gtp_vision.core.errors import GtpVisionError
from gtp_vision.core.framing import FRAMES
from gtp_vision.core.manifest import write_manifest
from gtp_vision.core.random import EpisodeNoise
from gtp_vision.core.units import in_units
from gtp_vision.datasets.formats import ogbench
from gtp_vision.datasets.instructions import TABLE
from gtp_vision.datasets.rate import known_rate
from gtp_vision.datasets.record import DataRecord
from gtp_vision.datasets.scaling import in_file_units
from gtp_vision.datasets.store import Store
from gtp_vision.encoders.text import sentence_features
from gtp_vision.report.rounds import rounds_of
from gtp_vision.serving import artifact, graphs
from gtp_vision.serving.calibration import calibrate, reference_of
from gtp_vision.serving.limits import DATA, DERIVATIVES, OFF, Limiter, Limits, read_words
from gtp_vision.serving.policy import Policy
from gtp_vision.serving.reactions import TELLS, OnDoubt
from gtp_vision.serving.reference import Reference
from gtp_vision.serving.schema import Schema
from gtp_vision.serving.warm_start import ROUNDS, SETTINGS, portable
from gtp_vision.training.build import shapes
from gtp_vision.training.data import TaskData, split_recorded
from gtp_vision.training.evaluate import actor_of, restore

LICENCES = ("weights", "data", "backbone")
LIMITS = "limits"
"""Of provenance.json: in words where the limits come from."""
DOUBT = "doubt"
"""Of provenance.json: how doubt was calibrated, or why it was not."""


def export(
    run: Path,
    out: Path,
    *,
    which: str = "last",
    steps: int | None = None,
    acting: Sequence[str] = (),
    licences: Mapping[str, str] | None = None,
    onnx: bool = False,
    pt2: bool = False,
    overwrite: bool = False,
    limits: Sequence[str] = (),
    rate: float | None = None,
    on_doubt: OnDoubt | None = TELLS,
    instructions: Sequence[str] = (),
) -> Policy:
    """Write the artifact of a run's checkpoint, and return it as it is loaded.

    The artifact holds the smallest set of the agent's modules that acts bit for bit as the agent does; each set is
    tried.

    Args:
        run: the run folder; its data set need not exist.
        out: the folder to write.
        which: `last`, `best` or `step_N`.
        steps: the policy's default K; None is the agent's.
        acting: overrides of how it acts, `acting=beam` or `agent.acting.noise=0.5`.
        licences: of `LICENCES`, as SPDX names; a missing one is unknown.
        onnx: also write the sampler as an ONNX graph, see `graphs`.
        pt2: also write it as a program of torch.export.
        overwrite: replace an artifact at `out`.
        limits: of the actions, see `limits.read_words`; by default those of the data, or, where these are missing, of
            the position alone.
        rate: actions a second; None is the data's.
        on_doubt: which signals of doubt are measured, and what is done about it; None keeps nothing of the data.
        instructions: texts that the policy is to know besides those of its data, by its text encoder.

    Raises:
        GtpVisionError: a missing run or checkpoint, acting or limits that do not fit, or `out` is occupied or not
            writable.
    """
    _check_output(out, overwrite)
    config, trained = restore(run, which, acting=acting, steps=steps)
    agent = trained.agent.cpu()
    data = _data_of(config, trained.record)
    made, limited_by = limits_of(trained.record, data, limits, rate)
    reference, others, unknown = (None, None, OFF) if on_doubt is None else _reference_of(config, agent, data)
    schema = replace(schema_of(config, agent, trained.record), limits=made)
    if instructions:
        schema = replace(schema, instructions=_extended(schema, config, instructions))
    checkpoint = (run / "checkpoints" / which).resolve().name
    origin = provenance(run, config, trained.record, int(checkpoint.removeprefix("step_")), licences or {})
    origin |= {LIMITS: limited_by, DOUBT: unknown}
    aside = out.absolute().with_name(f".{out.name}.{os.getpid()}.part")
    try:
        for parts in _part_sets(agent):
            shutil.rmtree(aside, ignore_errors=True)
            aside.mkdir(parents=True)
            artifact.write(aside, agent, schema, origin, parts)
            if _acts_alike(aside, agent, schema):
                break
        else:
            raise AssertionError("an artifact of all modules acts differently from its agent")
        if reference is not None and others is not None:
            reference, origin[DOUBT] = calibrate(agent, schema, reference, on_doubt or TELLS, others, config.seed)
        Policy(agent, schema, origin, reference=reference, on_doubt=on_doubt)  # refuses a reaction without a meaning
        artifact.write(aside, agent, schema, origin, parts, reference, on_doubt)
        for is_requested, write in ((onnx, graphs.write), (pt2, graphs.write_program)):
            if is_requested:
                write(artifact.load_policy(aside), aside)
                write_manifest(aside)
        _replace(aside, out)
    except OSError as error:
        raise GtpVisionError(f"{out} cannot be written ({error}); free space or choose another folder") from error
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return artifact.load_policy(out)


def limits_of(
    record: DataRecord, data: TaskData | GtpVisionError, words: Sequence[str], rate: float | None
) -> tuple[Limits | None, str]:
    """The limits of a run's actions by the words of `limits.read_words`, and in words where they come from.

    Raises:
        GtpVisionError: words that do not fit, or `data` where the data set is missing or has changed.
    """
    source, by_hand = read_words(words, record.actions)
    bounds, rate = record.action_bounds, known_rate(record.attributes) if rate is None else rate
    if rate is None and (derivatives := [name for name in DERIVATIVES if name in by_hand]):
        raise GtpVisionError(
            f"--limits {derivatives[0]}=... is per second, and the data do not say their rate; add --rate with the "
            f"number of actions a second"
        )
    origins = [f"by hand: {', '.join(by_hand)}"] if by_hand else []
    if source == OFF:
        if not by_hand:
            return None, OFF
        made = Limits.position(*bounds, rate)
    elif isinstance(data, TaskData):
        made = Limits.of_data(partial(_episodes, data.training), bounds, rate)
        origins.insert(0, "twice what the data do")
    elif source == DATA:
        raise data
    else:
        moves = record.statistics["actions"]
        made = Limits.of_range(in_units(moves["min"], *bounds), in_units(moves["max"], *bounds), bounds, rate)
        origins.insert(0, "twice the range of the data, which cannot be read; --limits data says why")
    return replace(made, **by_hand).checked(bounds), "; ".join(origins)


def _reference_of(
    config: Config, agent: Agent, data: TaskData | GtpVisionError
) -> tuple[Reference | None, Store | None, str]:
    """What the artifact keeps of the training data, and other episodes; or why there are none."""
    if isinstance(data, GtpVisionError):
        return None, None, f"the data cannot be read: {data}"
    try:
        return *reference_of(agent, data, config.task.frame_stack, config.seed), ""
    except GtpVisionError as error:
        return None, None, str(error)


def _extended(schema: Schema, config: Config, texts: Sequence[str]) -> Mapping[str, Any]:
    """The record of the policy's instructions and some more."""
    table = schema.table
    if table is None or table.encoder is None:
        raise GtpVisionError(
            f"--instruction adds a text by the text encoder of a run with task.instructions=text, and this one has "
            f"task.instructions={config.task.instructions or 'null'}; leave it out"
        )
    return table.extended(texts, partial(sentence_features, source=config.task.text_encoder)).record()


def _data_of(config: Config, record: DataRecord) -> TaskData | GtpVisionError:
    """The data that a run was trained on, or why they cannot be read; nothing is downloaded."""
    try:
        if not (config.task.dataset or config.task.datasets):
            assert config.task.env is not None, "checked with the configuration"
            ogbench.locate(config.task.env, Path(config.data_dir).expanduser(), download=False)
        return split_recorded(config, record)
    except GtpVisionError as error:
        return error


def _episodes(store: Store) -> Iterator[np.ndarray]:
    """The actions (N, A) of each episode that were executed, in the units of the file."""
    for start, last in zip(store.episode_starts, store.last_outcomes, strict=True):
        if start <= last:
            yield in_file_units(store, slice(start, last + 1))


def schema_of(config: Config, agent: Agent, data: DataRecord) -> Schema:
    """The observations and actions of a run's agent, in the units of its data set."""
    observations = shapes(data, 1, goals=config.task.goals is not None)
    low, high = data.action_bounds
    return Schema(
        cameras={name: (shape[2], shape[3], shape[1]) for name, shape in observations.items() if len(shape) == 4},
        states={name: shape[1] for name, shape in observations.items() if len(shape) == 2},
        frame_stack=config.task.frame_stack,
        action_low=tuple(low),
        action_high=tuple(high),
        chunk=agent.config.action_chunk,
        steps=agent.config.acting.steps,
        candidates=agent.config.acting.candidates,
        agent=agents.label(agent.config),
        task=config.task.name,
        frames=data.attributes.get(FRAMES),
        instructions=data.attributes.get(TABLE),
    )


def provenance(run: Path, config: Config, record: DataRecord, step: int, licences: Mapping[str, str]) -> dict[str, Any]:
    """The origin of a policy: run, data, scores, versions, licences."""
    data: dict[str, Any] = {"episodes": record.episodes, "frames": record.frames, "fingerprint": record.fingerprint}
    if record.name is not None:
        data["name"] = record.name
    if source := record.attributes.get("source"):
        data["source"] = str(source)
    return {
        "run": "/".join(run.resolve().parts[-2:]),
        "step": step,
        "seed": config.seed,
        "environment": config.task.env,
        "data": data,
        "encoder": config.encoder.name,
        "encoder_weights": config.encoder.weights and "/".join(Path(config.encoder.weights).parts[-2:]),
        "evaluation": _evaluation(run, step),
        "versions": {name: version(name) for name in ("gtp-vision", "torch")},
        SETTINGS: portable(config),
        ROUNDS: [entry | {"data": _names_of(entry)} for entry in rounds_of(run, step)],
        "licences": {name: licences.get(name, "unknown") for name in LICENCES},
    }


def _names_of(entry: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The data of a round, by the name of their file alone."""
    return [data | {"path": Path(str(data.get("path"))).name} for data in entry.get("data", [])]


def _evaluation(run: Path, step: int) -> dict[str, Any] | None:
    try:
        evaluations = json.loads((run / "evaluations.json").read_text())
        return next((dict(evaluation) for evaluation in evaluations if evaluation["step"] == step), None)
    except (OSError, ValueError, TypeError, KeyError):
        return None


def _part_sets(agent: Agent) -> Iterator[list[str]]:
    """Sets of the agent's modules, smallest first."""
    acting = ["actor_encoder", "policy", "improvement"] + ["representation"] * (agent.representation is not None)
    yield acting
    if agent.has_critic:
        yield [*acting, "critic_target", "actor_encoder_target" if agent.shared else "critic_encoder_target"]
    yield [name for name, _ in agent.named_children()]


def _acts_alike(folder: Path, agent: Agent, schema: Schema) -> bool:
    """Whether the artifact answers two observations with the same bits as the agent."""
    session, limiter = artifact.load_policy(folder).session(), schema.limits and Limiter(schema.limits)
    random, actor, frames = np.random.default_rng(0), actor_of(agent), FrameStack(schema.frame_stack)
    for step in range(2):
        observation = {name: random.integers(0, 256, shape, np.uint8) for name, shape in schema.cameras.items()}
        observation |= {name: random.normal(size=width).astype(np.float32) for name, width in schema.states.items()}
        frames.push({name: array[None] for name, array in observation.items()})
        made = actor(frames.tensors(), EpisodeNoise(0, [0], [step], torch.device("cpu"))).detach().numpy()
        action = schema.in_units(made)
        try:
            if not np.array_equal(session.act(observation), (limiter(action) if limiter else action)[0]):
                return False
        except AttributeError:  # acting needs a module that was left out
            return False
    return True


def _check_output(out: Path, overwrite: bool) -> None:
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    if not ((out / artifact.MANIFEST).is_file() and (out / artifact.MADE_OF).is_file()):
        raise GtpVisionError(f"{out} is not a policy artifact and is not replaced; choose another folder")
    if not overwrite:
        raise GtpVisionError(f"{out} is an artifact already; give --overwrite to replace it, or choose another folder")


def _replace(aside: Path, out: Path) -> None:
    for path in aside.iterdir():
        with path.open("rb") as file:
            os.fsync(file.fileno())
    old = aside.with_suffix(".old")
    shutil.rmtree(old, ignore_errors=True)
    if out.exists():
        os.replace(out, old)
    os.replace(aside, out)
    shutil.rmtree(old, ignore_errors=True)
