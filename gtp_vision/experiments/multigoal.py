"""The paper's figure: a point agent, four goals, and demonstrations that go to each of them equally often.

At the start all four directions are right; a policy that averages them stays there. Axes in names: B batch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from gtp_vision.core.files import make_folder
from gtp_vision.core.random import RandomStream, counter_rng
from gtp_vision.experiments.fitting import fit
from gtp_vision.experiments.measures import act_milliseconds
from gtp_vision.experiments.output import write_figure, write_json
from gtp_vision.models import PolicyConfig
from gtp_vision.training.jobs import run_parallel

GOALS = np.array([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0], [0.0, -1.0]])
NEAR = 0.12  # the distance at which a goal is reached
_START = 0.02  # standard deviation of the starts around the origin
_STRIDE = 0.1  # the length of a move by an action of norm 1
_HORIZON = 40
_SPEED, _NOISE = 0.8, 0.03  # of the demonstrations' actions

_DEMONSTRATIONS, _ROLLOUTS, _DRAWN = 2000, 4000, 60
_SALT = 0x60A1500  # separates these draws from those of training steps
_WIDTHS = [128, 128, 128]


@dataclass(frozen=True)
class Method:
    """A policy to compare."""

    config: PolicyConfig  # of the policy
    steps: int  # K when acting
    passes: int  # the cost of a training step in passes of a batch through the network: 1 forward, 2 backward


METHODS = {
    # Diffusion-QL's policy predicts noise.
    "diffusion": Method(PolicyConfig(family="vp_diffusion", grid=5, hidden=_WIDTHS), 5, 3),
    # Consistency-AC's policy has a teacher's pass, too. 0.5 is the middle of Karras' levels.
    "consistency": Method(PolicyConfig(family="consistency", grid=40, sigma_last=0.5, hidden=_WIDTHS), 2, 4),
    # Two passes of the student and three of the teacher.
    "gtp": Method(PolicyConfig(hidden=_WIDTHS), 2, 9),
}

Act = Callable[[np.ndarray], np.ndarray]


def rollout(act: Act, count: int, generator: np.random.Generator) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Roll out `count` trajectories, each until it reaches a goal or for 40 steps.

    `act` maps positions (B, 2) of all to actions (B, 2), clipped to [-1, 1]. Returns positions, (T + 1, 2) each, and
    actions, (T, 2) each.
    """
    position = _START * generator.standard_normal((count, 2))
    positions, actions = [position], []
    for _ in range(_HORIZON):
        action = np.clip(act(position), -1, 1)
        position = position + _STRIDE * action
        positions.append(position)
        actions.append(action)
    paths = np.stack(positions, 1)
    is_near = (np.linalg.norm(paths[:, :, None] - GOALS, axis=-1) < NEAR).any(-1)  # (B, T + 1)
    length = np.where(is_near.any(1), is_near.argmax(1), _HORIZON)
    return (
        [path[: n + 1] for path, n in zip(paths, length, strict=True)],
        [taken[:n] for taken, n in zip(np.stack(actions, 1), length, strict=True)],
    )


def demonstrate(count: int, generator: np.random.Generator) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Demonstrations that go to the four goals in turn, with noise on every action."""
    goal = GOALS[np.arange(count) % len(GOALS)]

    def act(position: np.ndarray) -> np.ndarray:
        offset = goal - position
        direction = offset / np.linalg.norm(offset, axis=1, keepdims=True)
        return np.asarray(_SPEED * direction + _NOISE * generator.standard_normal(position.shape))

    return rollout(act, count, generator)


def measure(paths: list[np.ndarray]) -> dict[str, Any]:
    """Measure trajectories.

    Returns:
        `reach`, percent that reach a goal; `share`, percent of these for each goal; `path_ratio`, the mean path length
        over the straight line from its start to its end; `jitter`, the mean squared second difference of positions,
        in units of the stride.
    """
    ends = np.stack([path[-1] for path in paths])
    distance = np.linalg.norm(ends[:, None] - GOALS, axis=-1)
    reached = distance.min(1) < NEAR
    goal = distance.argmin(1)[reached]
    lengths = [np.linalg.norm(np.diff(path, axis=0), axis=1).sum() for path in paths]
    lines = [np.linalg.norm(path[-1] - path[0]) for path in paths]
    bends = np.concatenate([np.diff(path, 2, axis=0) for path in paths])
    return {
        "reach": 100 * float(reached.mean()),
        "share": [100 * float((goal == g).mean()) if len(goal) else 0.0 for g in range(len(GOALS))],
        "path_ratio": float(np.mean(np.array(lengths)[reached] / np.array(lines)[reached])) if len(goal) else None,
        "jitter": float(np.square(bends / _STRIDE).sum(1).mean()),
    }


def train_method(method: str, steps: int, seed: int, samples: int = _ROLLOUTS) -> dict[str, Any]:
    """Train one of `METHODS` on the demonstrations, roll it out `samples` times, and measure.

    `steps` are those of GTP; methods with cheaper steps take more of them, at the same cost.

    Returns:
        `measured` (see `measure`, with `act_ms`, `train_seconds`, `train_steps`, K as `steps`), `paths` to be drawn.
    """
    chosen = METHODS[method]
    positions, actions = demonstrate(_DEMONSTRATIONS, counter_rng(seed, _SALT, 1))
    observed, done = np.concatenate([path[:-1] for path in positions]), np.concatenate(actions)

    def draw(count: int, generator: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        rows = generator.integers(len(done), size=count)
        return observed[rows], done[rows]

    train_steps = round(steps * METHODS["gtp"].passes / chosen.passes)
    fitted = fit(chosen.config, draw, steps=train_steps, seed=seed)
    calls = 0

    @torch.no_grad()
    def act(position: np.ndarray) -> np.ndarray:
        nonlocal calls
        calls += 1
        noise = RandomStream(seed, _SALT + calls)
        return fitted.policy.sample(torch.from_numpy(position).float(), chosen.steps, noise).double().numpy()

    paths, _ = rollout(act, samples, counter_rng(seed, _SALT, 2))
    measured = measure(paths) | {
        "act_ms": act_milliseconds(fitted.policy, 2, chosen.steps),
        "steps": chosen.steps,
        "train_steps": train_steps,
        "train_seconds": round(fitted.seconds, 1),
    }
    return {"measured": measured, "paths": [path.tolist() for path in paths[:_DRAWN]]}


def multigoal(out: Path, *, seed: int = 0, steps: int = 24_000, progress: bool = True) -> dict[str, Any]:
    """Train all methods at the same cost, and write `multigoal.png` and `multigoal.json` into a folder.

    Returns:
        The measures by method and of the `data`; `figure` and `json`, their paths.

    Raises:
        GtpVisionError: the folder cannot be created.
    """
    make_folder(out)
    jobs = {name: (train_method, {"method": name, "steps": steps, "seed": seed}) for name in METHODS}
    done = run_parallel(jobs, progress=progress)
    data, _ = demonstrate(_ROLLOUTS, counter_rng(seed, _SALT, 3))
    results: dict[str, Any] = {"data": measure(data)} | {name: result["measured"] for name, result in done.items()}
    panels = {"data": data[:_DRAWN]} | {name: [np.array(path) for path in r["paths"]] for name, r in done.items()}
    _draw(out / "multigoal.png", panels)
    write_json(out / "multigoal.json", results)
    return results | {"figure": str(out / "multigoal.png"), "json": str(out / "multigoal.json")}


def table(results: Mapping[str, Any]) -> list[str]:
    """A table's lines."""
    lines = [
        f"{'multigoal':14}{'K':>3}{'reach %':>9}  {'share of each goal %':24}{'path':>6}{'jitter':>8}{'act ms':>8}"
    ]
    for name, row in results.items():
        if not isinstance(row, Mapping):
            continue
        share = " ".join(f"{x:5.1f}" for x in row["share"])
        steps, act = row.get("steps", ""), f"{row['act_ms']:.2f}" if "act_ms" in row else ""
        path = "" if row["path_ratio"] is None else f"{row['path_ratio']:.3f}"
        lines.append(f"{name:14}{steps:>3}{row['reach']:9.1f}  {share:24}{path:>6}{row['jitter']:8.4f}{act:>8}")
    return lines


def _draw(path: Path, panels: Mapping[str, list[np.ndarray]]) -> None:
    from matplotlib.figure import Figure

    titles = {"data": "data", "diffusion": "diffusion, 5 steps", "consistency": "consistency, 2 steps"}
    figure = Figure(figsize=(12, 3.2), layout="constrained")
    for axes, (name, paths) in zip(figure.subplots(1, len(panels)), panels.items(), strict=True):
        for trajectory in paths:
            axes.plot(*trajectory.T, color="#3b6ea8", alpha=0.35, linewidth=0.8)
        axes.scatter(*GOALS.T, color="#c0392b", s=60, zorder=3)
        axes.set(title=titles.get(name, "GTP, 2 steps"), xlim=(-1.25, 1.25), ylim=(-1.25, 1.25), aspect="equal")
        axes.set_xticks([])
        axes.set_yticks([])
    write_figure(path, figure)
