"""`gtp-vision experiment maps`: the learned flow map against problems with known answers, in one run.

Results stand in docs/few-step.md.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import asdict, replace
from typing import Any

import numpy as np
import torch

from gtp_vision import models
from gtp_vision.core.random import RandomStream, counter_rng
from gtp_vision.experiments import multigoal, problems
from gtp_vision.experiments.fitting import fit, unconditional
from gtp_vision.experiments.measures import STEPS, draw, map_error, modes_hit, wasserstein
from gtp_vision.models import GTPPolicy, PolicyConfig
from gtp_vision.models.networks import frozen_copy
from gtp_vision.training.jobs import TrainingJob, run_parallel

PROBLEMS = {"modes": problems.four_modes, "gaussian": problems.gaussian, "mixture1d": problems.two_modes}
SETTINGS = PolicyConfig(hidden=[128, 128, 128])  # the default but for its width
DATA = replace(SETTINGS, teacher="data")  # the paper's score approximation, else the same


def maps(*, seed: int = 0, steps: int = 24_000, progress: bool = True) -> dict[str, Any]:
    """Train the default policy on each problem, the paper's target on the modes, and the multigoal methods.

    Args:
        seed: of all trainings.
        steps: gradient steps of each GTP; methods with cheaper steps make as many more as cost the same.
        progress: show a bar.

    Returns:
        JSON-able: `modes`, `modes_data`, `gaussian`, `mixture1d` (see `known_answer`), `multigoal` (see
        `multigoal.methods`), `cost` (milliseconds a training step by teacher), `settings`, `seconds`.
    """
    began = time.perf_counter()
    jobs: dict[str, TrainingJob] = {
        name: (known_answer, {"problem": name, "config": SETTINGS, "steps": steps, "seed": seed}) for name in PROBLEMS
    }
    jobs["modes_data"] = (known_answer, {"problem": "modes", "config": DATA, "steps": steps, "seed": seed})
    for method in multigoal.METHODS:
        jobs[f"multigoal/{method}"] = (multigoal.one_method, {"method": method, "steps": steps, "seed": seed})
    done = run_parallel(jobs, progress=progress)
    results: dict[str, Any] = {name: found for name, found in done.items() if "/" not in name}
    results["multigoal"] = {
        name.removeprefix("multigoal/"): found["measured"] for name, found in done.items() if "/" in name
    }
    return results | {
        "cost": step_cost(),
        "settings": asdict(SETTINGS) | {"steps": steps, "batch_size": 256, "seed": seed},
        "seconds": round(time.perf_counter() - began, 1),
    }


def known_answer(problem: str, config: PolicyConfig, steps: int, seed: int, *, tau: float = 0.05) -> dict[str, Any]:
    """Train on one of `PROBLEMS` and measure. Arguments as `fit`.

    Returns:
        `rel_error` and `composition` (see `map_error`); by K: `on_mode`, `share`, `spread` (see `modes_hit`) and
        `wasserstein` of 1000 samples from as many of the data; `wasserstein_data`, that of the data from itself;
        training `seconds`.
    """
    known = PROBLEMS[problem]()
    fitted = fit(config, unconditional(known.draw), steps=steps, seed=seed, tau=tau)
    assert isinstance(fitted.policy, GTPPolicy)
    samples = {k: draw(fitted.policy, k) for k in STEPS}
    hit = {k: modes_hit(x, known) for k, x in samples.items()}
    data, other = (known.draw(1000, counter_rng(seed, 0xDA7A, side)) for side in (1, 2))
    return {
        **map_error(fitted.policy, known, counter_rng(seed, 0xDA7A, 3)),
        **{what: {k: found[what] for k, found in hit.items()} for what in ("on_mode", "share", "spread")},
        "wasserstein": {k: wasserstein(x[:1000], data) for k, x in samples.items()},
        "wasserstein_data": wasserstein(other, data),
        "seconds": round(fitted.seconds, 1),
    }


def step_cost(rounds: int = 200) -> dict[str, float]:
    """Milliseconds of a training step (forward, backward, targets) by teacher, interleaved, medians."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # several only slow networks as small as these
    students = {c.teacher: models.create(1, 2, c) for c in (SETTINGS, DATA)}
    teachers = {name: frozen_copy(student) for name, student in students.items()}
    features, action = torch.zeros(256, 1), torch.rand(256, 2)
    spent: dict[str, list[float]] = {name: [] for name in students}
    for turn in range(rounds + 10):
        for name, student in students.items():
            began = time.perf_counter()
            rows = student.rows(features, action, RandomStream(0, turn), teachers[name])
            student.loss(rows)[0].mean().backward()
            if turn >= 10:
                spent[name].append(1e3 * (time.perf_counter() - began))
    torch.set_num_threads(threads)
    return {name: float(np.median(times)) for name, times in spent.items()}


def table(results: Mapping[str, Any]) -> str:
    """The results as text."""
    lines = [f"{'':24}" + "".join(f"{f'K={k}':>8}" for k in STEPS)]
    for name, title in (("modes", "four modes, on mode %"), ("modes_data", "  teacher=data")):
        lines.append(f"{title:24}" + "".join(f"{v:8.1f}" for v in results[name]["on_mode"].values()))
    found = results["mixture1d"]
    lines.append(f"{'two modes in 1-D, W2':24}" + "".join(f"{v:8.3f}" for v in found["wasserstein"].values()))
    lines.append("")
    for name in ("gaussian", "mixture1d", "modes", "modes_data"):
        found = results[name]
        lines.append(
            f"{name:12} relative error of Phi {found['rel_error']:6.1%}, of composing {found['composition']:6.1%}"
        )
    cost = results["cost"]
    lines += ["", *multigoal.table(results["multigoal"]), ""]
    lines.append(
        f"a training step: {cost['model']:.1f} ms with teacher=model, {cost['data']:.1f} ms with teacher=data "
        f"({cost['model'] / cost['data']:.2f} times)"
    )
    lines.append(f"{results['seconds']:.0f} s in all")
    return "\n".join(lines)
