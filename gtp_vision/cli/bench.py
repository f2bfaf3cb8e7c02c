"""`gtp-vision bench WHAT`: measurements of time and memory."""

from __future__ import annotations

import argparse
import json
import sys
from functools import partial
from pathlib import Path

from gtp_vision.cli.verb import Verb, at_least, measurement, words
from gtp_vision.core.errors import GtpVisionError


def _rounds(default: int, parser: argparse.ArgumentParser) -> None:
    help = "interleaved rounds; medians are printed"
    parser.add_argument("--rounds", type=at_least(1), default=default, help=help)


def _step_options(parser: argparse.ArgumentParser) -> None:
    _rounds(15, parser)
    parser.add_argument("--engines", type=words, default=[], help="besides eager, with commas between; default: all")
    parser.add_argument("--compare", type=Path, metavar="FILE", help="fail on ratios 15 %% worse than this baseline's")
    parser.add_argument("--save", type=Path, metavar="FILE", help="write a baseline")
    parser.add_argument("--peer", type=Path, metavar="CHECKOUT", help="of github.com/seohongpark/fql, to be timed, too")
    parser.add_argument("--peer-python", type=Path, metavar="PYTHON", help="of an environment with its packages")
    parser.add_argument("--json", action="store_true")


def _bench_step(arguments: argparse.Namespace, _: list[str]) -> int:
    from gtp_vision.bench import baseline
    from gtp_vision.bench.official import official_fql
    from gtp_vision.bench.step import bench_step

    rounds, engines = arguments.rounds, arguments.engines
    # Before minutes are spent:
    stored = baseline.check_baseline(arguments.compare, engines) if arguments.compare else {}
    if arguments.save:
        baseline.check_writable(arguments.save)
    if (arguments.peer is None) != (arguments.peer_python is None):
        raise GtpVisionError("--peer and --peer-python go together: a checkout, and the Python that runs it")
    quiet, peer = arguments.json, {}
    if arguments.peer is not None:  # first, because it may refuse the checkout
        found = official_fql(arguments.peer, arguments.peer_python, rounds=rounds, progress=not quiet)
        peer = {"official_fql": found}
    results = bench_step(rounds=rounds, engines=engines, progress=not quiet) | peer
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


def _act_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", type=Path, metavar="DIR", help="of gtp-vision export")
    parser.add_argument("--steps", type=int, default=2, help="K (default 2)")
    parser.add_argument("--rounds", type=at_least(1), default=200, help="interleaved rounds; medians are printed")
    parser.add_argument("--compile", dest="compiled", action="store_true", help="time ways of acting compiled, too")
    parser.add_argument("--json", action="store_true")


def _bench_act(arguments: argparse.Namespace, overrides: list[str]) -> int:
    from gtp_vision.bench.act import bench_act, table

    results = bench_act(
        arguments.folder,
        steps=arguments.steps,
        rounds=arguments.rounds,
        acting=overrides,
        compiled=arguments.compiled,
    )
    print(json.dumps(results) if arguments.json else table(results))
    return 0


def _serve_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", type=Path, metavar="DIR", nargs="?", help="default: an untrained one of two cameras")
    parser.add_argument("--clients", type=int, default=8, help="robots, in one process of their own (default 8)")
    parser.add_argument("--requests", type=int, default=10_000, help="of all together (default 10 000)")
    parser.add_argument("--rate", type=float, default=10.0, help="observations a second of each robot (default 10)")
    parser.add_argument("--record", action="store_true", help="and what it adds to record the episodes")
    parser.add_argument("--limits", action="store_true", help="the untrained policy's actions are often limited")
    parser.add_argument("--minutes", type=float, metavar="M", help="robots that come and go for so long; memory")
    parser.add_argument("--json", action="store_true")


def _bench_serve(arguments: argparse.Namespace, _: list[str]) -> int:
    from gtp_vision.bench import serve, soak

    given = {name: getattr(arguments, name) for name in ("clients", "rate", "record", "limits")}
    if arguments.minutes:
        results = soak.bench_soak(arguments.folder, minutes=arguments.minutes, **given)
    else:
        results = serve.bench_serve(arguments.folder, requests=arguments.requests, **given)
    table = soak.table if arguments.minutes else serve.table
    print(json.dumps(results) if arguments.json else table(results))
    return 0 if not results["wrong"] + results["refused"] + results.get("lost", 0) else 1


def _doubt_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", type=Path, metavar="RUN", help="a run folder with its data and a simulator")
    parser.add_argument("--episodes", type=at_least(1), default=100, help="in the simulator (default 100)")
    parser.add_argument("--reaction", default="hold", choices=("steps", "slow", "hold"), help="to doubt (default hold)")
    parser.add_argument("--after", type=at_least(1), default=3, help="doubtful answers until then (default 3)")


def _rehearse_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", type=Path, metavar="DIR", help="of gtp-vision export")
    parser.add_argument("data", type=Path, metavar="DATA", help="sound recordings that it was not trained on")
    parser.add_argument("--episodes", type=at_least(1), default=8, help="of each case (default 8)")
    parser.add_argument("--first", type=at_least(0), default=0, help="number of the first episode (default 0)")
    parser.add_argument("--last", type=at_least(1), help="number of the last episode, exclusive (default: all)")
    parser.add_argument("--clean", type=at_least(3), default=10, help="sound cases, two by a server (default 10)")
    parser.add_argument("--rate", type=float, help="actions a second by the server (default: the artifact's)")
    parser.add_argument("--seed", type=at_least(0), default=0)


def _measurement(name: str, help: str, rounds: int, order: int) -> Verb:
    function = f"gtp_vision.bench.{name}:bench_{name}"
    return measurement(f"bench {name}", function, help, partial(_rounds, rounds), ["rounds"], order)


BENCH = Verb("bench", "measure", order=80)
STEP = Verb(
    "bench step", "a step and an action with every engine, many seeds; some minutes", _step_options, _bench_step, 1
)
ACT = Verb(
    "bench act",
    "an action of an artifact, by engine and by way of acting; agent.acting.KEY=VALUE changes the beam",
    _act_options,
    _bench_act,
    3,
    has_overrides=True,
)
SERVE = Verb(
    "bench serve", "what serving adds to the time of an action, with several robots", _serve_options, _bench_serve, 4
)
DOUBT = measurement(
    "bench doubt",
    "gtp_vision.bench.doubt:bench_doubt",
    "what doubt tells from shifted cameras in a run's simulator, and success when it holds",
    _doubt_options,
    ("folder", "episodes", "reaction", "after"),
    8,
)
REHEARSE = measurement(
    "bench rehearse",
    "gtp_vision.bench.rehearsal:bench_rehearse",
    "whether a rehearsal names faults that are planted in sound recordings; minutes",
    _rehearse_options,
    ("folder", "data", "episodes", "first", "last", "clean", "rate", "seed"),
    10,
)
LOADER = _measurement("loader", "batches against a bare gather, robomimic and h5py; memory; statistics", 5, 5)
PROFILE = _measurement("profile", "time and memory of a step and an action, agent by agent; five minutes", 15, 6)
ENCODERS = _measurement("encoders", "frozen features against states and frames; IMPALA against its layers", 7, 7)
