"""`gtp-vision experiment steps`: what K is worth, for a trained run."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from gtp_vision.datasets.files import written_aside
from gtp_vision.datasets.formats import open_store
from gtp_vision.datasets.random import RandomStream
from gtp_vision.datasets.sampler import Sampler
from gtp_vision.datasets.validation import validate
from gtp_vision.errors import GtpVisionError
from gtp_vision.experiments.measures import STEPS
from gtp_vision.training.trainer import evaluate_run, restore

_BATCHES, _BATCH, _TIMED = 16, 256, 30


@torch.no_grad()
def sweep(
    folder: Path,
    *,
    data: Path | None = None,
    episodes: int = 0,
    steps: tuple[int, ...] = STEPS,
    which: str = "last",
    progress: bool = True,
) -> dict[str, Any]:
    """Act with each K on recorded observations, and in the simulator if asked.

    Args:
        folder: of the run; `steps.json` and `steps.png` are written into it.
        data: a file with recordings that the run was not trained on; None uses the run's own.
        episodes: evaluation episodes for each K; 0 for none.
        steps: the K.
        which: checkpoint.
        progress: show a bar.

    Returns:
        By K: `action_error`, the root mean square distance between the policy's and the recorded action over 4096
        observations (their own spread included, so it does not fall to 0); `act_ms`, the median time of an action for
        one observation, encoder included; `success` and its interval, if asked. Beside them `data`, `figure`.

    Raises:
        GtpVisionError: no run or checkpoint, or data of another shape.
    """
    config, parts = restore(folder, which)
    store = parts.store if data is None else validate(open_store(data, config.task.env))
    if store.action_dim != parts.store.action_dim:
        raise GtpVisionError(
            f"{data}: actions have {store.action_dim} dimensions, the run's have {parts.store.action_dim}"
        )
    sampler = Sampler(store, _BATCH, seed=1, frame_stack=config.task.frame_stack)
    agent, device = parts.agent, parts.accelerator.device
    batches = [sampler.batch(i).to(device) for i in range(_BATCHES)]
    one = {name: x[:1] for name, x in batches[0].observation().items()}
    results: dict[int, dict[str, Any]] = {}
    for k in tqdm(steps, "acting", disable=not progress):
        squares = [
            (agent.act(batch.observation(), RandomStream(k, i, device=device), k) - batch.action).square().sum(1)
            for i, batch in enumerate(batches)
        ]
        error = float(torch.cat(squares).mean().sqrt())
        spent = []
        for i in range(_TIMED + 3):
            began = time.perf_counter()
            agent.act(one, RandomStream(0, i, device=device), k).cpu()
            spent.append(1e3 * (time.perf_counter() - began))
        results[k] = {"action_error": error, "act_ms": float(np.median(spent[3:]))}
        if episodes:
            found = evaluate_run(folder, which=which, episodes=episodes, steps=k, progress=progress)
            results[k] |= {key: found[key] for key in ("success", "success_interval")}
    _figure(folder / "steps.png", results)
    told = {"run": str(folder), "data": str(store.path), "steps": results, "figure": str(folder / "steps.png")}
    with written_aside(folder / "steps.json") as aside:
        aside.write_text(json.dumps(told, indent=1))
    return told


def table(told: Mapping[str, Any]) -> str:
    """The results as text."""
    lines = [f"{'K':>3}{'action error':>14}{'act ms':>8}{'success':>9}"]
    for k, found in told["steps"].items():
        success = f"{found['success']:9.0%}" if "success" in found else f"{'':9}"
        lines.append(f"{k:>3}{found['action_error']:14.4f}{found['act_ms']:8.2f}{success}")
    return "\n".join([*lines, f"on {told['data']}", f"figure: {told['figure']}"])


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
    with written_aside(path) as aside:
        figure.savefig(aside, format="png", dpi=110)
