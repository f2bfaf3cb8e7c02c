"""`gtp-vision experiment bandit`: every agent on a problem whose improved policies are known, for docs/baselines.md.

The answer that an agent should reach follows from its configuration (`theory`):

    behaviour   nothing improves: the shares of the data                                     total variation <= 0.05
    optimum     advantage weighting, alignment, energy guidance: a tilt of these shares      total variation <= 0.1
    mean        one normal distribution: the mean of the weighted data                       distance <= 0.1
    best        Q's gradient, distillation, best of N: the supported mode of most reward     >= 90 %, < 1 % outside
    open        one action that follows Q's gradient: where that leads depends on Q between the modes; not judged

One of the agents also acts in other ways (`bandit_acting`): best of N, beam search, steps along Q's gradient.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from gtp_vision.agents import AgentConfig
from gtp_vision.core.files import make_folder
from gtp_vision.core.random import counter_rng
from gtp_vision.datasets.formats import native
from gtp_vision.datasets.sources import batch_source
from gtp_vision.experiments import bandit_acting
from gtp_vision.experiments.bandit_problem import (
    CONTEXTS,
    MODES,
    REWARDS,
    SHARES,
    SUPPORT,
    best_share,
    demonstrations,
    improved,
    shares_of,
)
from gtp_vision.experiments.bandit_rows import ROWS, run_config
from gtp_vision.experiments.output import write_figure, write_json
from gtp_vision.training.build import build
from gtp_vision.training.eager import Eager
from gtp_vision.training.jobs import run_parallel

STEPS = 4000
LIMITS = {"behaviour": 0.05, "optimum": 0.1, "mean": 0.1, "best": 0.9, "outside": 0.01}
_TRANSITIONS = 30_000
_DRAWN, _CONTEXT = 400, 1  # actions and the context of the figure: there the best mode is the rarest
_SALT = 0xBA2D17


def bandit(
    out: Path, *, seed: int = 0, steps: int = STEPS, labels: Sequence[str] = tuple(ROWS), progress: bool = True
) -> dict[str, Any]:
    """Train the agents and judge their actions; write `bandit.png` and `bandit.json` into a folder.

    Returns:
        JSON-able: `rows`, by label the results of `judge` and the training's `seconds`; `acting`, by way of acting
        those of `bandit_acting.ways_of_acting`; `behaviour` and `rewards`, (C, M); `limits`; `seed`, `train_steps`,
        `seconds`; `figure` and `json`, their paths.

    Raises:
        GtpVisionError: the folder cannot be created.
    """
    began = time.perf_counter()
    make_folder(out)
    data = demonstrations(_TRANSITIONS, counter_rng(seed, _SALT))
    with tempfile.TemporaryDirectory() as folder:
        path = native.write(Path(folder) / "bandit.h5", data)
        jobs = {label: (train_row, {"label": label, "data": path, "steps": steps, "seed": seed}) for label in labels}
        done = run_parallel(jobs, progress=progress)
    behaviour = data.actions[_CONTEXT::CONTEXTS][:_DRAWN]
    panels = {"behaviour": behaviour} | {label: np.array(result["drawn"]) for label, result in done.items()}
    _draw(out / "bandit.png", panels)
    results: dict[str, Any] = {
        "rows": {label: result["row"] for label, result in done.items()},
        "acting": done.get(bandit_acting.LABEL, {}).get("acting", {}),
        "behaviour": SHARES.tolist(),
        "rewards": REWARDS.tolist(),
        "limits": LIMITS,
        "seed": seed,
        "train_steps": steps,
        "seconds": round(time.perf_counter() - began, 1),
    }
    write_json(out / "bandit.json", results)
    return results | {"figure": str(out / "bandit.png"), "json": str(out / "bandit.json")}


def train_row(label: str, data: Path, steps: int, seed: int) -> dict[str, Any]:
    """Train one agent as `gtp-vision train` does, and judge its actions.

    The training takes the row's share of `steps`.

    Returns:
        `row`, see `judge`, with the training's `steps` and `seconds`; `drawn`, actions in one context, for the figure;
        `acting`, of the agent that acts in several ways.
    """
    config = run_config(label, data, steps, seed)
    began = time.perf_counter()
    parts = build(config)
    engine = Eager(batch_source(parts.sampler, parts.accelerator.device), config, parts)
    for step in range(config.training.steps):
        engine.step(step, engine.source.fetch(step))
    seconds = round(time.perf_counter() - began, 1)
    actions = bandit_acting.evaluation_actions(parts.agent, seed)
    return {
        "row": judge(config.agent, actions) | {"steps": config.training.steps, "seconds": seconds},
        "drawn": actions[_CONTEXT, :_DRAWN].tolist(),
        "acting": bandit_acting.ways_of_acting(parts.agent, seed) if label == bandit_acting.LABEL else {},
    }


def theory(config: AgentConfig) -> str:
    """The kind of answer that an agent is judged by: see the top of this module."""
    if config.policy.family == "deterministic":
        return "open"
    if config.policy.family == "gaussian":
        return "mean"
    if config.acting.candidates > 1 or improved(config) is None:
        return "best"
    return "behaviour" if config.improvement.name == "none" else "optimum"


def judge(config: AgentConfig, actions: np.ndarray) -> dict[str, Any]:
    """Compare actions (C, N, 2) with the answer that `theory` names.

    Returns:
        `theory`; `shares` of the modes and `target` (null without a closed form), (C, M); of the worst context: `tv`,
        the total variation between them, with all that is outside as one more mode, `distance` between the mean
        actions, `best`, the share on the mode worth most, and `outside`, the share outside the support; `ok`, null
        if open.
    """
    kind = theory(config)
    target = None if kind == "best" else improved(config)
    share, outside = shares_of(actions)
    best, most = float(best_share(share).min()), float(outside.max())
    tv = distance = None
    if target is not None:
        tv = float(0.5 * (np.abs(share - target).sum(1) + outside).max())
        distance = float(np.linalg.norm(actions.mean(1) - target @ MODES, axis=1).max())
    ok = {
        "behaviour": tv is not None and tv <= LIMITS["behaviour"],
        "optimum": tv is not None and tv <= LIMITS["optimum"],
        "mean": distance is not None and distance <= LIMITS["mean"],
        "best": best >= LIMITS["best"] and most < LIMITS["outside"],
        "open": None,
    }[kind]
    return {
        "theory": kind,
        "shares": share.round(4).tolist(),
        "target": None if target is None else target.round(4).tolist(),
        "tv": tv,
        "distance": distance,
        "best": best,
        "outside": most,
        "ok": ok,
    }


def table(results: Mapping[str, Any]) -> str:
    """The results as text; numbers are of the worst context."""
    lines = [f"{'':18}{'theory':10}{'TV':>7}{'mean off':>10}{'best %':>8}{'outside %':>11}{'':>5}{'s':>6}"]
    for label, row in results["rows"].items():
        ok = {True: "yes", False: "NO", None: "-"}[row["ok"]]
        tv = f"{row['tv']:.3f}" if row["theory"] in ("behaviour", "optimum") else ""
        off = f"{row['distance']:.3f}" if row["theory"] == "mean" else ""
        lines.append(
            f"{label:18}{row['theory']:10}{tv:>7}{off:>10}{100 * row['best']:>8.1f}{100 * row['outside']:>11.2f}"
            f"{ok:>5}{row['seconds']:>6.0f}"
        )
    lines.append(f"seed {results['seed']}, {results['train_steps']} steps each, {results['seconds']:.0f} s in all")
    return "\n".join([*lines, *(bandit_acting.table(results["acting"]) if results["acting"] else [])])


def _draw(path: Path, panels: Mapping[str, np.ndarray]) -> None:
    from matplotlib.figure import Figure
    from matplotlib.patches import Circle

    columns = 7
    figure = Figure(figsize=(1.7 * columns, 1.9 * -(-len(panels) // columns)), layout="constrained")
    grid = figure.subplots(-(-len(panels) // columns), columns, squeeze=False).ravel()
    for axes in grid:
        axes.set_axis_off()
    best = MODES[REWARDS[_CONTEXT].argmax()]
    for axes, (name, actions) in zip(grid, panels.items(), strict=False):
        axes.set_axis_on()
        axes.add_patch(Circle(tuple(best), SUPPORT, color="#c0392b", fill=False, linewidth=0.8))
        axes.scatter(*actions.T, s=2, color="#3b6ea8", alpha=0.5, linewidths=0)
        axes.set(xlim=(-1.05, 1.05), ylim=(-1.05, 1.05), aspect="equal", xticks=[], yticks=[])
        axes.set_title(name, fontsize=8)
    write_figure(path, figure)
