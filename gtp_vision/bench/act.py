"""The cost of an action: PyTorch eager, compiled, exported and ONNX Runtime on one artifact, on one thread."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

from gtp_vision.agents.fast import FastPolicy
from gtp_vision.core.random import EpisodeNoise
from gtp_vision.core.timing import Work, median_ms
from gtp_vision.serving import graphs
from gtp_vision.serving.artifact import load_policy

_COMPARED = 5  # noises with which the engines' actions are compared


def bench_act(folder: Path, *, steps: int = 2, rounds: int = 200) -> dict[str, Any]:
    """Milliseconds of a plan for one observation, medians over interleaved rounds.

    Returns:
        JSON-able: `ms` and `against_eager` by engine, and `difference`, the largest between a graph and eager PyTorch.

    Raises:
        GtpVisionError: no artifact, a K that does not fit, or ONNX is missing or cannot hold the policy.
    """
    policy = load_policy(folder)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with tempfile.TemporaryDirectory() as scratch:
            graph = graphs.Graph(graphs.write(policy, Path(scratch), steps))
        sampler, program = graphs.sampler_of(policy, steps), graphs.program(policy, steps).module()
        fast = FastPolicy(policy.agent, engine="compile")
        rng = np.random.default_rng(0)
        stacks = {
            name: rng.integers(0, 256, (1, *shape), np.uint8)
            if len(shape) == 4
            else rng.normal(size=(1, *shape)).astype(np.float32)
            for name, shape in policy.schema.shapes().items()
        }
        tensors = {name: torch.from_numpy(stack) for name, stack in stacks.items()}
        noises = [
            {name: rng.normal(size=shape).astype(np.float32) for name, shape in graph.noise.items()}
            for _ in range(_COMPARED)
        ]

        def torch_plan(plan: torch.nn.Module, noise: dict[str, np.ndarray]) -> np.ndarray:
            with torch.no_grad():
                return plan(*tensors.values(), *map(torch.from_numpy, noise.values())).numpy()

        def episode_noise() -> EpisodeNoise:
            return EpisodeNoise(0, [0], [0], policy.device)

        works = {
            "eager": Work(lambda _: policy.agent.plan(tensors, episode_noise(), steps)),
            "compile": Work(lambda _: fast.plan(tensors, episode_noise(), steps)),
            "export": Work(lambda _: torch_plan(program, noises[0])),
            "onnx": Work(lambda _: graph.plan(stacks, noises[0])),
        }
        if fast.engine == "eager":  # no compiler
            del works["compile"]
        ms = median_ms(works, rounds)
        difference = 0.0
        for noise in noises:
            eager = torch_plan(sampler, noise)
            for actions in (graph.plan(stacks, noise), torch_plan(program, noise)):
                difference = max(difference, float(np.abs(actions - eager).max()))
    finally:
        torch.set_num_threads(threads)
    return {
        "agent": policy.schema.agent,
        "steps": steps,
        "rounds": rounds,
        "ms": ms,
        "against_eager": {name: value / ms["eager"] for name, value in ms.items()},
        "difference": difference,
    }
