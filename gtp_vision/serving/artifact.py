"""The policy artifact: a folder that is enough to act, of safetensors and JSON without pickles.

    policy.safetensors     the weights that acting needs
    policy.json            settings: schema, agent and encoder
    provenance.json        run, step, data, scores, versions, licences
    reference.safetensors  features and numbers of the training data, if these could be read
    README.md              the model card
    manifest.json          sizes and hashes of the above

Artifacts are untrusted: sizes and shapes are checked before anything is built from them.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

import torch
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from safetensors.torch import load_file, save_file

from gtp_vision import agents
from gtp_vision.agents import Agent, AgentConfig
from gtp_vision.core import manifest
from gtp_vision.core.errors import GtpVisionError, first_line
from gtp_vision.core.manifest import MANIFEST
from gtp_vision.core.names import GOAL
from gtp_vision.core.safe_json import read_json
from gtp_vision.core.settings import numbers
from gtp_vision.core.tied import stored_tensors, with_aliases
from gtp_vision.encoders import Encoder, EncoderConfig, check_encoder, present_names
from gtp_vision.models import without_bounds
from gtp_vision.serving.card import card
from gtp_vision.serving.policy import Policy
from gtp_vision.serving.reactions import OnDoubt
from gtp_vision.serving.reference import MOST_BYTES, REFERENCE, Reference
from gtp_vision.serving.schema import Schema

FORMAT = 3  # of the folder
_FORMATS = (1, 2, FORMAT)  # that are read; 1 numbered the encoder's parts, 2 had no limits
WEIGHTS, MADE_OF, PROVENANCE, CARD = "policy.safetensors", "policy.json", "provenance.json", "README.md"
FILES = [WEIGHTS, MADE_OF, PROVENANCE, REFERENCE, CARD, MANIFEST]
_ACTING = (WEIGHTS, MADE_OF, REFERENCE)  # that decide how it acts
_MOST_JSON = 4 << 20  # bytes
_ADVICE = "copy the whole folder again, or export the run again"
Settings = TypeVar("Settings", AgentConfig, EncoderConfig)
_MOST_COUNT = 100_000  # of any integer setting: untrusted networks must not take forever to build
_SPARE = 256 << 20  # bytes of modules without stored weights, beyond sixteen times the stored ones


def load_policy(folder: str | Path, *, device: str = "cpu", engine: str = "eager") -> Policy:
    """Load the policy of an artifact that `gtp-vision export` wrote; needs neither data set nor simulator.

    `device` and `engine` are as in `Policy`. Raises GtpVisionError: not an artifact, damaged, inconsistent, or of
    another format.
    """
    folder = Path(os.path.expanduser(folder))
    _check_files(folder)
    settings = _json(folder / MADE_OF)
    if settings.get("format") not in _FORMATS:
        raise GtpVisionError(
            f"{folder} is an artifact of format {settings.get('format')!r}, and this version reads up to {FORMAT}; use "
            f"the version that wrote it, or export its run again"
        )
    try:
        schema = Schema.of(settings.get("schema"))
        config = _settings(*agents.read_agent(settings.get("agent")))
        encoder = check_encoder(_settings(EncoderConfig(), settings.get("encoder")))
        agents.check_agent(config)
        parts = settings.get("parts")
        if not isinstance(parts, list) or not all(isinstance(name, str) for name in parts):
            raise GtpVisionError(f"{MADE_OF} does not list the agent's modules ('parts'); export it again")
        agent = _load_agent(folder / WEIGHTS, schema, config, encoder, parts, bf16=settings.get("bf16") is True)
        reference = _reference(folder, schema, agent) if settings.get("reference") is True else None
    except GtpVisionError as error:
        raise GtpVisionError(f"{folder}: {error}") from error
    try:
        torch.zeros(1).to(device).tolist()  # "meta" computes nothing
        agent.to(device)
    except (RuntimeError, AssertionError) as error:
        raise GtpVisionError(f"device={device} is not available ({first_line(error)}); try cpu") from error
    try:
        return Policy(agent, schema, _json(folder / PROVENANCE), engine, reference, OnDoubt.of(settings.get("doubt")))
    except GtpVisionError as error:
        raise GtpVisionError(f"{folder}: {error}") from error


def write(
    folder: Path,
    agent: Agent,
    schema: Schema,
    provenance: Mapping[str, Any],
    parts: Sequence[str],
    reference: Reference | None = None,
    on_doubt: OnDoubt | None = None,
) -> None:
    """Write an artifact's files into a folder, with the weights of the agent's modules `parts`."""
    tensors = {part: stored_tensors(agent.get_submodule(part)) for part in parts}
    save_file({f"{part}.{name}": x for part, of in tensors.items() for name, x in of.items()}, folder / WEIGHTS)
    settings = {
        "format": FORMAT,
        "schema": schema.record(),
        "agent": asdict(agents.acting_in(agent.config, schema.steps)),
        "encoder": asdict(agent.actor_encoder.config) | {"weights": None},  # they are in the artifact
        "parts": list(parts),
        "bf16": agent.actor_encoder.bf16,
        "reference": reference is not None,
        "doubt": None if on_doubt is None else asdict(on_doubt),
    }
    if reference is not None:
        reference.write(folder / REFERENCE)
    (folder / MADE_OF).write_text(json.dumps(settings, indent=1))
    (folder / PROVENANCE).write_text(json.dumps(provenance, indent=1))
    (folder / CARD).write_text(card(schema, provenance))
    manifest.write_manifest(folder)


def identity(folder: Path) -> str:
    """A hash of the files that decide how an artifact acts, by its manifest."""
    listed = read_json(folder / MANIFEST, limit=_MOST_JSON, advice=_ADVICE)
    found = {name: listed[name]["sha256"] for name in _ACTING if name in listed}
    return hashlib.sha256(json.dumps(found, sort_keys=True).encode()).hexdigest()


def trimmed(agent: Agent, parts: list[str]) -> Agent:
    """Remove the agent's modules that are not among `parts`."""
    for name, _ in list(agent.named_children()):
        if name not in parts:
            delattr(agent, name)
    return agent


def _load_agent(
    path: Path, schema: Schema, config: AgentConfig, encoder: EncoderConfig, parts: list[str], *, bf16: bool
) -> Agent:
    """Build the agent and load its weights, after checking the size of both."""
    shapes = schema.shapes()
    with torch.device("meta"):  # takes no memory
        plan = _built(shapes, schema.actions, config, encoder)
    tensors, sizes = plan.state_dict(), manifest.tensor_shapes(path)
    present = present_names(plan, sizes)
    found = with_aliases({present[name]: size for name, size in sizes.items()}, plan)
    stored = {name: shape for name, (shape, _) in found.items()}
    names = {name for name in tensors if name.partition(".")[0] in parts} - without_bounds(tensors, stored)
    expected = {name: tuple(tensors[name].shape) for name in names}
    if differing := sorted(expected.items() ^ stored.items()):
        raise GtpVisionError(
            f"{WEIGHTS} does not hold the agent that {MADE_OF} describes: '{differing[0][0]}' differs; export it again"
        )
    whole = sum(x.numel() * x.element_size() for x in [*tensors.values(), *plan.buffers()])
    if whole > _SPARE + 16 * path.stat().st_size:
        raise GtpVisionError(
            f"{MADE_OF} describes networks of {whole >> 20} MB for the weights of {WEIGHTS}; export it again"
        )
    agent = _built(shapes, schema.actions, config, encoder)
    weights = {present[name]: tensor for name, tensor in load_file(path).items()}
    agent.load_state_dict(with_aliases(weights, agent), strict=False)
    for module in agent.modules():
        if isinstance(module, Encoder):
            module.use_bf16(bf16)
    return trimmed(agent, parts).eval().requires_grad_(False)


def _built(shapes: Mapping[str, tuple[int, ...]], actions: int, config: AgentConfig, encoder: EncoderConfig) -> Agent:
    return agents.create(shapes, actions, config, encoder, pretrained=False)


def _reference(folder: Path, schema: Schema, agent: Agent) -> Reference:
    """Read what the artifact knows of its data, after checking its size."""
    path, encoder = folder / REFERENCE, agent.actor_encoder
    if fault := manifest.problem(folder, [REFERENCE]):
        raise GtpVisionError(f"{fault}; {_ADVICE}")
    if path.stat().st_size > MOST_BYTES:
        raise GtpVisionError(f"{REFERENCE} has more than {MOST_BYTES >> 20} MB; export it again")
    features = {name: encoder.tower(name).width for name in schema.cameras if not name.startswith(GOAL)}
    states = {name: width for name, width in schema.states.items() if not name.startswith(GOAL)}
    return Reference.read(path, features, states, schema.actions)


def _settings(defaults: Settings, stored: Any) -> Settings:
    """Read a dataclass of settings from untrusted JSON: known names, right types, numbers within limits."""
    try:
        found = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(defaults), OmegaConf.create(stored)))
    except (OmegaConfBaseException, ValueError, TypeError, AttributeError) as error:
        raise GtpVisionError(
            f"{MADE_OF} holds no {type(defaults).__name__} of this version ({first_line(error)})"
        ) from error
    assert isinstance(found, type(defaults))
    for name, value in numbers(found):
        if isinstance(value, int) and abs(value) > _MOST_COUNT:
            raise GtpVisionError(f"{MADE_OF} has {name}={value}, which is above {_MOST_COUNT}")
    return found


def _check_files(folder: Path) -> None:
    """Refuse a folder that is not an artifact, and one whose files are not those that were written."""
    if not (folder / MANIFEST).is_file():
        raise GtpVisionError(
            f"{folder} is not a policy artifact (no {MANIFEST} in it); make one with: gtp-vision export RUN {folder}"
        )
    if fault := manifest.problem(folder, (WEIGHTS, MADE_OF, PROVENANCE)):
        raise GtpVisionError(f"{fault}; {_ADVICE}")


def _json(path: Path) -> dict[str, Any]:
    return read_json(path, limit=_MOST_JSON, advice=_ADVICE)
