"""`gtp-vision bench suite`: what a person types to run a benchmark."""

from __future__ import annotations

import argparse
import json
import os
from dataclasses import asdict
from pathlib import Path
from typing import Any

from gtp_vision.core.errors import GtpVisionError

_HELP = """\
Run a suite of tasks under its protocol: plan, cost, runs, tables. The same command goes on where it was stopped.

  gtp-vision bench suite two-cores --plan                        what there is to do, and about how long it takes
  gtp-vision bench suite ogbench-visual --agents gtp,gtp+n,fql --seeds 4
  gtp-vision bench suite d4rl-gym --tasks hopper-medium-v2 --out runs/hopper
  gtp-vision bench suite ogbench-state --launcher submitit_slurm --launcher-setting partition=gpu --workers 64
  gtp-vision bench suite mine.yaml --tables                      the tables of what has been run so far
"""


def add(bench: Any) -> None:
    """Add `suite` to what `gtp-vision bench` does (argparse's subparsers)."""
    suite = bench.add_parser(
        "suite",
        help="run a benchmark under its protocol: plan, cost, runs, tables",
        description=_HELP,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    suite.add_argument("name", help="of configs/benchmark, or a YAML file")
    suite.add_argument(
        "--agents", default="", help="labels with commas between, e.g. gtp,gtp+n,fql; default: the suite's"
    )
    suite.add_argument("--tasks", default="", help="with commas between; default: all")
    suite.add_argument("--seeds", type=int, help="how many; default: the suite's")
    suite.add_argument(
        "--steps", type=int, help="gradient steps of a run; default: the suite's (others break its protocol)"
    )
    suite.add_argument("--episodes", type=int, help="of each evaluation; likewise")
    suite.add_argument("--data", type=Path, help="folder of the data sets; default: the suite's")
    suite.add_argument("--out", type=Path, help="folder of runs and tables; default runs/bench/NAME")
    suite.add_argument("--workers", type=int, help="runs at once; default: one a GPU, or one a core")
    suite.add_argument("--threads", type=int, default=1, help="of each run; default 1")
    suite.add_argument("--launcher", metavar="NAME", help="Hydra's, that starts the runs: submitit_slurm, ray, ...")
    suite.add_argument(
        "--launcher-setting", action="append", default=[], metavar="KEY=VALUE", help="of it, e.g. partition=gpu; repeat"
    )
    suite.add_argument("--plan", action="store_true", help="show the plan and its cost only")
    suite.add_argument("--tables", action="store_true", help="write the tables only, of what has been run")
    suite.add_argument("--json", action="store_true", help="print scores as JSON instead of tables")
    suite.set_defaults(run=_suite)


def _suite(arguments: argparse.Namespace, _: list[str]) -> int:
    import torch

    from gtp_vision.suites import cost, runner, tables
    from gtp_vision.suites.plan import plan
    from gtp_vision.suites.suite import load

    suite = load(arguments.name).chosen(agents=_words(arguments.agents), tasks=_words(arguments.tasks))
    for name in ("seeds", "steps", "episodes", "workers", "threads"):
        value = getattr(arguments, name)
        if value is not None and value < 1:
            raise GtpVisionError(f"--{name} {value} must be at least 1")
    if arguments.launcher_setting and not arguments.launcher:
        raise GtpVisionError("--launcher-setting sets nothing without a --launcher; add one, e.g. submitit_slurm")
    if arguments.steps:  # as many evaluations as before
        suite.eval_every = max(1, round(arguments.steps * suite.eval_every / suite.steps))
        suite.steps = arguments.steps
    suite.seeds, suite.episodes = arguments.seeds or suite.seeds, arguments.episodes or suite.episodes
    out = arguments.out or Path("runs/bench") / Path(arguments.name).stem
    planned = plan(suite, out, (arguments.data or Path(suite.data)).expanduser())
    workers = arguments.workers or torch.cuda.device_count() or os.cpu_count() or 1
    command, progress = " ".join(["gtp-vision", *arguments.words]), os.environ.get("TQDM_DISABLE") != "1"
    if arguments.tables:
        found = runner.write(suite, planned, out, command=command)
    else:
        if not planned.jobs:
            raise GtpVisionError(f"nothing of the suite can be run here: {'; '.join(planned.missing)}")
        costs = cost.table(planned, cost.cost(planned, progress=progress), workers)
        if arguments.plan or not arguments.json:
            print(costs, flush=True)
        if arguments.plan:
            return 0
        launcher = [f"hydra.launcher.{setting}" for setting in arguments.launcher_setting]
        found = runner.run(
            suite,
            planned,
            out,
            workers=workers,
            threads=arguments.threads,
            launcher=[f"hydra/launcher={arguments.launcher}", *launcher] if arguments.launcher else [],
            command=command,
            progress=progress,
        )
    if arguments.json:
        print(json.dumps([asdict(record) for record in found]))
    elif found:
        print(f"\n{tables.table(found, selection=suite.selection)}\n{out / 'results.html'}")
    else:
        print(f"{out} holds no scores yet")
    return 0


def _words(text: str) -> list[str]:
    return [word for word in text.split(",") if word]
