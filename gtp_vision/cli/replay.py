"""`gtp-vision replay`."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from gtp_vision.cli.verb import Verb, at_least

_HELP = """\
Answer the observations of a recording again, and compare with what the robot was answered.

  gtp-vision replay round2 --policy policy              the artifact that answered: every answer is compared bit for bit
  gtp-vision replay round2 --policy other               another one: differences in actions, and a page with frames
  gtp-vision replay round2 --policy policy --steps 1    the same artifact by another K

The status is 1 if the artifact that answered does not answer the same again.
"""


def _options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", type=Path, metavar="DIR", help="of gtp-vision serve --record, or a file in it")
    parser.add_argument("--policy", type=Path, required=True, metavar="ARTIFACT", help="of gtp-vision export")
    parser.add_argument("--steps", type=at_least(1), help="K (default: as recorded, or another artifact's own)")
    parser.add_argument("--device", help="where the policy computes (default: as recorded)")
    parser.add_argument("--engine", help="eager, compile, graph or auto (default: as recorded)")
    parser.add_argument("--page", type=Path, metavar="FILE", help="of what differs (default: DIR.replay.html)")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")


def _run(arguments: argparse.Namespace, _: list[str]) -> int:
    from gtp_vision.report.replay_page import table, write
    from gtp_vision.serving.replay import replay

    results, pictures = replay(
        arguments.folder,
        arguments.policy,
        steps=arguments.steps,
        device=arguments.device,
        engine=arguments.engine,
        progress=not arguments.json,
    )
    print(json.dumps(results) if arguments.json else table(results))
    has_difference = results["first_difference"] is not None
    if has_difference:
        folder = arguments.folder.expanduser().absolute()
        page = write(arguments.page or folder.with_name(f"{folder.name}.replay.html"), results, pictures)
        if not arguments.json:
            print(f"page: {page}")
    return 1 if has_difference and results["is_same"] else 0


REPLAY = Verb("replay", "recorded episodes, answered again", _options, _run, order=63, description=_HELP)
