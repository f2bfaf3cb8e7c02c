"""`gtp-vision experiment ablation`: the four modes with one setting changed at a time, for docs/few-step.md."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from gtp_vision.experiments.maps import SETTINGS, known_answer
from gtp_vision.experiments.measures import SAMPLES, STEPS
from gtp_vision.training.jobs import TrainingJob, run_parallel

# Question to the changed settings; `tau` is of the training, the others are of the policy.
QUESTIONS: dict[str, list[dict[str, Any]]] = {
    "the default": [{}],
    "where the trajectory goes": [
        {"teacher": "data"},
        {"teacher": "data", "residual": "plain"},
        {"teacher": "data", "tau": 0.005},
        {"teacher": "data", "sigma_max": 80.0},
    ],
    "steps from sigma_max to 0": [{"grid": 4}, {"grid": 16}, {"grid": 32}],
    "how sharp the network can be": [
        {"activation": "mish"},
        {"activation": "gelu"},
        {"input_gain": 1.0},
        {"activation": "mish", "input_gain": 1.0},
        {"input_gain": 6.0},
        {"hidden": [256, 256, 256]},
    ],
    "how slow the teacher is": [{"tau": 0.005}, {"tau": 0.2}],
    "how many jumps end at 0": [{"zero_share": 0.0}, {"zero_share": 0.6}],
    "where the last jump starts": [{"sigma_last": 0.05}, {"sigma_last": 0.15}, {"sigma_last": 0.5}],
    "where acting starts": [{"sigma_max": 80.0}],
    "the residual's units": [{"residual": "plain"}],
    "one of the two losses a row": [{"alternate": True}],
}


def ablation(*, seeds: int = 1, steps: int = 12_000, samples: int = SAMPLES, progress: bool = True) -> dict[str, Any]:
    """Train every variant with seeds 0, 1, ..., and measure on `samples` samples.

    Returns:
        Question to variant to the results of `known_answer` with each seed.
    """
    jobs: dict[str, TrainingJob] = {}
    for question, variants in QUESTIONS.items():
        for changed in variants:
            policy = {key: value for key, value in changed.items() if key != "tau"}
            training = {"tau": changed["tau"]} if "tau" in changed else {}
            for seed in range(seeds):
                arguments = {
                    "problem": "modes",
                    "config": replace(SETTINGS, **policy),
                    "steps": steps,
                    "seed": seed,
                }
                arguments |= {"samples": samples, **training}
                jobs[f"{question}|{label(changed)}|{seed}"] = (known_answer, arguments)
    results: dict[str, Any] = {}
    for name, measured in run_parallel(jobs, progress=progress).items():
        question, variant, _ = name.split("|")
        results.setdefault(question, {}).setdefault(variant, []).append(measured)
    return results


def label(changed: Mapping[str, Any]) -> str:
    """The changed settings as text."""
    return " ".join(f"{key}={value}" for key, value in changed.items()) or "as it is"


def table(results: Mapping[str, Any]) -> str:
    """Markdown: the percentage of samples on a mode by K, a number for each seed."""
    lines = ["| | " + " | ".join(f"K={k}" for k in STEPS) + " |", "|---" * (len(STEPS) + 1) + "|"]
    for question, variants in results.items():
        lines.append(f"| **{question}** |" + " |" * len(STEPS))
        for variant, runs in variants.items():
            cells = [", ".join(f"{run['on_mode'][k]:.1f}" for run in runs) for k in STEPS]
            lines.append(f"| {variant} | " + " | ".join(cells) + " |")
    return "\n".join(lines)
