"""`gtp-vision data account`: which episodes of a run's data help, and which harm."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from gtp_vision.cli.verb import Verb, at_least

_HELP = """\
Judge each training episode of a run: how far the policy is from its actions, whether the gradient of the policy's loss
on it agrees with those on held-out episodes (below 0 it raises their loss), and, with a critic, the mean advantage of
its actions. The worst are printed. --group names all that do not harm in DATA.labels.json, for task.filter.

  gtp-vision data account runs/mine
  gtp-vision data account runs/mine --group helps
  gtp-vision train task=own task.name=mine task.dataset=my.hdf5 task.filter=helps
"""


def _options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run_dir", type=Path, metavar="RUN")
    parser.add_argument("--checkpoint", default="last", help="last (default), best, or step_N")
    parser.add_argument("--worst", type=at_least(1), default=10, help="episodes that are listed; default 10")
    parser.add_argument("--group", metavar="NAME", help="name the episodes that do not harm, for task.filter")
    parser.add_argument("--json", action="store_true", help="print all episodes as JSON")


def _run(arguments: argparse.Namespace, _: list[str]) -> int:
    from gtp_vision.training.account import account, name_group, table

    found = account(arguments.run_dir, arguments.checkpoint)
    print(json.dumps(found) if arguments.json else table(found, arguments.worst))
    for sentence in name_group(arguments.run_dir, found, arguments.group) if arguments.group else ():
        if not arguments.json:
            print(sentence)
    return 0


ACCOUNT = Verb("data account", "which episodes help a run", _options, _run, order=7, description=_HELP)
