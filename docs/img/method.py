"""Draw the pictures of docs/method.md: known flow maps, and the jumps of policies that were trained on them.

    python docs/img/method.py [FOLDER]

Takes some minutes and writes method-map.png and method-jumps.png, beside this file by default.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from gtp_vision.core.random import counter_rng
from gtp_vision.experiments import problems
from gtp_vision.experiments.fitting import fit, unconditional
from gtp_vision.experiments.maps import SETTINGS
from gtp_vision.experiments.measures import jump
from gtp_vision.experiments.problems import Mixture
from gtp_vision.models import GTPPolicy

STEPS = 24_000
START = 2.0  # the noise level at which the drawn jumps begin; actions lie in [-1, 1]
EXACT, LEARNED, SPREAD = "#9aa5b1", "#c0392b", "#3b6ea8"


def train_policy(problem: Mixture, steps: int) -> GTPPolicy:
    """The default policy, narrower, on a problem without observations."""
    policy = fit(SETTINGS, unconditional(problem.draw), steps=steps, seed=0).policy
    assert isinstance(policy, GTPPolicy)
    return policy


def starts(problem: Mixture, count: int) -> np.ndarray:
    """Noised actions at `START`: (count, D)."""
    generator = counter_rng(0, 0xF19)
    return problem.draw(count, generator) + START * generator.standard_normal((count, problem.dimensions))


def paths(problem: Mixture, x: np.ndarray, levels: np.ndarray) -> np.ndarray:
    """The ODE's solution through x at `START`: (levels, B, D)."""
    return np.stack([problem.flow_map(x, START, float(level)) for level in levels])


def draw_map(policy: GTPPolicy, problem: Mixture, target: Path) -> float:
    """The ODE in 1-D, one jump to every level, and which (t, s) each family learns.

    Returns:
        The largest distance between a drawn jump and the exact map.
    """
    figure = Figure(figsize=(11, 3.4), layout="constrained")
    ode, jumps, pairs = figure.subplots(1, 3)
    levels = START * np.linspace(1, 0, 60) ** 2
    for path in paths(problem, np.sort(starts(problem, 40), 0), levels).transpose(1, 0, 2):
        ode.plot(levels, path, color=SPREAD, alpha=0.5, linewidth=0.8)
    ode.set(title="The ODE carries noise (left) to actions (right)", ylabel="$a_t$")

    x = np.array([[-2.4], [-0.9], [0.7], [2.2]])
    solved = paths(problem, x, levels)
    reached = np.stack([jump(policy, x, START, float(level)) for level in levels[6::6]])
    arrow = {"arrowstyle": "->", "color": LEARNED, "lw": 0.8}
    for i in range(len(x)):
        jumps.plot(levels, solved[:, i], color=EXACT, linewidth=1.5, label=None if i else "the ODE")
        jumps.plot(levels[6::6], reached[:, i], "o", ms=4, color=LEARNED, label=None if i else "$\\Phi(a_t, t, s)$")
        jumps.annotate("", (0, reached[-1, i, 0]), (START, x[i, 0]), arrowprops=arrow)
    jumps.legend(loc="lower left", fontsize=8)
    jumps.set(title=f"One network, one jump from t = {START:g} to any s", ylabel="$a_s$")
    for axes in (ode, jumps):
        axes.set(xlim=(1.02 * START, -0.05), ylim=(-3.6, 3.6), xlabel="noise level")
    draw_pairs(pairs)
    figure.savefig(target, dpi=110)
    return float(np.abs(reached - solved[6::6]).max())


def draw_pairs(axes: Axes) -> None:
    """The pairs (t, s) that each family learns."""
    axes.fill([0, 1, 1], [0, 0, 1], color=LEARNED, alpha=0.18)
    axes.plot([0, 1], [0, 1], color=SPREAD, linewidth=3)
    axes.plot([0, 1], [0, 0], color="#2e8b57", linewidth=5, clip_on=False)
    axes.text(0.44, 0.6, "diffusion: s = t", color=SPREAD, rotation=45, ha="center", va="center")
    axes.text(0.5, 0.05, "consistency: s = 0", color="#2e8b57", ha="center")
    axes.text(0.68, 0.3, "GTP: all s ≤ t", color=LEARNED, ha="center")
    axes.set(title="What is learned", xlim=(0, 1), ylim=(0, 1), aspect="equal", xlabel="from t", ylabel="to s")
    axes.set_xticks([])
    axes.set_yticks([])


def draw_jumps(policy: GTPPolicy, problem: Mixture, target: Path) -> list[float]:
    """Four narrow modes in 2-D: the ODE's paths, one jump, two jumps.

    Returns:
        The share of ends on a mode, of each panel.
    """
    x = starts(problem, 60)
    levels = START * np.linspace(1, 0, 40) ** 2
    middle = jump(policy, x, START, policy.config.sigma_last)
    ways = {
        "the ODE, solved": paths(problem, x, levels),
        "one jump": np.stack([x, jump(policy, x, START, 0.0)]),
        "two jumps": np.stack([x, middle, jump(policy, middle, policy.config.sigma_last, 0.0)]),
    }
    figure = Figure(figsize=(11, 4.2), layout="constrained")
    shares = []
    for axes, (title, way) in zip(figure.subplots(1, 3), ways.items(), strict=True):
        shares.append(float((problem.nearest_mode(way[-1])[1] < 0.2).mean()))
        axes.plot(way[..., 0], way[..., 1], color=SPREAD, alpha=0.45, linewidth=0.8)
        for between in way[1:-1] if title == "two jumps" else ():
            axes.scatter(*between.T, s=6, color=EXACT, zorder=3)
        axes.scatter(*way[-1].T, s=14, color=LEARNED, zorder=4)
        axes.set(title=f"{title}: {shares[-1]:.0%} on a mode", xlim=(-4.4, 4.4), ylim=(-4.4, 4.4), aspect="equal")
        axes.set_xticks([])
        axes.set_yticks([])
    figure.savefig(target, dpi=110)
    return shares


def draw(folder: Path, steps: int = STEPS) -> tuple[float, list[float]]:
    """Train both policies and draw both pictures; returns the results of `draw_map` and `draw_jumps`."""
    torch.set_num_threads(1)
    line, plane = problems.two_modes(), problems.four_modes()
    error = draw_map(train_policy(line, steps), line, folder / "method-map.png")
    return error, draw_jumps(train_policy(plane, steps), plane, folder / "method-jumps.png")


if __name__ == "__main__":
    error, shares = draw(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent)
    print(f"largest error of a drawn jump {error:.3f}; on a mode: {', '.join(f'{share:.0%}' for share in shares)}")
