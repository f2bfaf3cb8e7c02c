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
from gtp_vision.agents.joining import Known
from gtp_vision.agents.settings import RTC
from gtp_vision.config.compose import acting_of
from gtp_vision.core.errors import GtpVisionError
from gtp_vision.core.random import EpisodeNoise
from gtp_vision.core.timing import Work, median_ms
from gtp_vision.evaluation.evaluator import one_thread
from gtp_vision.serving import graphs
from gtp_vision.serving.artifact import load_policy
from gtp_vision.serving.limits import Limiter
from gtp_vision.serving.policy import Policy, Session

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
        JSON-able: `ms` and `against_eager` by engine, of `limits`, which follow it, of `rtc`, an eager plan that
        continues half of another one, and of a whole `session` without `and doubt` and with it; `difference`, the
        largest between a graph and eager PyTorch, or null and in `graphless` why there is no graph; `ways`, by way of
        acting and K the ms of the engines.

    Raises:
        GtpVisionError: no artifact, or a K or acting that does not fit.
    """
    policy = load_policy(folder)
    policy.check_steps(steps)
    rng = np.random.default_rng(0)
    stacks = {
        name: rng.integers(0, 256, (1, *shape), np.uint8)
        if len(shape) == 4
        else rng.normal(size=(1, *shape)).astype(np.float32)
        for name, shape in policy.schema.shapes().items()
    }
    tensors = {name: torch.from_numpy(stack) for name, stack in stacks.items()}

    def plan(actor: Agent | FastPolicy, settings: ActingConfig, _: None, known: Known | None = None) -> None:
        actor.plan(tensors, EpisodeNoise(0, [0], [0], policy.device), acting=settings, known=known)

    own, fast = replace(policy.agent.config.acting, steps=steps), FastPolicy(policy.agent, engine="compile")
    works = {"eager": Work(partial(plan, policy.agent, own))}
    if fast.engine == "compile":
        works["compile"] = Work(partial(plan, fast, own))
    if (continuing := _continuing(policy, own)) is not None:
        works[RTC] = Work(partial(plan, policy.agent, continuing[0], known=continuing[1]))
    ways = {}
    for (way, k), settings in ways_of(policy.agent, acting):
        ways[way, k, "eager"] = Work(partial(plan, policy.agent, settings))
        if compiled and "compile" in works:
            ways[way, k, "compile"] = Work(partial(plan, FastPolicy(policy.agent, engine="compile"), settings))
    if policy.schema.limits is not None:
        limiter, action = Limiter(policy.schema.limits), policy.schema.in_units(np.zeros((1, policy.schema.actions)))
        works["limits"] = Work(lambda _: limiter(action))
    if policy.doubter() is not None:
        seen = {name: rng.integers(0, 256, shape, np.uint8) for name, shape in policy.schema.cameras.items()}
        seen |= {name: rng.normal(size=width).astype(np.float32) for name, width in policy.schema.states.items()}
        silent = Policy(policy.agent, policy.schema, policy.card)
        for name, session in (("session", silent.session()), ("and doubt", policy.session())):
            works[name] = Work(partial(_act, session, seen, steps))
    difference, graphless = None, ""
    with one_thread():
        try:
            graph_works, difference = _graphs(policy, steps, stacks, rng)
            works |= graph_works
        except GtpVisionError as error:  # what it needs is not installed, or the policy does not fit
            graphless = str(error)
        ms = median_ms(works, rounds)
        by_way: dict[str, dict[str, dict[str, float]]] = {}
        for (way, k, engine), value in median_ms(ways, rounds).items():
            by_way.setdefault(way, {}).setdefault(str(k), {})[engine] = value
    return {
        "agent": policy.schema.agent,
        "steps": steps,
        "rounds": rounds,
        "ms": ms,
        "against_eager": {name: value / ms["eager"] for name, value in ms.items()},
        "difference": difference,
        "graphless": graphless,
        "ways": by_way,
    }


def _act(session: Session, seen: Mapping[str, np.ndarray], steps: int, _: None) -> None:
    session.act(seen, steps=steps)


def _continuing(policy: Policy, acting: ActingConfig) -> tuple[ActingConfig, Known] | None:
    """How the policy plans by real-time chunking, and half a plan that is continued; None if it cannot."""
    acting = replace(acting, join=RTC, execute=None, ensemble=None, delay=0)
    try:
        check_agent(replace(policy.agent.config, acting=acting))
    except GtpVisionError:
        return None
    rest = torch.zeros((1, policy.schema.chunk // 2, policy.schema.actions), device=policy.device)
    return acting, Known.of(rest, 0, policy.schema.chunk)


def _graphs(
    policy: Policy, steps: int, stacks: Mapping[str, np.ndarray], rng: np.random.Generator
) -> tuple[dict[str, Work], float]:
    """The work of an action of each graph, and their largest difference from eager PyTorch."""
    with tempfile.TemporaryDirectory() as scratch:
        graph = graphs.Graph(graphs.write(policy, Path(scratch), steps))
    sampler, program = graphs.sampler_of(policy, steps), graphs.program(policy, steps).module()
    noises = [
        {name: rng.normal(size=shape).astype(np.float32) for name, shape in graph.noise.items()}
        for _ in range(_COMPARED)
    ]

    def torch_plan(plan: torch.nn.Module, noise: dict[str, np.ndarray]) -> np.ndarray:
        with torch.no_grad():
            return plan(*map(torch.from_numpy, [*stacks.values(), *noise.values()])).numpy()

    difference = 0.0
    for noise in noises:
        eager = torch_plan(sampler, noise)
        for actions in (graph.plan(stacks, noise), torch_plan(program, noise)):
            difference = max(difference, float(np.abs(actions - eager).max()))
    return {
        "export": Work(lambda _: torch_plan(program, noises[0])),
        "onnx": Work(lambda _: graph.plan(stacks, noises[0])),
    }, difference


def ways_of(agent: Agent, overrides: Sequence[str]) -> Iterator[tuple[tuple[str, int], ActingConfig]]:
    """Names, K and settings of the ways in which an artifact can act; without a critic there is only one."""
    config = agent.config
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
            if hasattr(agent, "critic_target") or not acting.needs_critic:
                yield (name, k), acting


def table(results: Mapping[str, Any]) -> str:
    """The results as text."""
    lines = [
        f"{results['agent']}, K = {results['steps']}, one observation, one thread, "
        f"medians of {results['rounds']} rounds",
        *(
            f"  {name:<9} {ms:8.3f} ms   {results['against_eager'][name]:.2f} of eager"
            for name, ms in results["ms"].items()
        ),
        f"  {results['graphless'] or 'the graphs and PyTorch differ by {:.1e} at most'.format(results['difference'])}",
        f"{'ms by K':<28}" + "".join(f"{k:>9}" for k in _STEPS),
    ]
    for way, by_steps in results["ways"].items():
        for engine in next(iter(by_steps.values())):
            cells = [f"{by_steps[str(k)][engine]:9.3f}" if str(k) in by_steps else f"{'-':>9}" for k in _STEPS]
            lines.append(f"  {way:<18} {engine:<7}" + "".join(cells))
    if len(results["ways"]) == 1:
        lines.append("  it holds no critic; export it with acting=beam to time the search")
    return "\n".join(lines)
