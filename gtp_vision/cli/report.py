"""`gtp-vision report`."""

from __future__ import annotations

import argparse
from pathlib import Path

from gtp_vision.cli.verb import Verb


def _options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN")
    parser.add_argument("--out", type=Path, help="default: report.html in the first run's folder")


def _run(arguments: argparse.Namespace, _: list[str]) -> int:
    from gtp_vision.report import build_report

    out = arguments.out or arguments.runs[0] / "report.html"
    title = " and ".join(run.name for run in arguments.runs)
    print(build_report(arguments.runs, out, title=title))
    return 0


REPORT = Verb("report", "one HTML page from one or more runs", _options, _run, order=40)
