"""`gtp-vision bench suite`: what a person types to run a benchmark."""

from __future__ import annotations

import argparse
import json
import math
import os
import shlex
import sys
from dataclasses import asdict
from pathlib import Path

from gtp_vision.cli.verb import Verb, at_least, words
from gtp_vision.core.errors import GtpVisionError

_HELP = """\
Run a suite of tasks under its protocol: plan, cost, runs, tables. The same command resumes after an interruption.

  gtp-vision bench suite two-cores --plan                        what there is to do, and about how long it takes
  gtp-vision bench suite ogbench-visual --agents gtp,gtp+n,fql --seeds 4
  gtp-vision bench suite d4rl-gym --tasks hopper-medium-v2 --out runs/hopper
  gtp-vision bench suite ogbench-state --launcher submitit_slurm --launcher-setting partition=gpu --workers 64
  gtp-vision bench suite mine.yaml --commands                    a line for each run, for a job array
  gtp-vision bench suite mine.yaml --tables                      the tables of the runs so far
  gtp-vision bench suite mine.yaml --tables --peers runs/peers   with runs of official code (docs/benchmarks.md)
"""


def _options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", help="of configs/suite, or a YAML file")
    parser.add_argument(
        "--agents", type=words, default=[], help="labels with commas between, e.g. gtp,gtp+n,fql; default: the suite's"
    )
    parser.add_argument("--tasks", type=words, default=[], help="with commas between; default: all")
    parser.add_argument("--seeds", type=at_least(1), help="how many; default: the suite's")
    parser.add_argument(
        "--steps", type=at_least(1), help="gradient steps of a run; default: the suite's (others break its protocol)"
    )
    parser.add_argument("--episodes", type=at_least(1), help="of each evaluation; likewise")
    parser.add_argument("--data", type=Path, help="folder of the data sets; default: the suite's")
    parser.add_argument("--out", type=Path, help="folder of runs and tables; default runs/bench/NAME")
    parser.add_argument(
        "--peers", type=Path, metavar="FOLDER", help="official runs, of the drivers in benchmarks/peers/"
    )
    parser.add_argument(
        "--reach", type=float, metavar="SCORE", help="until which training is timed; default: the suite's"
    )
    parser.add_argument("--workers", type=at_least(1), help="runs at once; default: one a GPU, or one a core")
    parser.add_argument("--threads", type=at_least(1), default=1, help="of each run; default 1")
    parser.add_argument("--launcher", metavar="NAME", help="Hydra's, that starts the runs: submitit_slurm, joblib, ...")
    parser.add_argument(
        "--launcher-setting", action="append", default=[], metavar="KEY=VALUE", help="of it, e.g. partition=gpu; repeat"
    )
    parser.add_argument("--commands", action="store_true", help="print the command of each unfinished run only")
    parser.add_argument("--plan", action="store_true", help="show the plan and its cost only")
    parser.add_argument("--tables", action="store_true", help="write the tables only, of what has been run")
    parser.add_argument("--json", action="store_true", help="print scores as JSON instead of tables")


def _run(arguments: argparse.Namespace, _: list[str]) -> int:
    import torch

    from gtp_vision.suites import cost, runner, tables
    from gtp_vision.suites.plan import plan
    from gtp_vision.suites.suite import load

    suite = load(arguments.name).chosen(agents=arguments.agents, tasks=arguments.tasks)
    if arguments.launcher_setting and not arguments.launcher:
        raise GtpVisionError("--launcher-setting sets nothing without a --launcher; add one, e.g. submitit_slurm")
    if arguments.steps:  # as many evaluations as before
        suite.eval_every = max(1, round(arguments.steps * suite.eval_every / suite.steps))
        suite.steps = arguments.steps
    suite.seeds, suite.episodes = arguments.seeds or suite.seeds, arguments.episodes or suite.episodes
    suite.reach = suite.reach if arguments.reach is None else arguments.reach
    out = arguments.out or Path("runs/bench") / Path(arguments.name).stem
    data = Path(os.path.expanduser(arguments.data or suite.data))
    planned = plan(suite, out, data, with_runs=not arguments.tables)
    workers = arguments.workers or torch.cuda.device_count() or os.cpu_count() or 1
    command, progress = shlex.join(["gtp-vision", *arguments.words]), os.environ.get("TQDM_DISABLE") != "1"
    if arguments.tables:
        found = runner.write(suite, planned, out, command=command, peers=arguments.peers)
    else:
        if not planned.jobs:
            raise GtpVisionError(f"nothing of the suite can be run here: {'; '.join(planned.missing)}")
        if arguments.commands:
            print("\n".join(runner.commands(planned)))
            for sentence in planned.missing:
                print(f"gtp-vision: {sentence}", file=sys.stderr)
            return 0
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
            peers=arguments.peers,
            progress=progress,
        )
    if arguments.json:
        scores = [[None if math.isnan(score) else score for score in record.scores] for record in found]
        print(json.dumps([asdict(record) | {"scores": own} for record, own in zip(found, scores, strict=True)]))
    elif found:
        print(f"\n{tables.table(found, selection=suite.selection)}\n{out / 'results.html'}")
    else:
        print(f"{out} holds no scores yet")
    return 0


SUITE = Verb(
    "bench suite", "run a benchmark under its protocol: plan, cost, runs, tables", _options, _run, 2, description=_HELP
)
