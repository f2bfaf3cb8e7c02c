"""What an action costs: PyTorch eager, compiled, exported and ONNX Runtime on one artifact, in turn, a thread each."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch

from gtp_vision.agents.fast import FastPolicy
from gtp_vision.core.random import EpisodeNoise
from gtp_vision.serving import graphs
from gtp_vision.serving.artifact import load_policy

_BEFORE = 3  # calls that are not measured
_TWINS = 5  # observations that are answered by both


def bench_act(folder: Path, *, steps: int = 2, rounds: int = 200) -> dict[str, Any]:
    """Milliseconds of a plan for one observation, medians over interleaved rounds.

    Args:
        folder: the artifact.
        steps: K.
        rounds: plans of each engine.

    Returns:
        JSON-able: `ms` and `against_eager` by engine, and `difference`, the largest between a graph and eager PyTorch.

    Raises:
        GtpVisionError: no artifact, a K that does not fit, or ONNX is missing or cannot hold the policy.
    """
    policy = load_policy(folder)
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with tempfile.TemporaryDirectory() as aside:
            graph = graphs.Graph(graphs.write(policy, Path(aside), steps))
        sampler, program = graphs.sampler_of(policy, steps), graphs.program(policy, steps).module()
        fast = FastPolicy(policy.agent, engine="compile")
        random = np.random.default_rng(0)
        stacks = {
            name: random.integers(0, 256, (1, *shape), np.uint8)
            if len(shape) == 4
            else random.normal(size=(1, *shape)).astype(np.float32)
            for name, shape in policy.schema.shapes().items()
        }
        seen = {name: torch.from_numpy(stack) for name, stack in stacks.items()}
        noises = [
            {name: random.normal(size=shape).astype(np.float32) for name, shape in graph.noise.items()}
            for _ in range(_TWINS)
        ]

        def torch_plan(plan: torch.nn.Module, noise: dict[str, np.ndarray]) -> np.ndarray:
            with torch.no_grad():
                return plan(*seen.values(), *map(torch.from_numpy, noise.values())).numpy()

        def eager() -> object:
            return policy.agent.plan(seen, EpisodeNoise(0, [0], [0], policy.device), steps)

        def compiled() -> object:
            return fast.plan(seen, EpisodeNoise(0, [0], [0], policy.device), steps)

        engines: dict[str, Callable[[], object]] = {"eager": eager, "compile": compiled}
        engines["export"] = lambda: torch_plan(program, noises[0])
        engines["onnx"] = lambda: graph.plan(stacks, noises[0])
        if fast.engine == "eager":  # no compiler
            del engines["compile"]
        spent: dict[str, list[float]] = {name: [] for name in engines}
        for round_ in range(-_BEFORE, rounds):
            for name, plan in engines.items():
                began = time.perf_counter()
                plan()
                if round_ >= 0:
                    spent[name].append(1e3 * (time.perf_counter() - began))
    finally:
        torch.set_num_threads(before)
    ms = {name: median(values) for name, values in spent.items()}
    apart = 0.0
    for noise in noises:
        wanted = torch_plan(sampler, noise)
        for found in (graph.plan(stacks, noise), torch_plan(program, noise)):
            apart = max(apart, float(np.abs(found - wanted).max()))
    return {
        "agent": policy.schema.agent,
        "steps": steps,
        "rounds": rounds,
        "ms": ms,
        "against_eager": {name: value / ms["eager"] for name, value in ms.items()},
        "difference": apart,
    }
