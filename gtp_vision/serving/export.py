"""From a run to the artifact: what acting needs is found out, written, and tried before it counts.

`gtp-vision export RUN DIR`
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch

from gtp_vision import agents
from gtp_vision.agents import Agent
from gtp_vision.config.schema import Config
from gtp_vision.core.errors import GtpVisionError
from gtp_vision.core.manifest import write_manifest
from gtp_vision.core.random import EpisodeNoise
from gtp_vision.datasets.store import ACTION_BOUNDS, Store
from gtp_vision.serving import artifact, graphs
from gtp_vision.serving.policy import Policy
from gtp_vision.serving.schema import Schema
from gtp_vision.training.build import shapes
from gtp_vision.training.evaluate import actor_of, restore

LICENCES = ("weights", "data", "backbone")


def export(
    run: Path,
    out: Path,
    *,
    which: str = "last",
    steps: int | None = None,
    licences: Mapping[str, str] | None = None,
    onnx: bool = False,
    pt2: bool = False,
    overwrite: bool = False,
) -> Policy:
    """Write the artifact of a run's checkpoint, and return it as it is loaded.

    The smallest set of the agent's parts is stored with which it acts exactly as it did; that is tried, not assumed.

    Args:
        run: the run folder; its data set must be there.
        out: the folder to be.
        which: `last`, `best` or `step_N`.
        steps: K unless asked otherwise when acting; None is the agent's.
        licences: of `LICENCES`, as SPDX names; unknown where they are left out.
        onnx: write the sampler as a graph of ONNX, too, see `graphs`.
        pt2: write it as a program of torch.export, too.
        overwrite: replace the artifact that stands at `out`.

    Raises:
        GtpVisionError: no run, no such checkpoint, a K that does not fit, something else stands at `out`, or it cannot
            be written.
    """
    _refuse_occupied(out, overwrite)
    config, parts = restore(run, which)
    agent = parts.agent.cpu()
    if steps is not None:
        if steps < 1:
            raise GtpVisionError(f"steps={steps} must be at least 1")
        agent.config.acting.steps = steps
        agents.check_agent(agent.config, steps_key="--steps")
    schema = schema_of(config, agent, parts.store)
    checkpoint = (run / "checkpoints" / which).resolve().name
    told = provenance(run, config, parts.store, int(checkpoint.removeprefix("step_")), licences or {})
    aside = out.absolute().with_name(f".{out.name}.{os.getpid()}.part")
    try:
        for kept in _sets(agent):
            shutil.rmtree(aside, ignore_errors=True)
            aside.mkdir(parents=True)
            artifact.write(aside, agent, schema, told, kept)
            if _acts_alike(aside, agent, schema):
                break
        else:
            raise AssertionError("an agent with all its parts acts as another one")
        for wanted, write in ((onnx, graphs.write), (pt2, graphs.write_program)):
            if wanted:
                write(artifact.load_policy(aside), aside)
                write_manifest(aside)
        _replace(aside, out)
    except OSError as error:
        raise GtpVisionError(f"{out} cannot be written ({error}); make room or choose another folder") from error
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return artifact.load_policy(out)


def schema_of(config: Config, agent: Agent, store: Store) -> Schema:
    """What the agent of a run is shown and answers, in the units of its data set."""
    seen = shapes(store, 1, goals=config.task.goals is not None)
    low, high = (store.attributes.get(bound) for bound in ACTION_BOUNDS)
    acting = agent.config.acting
    return Schema(
        cameras={name: (shape[2], shape[3], shape[1]) for name, shape in seen.items() if len(shape) == 4},
        states={name: shape[1] for name, shape in seen.items() if len(shape) == 2},
        frame_stack=config.task.frame_stack,
        action_low=tuple(map(float, low)) if low is not None else (-1.0,) * agent.actions,
        action_high=tuple(map(float, high)) if high is not None else (1.0,) * agent.actions,
        chunk=agent.config.action_chunk,
        steps=acting.steps,
        candidates=acting.candidates,
        agent=agents.label(agent.config),
        task=config.task.name,
    )


def provenance(run: Path, config: Config, store: Store, step: int, licences: Mapping[str, str]) -> dict[str, Any]:
    """Where a policy comes from: run, data, scores, versions, licences."""
    data: dict[str, Any] = {"episodes": store.episodes, "frames": len(store)}
    if store.path is not None:
        data["name"] = store.path.name
        if store.path.is_file():
            with store.path.open("rb") as file:
                data |= {"bytes": store.path.stat().st_size, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}
    if source := store.attributes.get("source"):
        data["source"] = str(source)
    return {
        "run": "/".join(run.resolve().parts[-2:]),
        "step": step,
        "seed": config.seed,
        "environment": config.task.env,
        "data": data,
        "encoder": config.encoder.name,
        "evaluation": _evaluation(run, step),
        "versions": {name: version(name) for name in ("gtp-vision", "torch")},
        "licences": {name: licences.get(name, "unknown") for name in LICENCES},
    }


def _evaluation(run: Path, step: int) -> dict[str, Any] | None:
    try:
        found = json.loads((run / "evaluations.json").read_text())
        return next((dict(one) for one in found if one["step"] == step), None)
    except (OSError, ValueError, TypeError, KeyError):
        return None


def _sets(agent: Agent) -> Iterator[list[str]]:
    """Sets of an agent's parts, the smallest first."""
    acts = ["actor_encoder", "policy", "improvement"]
    yield acts
    if agent.has_critic:
        yield [*acts, "critic_target", "actor_encoder_target" if agent.shared else "critic_encoder_target"]
    yield [name for name, _ in agent.named_children()]


def _acts_alike(folder: Path, agent: Agent, schema: Schema) -> bool:
    """Whether the artifact answers two observations with the bits that the run's agent does."""
    session = artifact.load_policy(folder).session()
    random, actor = np.random.default_rng(0), actor_of(agent)
    history: dict[str, list[np.ndarray]] = {}
    for step in range(2):
        seen = {name: random.integers(0, 256, shape, np.uint8) for name, shape in schema.cameras.items()}
        seen |= {name: random.normal(size=width).astype(np.float32) for name, width in schema.states.items()}
        for name, array in seen.items():
            goal = name.startswith("goal/") or name not in history
            history[name] = [array] * schema.frame_stack if goal else [*history[name][1:], array]
        stacks = {name: torch.from_numpy(np.stack(frames)[None]) for name, frames in history.items()}
        stacks = {name: x.movedim(-1, 2).contiguous() if x.ndim == 5 else x for name, x in stacks.items()}
        wanted = schema.in_units(actor(stacks, EpisodeNoise(0, [0], [step], torch.device("cpu")))[0].detach().numpy())
        try:
            if not np.array_equal(session.act(seen), wanted):
                return False
        except AttributeError:  # a part that was left out is asked for
            return False
    return True


def _refuse_occupied(out: Path, overwrite: bool) -> None:
    if not out.exists():
        return
    ours = (out / artifact.MANIFEST).is_file() and (out / artifact.MADE_OF).is_file()
    if out.is_dir() and not any(out.iterdir()):
        return
    if not ours:
        raise GtpVisionError(f"{out} holds something else than a policy artifact; choose another folder")
    if not overwrite:
        raise GtpVisionError(
            f"{out} holds an artifact already; give --overwrite to replace it, or choose another folder"
        )


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
