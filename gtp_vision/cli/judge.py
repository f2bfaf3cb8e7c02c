"""`gtp-vision judge`."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from gtp_vision.cli.verb import Verb, at_least

_HELP = """\
Estimate without a simulator how good the policies of runs are: their value by fitted Q evaluation with an interval, how
much of what they do lies near the data, and their action error on held-out episodes (docs/judging.md).

  gtp-vision judge RUN                          judge.html and judge.json in RUN
  gtp-vision judge RUN OTHER-RUN                which is better, and how surely
  gtp-vision judge RUN --checkpoints all        of one run, which checkpoint
  gtp-vision judge RUN --data FILE              on other recordings
  gtp-vision judge RUN --starts FILE            values of the states in which FILE's episodes start
"""


def _options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN")
    parser.add_argument("--checkpoints", default="last", help="last (default), best, step_N, or all that are kept")
    parser.add_argument("--data", type=Path, help="recordings to judge on (default: the first run's)")
    parser.add_argument("--starts", type=Path, help="recordings that start as episodes will (default: held-out ones)")
    parser.add_argument("--discount", type=float, help="per step, of the values (default: the first run's)")
    parser.add_argument("--rows", type=at_least(1), default=200_000, help="most rows that are used (default 200000)")
    parser.add_argument("--seed", type=at_least(0), default=0)
    parser.add_argument("--output", type=Path, help="folder (default: the first run's)")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")


def _run(arguments: argparse.Namespace, overrides: list[str]) -> int:
    from gtp_vision.report.judge_page import table, write
    from gtp_vision.training.judge import judge

    found = judge(
        arguments.runs,
        checkpoints=arguments.checkpoints,
        data=arguments.data,
        starts=arguments.starts,
        discount=arguments.discount,
        acting=overrides,
        rows=arguments.rows,
        seed=arguments.seed,
        progress=not arguments.json,
    )
    page = write(arguments.output or arguments.runs[0], found.results, found.pictures)
    print(json.dumps(found.results) if arguments.json else f"{table(found.results)}\npage: {page}")
    return 0


JUDGE = Verb(
    "judge", "how good a policy is, without a simulator", _options, _run, 35, description=_HELP, has_overrides=True
)
