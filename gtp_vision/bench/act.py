"""The cost of an action of an artifact on one thread: by engine, and by the way in which the action is chosen."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from gtp_vision.agents import ActingConfig, Agent, check_agent
from gtp_vision.agents.fast import FastPolicy
from gtp_vision.config.compose import acting_of
from gtp_vision.core.errors import GtpVisionError
from gtp_vision.core.random import EpisodeNoise
from gtp_vision.core.timing import Work, median_ms
from gtp_vision.serving import graphs
from gtp_vision.serving.artifact import load_policy
from gtp_vision.serving.policy import Policy

_COMPARED = 5  # noises with which the engines' actions are compared
_STEPS = (1, 2, 5)  # K of the ways of acting
_GRADIENT_STEP = 0.1  # unless the settings have one; its length does not change the time


def bench_act(
    folder: Path, *, steps: int = 2, rounds: int = 200, acting: Sequence[str] = (), compiled: bool = False
) -> dict[str, Any]:
    """Milliseconds of a plan for one observation, medians over interleaved rounds.

    Args:
        folder: the artifact.
        steps: K of the engines.
        rounds: how many.
        acting: overrides, see `config.compose.acting_of`, of the beam search that is timed: the artifact's own if it
            acts by one, else `acting=beam`.
        compiled: time the ways of acting compiled, too, which takes seconds to compile each.

    Returns:
        JSON-able: `ms` and `against_eager` by engine, and `difference`, the largest between a graph and eager PyTorch;
        `ways`, by way of acting and K the ms of the engines.

    Raises:
        GtpVisionError: no artifact, a K or acting that does not fit, or ONNX is missing or cannot hold the policy.
    """
    policy = load_policy(folder)
    ways = dict(ways_of(policy, acting))
    found: dict[str, dict[str, dict[str, float]]] = {}
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
        actors: dict[str, Agent | FastPolicy] = {"eager": policy.agent} | (
            {"compile": fast} if compiled and fast.engine == "compile" else {}
        )

        def act(actor: Agent | FastPolicy, settings: ActingConfig, _: None) -> None:
            actor.plan(tensors, episode_noise(), acting=settings)

        works_of_ways = {
            (way, k, name): Work(partial(act, actor, settings))
            for (way, k), settings in ways.items()
            for name, actor in actors.items()
        }
        for (way, k, name), value in median_ms(works_of_ways, rounds).items():
            found.setdefault(way, {}).setdefault(str(k), {})[name] = value
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
        "ways": found,
    }


def ways_of(policy: Policy, overrides: Sequence[str]) -> Iterator[tuple[tuple[str, int], ActingConfig]]:
    """Names, K and settings of the ways in which an artifact can act; without a critic there is only one."""
    config = policy.agent.config
    beam = acting_of(config.acting, [*([] if config.acting.rounds else ["acting=beam"]), *overrides])
    best_of = replace(beam, rounds=0, beam=1, gradient_step=0.0)
    equal = beam.candidates + beam.rounds * beam.beam * beam.branch
    ways = {
        "single": replace(best_of, candidates=1),
        f"best of {beam.candidates}": best_of,
        f"best of {equal}": replace(best_of, candidates=equal),
        f"beam, {equal} in all": replace(beam, gradient_step=0.0),
        "and a step along Q": replace(beam, gradient_step=beam.gradient_step or _GRADIENT_STEP),
    }
    for name, way in ways.items():
        for k in _STEPS:
            acting = replace(way, steps=k)
            try:
                check_agent(replace(config, acting=acting))
            except GtpVisionError:
                continue
            if hasattr(policy.agent, "critic_target") or not acting.needs_critic:
                yield (name, k), acting


def table(results: Mapping[str, Any]) -> str:
    """The results as text."""
    lines = [
        f"{results['agent']}, K = {results['steps']}, one observation, one thread, "
        f"medians of {results['rounds']} rounds",
        *(
            f"  {name:<8} {ms:8.3f} ms   {results['against_eager'][name]:.2f} of eager"
            for name, ms in results["ms"].items()
        ),
        f"  the graphs and PyTorch differ by {results['difference']:.1e} at most",
        f"{'ms by K':<28}" + "".join(f"{k:>9}" for k in _STEPS),
    ]
    for way, by_steps in results["ways"].items():
        for engine in next(iter(by_steps.values())):
            cells = [f"{by_steps[str(k)][engine]:9.3f}" if str(k) in by_steps else f"{'-':>9}" for k in _STEPS]
            lines.append(f"  {way:<18} {engine:<7}" + "".join(cells))
    if len(results["ways"]) == 1:
        lines.append("  it holds no critic; export it with acting=beam to time the search")
    return "\n".join(lines)
