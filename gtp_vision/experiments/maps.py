"""`gtp-vision experiment maps`: the learned flow map on problems with known answers, for docs/few-step.md."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import asdict, replace
from itertools import count
from typing import Any

import torch

from gtp_vision import models
from gtp_vision.core.random import RandomStream, counter_rng
from gtp_vision.core.timing import Work, median_ms
from gtp_vision.evaluation.evaluator import one_thread
from gtp_vision.experiments import multigoal, problems
from gtp_vision.experiments.fitting import fit, unconditional
from gtp_vision.experiments.measures import SAMPLES, STEPS, draw, map_error, modes_hit, wasserstein
from gtp_vision.models import GTPPolicy, PolicyConfig
from gtp_vision.models.networks import frozen_copy
from gtp_vision.training.jobs import TrainingJob, run_parallel

PROBLEMS = {"modes": problems.four_modes, "gaussian": problems.gaussian, "mixture1d": problems.two_modes}
SETTINGS = PolicyConfig(hidden=[128, 128, 128])  # the default but narrower
DATA = replace(SETTINGS, teacher="data")  # with the paper's score approximation


def maps(*, seed: int = 0, steps: int = 36_000, samples: int = SAMPLES, progress: bool = True) -> dict[str, Any]:
    """Train the default policy on each problem, the paper's target on the modes, and the multigoal methods.

    Methods with cheaper steps than GTP's take more steps, at the same cost. `samples` are those of `known_answer`, and
    the trajectories of each multigoal method.

    Returns:
        JSON-able: `modes`, `modes_data`, `gaussian`, `mixture1d` (see `known_answer`), `multigoal` (see
        `multigoal.multigoal`), `cost` (milliseconds a training step by teacher), `settings`, `seconds`.
    """
    began = time.perf_counter()
    common = {"steps": steps, "seed": seed, "samples": samples}
    jobs: dict[str, TrainingJob] = {
        name: (known_answer, {"problem": name, "config": SETTINGS} | common) for name in PROBLEMS
    }
    jobs["modes_data"] = (known_answer, {"problem": "modes", "config": DATA} | common)
    methods = {f"multigoal/{method}": method for method in multigoal.METHODS}
    for name, method in methods.items():
        jobs[name] = (multigoal.train_method, {"method": method} | common | {"steps": steps * 2 // 3})
    done = run_parallel(jobs, progress=progress)
    return {
        **{name: result for name, result in done.items() if name not in methods},
        "multigoal": {method: done[name]["measured"] for name, method in methods.items()},
        "cost": step_cost(),
        "settings": asdict(SETTINGS) | {"steps": steps, "batch_size": 256, "seed": seed},
        "seconds": round(time.perf_counter() - began, 1),
    }


def known_answer(
    problem: str, config: PolicyConfig, steps: int, seed: int, *, tau: float = 0.05, samples: int = SAMPLES
) -> dict[str, Any]:
    """Train on one of `PROBLEMS` and measure on `samples` samples for each K. Other arguments as `fit`.

    Returns:
        `rel_error` and `composition` (see `map_error`); by K: `on_mode`, `share`, `spread` (see `modes_hit`) and
        `wasserstein` of a quarter of them from as many of the data; `wasserstein_data`, that of the data from itself;
        training `seconds`.
    """
    mixture = PROBLEMS[problem]()
    fitted = fit(config, unconditional(mixture.draw), steps=steps, seed=seed, tau=tau)
    assert isinstance(fitted.policy, GTPPolicy)
    drawn = {k: draw(fitted.policy, k, samples) for k in STEPS}
    hits = {k: modes_hit(x, mixture) for k, x in drawn.items()}
    few = samples // 4  # an assignment takes the cube of their number
    data, other = (mixture.draw(few, counter_rng(seed, 0xDA7A, side)) for side in (1, 2))
    return {
        **map_error(fitted.policy, mixture, counter_rng(seed, 0xDA7A, 3), rows=samples // 8),
        **{key: {k: hit[key] for k, hit in hits.items()} for key in ("on_mode", "share", "spread")},
        "wasserstein": {k: wasserstein(x[:few], data) for k, x in drawn.items()},
        "wasserstein_data": wasserstein(other, data),
        "seconds": round(fitted.seconds, 1),
    }


def step_cost(rounds: int = 200) -> dict[str, float]:
    """Milliseconds of a training step (forward, backward, targets) by teacher, interleaved, medians."""
    features, action = torch.zeros(256, 1), torch.rand(256, 2)
    steps = count()

    def step(config: PolicyConfig) -> Work:
        student = models.create(1, 2, config)
        teacher = frozen_copy(student)
        return Work(
            lambda noise: student.loss(student.rows(features, action, noise, teacher))[0].mean().backward(),
            lambda: RandomStream(0, next(steps)),
        )

    with one_thread():  # more of them slow networks as small as these
        return median_ms({config.teacher: step(config) for config in (SETTINGS, DATA)}, rounds)


def table(results: Mapping[str, Any]) -> str:
    """The results as text."""
    lines = [f"{'':24}" + "".join(f"{f'K={k}':>8}" for k in STEPS)]
    for name, title in (("modes", "four modes, on mode %"), ("modes_data", "  teacher=data")):
        lines.append(f"{title:24}" + "".join(f"{v:8.1f}" for v in results[name]["on_mode"].values()))
    distances = results["mixture1d"]["wasserstein"].values()
    lines.append(f"{'two modes in 1-D, W2':24}" + "".join(f"{v:8.3f}" for v in distances))
    lines.append("")
    for name in ("gaussian", "mixture1d", "modes", "modes_data"):
        error, composition = results[name]["rel_error"], results[name]["composition"]
        lines.append(f"{name:12} relative error of Phi {error:6.1%}, of composing {composition:6.1%}")
    cost = results["cost"]
    lines += ["", *multigoal.table(results["multigoal"]), ""]
    lines.append(
        f"a training step: {cost['model']:.1f} ms with teacher=model, {cost['data']:.1f} ms with teacher=data "
        f"({cost['model'] / cost['data']:.2f} times)"
    )
    lines.append(f"{results['seconds']:.0f} s in all")
    return "\n".join(lines)
