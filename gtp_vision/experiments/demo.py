"""`gtp-vision demo`: the whole pipeline on the data set that this package contains."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from subprocess import DEVNULL
from typing import Any

from gtp_vision.config.compose import from_command_line
from gtp_vision.config.overrides import quoted
from gtp_vision.config.schema import Config
from gtp_vision.core.errors import GtpVisionError
from gtp_vision.core.extras import require
from gtp_vision.core.processes import start, stop

AGENTS = ("gtp", "gtp_bc")


def demo(out: Path, *, seed: int = 0, overrides: Sequence[str] = (), progress: bool = True) -> dict[str, Any]:
    """Train GTP and GTP-BC from pixels, evaluate both and random actions in the simulator, write one report.

    An earlier demo in the folder is replaced.

    Returns:
        JSON-able: success of GTP (`success`), of GTP-BC and of random actions, episodes, seconds by phase, the
        report's path.

    Raises:
        GtpVisionError: the simulator is missing, the folder holds other files, or a run failed.
    """
    require("demo", "the demo", "ogbench", "mujoco")
    marker = out / "demo.json"
    if out.exists() and any(out.iterdir()) and not marker.exists():
        raise GtpVisionError(f"{out} is not empty and does not hold a demo; choose another folder with --out")
    if out.exists():
        shutil.rmtree(out)
    out.mkdir(parents=True)
    marker.write_text("{}")

    started = time.perf_counter()
    common = ["task=demo", "training=demo", "encoder=demo", f"seed={seed}", *overrides]
    settings = {agent: [f"agent={agent}_demo", quoted("run_dir", out / agent), *common] for agent in AGENTS}
    config = from_command_line(settings["gtp"])
    with _trainings(settings, progress):
        from gtp_vision.report import build_report  # slow imports, which the trainings must not wait for

        chance = _evaluate_random(config)
    runs = {agent: json.loads((out / agent / "results.json").read_text()) for agent in AGENTS}
    build_report(
        [out / agent for agent in AGENTS],
        out / "report.html",
        title="A policy that learned from pixels",
        baselines=[{"agent": "random", "last": chance}],
        notes=[
            "The task: press two of the nine buttons, in either order. Half of the demonstrations press wrong "
            "buttons: cloning them all (gtp_bc) repeats their mistakes; weighting them by a critic (gtp) avoids most "
            "of them."
        ],
    )
    seconds = {f"train_{agent}": run["train_seconds"] for agent, run in runs.items()}
    seconds |= {f"eval_{agent}": run["eval_seconds"] for agent, run in runs.items()}
    seconds |= {"eval_random": chance["seconds"], "total": time.perf_counter() - started}
    evaluations = {"success": runs["gtp"]["last"], "success_bc": runs["gtp_bc"]["last"], "success_random": chance}
    results = {
        **{name: evaluation["success"] for name, evaluation in evaluations.items()},
        **{f"{name}_interval": evaluation["success_interval"] for name, evaluation in evaluations.items()},
        "episodes": runs["gtp"]["last"]["episodes"],
        "train_seconds": sum(run["train_seconds"] for run in runs.values()),
        "eval_seconds": sum(run["eval_seconds"] for run in runs.values()) + chance["seconds"],
        "seconds": {phase: round(elapsed, 1) for phase, elapsed in seconds.items()},
        "seed": seed,
        "report": str(out / "report.html"),
    }
    marker.write_text(json.dumps(results, indent=1))
    return results


def table(results: dict[str, Any]) -> str:
    """The results as text, the report's path last."""
    lines = [f"{'agent':<8} {'success':>8}   {'95 % interval':<14} {'train s':>8} {'eval s':>7}"]
    for agent, key in (("gtp", "success"), ("gtp_bc", "success_bc"), ("random", "success_random")):
        low, high = results[f"{key}_interval"]
        train = results["seconds"].get(f"train_{agent}")
        lines.append(
            f"{agent:<8} {results[key]:>8.0%}   {f'{low:.0%} to {high:.0%}':<14} "
            f"{'' if train is None else f'{train:.0f}':>8} {results['seconds'][f'eval_{agent}']:>7.0f}"
        )
    lines.append(
        f"{results['episodes']} episodes each, seed {results['seed']}, {results['seconds']['total']:.0f} s in all"
    )
    lines.append(f"report: {results['report']}")
    return "\n".join(lines)


@contextmanager
def _trainings(settings: Mapping[str, Sequence[str]], progress: bool) -> Iterator[None]:
    """Run `gtp-vision train` for every agent at once while the block runs, and wait for all.

    The processes share the cores: more threads than cores only wait for each other.

    Raises:
        GtpVisionError: a run failed; its own message stands on stderr.
    """
    threads = max(1, (os.cpu_count() or 1) // len(settings))
    running = {}
    try:
        for position, (agent, overrides) in enumerate(settings.items()):
            bar = {"TQDM_POSITION": str(2 * position)} if progress else {"TQDM_DISABLE": "1"}
            environment = {"OMP_NUM_THREADS": str(threads)} | bar
            running[agent] = start("gtp_vision", "train", *overrides, environment=environment, stdout=DEVNULL)
        yield
        for agent, process in running.items():
            if process.wait():
                raise GtpVisionError(
                    f"the run of {agent} failed with status {process.returncode}; its message is above"
                )
    finally:
        for process in running.values():
            stop(process, None)  # a run ends after a checkpoint


def _evaluate_random(config: Config) -> dict[str, Any]:
    """Evaluate random actions on the same episodes, without rendering."""
    from gtp_vision.envs import EnvSpec
    from gtp_vision.evaluation.evaluator import Evaluator, random_actor
    from gtp_vision.training import evaluate
    from gtp_vision.training.data import open_data

    spec = EnvSpec(config.task.env or "", pixels=False, max_episode_steps=config.task.max_episode_steps)
    actor = random_actor(open_data(config).action_dim)
    with Evaluator(spec, frame_stack=1, envs=1, seed=evaluate.eval_seed(config), progress=False) as evaluator:
        return evaluator.run(actor, config.training.eval_episodes)[0]
