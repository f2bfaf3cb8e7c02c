"""The K-step sampler as a graph of ONNX or torch.export: frames, states and noise in, bounded actions out.

The graph has no memory: its user stacks frames, draws normal noise, and executes action chunks. Of the policy's limits
it holds those of the position; `limits.Limiter` applies all of them to the actions as they are executed.
"""

from __future__ import annotations

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
from gtp_vision.core.errors import GtpVisionError, first_line
from gtp_vision.core.extras import importing, require
from gtp_vision.core.random import Draw, NoiseRecorder, NoiseTape, RandomStream
from gtp_vision.serving.policy import Policy
from gtp_vision.serving.schema import Schema

NAME, PROGRAM = "policy.onnx", "policy.pt2"


class Sampler(nn.Module):
    """An agent's plan in K steps as a function of tensors only: observations of one row, then the noise of `draws`.

    `inputs` are examples of the arguments by name, in order.
    """

    low: torch.Tensor
    high: torch.Tensor
    least: torch.Tensor
    most: torch.Tensor

    def __init__(self, agent: Agent, schema: Schema, steps: int) -> None:
        super().__init__()
        self.agent, self.steps = agent, steps
        self.register_buffer("low", torch.tensor(schema.action_low))
        self.register_buffer("high", torch.tensor(schema.action_high))
        self.register_buffer("least", torch.tensor(schema.limits.low if schema.limits else schema.action_low))
        self.register_buffer("most", torch.tensor(schema.limits.high if schema.limits else schema.action_high))
        shapes = schema.shapes()
        self.observations = list(shapes)
        self.inputs = {
            name: torch.zeros((1, *shape), dtype=torch.uint8 if len(shape) == 4 else torch.float32)
            for name, shape in shapes.items()
        }
        recorder = NoiseRecorder(RandomStream(0, 0))
        agent.plan(self.inputs, recorder, steps)
        self.draws: tuple[Draw, ...] = tuple(recorder.draws)
        noise = NoiseTape.draw(self.draws, RandomStream(0, 0))
        self.inputs |= {f"noise_{index}": numbers for index, numbers in enumerate(noise)}

    def forward(self, *inputs: torch.Tensor) -> torch.Tensor:
        """Stacked observations (1, T, ...) and noise to actions (H, A)."""
        count = len(self.observations)
        observation = dict(zip(self.observations, inputs[:count], strict=True))
        plan = self.agent.plan(observation, NoiseTape(self.draws, list(inputs[count:])), self.steps)[0]
        scaled = self.low + (plan + 1) / 2 * (self.high - self.low)
        return torch.minimum(torch.maximum(scaled, self.least), self.most)


def sampler_of(policy: Policy, steps: int | None = None) -> Sampler:
    """The policy's sampler in K = `steps`; None is the policy's own.

    Raises:
        GtpVisionError: a K that does not fit, a policy that follows Q's gradient, or numbers drawn that are not normal.
    """
    policy.check_steps(steps)
    if step := policy.agent.config.acting.gradient_step:
        raise GtpVisionError(
            f"this policy acts with agent.acting.gradient_step={step}, and graphs hold no gradients; use load_policy"
        )
    sampler = Sampler(policy.agent, policy.schema, steps or policy.schema.steps).eval()
    if other := sorted({draw.kind for draw in sampler.draws} - {"normal"}):
        raise GtpVisionError(
            f"this policy draws {' and '.join(other)} numbers when it acts, and graphs take normal ones only; use "
            f"load_policy"
        )
    return sampler


def write(policy: Policy, folder: Path, steps: int | None = None) -> Path:
    """Write the policy's sampler in K steps (None: its own) as `policy.onnx`, with its schema among the metadata.

    Raises:
        GtpVisionError: missing packages, or a policy with operations that ONNX lacks.
    """
    require("onnx", "an ONNX graph", "onnx", "onnxscript")
    sampler, path = sampler_of(policy, steps), folder / NAME
    try:
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            program = torch.onnx.export(
                sampler,
                tuple(sampler.inputs.values()),
                dynamo=True,
                input_names=list(sampler.inputs),
                output_names=["actions"],
                verbose=False,
            )
        assert program is not None
        program.model.metadata_props["schema"] = json.dumps(policy.schema.record())
        program.model.metadata_props["steps"] = str(sampler.steps)
        program.save(str(path), external_data=False)
    except Exception as error:  # exporters raise anything
        path.unlink(missing_ok=True)
        raise GtpVisionError(
            f"the policy cannot be written as ONNX ({first_line(error, 2)}); use load_policy"
        ) from error
    return path


def program(policy: Policy, steps: int | None = None) -> torch.export.ExportedProgram:
    """The policy's sampler by torch.export, with the arguments of the ONNX graph, in its order.

    Raises:
        GtpVisionError: see `sampler_of`; or torch.export cannot trace it.
    """
    return _traced(sampler_of(policy, steps))


def write_program(policy: Policy, folder: Path, steps: int | None = None) -> Path:
    """Write the policy's sampler as `policy.pt2`, for `torch.export.load`, without a pickle; errors as `program`.

    Its extra files are JSON: `schema`, `steps`, and `inputs`, the arguments' shapes by name, in order.
    """
    sampler = sampler_of(policy, steps)
    exported = _traced(sampler)
    exported.example_inputs = None  # they would be pickled
    shapes = {name: list(tensor.shape) for name, tensor in sampler.inputs.items()}
    extra = {"schema": policy.schema.record(), "steps": sampler.steps, "inputs": shapes}
    file, path = io.BytesIO(), folder / PROGRAM
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # weights that are views of others are stored whole
        torch.export.save(exported, file, extra_files={name: json.dumps(value) for name, value in extra.items()})
    path.write_bytes(file.getvalue())  # raises OSError on a full disk, which torch's own writer does not
    return path


def _traced(sampler: Sampler) -> torch.export.ExportedProgram:
    try:
        with torch.no_grad():
            return torch.export.export(sampler, tuple(sampler.inputs.values()))
    except Exception as error:  # exporters raise anything
        raise GtpVisionError(
            f"the policy cannot be traced by torch.export ({first_line(error, 2)}); use load_policy"
        ) from error


class Graph:
    """`policy.onnx` in ONNX Runtime with its schema, K, and names and shapes of its noise arguments.

    Raises:
        GtpVisionError: ONNX Runtime is missing, or the file is not such a graph.
    """

    def __init__(self, path: Path, threads: int = 1) -> None:
        with importing("onnx", "running an ONNX graph"):
            import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 3
        try:
            self._session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
            metadata = self._session.get_modelmeta().custom_metadata_map
            self.schema, self.steps = Schema.of(json.loads(metadata["schema"])), int(metadata["steps"])
        except Exception as error:  # ONNX Runtime has its own exceptions
            raise GtpVisionError(f"{path} is not a policy's graph ({first_line(error, 2)}); export it again") from error
        shapes = self.schema.shapes()
        inputs = self._session.get_inputs()
        self.noise = {tensor.name: tuple(tensor.shape) for tensor in inputs if tensor.name not in shapes}

    def plan(self, stacks: Mapping[str, np.ndarray], noise: Mapping[str, np.ndarray]) -> np.ndarray:
        """Actions float32 (H, A), in the robot's units, of the last T of each observation and of noise.

        Frames are uint8 (1, T, C, H, W), states float32 (1, T, D); `noise` is standard normal, float32, with the names
        and shapes of the attribute `noise`.
        """
        inputs: dict[str, Any] = {**stacks, **noise}
        return np.asarray(self._session.run(["actions"], inputs)[0])
