"""`gtp-vision experiment compositions`: every legal agent trains on rewards that are hard on numbers, and stays finite.

    agent = family x improvement (and its variants) x critic x acting

Two data sets of states: one whose rewards are all far below 0, so that advantages lie on one side while values learn,
and one whose rewards are 0 but for one success. Compositions that cannot work are refused as a user's are.
"""

from __future__ import annotations

import functools
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from gtp_vision.agents import IMPROVEMENTS, ActingConfig, AgentConfig, check_agent, improvement_settings
from gtp_vision.config.compose import from_command_line
from gtp_vision.config.schema import Config
from gtp_vision.core.errors import GtpVisionError
from gtp_vision.core.files import make_folder
from gtp_vision.core.random import RandomStream, counter_rng
from gtp_vision.datasets.formats import native
from gtp_vision.datasets.sources import batch_source
from gtp_vision.datasets.store import Store
from gtp_vision.experiments.output import write_json
from gtp_vision.models import FAMILIES, PolicyConfig
from gtp_vision.models.critic import CriticConfig
from gtp_vision.training.build import build
from gtp_vision.training.eager import Eager
from gtp_vision.training.jobs import run_parallel

TASKS = ("negative", "sparse")
STEPS = 300
# By family, what its preset sets besides the widths.
POLICIES: dict[str, dict[str, Any]] = {
    "bottleneck": {"activation": "silu"},
    "consistency": {"sigma_max": 80.0, "sigma_last": 2.0, "grid": 40},
    "vp_diffusion": {"grid": 5},
}
# By improvement, what its variants set.
VARIANTS: dict[str, dict[str, dict[str, Any]]] = {
    "advantage": {
        "": {},
        "exponential": {"form": "exponential", "eta": 10.0},
        "as IQL": {"form": "exponential", "eta": 10.0, "standardize": False, "weight_clip": 100.0},
    },
    "alignment": {"": {"pretrain_steps": 100}},
}
CRITICS: dict[str, dict[str, Any]] = {
    "none": {"backup": "none"},
    "mean": {},
    "max": {"backup": "max", "next_actions": 4},
    "softmax": {"backup": "softmax", "next_actions": 4},
    "expectile": {"backup": "expectile"},
    "chunks": {"chunk": True},
}
ACTINGS: dict[str, dict[str, Any]] = {
    "one": {},
    "no noise": {"noise": 0.0},
    "best of 4": {"candidates": 4},
    "softmax of 4": {"candidates": 4, "choose": "softmax", "temperature": 1e-3},
    "beam": {"candidates": 4, "beam": 2, "rounds": 2, "branch": 2, "gradient_step": 0.1},
    "gradient": {"gradient_step": 0.1},
}
_EPISODES, _LENGTH, _BATCH, _SALT = 30, 20, 32, 0xC0A905


@dataclass(frozen=True)
class Composition:
    """The names of an agent's family, improvement and critic, and its settings."""

    family: str
    improvement: str
    critic: str
    config: AgentConfig

    @property
    def label(self) -> str:
        """The three names."""
        return f"{self.family} / {self.improvement} / {self.critic}"


def every_composition() -> Iterator[Composition]:
    """All families, improvements and critics of this installation, whether they fit each other or not."""
    for family in FAMILIES:
        policy = PolicyConfig(**{"family": family, "hidden": [16, 16], **POLICIES.get(family, {})})
        k = policy.grid if family == "vp_diffusion" else 2
        for name in IMPROVEMENTS:
            for variant, settings in VARIANTS.get(name, {"": {}}).items():
                improvement = improvement_settings(name)
                lengths = dict.fromkeys(("value_steps", "q_steps", "support_steps", "distill_steps"), k)
                for key, value in (lengths | settings).items():
                    if hasattr(improvement, key):
                        setattr(improvement, key, value)
                for critic, chosen in CRITICS.items():
                    agent = AgentConfig(
                        policy=policy,
                        critic=CriticConfig(**{"hidden": [16, 16], "next_steps": k, **chosen}),
                        improvement=improvement,
                        acting=ActingConfig(steps=k),
                        action_chunk=2 if critic == "chunks" else 1,
                    )
                    yield Composition(family, f"{name}, {variant}" if variant else name, critic, agent)


def refusal(config: AgentConfig) -> str:
    """The sentence by which an agent is refused, or ""."""
    try:
        check_agent(config)
    except GtpVisionError as error:
        return str(error)
    return ""


def recordings(task: str, generator: np.random.Generator) -> Store:
    """Episodes of random actions with rewards of about -100, or of 0 but for one."""
    rows = _EPISODES * _LENGTH
    ends = np.arange(_LENGTH, rows + 1, _LENGTH)
    actions = generator.uniform(-1, 1, (rows, 2)).astype(np.float32)
    rewards, terminals = -100 - np.abs(actions).sum(1), np.zeros(rows, bool)
    if task == "sparse":
        rewards, terminals[ends[0] - 1] = np.zeros(rows, np.float32), True
        rewards[ends[0] - 1] = 1
    timeouts = np.zeros(rows, bool)
    timeouts[ends - 1] = ~terminals[ends - 1]
    state = generator.standard_normal((rows, 3)).astype(np.float32)
    return Store({"state": state}, actions, rewards, terminals, timeouts, ends)


def compositions(
    out: Path, *, steps: int = STEPS, seed: int = 0, every: int = 1, progress: bool = True
) -> dict[str, Any]:
    """Train the legal compositions for `steps` on both tasks, and act; write `compositions.json` into a folder.

    Args:
        out: the folder.
        steps: of each training.
        seed: of data, networks and noise.
        every: train one of so many compositions, for a sample.
        progress: show a bar.

    Returns:
        JSON-able: `trained`, by label and task what was first not finite, or ""; `refused`, by label the sentence;
        `acted`, how many ways of acting were tried; `tasks`, `train_steps`, `seed`, `seconds`; `json`, the path.

    Raises:
        GtpVisionError: the folder cannot be created.
    """
    began = time.perf_counter()
    make_folder(out)
    found = list(every_composition())
    refused = {each.label: sentence for each in found if (sentence := refusal(each.config))}
    legal = [each for each in found if each.label not in refused][::every]
    with tempfile.TemporaryDirectory() as folder:
        data = {
            task: native.write(Path(folder) / f"{task}.h5", recordings(task, counter_rng(seed, _SALT)))
            for task in TASKS
        }
        jobs = {
            each.label: (train_composition, {"agent": each.config, "data": data, "steps": steps, "seed": seed})
            for each in legal
        }
        done = run_parallel(jobs, progress=progress)
    results: dict[str, Any] = {
        "trained": {label: result["faults"] for label, result in done.items()},
        "refused": refused,
        "acted": sum(result["acted"] for result in done.values()),
        "tasks": list(TASKS),
        "train_steps": steps,
        "seed": seed,
        "seconds": round(time.perf_counter() - began, 1),
    }
    write_json(out / "compositions.json", results)
    return results | {"json": str(out / "compositions.json")}


def train_composition(agent: AgentConfig, data: Mapping[str, Path], steps: int, seed: int) -> dict[str, Any]:
    """Train an agent on each data set as `gtp-vision train` does, then act in every legal way.

    Returns:
        `faults`, by data set a clause that names what was first not finite, or ""; `acted`, the ways of acting.
    """
    actings = {name: replace(agent.acting, **chosen) for name, chosen in ACTINGS.items()}
    legal = {name: acting for name, acting in actings.items() if not refusal(replace(agent, acting=acting))}
    faults = {task: _fault(agent, path, steps, seed, legal) for task, path in data.items()}
    return {"faults": faults, "acted": len(legal) * len(data)}


@functools.cache
def _config(steps: int, seed: int) -> Config:
    overrides = ["task=own", "task.name=compositions", "task.frame_stack=1", "task.dataset=unused", "encoder=state"]
    overrides += ["training.device=cpu", "training.learning_rate=3e-3", "training.warmup_steps=0", f"seed={seed}"]
    return from_command_line([*overrides, f"training.batch_size={_BATCH}", f"training.steps={steps}"])


def _fault(agent: AgentConfig, path: Path, steps: int, seed: int, actings: Mapping[str, ActingConfig]) -> str:
    config = _config(steps, seed)
    task = replace(config.task, dataset=str(path), n_step=agent.action_chunk)
    config = replace(config, agent=agent, task=task)
    parts = build(config)
    engine = Eager(batch_source(parts.sampler, parts.accelerator.device), config, parts)
    for step in range(steps):
        (metrics,) = engine.step(step, engine.source.fetch(step))
        if not bool(torch.stack(list(metrics.values())).isfinite().all()):
            return f"step {step + 1}: {', '.join(name for name, x in metrics.items() if not bool(x.isfinite()))}"
        if metrics.get("weight/effective_share", 1) < 0.99 / _BATCH:
            return f"step {step + 1}: no action has a weight"
    for name, tensor in parts.agent.state_dict().items():
        if not bool(tensor.isfinite().all()):
            return f"parameter {name}"
    observation = {name: x.to(parts.accelerator.device) for name, x in parts.sampler.batch(0).observation.items()}
    for name, acting in actings.items():
        if not bool((parts.agent.plan(observation, RandomStream(seed, _SALT), acting=acting).abs() <= 1).all()):
            return f"acting: {name}"
    return ""


def table(results: Mapping[str, Any]) -> list[str]:
    """How many critics each family and improvement trained with, `-` where all were refused, and what failed."""
    trained = results["trained"]
    cells = Counter(label.rpartition(" / ")[0] for label in trained)
    names = [tuple(label.split(" / ")[:2]) for label in [*trained, *results["refused"]]]
    families, improvements = sorted({family for family, _ in names}), sorted({name for _, name in names})
    lines = [f"{'':14}" + "".join(f"  {name}" for name in improvements)]
    for family in families:
        counts = {name: str(cells[f"{family} / {name}"] or "-") for name in improvements}
        lines.append(f"{family:14}" + "".join(f"{count:>{len(name) + 2}}" for name, count in counts.items()))
    faults = [f"{label}, {task}: {what}" for label, of in trained.items() for task, what in of.items() if what]
    lines.append(
        f"{len(trained)} compositions trained for {results['train_steps']} steps on {len(results['tasks'])} tasks, and "
        f"acted {results['acted']} times: {len(faults)} not finite; {len(results['refused'])} refused; "
        f"{results['seconds']:.0f} s"
    )
    return lines + faults
