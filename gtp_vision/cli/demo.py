"""`gtp-vision demo`."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from gtp_vision.cli.verb import Verb


def _options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of a table")
    parser.add_argument("--out", type=Path, default=Path("runs/demo"), help="folder (default runs/demo), replaced")
    parser.add_argument("--seed", type=int, default=0)


def _run(arguments: argparse.Namespace, overrides: list[str]) -> int:
    from gtp_vision.experiments.demo import demo, table

    results = demo(arguments.out, seed=arguments.seed, overrides=overrides, progress=not arguments.json)
    print(json.dumps(results) if arguments.json else table(results))
    return 0


DEMO = Verb(
    "demo", "the whole pipeline on the data set that this package carries", _options, _run, order=20, has_overrides=True
)
