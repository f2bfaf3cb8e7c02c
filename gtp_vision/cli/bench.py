"""`gtp-vision bench WHAT` and `gtp-vision experiment WHAT`: what is measured, and learnt where answers are known."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from gtp_vision.cli import serve, suite
from gtp_vision.core.errors import GtpVisionError


def add(verbs: Any) -> None:
    """Add the verbs `bench` and `experiment` to the command line's verbs (argparse's subparsers)."""
    bench = verbs.add_parser("bench", help="measure").add_subparsers(dest="what", metavar="WHAT", required=True)
    step = bench.add_parser("step", help="a step and an action with every engine, many seeds; some minutes")
    step.add_argument("--rounds", type=int, default=15, help="interleaved rounds; medians are printed")
    step.add_argument("--engines", default="", help="besides eager, with commas between; default: all there are")
    step.add_argument("--compare", type=Path, metavar="FILE", help="fail on ratios 15 %% worse than this baseline's")
    step.add_argument("--save", type=Path, metavar="FILE", help="write a baseline")
    step.add_argument("--json", action="store_true")
    step.set_defaults(run=_bench_step)
    suite.add(bench)
    serve.add_bench(bench)
    loader = bench.add_parser("loader", help="batches against a bare gather, robomimic and h5py; memory; statistics")
    loader.add_argument("--rounds", type=int, default=5, help="interleaved rounds; medians are printed")
    loader.add_argument("--json", action="store_true")
    loader.set_defaults(run=_bench_loader)
    profile = bench.add_parser("profile", help="time and memory of a step and an action, agent by agent; five minutes")
    profile.add_argument("--rounds", type=int, default=15, help="interleaved rounds; medians are printed")
    profile.add_argument("--json", action="store_true")
    profile.set_defaults(run=_bench_profile)

    encoders = bench.add_parser("encoders", help="frozen features against states and frames; IMPALA against its layers")
    encoders.add_argument("--rounds", type=int, default=7, help="interleaved rounds; medians are printed")
    encoders.add_argument("--json", action="store_true")
    encoders.set_defaults(run=_bench_encoders)

    experiment = verbs.add_parser("experiment", help="what few-step policies learn, where the answer is known")
    what = experiment.add_subparsers(dest="what", metavar="WHAT", required=True)
    maps = what.add_parser("maps", help="the learned flow map against known answers; about ten minutes")
    maps.set_defaults(run=_experiment_maps)
    goals = what.add_parser("multigoal", help="four goals: data, diffusion, consistency and GTP side by side")
    goals.add_argument("--out", type=Path, default=Path("runs/multigoal"), help="folder (default runs/multigoal)")
    goals.set_defaults(run=_experiment_multigoal)
    agents = what.add_parser("bandit", help="every agent where the improved policy is known")
    agents.add_argument("--out", type=Path, default=Path("runs/bandit"), help="folder (default runs/bandit)")
    agents.add_argument("--train-steps", type=int, default=4000, help="gradient steps; some rows take a share of them")
    agents.add_argument("--seed", type=int, default=0)
    agents.add_argument("--json", action="store_true")
    agents.set_defaults(run=_experiment_bandit)
    for each in (maps, goals):
        each.add_argument("--train-steps", type=int, default=24_000, help="gradient steps of each GTP")
        each.add_argument("--seed", type=int, default=0)
        each.add_argument("--json", action="store_true")
    ablation = what.add_parser("ablation", help="the four modes with one setting changed at a time; half an hour")
    ablation.add_argument("--train-steps", type=int, default=12_000, help="gradient steps of each training")
    ablation.add_argument("--seeds", type=int, default=1, help="seeds 0, 1, ...")
    ablation.add_argument("--json", action="store_true")
    ablation.set_defaults(run=_experiment_ablation)
    eyes = what.add_parser("encoders", help="a pretrained backbone against others, few demonstrations; an hour")
    eyes.add_argument("--data", type=Path, required=True, help="demonstrations, e.g. of `data collect robosuite/Lift`")
    eyes.add_argument("--weights", type=Path, required=True, help="of an ImageNet EfficientNet-Lite0")
    eyes.add_argument("--out", type=Path, default=Path("runs/encoders"), help="folder (default runs/encoders)")
    eyes.add_argument("--rows", default="", help="with semicolons between; default: all")
    eyes.add_argument("--demonstrations", type=int, default=20, help="that are trained on; the rest judges")
    eyes.add_argument("--cameras", default="agentview_image", help="with commas between")
    eyes.add_argument("--seeds", type=int, default=3, help="seeds 0, 1, ...")
    eyes.add_argument("--train-steps", type=int, default=400, help="gradient steps of each run")
    eyes.add_argument("--json", action="store_true")
    eyes.set_defaults(run=_experiment_encoders)
    sweep = what.add_parser("steps", help="quality and milliseconds of a trained run for K = 1, 2, 3, 5, 10")
    sweep.add_argument("run_dir", type=Path, metavar="RUN")
    sweep.add_argument("--data", type=Path, help="recordings that the run was not trained on (default: its own)")
    sweep.add_argument("--episodes", type=int, default=0, help="evaluation episodes for each K (default: none)")
    sweep.add_argument("--checkpoint", default="last", help="last (default), best, or step_N")
    sweep.add_argument("--compile", action="store_true", help="time compiled acting too (takes seconds for each K)")
    sweep.add_argument("--json", action="store_true")
    sweep.set_defaults(run=_experiment_steps)


def _bench_step(arguments: argparse.Namespace, _: list[str]) -> int:
    from gtp_vision.bench import baseline
    from gtp_vision.bench.step import bench_step

    rounds = _at_least(1, "--rounds", arguments.rounds)
    engines = [name for name in arguments.engines.split(",") if name]
    # Before minutes are spent:
    stored = baseline.check_baseline(arguments.compare, engines) if arguments.compare else {}
    if arguments.save:
        baseline.check_writable(arguments.save)
    results = bench_step(rounds=rounds, engines=engines, progress=not arguments.json)
    print(json.dumps(results) if arguments.json else baseline.table(results))
    if fault := baseline.disagreement(results):
        raise GtpVisionError(fault)
    table, worse = baseline.compare(results, arguments.compare, stored) if arguments.compare else ("", [])
    if arguments.save:
        baseline.save(results, arguments.save)
    if table:
        print(f"\n{table}", file=sys.stderr if arguments.json else sys.stdout)
    if worse:
        raise GtpVisionError(f"not as fast as {arguments.compare}: {'; '.join(worse)}")
    return 0


def _bench_loader(arguments: argparse.Namespace, _: list[str]) -> int:
    from gtp_vision.bench.loader import bench_loader, table

    results = bench_loader(rounds=_at_least(1, "--rounds", arguments.rounds), progress=not arguments.json)
    print(json.dumps(results) if arguments.json else table(results))
    return 0


def _bench_profile(arguments: argparse.Namespace, _: list[str]) -> int:
    from gtp_vision.bench.profile import bench_profile, table

    results = bench_profile(rounds=_at_least(1, "--rounds", arguments.rounds), progress=not arguments.json)
    print(json.dumps(results) if arguments.json else table(results))
    return 0


def _bench_encoders(arguments: argparse.Namespace, _: list[str]) -> int:
    from gtp_vision.bench.encoders import bench_encoders, table

    results = bench_encoders(rounds=_at_least(1, "--rounds", arguments.rounds), progress=not arguments.json)
    print(json.dumps(results) if arguments.json else table(results))
    return 0


def _experiment_maps(arguments: argparse.Namespace, _: list[str]) -> int:
    from gtp_vision.experiments.maps import maps, table

    results = maps(
        seed=_at_least(0, "--seed", arguments.seed),
        steps=_at_least(1, "--train-steps", arguments.train_steps),
        progress=not arguments.json,
    )
    print(json.dumps(results) if arguments.json else table(results))
    return 0


def _experiment_multigoal(arguments: argparse.Namespace, _: list[str]) -> int:
    from gtp_vision.experiments.multigoal import multigoal, table

    results = multigoal(
        arguments.out,
        seed=_at_least(0, "--seed", arguments.seed),
        steps=_at_least(1, "--train-steps", arguments.train_steps),
        progress=not arguments.json,
    )
    print(json.dumps(results) if arguments.json else "\n".join([*table(results), f"figure: {results['figure']}"]))
    return 0


def _experiment_bandit(arguments: argparse.Namespace, _: list[str]) -> int:
    from gtp_vision.experiments.bandit import bandit, table

    results = bandit(
        arguments.out,
        seed=_at_least(0, "--seed", arguments.seed),
        steps=_at_least(1, "--train-steps", arguments.train_steps),
        progress=not arguments.json,
    )
    print(json.dumps(results) if arguments.json else f"{table(results)}\nfigure: {results['figure']}")
    return 0


def _experiment_ablation(arguments: argparse.Namespace, _: list[str]) -> int:
    from gtp_vision.experiments.ablation import ablation, table

    results = ablation(
        seeds=_at_least(1, "--seeds", arguments.seeds),
        steps=_at_least(1, "--train-steps", arguments.train_steps),
        progress=not arguments.json,
    )
    print(json.dumps(results) if arguments.json else table(results))
    return 0


def _experiment_encoders(arguments: argparse.Namespace, _: list[str]) -> int:
    from gtp_vision.experiments.encoders import encoders, table

    results = encoders(
        arguments.data,
        arguments.weights,
        arguments.out,
        rows=[name.strip() for name in arguments.rows.split(";") if name.strip()],
        demonstrations=_at_least(1, "--demonstrations", arguments.demonstrations),
        seeds=_at_least(1, "--seeds", arguments.seeds),
        steps=_at_least(1, "--train-steps", arguments.train_steps),
        cameras=[name for name in arguments.cameras.split(",") if name],
        progress=not arguments.json,
    )
    print(json.dumps(results) if arguments.json else table(results))
    return 0


def _at_least(low: int, option: str, value: int) -> int:
    if value < low:
        raise GtpVisionError(f"{option} {value} must be at least {low}")
    return value


def _experiment_steps(arguments: argparse.Namespace, _: list[str]) -> int:
    from gtp_vision.experiments.steps import sweep, table

    results = sweep(
        arguments.run_dir,
        data=arguments.data,
        episodes=arguments.episodes,
        which=arguments.checkpoint,
        compiled=arguments.compile,
        progress=not arguments.json,
    )
    print(json.dumps(results) if arguments.json else table(results))
    return 0
