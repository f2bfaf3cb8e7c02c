"""`gtp-vision experiment judging`: whether the estimates of `gtp-vision judge` agree with simulators.

    data -> trainings -> checkpoints -> truth (episodes in the simulator) and judgement -> rank correlation, cover

Every piece is a file of its own, so the same command continues what was stopped. Further run folders of a task that lie
in OUT/TASK/runs are judged with the others.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from subprocess import DEVNULL
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from scipy.stats import spearmanr

from gtp_vision.config.overrides import quoted
from gtp_vision.core.errors import GtpVisionError
from gtp_vision.core.processes import start, stop
from gtp_vision.core.progress import Progress
from gtp_vision.core.random import EpisodeNoise
from gtp_vision.core.safe_json import read_json
from gtp_vision.evaluation.evaluator import one_thread
from gtp_vision.experiments.output import write_json
from gtp_vision.training.evaluate import actor_of, evaluator_of, restore
from gtp_vision.training.judge import judge

_ALL = (
    *("training.eval_every=0", "training.eval_episodes=0", "training.videos=0", "training.probe_rows=0"),
    *("training.device=cpu", "training.keep_checkpoints=20"),
)
_STATES = (
    *("encoder=state", "task.frame_stack=1", "agent.policy.hidden=[128,128,128]", "agent.tau=0.02"),
    *("agent.policy_tau=null", "training.learning_rate=1e-3", "training.schedule=cosine"),
)
_CRITIC = ("agent.critic.hidden=[128,128]", "agent.critic.activation=gelu", "agent.critic.layer_norm=true")
_KEPT = ("value", "interval", "members", "rebuilt", "coverage", "trust", "energy", "action_error", "td_error")
_TAIL = 0.02  # what an episode's last step may count at most
_SEED = 70_000  # of the first episode in the simulator


@dataclass(frozen=True)
class Task:
    """A task of the study.

    Attributes:
        collect: arguments of `data collect`, `{data}` the folder that they fill; empty if the data exist.
        settings: of all its trainings, `{data}` likewise.
        agents: name of a training to its own settings.
        checkpoints: steps that are judged.
    """

    collect: tuple[str, ...]
    settings: tuple[str, ...]
    agents: Mapping[str, tuple[str, ...]]
    checkpoints: tuple[int, ...]


TASKS = {
    "demo": Task(
        (),
        ("task=demo", "training=demo", "encoder=demo", "training.checkpoint_every=250"),
        {"gtp": ("agent=gtp_demo",), "gtp_bc": ("agent=gtp_bc_demo",)},
        (250, 500, 1000, 2000),
    ),
    "pointmaze": Task(
        ("ogbench/pointmaze-medium-navigate", "--out", "{data}", "--episodes", "250"),
        (
            *("task=ogbench/pointmaze-medium-navigate-singletask-task1", "task.name=pointmaze", "data_dir={data}"),
            *("task.env=pointmaze-medium-navigate-singletask-task3-v0", "task.n_step=10", "task.reward_shift=1"),
            *("task.reward_scale=10", "training.steps=4000", "training.checkpoint_every=1000", *_STATES),
        ),
        {
            "gtp": ("agent=gtp", "agent.improvement.eta=5", "agent.improvement.weight_clip=100", *_CRITIC),
            "gtp_bc": ("agent=gtp_bc",),
            "iql": ("agent=iql", "agent.critic.expectile=0.9", "agent.improvement.eta=20", *_CRITIC),
        },
        (1000, 2000, 4000),
    ),
    "cube-single": Task(
        ("ogbench/cube-single-play", "--out", "{data}", "--episodes", "250"),
        (
            *("task=ogbench/cube-single-play-singletask-task2", "data_dir={data}"),
            *("task.env=cube-single-play-singletask-task1-v0", "task.n_step=5", "agent.action_chunk=5"),
            *("training.steps=10000", "training.checkpoint_every=2500", *_STATES),
        ),
        {
            "gtp_ql": ("agent=gtp_ql", "agent.critic.chunk=true", *_CRITIC),
            "gtp_bc": ("agent=gtp_bc",),
        },
        (2500, 5000, 10_000),
    ),
    "lift": Task(
        *(("robosuite/Lift", "--out", "{data}/lift.hdf5", "--episodes", "100", "--states-only", "--noise", "0.8"),),
        (
            *("task=own", "task.name=lift", "task.dataset={data}/lift.hdf5", "task.env=robosuite/Lift"),
            *("task.max_episode_steps=100", "training.steps=4000", "training.checkpoint_every=250", *_STATES),
        ),
        {
            "gtp": ("agent=gtp", "task.n_step=10", *_CRITIC),
            "gtp_bc": ("agent=gtp_bc",),
            "gaussian_bc": ("agent=gaussian_bc",),
        },
        (250, 1000, 4000),
    ),
    "hopper": Task(
        ("gymnasium/Hopper-v4", "--policy", "sac", "--steps", "40000", "--sets", "replay", "--out", "{data}"),
        (
            *("task=own", "task.name=hopper", "task.dataset={data}/hopper-replay-sac.hdf5", "task.env=Hopper-v4"),
            *("training.steps=4000", "training.checkpoint_every=1000", *_STATES),
        ),
        {
            "gtp": ("agent=gtp", "task.reward_scale=0.01", *_CRITIC),
            "gtp_bc": ("agent=gtp_bc",),
            "iql": ("agent=iql", "task.reward_scale=0.01", *_CRITIC),
        },
        (1000, 4000),
    ),
}


def judging(
    *, out: Path, tasks: Sequence[str] = (), episodes: int = 50, seed: int = 0, progress: bool = True
) -> dict[str, Any]:
    """Train, evaluate and judge what is missing in `out`, and compare the judgement with the truth.

    Args:
        out: folder of all pieces.
        tasks: names of `TASKS`; empty for all.
        episodes: in the simulator, for each checkpoint.
        seed: of trainings and judgements.
        progress: show bars.

    Returns:
        By task: `checkpoints`, `correlation` (Spearman's, of value and true success or return), `baseline` (the same of
        the held-out energy score, negated), `cover` (share of 90 % intervals that hold the true value), `truth` and
        `value` of each checkpoint.

    Raises:
        GtpVisionError: an unknown task, or a training or a collection failed.
    """
    for name in tasks:
        if name not in TASKS:
            raise GtpVisionError(f"task '{name}' is unknown; choose from {', '.join(TASKS)}")
    found = {}
    for name in tasks or TASKS:
        folder, task = out / name, TASKS[name]
        _prepare(folder, task, seed)
        policies = list(_policies(folder, task))
        pieces = [
            _piece(folder, run, which, episodes, seed) for run, which in Progress(policies, name, disable=not progress)
        ]
        found[name] = compared(pieces)
        write_json(out / "judging.json", found)
    return {"tasks": found, "episodes": episodes, "folder": str(out)}


def _prepare(folder: Path, task: Task, seed: int) -> None:
    """Collect the data and train what is missing."""
    data = folder / "data"
    if task.collect and not (folder / "data.done").exists() and not data.is_symlink():
        _run("data", "collect", *(argument.format(data=data) for argument in task.collect))
        (folder / "data.done").touch()
    for name, own in task.agents.items():
        run = folder / "runs" / name
        if (run / "results.json").exists():
            continue
        settings = [setting.format(data=data) for setting in (*own, *task.settings, *_ALL)]
        begun = [*(["--resume", str(run)] if run.exists() else [quoted("run_dir", run), f"seed={seed}", *settings])]
        _run("train", *begun)


def _run(*command: str) -> None:
    process = start("gtp_vision", *command, environment={"OMP_NUM_THREADS": "1"}, stdout=DEVNULL)
    try:
        if process.wait():
            raise GtpVisionError(f"gtp-vision {' '.join(command[:2])} failed; its message is above")
    finally:
        stop(process, None)


def _policies(folder: Path, task: Task) -> Iterator[tuple[Path, str]]:
    """The checkpoints to judge: those of the plan, and the kept ones of other runs."""
    for run in sorted((folder / "runs").iterdir()):
        for path in sorted((run / "checkpoints").glob("step_*"), key=lambda path: int(path.name[5:])):
            if run.name not in task.agents or int(path.name[5:]) in task.checkpoints:
                yield run, path.name


def _piece(folder: Path, run: Path, which: str, episodes: int, seed: int) -> dict[str, Any]:
    """Truth and judgement of a checkpoint, from the files that hold them if there are any."""
    path = folder / "pieces" / f"{run.name}-{which}.json"
    if path.exists():
        return read_json(path)
    with one_thread():
        truth, starts = _truth(folder / "truth" / f"{run.name}-{which}", run, which, episodes)
        found = judge([run], checkpoints=which, starts=starts, seed=seed, progress=False).results
    policy, measure, discount = found["policies"][0], found["measure"], found["discount"]
    piece = {
        "run": run.name,
        "checkpoint": which,
        "measure": measure,
        "true_value": float(np.mean([_value(episode, measure, discount) for episode in truth])),
        "true_score": float(np.mean([_score(episode) for episode in truth])),
        **{key: policy[key] for key in _KEPT},
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, piece)
    return piece


def _truth(path: Path, run: Path, which: str, episodes: int) -> tuple[list[dict[str, Any]], dict[str, torch.Tensor]]:
    """Episodes of a checkpoint in its simulator, and the stacked observations in which they started.

    They last until gamma^T is a fiftieth: a value knows no time limit, and a simulator's own may be shorter. They are
    kept beside `path`, so that a judgement that is made anew does not ask the simulator again.
    """
    outcomes, observed = path.with_suffix(".json"), path.with_suffix(".safetensors")
    if outcomes.exists():
        return read_json(outcomes)["episodes"], load_file(observed)
    config, parts = restore(run, which)
    horizon = math.ceil(math.log(_TAIL) / math.log(config.task.discount))
    config = replace(config, task=replace(config.task, max_episode_steps=horizon))
    act, begun = actor_of(parts.agent), list[dict[str, torch.Tensor]]()

    def watched(observation: Mapping[str, torch.Tensor], noise: EpisodeNoise) -> torch.Tensor:
        rows = [row for row, step in enumerate(noise.steps) if step == 0]
        if rows:
            begun.append({name: values[rows].cpu().contiguous() for name, values in observation.items()})
        return act(observation, noise)

    with evaluator_of(config, parts, False, _SEED) as evaluator:
        done = evaluator.run(watched, episodes)[1]
    starts = {name: torch.cat([each[name] for each in begun]) for name in begun[0]}
    found = [{"success": episode.success, "length": episode.length, "rewards": episode.rewards} for episode in done]
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(starts, observed)
    write_json(outcomes, {"episodes": found})
    return found, starts


def _value(episode: Mapping[str, Any], measure: str, discount: float) -> float:
    """What a judgement estimates, of one episode."""
    if measure == "success":
        return discount ** (episode["length"] - 1) if episode["success"] else 0.0
    return float(np.sum(discount ** np.arange(episode["length"]) * np.array(episode["rewards"])))


def _score(episode: Mapping[str, Any]) -> float:
    return float(np.sum(episode["rewards"]) if episode["success"] is None else episode["success"])


def compared(pieces: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Compare judgements with the truth; correlations of equal scores are NaN, and shown as None."""
    score = [piece["true_score"] for piece in pieces]

    def correlation(estimate: Sequence[float]) -> float | None:
        found = float(spearmanr(estimate, score).statistic) if np.ptp(score) and np.ptp(estimate) else np.nan
        return found if np.isfinite(found) else None

    covers = [piece["interval"][0] <= piece["true_value"] <= piece["interval"][1] for piece in pieces]
    return {
        "checkpoints": len(pieces),
        "correlation": correlation([piece["value"] for piece in pieces]),
        "baseline": correlation([-piece["energy"] for piece in pieces]),
        "cover": float(np.mean(covers)),
        "pieces": list(pieces),
    }


def table(results: Mapping[str, Any]) -> str:
    """The results as text."""
    lines = [f"{'task':<14}{'checkpoints':>12}{'judge':>8}{'held-out':>10}{'cover':>8}"]
    for name, found in results["tasks"].items():
        numbers = ["" if found[key] is None else f"{found[key]:.2f}" for key in ("correlation", "baseline")]
        lines.append(f"{name:<14}{found['checkpoints']:>12}{numbers[0]:>8}{numbers[1]:>10}{found['cover']:>8.0%}")
    return "\n".join([*lines, f"pieces: {results['folder']}"])
