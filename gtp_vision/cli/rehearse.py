"""`gtp-vision rehearse`."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from gtp_vision.cli.verb import Verb, at_least
from gtp_vision.core.errors import GtpVisionError

_HELP = """\
Play recorded episodes through an artifact or its server, and say what would go wrong on the robot: cameras, states,
units and signs of actions, late answers, clamps, jumps; the most severe first, each with its cure.

  gtp-vision rehearse policy recordings                           ten episodes that somebody drove by hand
  gtp-vision rehearse policy recordings --map rgb=camera          the data's name for the policy's camera
  gtp-vision rehearse policy recordings --server ws://host:8000   at the robot's rate, through the server

Exit status 1 if there is an error, else 0.
"""


def _options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", type=Path, metavar="DIR", help="of gtp-vision export")
    parser.add_argument("data", type=Path, metavar="DATA", help="recordings of the robot, in any known format")
    parser.add_argument("--server", metavar="URL", help="ws://... of gtp-vision serve; its answers are judged")
    parser.add_argument("--rate", type=float, metavar="HZ", help="actions a second (default: the artifact's)")
    parser.add_argument("--episodes", type=at_least(1), default=10, help="that are played (default 10)")
    parser.add_argument("--steps", type=at_least(1), help="K; default: the policy's; a server has its own")
    parser.add_argument("--map", action="append", default=[], metavar="THEIRS=OURS", help="the data's name for ours")
    parser.add_argument("--token-file", type=Path, help="file with the server's token")
    parser.add_argument("--device", default="cpu", help="where the policy computes (default cpu)")
    parser.add_argument("--engine", default="eager", help="eager (default), compile, graph or auto")
    parser.add_argument("--seed", type=at_least(0), help="of the policy's noise (default 0)")
    parser.add_argument("--json", action="store_true", help="print JSON instead of sentences")


def _run(arguments: argparse.Namespace, _: list[str]) -> int:
    from gtp_vision.cli.serve import pair, read_token
    from gtp_vision.datasets.formats import open_store
    from gtp_vision.serving.artifact import load_policy
    from gtp_vision.serving.players import Local, connected
    from gtp_vision.serving.rehearse import rehearse, table

    if arguments.server is None and arguments.token_file is not None:
        raise GtpVisionError("--token-file is for a server; add --server URL, or leave it out")
    if arguments.server is not None and (arguments.steps, arguments.seed) != (None, None):
        raise GtpVisionError(
            "--steps and --seed are of a policy in this process, and the server has its own; leave them out"
        )
    names = {ours: theirs for theirs, ours in map(pair, arguments.map)}
    policy = load_policy(arguments.folder, device=arguments.device, engine=arguments.engine)
    store = open_store(arguments.data, features=names, labels=False)
    settings = {"rate": arguments.rate, "episodes": arguments.episodes, "progress": not arguments.json}
    if arguments.server is None:
        found = rehearse(policy, store, Local(policy, arguments.steps, arguments.seed or 0), **settings)
    else:
        with connected(arguments.server, policy.schema, read_token(arguments.token_file)) as server:
            found = rehearse(policy, store, server, **settings)
    print(json.dumps(found.record()) if arguments.json else table(found))
    return 1 if found.has_error else 0


REHEARSE = Verb(
    "rehearse", "what would go wrong on the robot, from its recordings", _options, _run, order=62, description=_HELP
)
