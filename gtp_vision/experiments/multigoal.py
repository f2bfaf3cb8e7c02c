"""The paper's picture: a point agent, four goals, and behaviour that heads for each of them equally often.

At the start all four directions are right; a policy that averages them goes nowhere. Axes in names: B batch.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from gtp_vision.core.errors import GtpVisionError
from gtp_vision.core.files import atomic_write
from gtp_vision.core.random import RandomStream, counter_rng
from gtp_vision.experiments.fitting import fit
from gtp_vision.experiments.measures import act_milliseconds
from gtp_vision.models import PolicyConfig
from gtp_vision.training.jobs import run_parallel

GOALS = np.array([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0], [0.0, -1.0]])
NEAR = 0.12  # of a goal: reached
_START = 0.02  # deviation of the starts around the origin
_STRIDE = 0.1  # how far an action of norm 1 moves
_HORIZON = 40
_SPEED, _NOISE = 0.8, 0.03  # of the behaviour's actions

_DEMONSTRATIONS, _ROLLOUTS, _DRAWN = 2000, 4000, 60
_SALT = 0x60A1500  # keeps these draws apart from those of training steps
_WIDTHS = [128, 128, 128]


@dataclass(frozen=True)
class Method:
    """A policy to compare.

    Attributes:
        config: of the policy.
        steps: K when acting.
        passes: what a training step costs in passes through the network for a batch: 1 forward, 2 backward.
    """

    config: PolicyConfig
    steps: int
    passes: int


METHODS = {
    # Diffusion-QL's policy: 5 steps, predicts noise.
    "diffusion": Method(PolicyConfig(family="vp_diffusion", grid=5, hidden=_WIDTHS), 5, 3),
    # Consistency-AC's: 2 steps; a teacher's pass beside the student's. 0.5 is the middle of Karras' levels.
    "consistency": Method(PolicyConfig(family="consistency", grid=40, sigma_last=0.5, hidden=_WIDTHS), 2, 4),
    # Two student's and three teacher's passes.
    "gtp": Method(PolicyConfig(hidden=_WIDTHS), 2, 9),
}

Act = Callable[[np.ndarray], np.ndarray]


def rollout(act: Act, count: int, generator: np.random.Generator) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """`count` trajectories side by side, each until a goal is near or 40 steps are over.

    Args:
        act: positions (B, 2) to actions (B, 2), which are clipped to [-1, 1]; always asked for all trajectories.
        count: B.
        generator: of the starts.

    Returns:
        The positions, (T + 1, 2) each, and the actions, (T, 2) each.
    """
    position = _START * generator.standard_normal((count, 2))
    positions, actions = [position], []
    for _ in range(_HORIZON):
        action = np.clip(act(position), -1, 1)
        position = position + _STRIDE * action
        positions.append(position)
        actions.append(action)
    at, done = np.stack(positions, 1), np.stack(actions, 1)
    near = (np.linalg.norm(at[:, :, None] - GOALS, axis=-1) < NEAR).any(-1)  # (B, T + 1)
    length = np.where(near.any(1), near.argmax(1), _HORIZON)
    return (
        [path[: n + 1] for path, n in zip(at, length, strict=True)],
        [path[:n] for path, n in zip(done, length, strict=True)],
    )


def demonstrate(count: int, generator: np.random.Generator) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """The behaviour: the trajectories head for the four goals in turn, with noise on every action."""
    goal = GOALS[np.arange(count) % len(GOALS)]

    def act(position: np.ndarray) -> np.ndarray:
        offset = goal - position
        direction = offset / np.linalg.norm(offset, axis=1, keepdims=True)
        return np.asarray(_SPEED * direction + _NOISE * generator.standard_normal(position.shape))

    return rollout(act, count, generator)


def measure(paths: list[np.ndarray]) -> dict[str, Any]:
    """How good trajectories are.

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


def one_method(method: str, steps: int, seed: int) -> dict[str, Any]:
    """Train one of `METHODS` on the demonstrations, let it act, and measure.

    Args:
        method: its name.
        steps: gradient steps of GTP; the others make as many more as cost the same.
        seed: of demonstrations, training and acting.

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
    asked = 0

    @torch.no_grad()
    def act(position: np.ndarray) -> np.ndarray:
        nonlocal asked
        asked += 1
        noise = RandomStream(seed, _SALT + asked)
        return fitted.policy.sample(torch.from_numpy(position).float(), chosen.steps, noise).double().numpy()

    paths, _ = rollout(act, _ROLLOUTS, counter_rng(seed, _SALT, 2))
    measured = measure(paths) | {
        "act_ms": act_milliseconds(fitted.policy, 2, chosen.steps),
        "steps": chosen.steps,
        "train_steps": train_steps,
        "train_seconds": round(fitted.seconds, 1),
    }
    return {"measured": measured, "paths": [path.tolist() for path in paths[:_DRAWN]]}


def multigoal(out: Path, *, seed: int = 0, steps: int = 24_000, progress: bool = True) -> dict[str, Any]:
    """Train all methods at the same cost, and write `multigoal.png` and `multigoal.json` into a folder.

    Args:
        out: the folder.
        seed: of everything.
        steps: see `one_method`.
        progress: show a bar.

    Returns:
        What was measured, by method and of the `data`; `figure` and `json`, their paths.

    Raises:
        GtpVisionError: the folder cannot be made.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise GtpVisionError(
            f"the folder {out} cannot be made ({error.strerror}); choose another with --out"
        ) from error
    jobs = {name: (one_method, {"method": name, "steps": steps, "seed": seed}) for name in METHODS}
    done = run_parallel(jobs, progress=progress)
    shown, _ = demonstrate(_ROLLOUTS, counter_rng(seed, _SALT, 3))
    results: dict[str, Any] = {"data": measure(shown)} | {name: found["measured"] for name, found in done.items()}
    panels = {"data": shown[:_DRAWN]} | {name: [np.array(path) for path in f["paths"]] for name, f in done.items()}
    _figure(out / "multigoal.png", panels)
    with atomic_write(out / "multigoal.json") as aside:
        aside.write_text(json.dumps(results, indent=1))
    return results | {"figure": str(out / "multigoal.png"), "json": str(out / "multigoal.json")}


def table(results: Mapping[str, Any]) -> list[str]:
    """A table's lines."""
    lines = [
        f"{'multigoal':14}{'K':>3}{'reach %':>9}  {'share of each goal %':24}{'path':>6}{'jitter':>8}{'act ms':>8}"
    ]
    for name, found in results.items():
        if not isinstance(found, Mapping):
            continue
        share = " ".join(f"{x:5.1f}" for x in found["share"])
        steps, act = found.get("steps", ""), f"{found['act_ms']:.2f}" if "act_ms" in found else ""
        path = "" if found["path_ratio"] is None else f"{found['path_ratio']:.3f}"
        lines.append(f"{name:14}{steps:>3}{found['reach']:9.1f}  {share:24}{path:>6}{found['jitter']:8.4f}{act:>8}")
    return lines


def _figure(path: Path, panels: Mapping[str, list[np.ndarray]]) -> None:
    from matplotlib.figure import Figure

    titles = {"data": "data", "diffusion": "diffusion, 5 steps", "consistency": "consistency, 2 steps"}
    figure = Figure(figsize=(12, 3.2), layout="constrained")
    for axes, (name, paths) in zip(figure.subplots(1, len(panels)), panels.items(), strict=True):
        for one in paths:
            axes.plot(*one.T, color="#3b6ea8", alpha=0.35, linewidth=0.8)
        axes.scatter(*GOALS.T, color="#c0392b", s=60, zorder=3)
        axes.set(title=titles.get(name, "GTP, 2 steps"), xlim=(-1.25, 1.25), ylim=(-1.25, 1.25), aspect="equal")
        axes.set_xticks([])
        axes.set_yticks([])
    with atomic_write(path) as aside:
        figure.savefig(aside, format="png", dpi=110)
