"""`gtp-vision experiment steps`: the quality and the time of a trained policy's actions by K."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import torch

from gtp_vision.agents import Agent
from gtp_vision.agents.fast import FastPolicy
from gtp_vision.core.errors import GtpVisionError
from gtp_vision.core.progress import Progress
from gtp_vision.core.random import RandomStream
from gtp_vision.core.timing import Work, median_ms
from gtp_vision.datasets.batch import Batch
from gtp_vision.datasets.sampler import Sampler
from gtp_vision.evaluation.evaluator import one_thread
from gtp_vision.experiments.measures import STEPS
from gtp_vision.experiments.output import write_figure, write_json
from gtp_vision.training.data import open_for, open_recorded
from gtp_vision.training.evaluate import actor_of, evaluator_of, restore

_BATCHES, _BATCH, _TIMED = 16, 256, 30
_SEED = 0x57E95  # of acting's noise and of the choice of observations


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
    """Act with each K on recorded observations, and optionally in the simulator; write `steps.json` and `steps.png`.

    `data` has recordings that the run was not trained on; None uses the run's own. `episodes` evaluate each K. `steps`
    are the K; None is 1, 2, 3, 5 and 10, or all that a vp_diffusion can. `compiled` also times `FastPolicy`, which
    compiles for seconds for each K.

    Returns:
        By K: `action_error`, the root mean square distance between the policy's and the recorded action over 4096
        observations (their own spread included, so it does not fall to 0); `act_ms`, the median time of an action for
        one observation, encoder included; optionally `act_ms_compiled`, the same of `FastPolicy`, and `success` with
        its interval. On top `data`, `figure` and, with `compiled`, `acting`: a sentence about the compiled engine.

    Raises:
        GtpVisionError: the run or checkpoint is missing, or data have another shape.
    """
    if episodes < 0:
        raise GtpVisionError(f"episodes={episodes} must be at least 0")
    config, parts = restore(folder, which)
    if episodes and config.task.env is None:
        raise GtpVisionError(f"{folder} was trained without a simulator (task.env=null); omit --episodes")
    policy = config.agent.policy
    steps = steps or ((policy.grid,) if policy.family == "vp_diffusion" else STEPS)
    store = open_recorded(config, parts.record) if data is None else open_for(config, data, parts.record)
    if store.action_dim != parts.record.actions:
        raise GtpVisionError(
            f"{data}: actions have {store.action_dim} dimensions, the run's have {parts.record.actions}; give "
            f"recordings of the run's task"
        )
    sampler = Sampler(store, _BATCH, seed=_SEED, frame_stack=config.task.frame_stack)
    agent, device = parts.agent, parts.accelerator.device
    batches = [sampler.batch(i).to(device) for i in range(_BATCHES)]
    fast = FastPolicy(agent) if compiled else None
    with one_thread():  # as in evaluation
        bar = Progress(steps, "acting", disable=not progress)
        results = {k: {"action_error": _action_error(agent, batches, k)} for k in bar}
        actors: dict[str, Agent | FastPolicy] = {"act_ms": agent} | ({"act_ms_compiled": fast} if fast else {})
        for (key, k), ms in _time_acting(actors, batches[0], steps).items():
            results[k][key] = ms
    if episodes:
        with evaluator_of(config, parts, progress) as evaluator:
            for k in steps:
                evaluation, _ = evaluator.run(actor_of(agent, k), episodes, label=f"evaluating K={k}")
                results[k] |= {key: evaluation[key] for key in ("success", "success_interval")}
    _draw(folder / "steps.png", results)
    summary = {"run": str(folder), "data": str(store.path), "steps": results, "figure": str(folder / "steps.png")}
    if fast:
        summary["acting"] = fast.status
    write_json(folder / "steps.json", summary)
    return summary


def _action_error(agent: Agent, batches: Sequence[Batch], k: int) -> float:
    squares = [
        (agent.act(batch.observation, _noise(batch, i), k) - batch.action).square().sum(1)
        for i, batch in enumerate(batches)
    ]
    return float(torch.cat(squares).mean().sqrt())


def _noise(batch: Batch, step: int) -> RandomStream:
    return RandomStream(_SEED, step, device=batch.action.device)


def _time_acting(
    actors: Mapping[str, Agent | FastPolicy], batch: Batch, steps: Sequence[int]
) -> dict[tuple[str, int], float]:
    """The median milliseconds of an action for the first observation, by actor and K."""
    observation = {name: x[:1] for name, x in batch.observation.items()}
    turns = count()

    def act(actor: Agent | FastPolicy, k: int, noise: RandomStream) -> None:
        actor.act(observation, noise, k).cpu()

    works = {
        (name, k): Work(partial(act, actor, k), lambda: _noise(batch, next(turns)))
        for name, actor in actors.items()
        for k in steps
    }
    return median_ms(works, _TIMED)


def table(summary: Mapping[str, Any]) -> str:
    """The results as text."""
    compiled = "acting" in summary
    lines = [f"{'K':>3}{'action error':>14}{'act ms':>8}{'compiled' if compiled else '':>{9 * compiled}}{'success':>9}"]
    for k, row in summary["steps"].items():
        success = f"{row['success']:9.0%}" if "success" in row else f"{'':9}"
        fast = f"{row['act_ms_compiled']:9.2f}" if compiled else ""
        lines.append(f"{k:>3}{row['action_error']:14.4f}{row['act_ms']:8.2f}{fast}{success}")
    return "\n".join(
        [*lines, *([summary["acting"]] if compiled else []), f"on {summary['data']}", f"figure: {summary['figure']}"]
    )


def _draw(path: Path, results: Mapping[int, Mapping[str, Any]]) -> None:
    from matplotlib.figure import Figure

    titles = {"action_error": "action error", "success": "success"}
    shown = {key: title for key, title in titles.items() if key in next(iter(results.values()))}
    figure = Figure(figsize=(4.2 * len(shown), 3.2), layout="constrained")
    for axes, (key, title) in zip(figure.subplots(1, len(shown), squeeze=False)[0], shown.items(), strict=True):
        times, values = [f["act_ms"] for f in results.values()], [f[key] for f in results.values()]
        axes.plot(times, values, "o-", color="#3b6ea8")
        for k, x, y in zip(results, times, values, strict=True):
            axes.annotate(f"K={k}", (x, y), textcoords="offset points", xytext=(4, 4), fontsize=8)
        axes.set(xlabel="milliseconds an action", ylabel=title, ylim=(0, None if key == "action_error" else 1))
        axes.grid(alpha=0.3)
    write_figure(path, figure)
