"""Eight agents on a task with dynamics that two cores can learn: OGBench's pointmaze-medium, one goal.

The data reach every place of the maze on the way to random goals, none of them the task's: cloning wanders, and what
is better than cloning has been stitched together from parts of the data.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from gtp_vision.datasets.files import written_aside
from gtp_vision.errors import GtpVisionError, propose
from gtp_vision.training.jobs import train_all

DATA_SET = "pointmaze-medium-navigate-v0.npz"
_TASK = "ogbench/pointmaze-medium-navigate-singletask-task1"
_COMMON = (
    f"task={_TASK}",
    "task.n_step=10",  # a short training must carry values over 200 steps
    "task.reward_shift=1",  # 10 at the goal and 0 elsewhere instead of -1 a step: values need not sink to -100 first
    "task.reward_scale=10",
    "encoder=state",
    "agent.policy.hidden=[128,128,128]",  # small networks, the same for all
    "agent.critic.hidden=[128,128]",
    "agent.critic.activation=gelu",
    "agent.critic.layer_norm=true",
    "agent.tau=0.02",  # a short training cannot wait for 0.005
    "agent.policy_tau=null",
    "training.learning_rate=1e-3",
    "training.schedule=cosine",
    "training.log_every=500",
    "training.eval_envs=1",
    "training.videos=0",
    "training.device=cpu",
)
_WEIGHTS = ("agent.improvement.eta=5", "agent.improvement.weight_clip=100")
# One step changes the value by about a hundredth of its size, and so does the normalised term.
_Q_WEIGHT = "agent.improvement.q_weight=10"
AGENTS: dict[str, tuple[str, ...]] = {
    "gtp": ("agent=gtp", *_WEIGHTS),
    "gtp+n": ("agent=gtp", "acting=best_of_n", *_WEIGHTS),
    "gtp+q": ("agent=gtp", "improvement=q_gradient", _Q_WEIGHT),
    "gtp_bc": ("agent=gtp_bc",),
    "fql": ("agent=fql", "agent.improvement.normalize_q=true", "agent.improvement.distill_weight=0.1"),
    "diffusion_ql": ("agent=diffusion_ql", _Q_WEIGHT),
    "idql": ("agent=idql", "agent.critic.expectile=0.9"),  # as published for AntMaze
    "iql": ("agent=iql", "agent.critic.expectile=0.9", "agent.improvement.eta=20"),
}


def pointmaze(
    data: Path,
    out: Path,
    *,
    agents: Sequence[str] = (),
    seeds: int = 3,
    steps: int = 6000,
    episodes: int = 15,
    progress: bool = True,
) -> dict[str, Any]:
    """Train every agent with every seed; four evaluations each.

    Args:
        data: folder of the data set that `gtp-vision data collect ogbench/pointmaze-medium-navigate` makes.
        out: folder of the runs; what stands there is gone on with.
        agents: of `AGENTS`; empty for all.
        seeds: 0 up to this number.
        steps: gradient steps of each run.
        episodes: of each evaluation.
        progress: show a bar.

    Returns:
        JSON-able: for each agent, success and steps to the goal, of the last and of the best evaluation, by seed.

    Raises:
        GtpVisionError: no data there, an unknown agent, or a run that failed.
    """
    if not (data / DATA_SET).is_file():
        raise GtpVisionError(
            f"{data / DATA_SET} is missing; make it with: gtp-vision data collect ogbench/pointmaze-medium-navigate "
            f"--out {data}"
        )
    if unknown := [name for name in agents if name not in AGENTS]:
        raise GtpVisionError(f"there is no agent '{unknown[0]}' here: {propose(unknown[0], AGENTS)}")
    names = list(agents or AGENTS)
    training = (
        f"training.steps={steps}",
        f"training.eval_every={-(-steps // 4)}",
        f"training.eval_episodes={episodes}",
    )
    runs = {
        out / name / f"seed{seed}": (*AGENTS[name], *_COMMON, *training, f"data_dir={data}", f"seed={seed}")
        for seed in range(seeds)
        for name in names
    }
    train_all(runs, progress=progress)
    results: dict[str, Any] = {
        "agents": {name: _summary([out / name / f"seed{s}" for s in range(seeds)]) for name in names}
    }
    results |= {"seeds": seeds, "steps": steps, "episodes": episodes, "runs": str(out)}
    with written_aside(out / "pointmaze.json") as aside:
        aside.write_text(json.dumps(results, indent=1))
    return results


def _summary(folders: Sequence[Path]) -> dict[str, Any]:
    """Of the runs of one agent: lists by seed."""
    found = [json.loads((folder / "results.json").read_text()) for folder in folders]
    told: dict[str, Any] = {
        which: {key: [run[which][key] for run in found] for key in ("success", "length")} for which in ("last", "best")
    }
    told["train_seconds"] = [run["train_seconds"] for run in found]
    told["effective_share"] = [_last_metric(folder, "weight/effective_share") for folder in folders]
    return told


def _last_metric(folder: Path, key: str) -> float | None:
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    values = [found[key] for found in map(json.loads, lines) if key in found]
    return values[-1] if values else None


def table(results: Mapping[str, Any]) -> str:
    """The results as text: means over seeds, with the deviation between them."""
    lines = [f"{'agent':<14}{'last %':>14}{'steps to goal':>16}{'best %':>14}{'effective share':>17}"]
    for name, told in results["agents"].items():
        last, best = told["last"], told["best"]
        share = [value for value in told["effective_share"] if value is not None]
        lines.append(
            f"{name:<14}{_spread(last['success'], 100):>14}{_spread(last['length']):>16}"
            f"{_spread(best['success'], 100):>14}{np.mean(share) if share else 1:>17.2f}"
        )
    lines.append(
        f"{results['seeds']} seeds, {results['steps']} steps, {results['episodes']} episodes an evaluation; "
        f"an episode that fails counts its 1000 steps"
    )
    return "\n".join(lines)


def _spread(values: Sequence[float], scale: float = 1) -> str:
    return f"{scale * np.mean(values):.0f} +- {scale * np.std(values):.0f}"
