"""`gtp-vision experiment steps`: what K is worth, for a trained run."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from gtp_vision.agents import Agent
from gtp_vision.agents.fast import FastPolicy
from gtp_vision.core.errors import GtpVisionError
from gtp_vision.core.files import atomic_write
from gtp_vision.core.random import RandomStream
from gtp_vision.datasets.batch import Batch
from gtp_vision.datasets.sampler import Sampler
from gtp_vision.evaluation.evaluator import one_thread
from gtp_vision.experiments.measures import STEPS
from gtp_vision.training.data import open_for
from gtp_vision.training.evaluate import actor_of, evaluator_of, restore

_BATCHES, _BATCH, _TIMED = 16, 256, 30
_SEED = 0x57E95  # of acting's noise and of the observations' choice


@torch.no_grad()
def sweep(
    folder: Path,
    *,
    data: Path | None = None,
    episodes: int = 0,
    steps: Sequence[int] | None = None,
    which: str = "last",
    compiled: bool = False,
    progress: bool = True,
) -> dict[str, Any]:
    """Act with each K on recorded observations, and in the simulator if asked.

    Args:
        folder: of the run; `steps.json` and `steps.png` are written into it.
        data: a file with recordings that the run was not trained on; None uses the run's own.
        episodes: evaluation episodes for each K; 0 for none.
        steps: the K; None is 1, 2, 3, 5 and 10, or all that a vp_diffusion can.
        which: checkpoint.
        compiled: time acting with `FastPolicy` too; compiling takes seconds for each K.
        progress: show a bar.

    Returns:
        By K: `action_error`, the root mean square distance between the policy's and the recorded action over 4096
        observations (their own spread included, so it does not fall to 0); `act_ms`, the median time of an action for
        one observation, encoder included; `act_ms_compiled`, the same of `FastPolicy`, and `success` with its interval,
        if asked. Beside them `data`, `figure` and, with `compiled`, `acting`: a sentence on how it was done.

    Raises:
        GtpVisionError: no run or checkpoint, or data of another shape.
    """
    if episodes < 0:
        raise GtpVisionError(f"episodes={episodes} must be at least 0")
    config, parts = restore(folder, which)
    if episodes and config.task.env is None:
        raise GtpVisionError(f"{folder} was trained without a simulator (task.env=null); leave out --episodes")
    policy = config.agent.policy
    steps = steps or ((policy.grid,) if policy.family == "vp_diffusion" else STEPS)
    store = parts.store if data is None else open_for(config.task, data)
    if store.action_dim != parts.store.action_dim:
        raise GtpVisionError(
            f"{data}: actions have {store.action_dim} dimensions, the run's have {parts.store.action_dim}"
        )
    sampler = Sampler(store, _BATCH, seed=_SEED, frame_stack=config.task.frame_stack)
    agent, device = parts.agent, parts.accelerator.device
    batches = [sampler.batch(i).to(device) for i in range(_BATCHES)]
    fast = FastPolicy(agent) if compiled else None
    with one_thread():  # as in evaluation
        results = {k: {"action_error": _error(agent, batches, k)} for k in tqdm(steps, "acting", disable=not progress)}
        for key, timed in _act_ms({"act_ms": agent, "act_ms_compiled": fast}, batches[0], steps).items():
            for k, milliseconds in timed.items():
                results[k][key] = milliseconds
    if episodes:
        with evaluator_of(config, parts, progress) as evaluator:
            for k in steps:
                found, _ = evaluator.run(actor_of(agent, k), episodes, label=f"evaluating K={k}")
                results[k] |= {key: found[key] for key in ("success", "success_interval")}
    _figure(folder / "steps.png", results)
    told = {"run": str(folder), "data": str(store.path), "steps": results, "figure": str(folder / "steps.png")}
    if fast:
        told["acting"] = fast.told
    with atomic_write(folder / "steps.json") as aside:
        aside.write_text(json.dumps(told, indent=1))
    return told


def _error(agent: Agent, batches: Sequence[Batch], k: int) -> float:
    squares = [
        (agent.act(batch.observation, _noise(batch, i), k) - batch.action).square().sum(1)
        for i, batch in enumerate(batches)
    ]
    return float(torch.cat(squares).mean().sqrt())


def _noise(batch: Batch, step: int) -> RandomStream:
    return RandomStream(_SEED, step, device=batch.action.device)


def _act_ms(
    actors: Mapping[str, Agent | FastPolicy | None], batch: Batch, steps: Sequence[int]
) -> dict[str, dict[int, float]]:
    """The median milliseconds of an action for the first observation, by actor and K, each in turn."""
    observation = {name: x[:1] for name, x in batch.observation.items()}
    spent: dict[str, dict[int, list[float]]] = {name: {k: [] for k in steps} for name, actor in actors.items() if actor}
    for turn in range(_TIMED + 3):
        for name, times in spent.items():
            for k in steps:
                noise, actor = _noise(batch, turn), actors[name]
                assert actor is not None
                began = time.perf_counter()
                actor.act(observation, noise, k).cpu()
                if turn >= 3:
                    times[k].append(1e3 * (time.perf_counter() - began))
    return {name: {k: float(np.median(each)) for k, each in times.items()} for name, times in spent.items()}


def table(told: Mapping[str, Any]) -> str:
    """The results as text."""
    compiled = "acting" in told
    lines = [f"{'K':>3}{'action error':>14}{'act ms':>8}{'compiled' if compiled else '':>{9 * compiled}}{'success':>9}"]
    for k, found in told["steps"].items():
        success = f"{found['success']:9.0%}" if "success" in found else f"{'':9}"
        fast = f"{found['act_ms_compiled']:9.2f}" if compiled else ""
        lines.append(f"{k:>3}{found['action_error']:14.4f}{found['act_ms']:8.2f}{fast}{success}")
    return "\n".join(
        [*lines, *([told["acting"]] if compiled else []), f"on {told['data']}", f"figure: {told['figure']}"]
    )


def _figure(path: Path, results: Mapping[int, Mapping[str, Any]]) -> None:
    from matplotlib.figure import Figure

    wanted = {"action_error": "action error", "success": "success"}
    shown = {key: title for key, title in wanted.items() if key in next(iter(results.values()))}
    figure = Figure(figsize=(4.2 * len(shown), 3.2), layout="constrained")
    for axes, (key, title) in zip(figure.subplots(1, len(shown), squeeze=False)[0], shown.items(), strict=True):
        times, values = [f["act_ms"] for f in results.values()], [f[key] for f in results.values()]
        axes.plot(times, values, "o-", color="#3b6ea8")
        for k, x, y in zip(results, times, values, strict=True):
            axes.annotate(f"K={k}", (x, y), textcoords="offset points", xytext=(4, 4), fontsize=8)
        axes.set(xlabel="milliseconds an action", ylabel=title, ylim=(0, None if key == "action_error" else 1))
        axes.grid(alpha=0.3)
    with atomic_write(path) as aside:
        figure.savefig(aside, format="png", dpi=110)
