"""The K-step sampler as a graph, of ONNX or of torch.export: frames, states and noise in, bounded actions out.

It holds all of acting but what has a memory: who runs it stacks frames, draws normal noise, and executes chunks.
"""

from __future__ import annotations

import importlib.util
import io
import json
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from gtp_vision.agents import Agent
from gtp_vision.core.compile import first_words
from gtp_vision.core.errors import GtpVisionError
from gtp_vision.core.random import Draw, NoiseRecorder, NoiseTape, RandomStream
from gtp_vision.serving.policy import Policy
from gtp_vision.serving.schema import Schema

NAME, PROGRAM = "policy.onnx", "policy.pt2"


class Sampler(nn.Module):
    """An agent's plan as a function of tensors alone.

    Args:
        agent: who plans.
        schema: of its policy.
        steps: K.

    Attributes:
        observations: names, in the order of the arguments.
        draws: the noise that is handed in after them.
    """

    low: torch.Tensor
    high: torch.Tensor

    def __init__(self, agent: Agent, schema: Schema, steps: int) -> None:
        super().__init__()
        self.agent, self.steps = agent, steps
        self.shapes = schema.shapes()
        self.observations = list(self.shapes)
        self.register_buffer("low", torch.tensor(schema.action_low))
        self.register_buffer("high", torch.tensor(schema.action_high))
        recorder = NoiseRecorder(RandomStream(0, 0))
        agent.plan(self.example()[0], recorder, steps)
        self.draws: tuple[Draw, ...] = tuple(recorder.draws)

    def example(self) -> tuple[dict[str, torch.Tensor], list[torch.Tensor]]:
        """Observations of one row, and noise once it is known."""
        zeros = {
            name: torch.zeros((1, *shape), dtype=torch.uint8 if len(shape) == 4 else torch.float32)
            for name, shape in self.shapes.items()
        }
        drawn = NoiseTape.draw(self.draws, RandomStream(0, 0)) if hasattr(self, "draws") else []
        return zeros, list(drawn)

    def forward(self, *given: torch.Tensor) -> torch.Tensor:
        """Stacked observations (1, T, ...) and noise to actions (H, A)."""
        count = len(self.observations)
        observation = dict(zip(self.observations, given[:count], strict=True))
        plan = self.agent.plan(observation, NoiseTape(self.draws, list(given[count:])), self.steps)[0]
        scaled = self.low + (plan + 1) / 2 * (self.high - self.low)
        return torch.minimum(torch.maximum(scaled, self.low), self.high)


def sampler_of(policy: Policy, steps: int | None = None) -> Sampler:
    """The policy's sampler in K = `steps`; None is the policy's own.

    Raises:
        GtpVisionError: a K that does not fit, or a policy that draws other numbers than normal ones.
    """
    policy.check_steps(steps)
    sampler = Sampler(policy.agent, policy.schema, steps or policy.schema.steps).eval()
    if other := sorted({draw.kind for draw in sampler.draws} - {"normal"}):
        raise GtpVisionError(
            f"this policy draws {' and '.join(other)} numbers when it acts, and a graph is handed normal ones alone; "
            f"act by load_policy"
        )
    return sampler


def write(policy: Policy, folder: Path, steps: int | None = None) -> Path:
    """Write the policy's sampler as `policy.onnx`, with its schema among the metadata.

    Args:
        policy: on the CPU.
        folder: where to.
        steps: K; None is the policy's own.

    Raises:
        GtpVisionError: the packages are missing, or the policy does what ONNX has no words for.
    """
    if missing := [name for name in ("onnx", "onnxscript") if importlib.util.find_spec(name) is None]:
        raise GtpVisionError(f"{missing[0]} is not installed; pip install 'gtp-vision[onnx]'")
    sampler = sampler_of(policy, steps)
    inputs, path = _inputs(sampler), folder / NAME
    try:
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            program = torch.onnx.export(
                sampler,
                tuple(inputs.values()),
                dynamo=True,
                input_names=list(inputs),
                output_names=["actions"],
                verbose=False,
            )
        assert program is not None
        program.model.metadata_props["schema"] = json.dumps(policy.schema.record())
        program.model.metadata_props["steps"] = str(sampler.steps)
        program.save(str(path), external_data=False)
    except Exception as error:  # whatever an exporter may raise
        path.unlink(missing_ok=True)
        raise GtpVisionError(
            f"this policy cannot be written as ONNX: {first_words(error)}; act by load_policy"
        ) from error
    return path


def program(policy: Policy, steps: int | None = None) -> torch.export.ExportedProgram:
    """The policy's sampler by torch.export: the arguments are those of the ONNX graph, in its order.

    Raises:
        GtpVisionError: see `sampler_of`; or what torch.export cannot trace.
    """
    return _traced(sampler_of(policy, steps))


def write_program(policy: Policy, folder: Path, steps: int | None = None) -> Path:
    """Write the policy's sampler as `policy.pt2`, which `torch.export.load` reads and which holds no pickle.

    Its extra files are JSON: `schema`, `steps`, and `inputs`, the arguments' shapes by name, in order.

    Args:
        policy: on the CPU.
        folder: where to.
        steps: K; None is the policy's own.

    Raises:
        GtpVisionError: see `program`.
    """
    sampler = sampler_of(policy, steps)
    exported = _traced(sampler)
    exported.example_inputs = None  # all that would be pickled
    shapes = {name: list(tensor.shape) for name, tensor in _inputs(sampler).items()}
    told = {"schema": policy.schema.record(), "steps": sampler.steps, "inputs": shapes}
    file, path = io.BytesIO(), folder / PROGRAM
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # weights that are views of others are stored whole
        torch.export.save(exported, file, extra_files={name: json.dumps(value) for name, value in told.items()})
    path.write_bytes(file.getvalue())  # a full disk is an OSError here, which torch's own writer does not raise
    return path


def _traced(sampler: Sampler) -> torch.export.ExportedProgram:
    try:
        with torch.no_grad():
            return torch.export.export(sampler, tuple(_inputs(sampler).values()))
    except Exception as error:  # whatever an exporter may raise
        raise GtpVisionError(
            f"this policy cannot be traced by torch.export: {first_words(error)}; act by load_policy"
        ) from error


def _inputs(sampler: Sampler) -> dict[str, torch.Tensor]:
    """Examples of a graph's arguments by their names, in order."""
    observations, noise = sampler.example()
    return observations | {f"noise_{index}": numbers for index, numbers in enumerate(noise)}


class Graph:
    """`policy.onnx` under ONNX Runtime.

    Args:
        path: of the graph.
        threads: of ONNX Runtime.

    Attributes:
        schema: what it is shown and answers.
        steps: K.

    Raises:
        GtpVisionError: ONNX Runtime is missing, or the file is no such graph.
    """

    def __init__(self, path: Path, threads: int = 1) -> None:
        if importlib.util.find_spec("onnxruntime") is None:
            raise GtpVisionError("onnxruntime is not installed; pip install 'gtp-vision[onnx]'")
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 3
        try:
            self._session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
            told = self._session.get_modelmeta().custom_metadata_map
            self.schema, self.steps = Schema.of(json.loads(told["schema"])), int(told["steps"])
        except Exception as error:  # ONNX Runtime has errors of its own
            raise GtpVisionError(f"{path} is no graph of a policy ({first_words(error)}); export it again") from error
        shapes = self.schema.shapes()
        self.noise = {one.name: tuple(one.shape) for one in self._session.get_inputs() if one.name not in shapes}

    def plan(self, stacks: Mapping[str, np.ndarray], noise: Mapping[str, np.ndarray]) -> np.ndarray:
        """Actions float32 (H, A), in the robot's units.

        Args:
            stacks: of each observation the last T: frames uint8 (1, T, C, H, W), states float32 (1, T, D).
            noise: standard normal numbers, float32, by the names and shapes in `noise`.
        """
        given: dict[str, Any] = {**stacks, **noise}
        return np.asarray(self._session.run(["actions"], given)[0])
