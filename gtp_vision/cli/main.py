"""`gtp-vision VERB`: parsing, error messages and exit codes."""

from __future__ import annotations

import argparse
import errno
import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gtp_vision.cli.verb import VERBS
from gtp_vision.core.errors import GtpVisionError, propose
from gtp_vision.core.names import __version__
from gtp_vision.core.signals import sigterm_interrupts

_ABOUT = """\
Offline reinforcement learning and imitation from cameras with generative trajectory policies.

  gtp-vision demo                                     see it work: about six minutes on two cores

With camera demonstrations of a robot, and no simulator:
  gtp-vision data inspect my.hdf5                     what the data set holds and what is wrong with it
  gtp-vision train task=own task.name=mine task.dataset=my.hdf5 agent=gtp_bc
  gtp-vision judge runs/...                           how good the policy is, from recordings alone
  gtp-vision report runs/...                          one page from one or more runs
  gtp-vision export runs/... policy                   a folder that is enough to act
  gtp-vision serve policy                             for robots on the network
  gtp-vision train --init policy --append new.hdf5    continue from a policy with new recordings

For research on offline reinforcement learning:
  gtp-vision train task=ogbench/visual-cube-single-play-singletask-task1 agent=gtp encoder=impala
  gtp-vision train --resume runs/...                  resume an interrupted run
  gtp-vision eval runs/... --episodes 50 --steps 2    evaluate a trained policy, acting in 2 jumps
  gtp-vision bench suite ogbench-visual --plan        a table of agents under a protocol: plan, cost, runs

With a vision backbone to fine-tune:
  gtp-vision train task=own task.name=mine task.dataset=my.hdf5 encoder=timm encoder.tuning=lora

With several GPUs or a cluster:
  accelerate launch --multi_gpu --num_processes 8 -m gtp_vision train task=...
  gtp-vision train -m hydra/launcher=submitit_slurm task=... seed=0,1,2

More:
  gtp-vision data collect ENV --out FILE              record demonstrations in a simulator
  gtp-vision data label my.hdf5                       which episodes succeed: keys, columns, a classifier
  gtp-vision bench step                               time a training step and an action with every engine
  gtp-vision experiment bandit                        every agent where the improved policy is known
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one verb and return the exit status: 0, or what the error says (2 for mistakes, 130 if interrupted)."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    parser = _parser()
    if not arguments:
        parser.print_help()
        return 0
    try:
        if word := next((word for word in arguments if word.endswith("\r")), None):
            raise GtpVisionError(f"'{word}' ends in a carriage return; give the script Unix line ends: dos2unix")
        chosen, rest = _parsed(parser, arguments)
        if word := next((word for word in rest if word.encode("utf-8", "replace").decode() != word), None):
            raise GtpVisionError(f"'{word}' is not UTF-8; rename the file or folder, e.g. with convmv")
        chosen.words = arguments
        with sigterm_interrupts():
            status = int(chosen.run(chosen, rest) or 0)
        sys.stdout.flush()  # a full disk should show here, not while Python shuts down
        return status
    except GtpVisionError as error:
        print(f"gtp-vision: {error}", file=sys.stderr)
        return error.exit_status
    except KeyboardInterrupt:
        print("gtp-vision: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader of our output went away
        _drop_output()
        return 1
    except OSError as error:
        if error.errno not in _DISK:
            raise
        where = f"{error.filename}: " if error.filename else ""
        then = ", then resume with --resume" if arguments[0] == "train" else ""
        reason = os.strerror(error.errno or 0)  # HDF5 adds a page of its own
        advice = "change its permissions" if error.errno in _REFUSED else "make room"
        sentence = GtpVisionError(f"{where}{reason}; {advice} or choose another folder{then}")
        print(f"gtp-vision: {sentence}", file=sys.stderr)
        try:
            sys.stdout.flush()
        except OSError:
            _drop_output()
        return 2


def _parsed(parser: argparse.ArgumentParser, words: list[str]) -> tuple[argparse.Namespace, list[str]]:
    """The options of a verb, and the words that its parser leaves over."""
    dashed = next((word for word in words if word.startswith("-") and os.path.lexists(word)), None)
    advice = f"; write ./{dashed} for the path" if dashed else ""
    try:
        chosen, rest = parser.parse_known_args(words)
    except GtpVisionError as error:
        raise GtpVisionError(f"{error}{advice}") from None
    rest = [word for word in rest if word != "--"]
    if rest and not getattr(chosen, "has_overrides", False):
        raise GtpVisionError(f"'{rest[0]}' is not an option here; see gtp-vision {words[0]} --help{advice}")
    return chosen, rest


def _drop_output() -> None:
    """Discard what is still buffered: Python would fail to print it when it shuts down."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


_REFUSED = (errno.EROFS, errno.EACCES, errno.EPERM)
_DISK = (
    *(errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, *_REFUSED),
    *(errno.ENAMETOOLONG, errno.ENOTDIR, errno.EISDIR, errno.ELOOP),
)


class _Parser(argparse.ArgumentParser):
    """Reports a mistake in one sentence, with the most similar word; `~` begins paths also in `--out=~/x`."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.register("type", Path, lambda text: Path(os.path.expanduser(text)))

    def error(self, message: str) -> None:  # type: ignore[override]
        message = re.sub(r"^argument (\S+): ", r"\1 ", message)
        raise GtpVisionError(f"{message}; see {self.prog} --help")

    def _check_value(self, action: argparse.Action, value: object) -> None:
        if action.choices is not None and value not in action.choices:
            raise GtpVisionError(f"there is no '{value}' here: {propose(str(value), map(str, action.choices))}")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="gtp-vision",
        description=_ABOUT,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"gtp-vision {__version__}")
    parsers: dict[str, Any] = {"": parser.add_subparsers(dest="verb", metavar="VERB", required=True)}
    for verb in sorted(VERBS.values(), key=lambda verb: (verb.name.count(" "), verb.order, verb.name)):
        whole, _, name = verb.name.rpartition(" ")
        added = parsers[whole].add_parser(
            name,
            help=verb.help,
            description=verb.description or verb.help,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        verb.options(added)
        if verb.run is None:
            parsers[verb.name] = added.add_subparsers(dest="what", metavar="WHAT", required=True)
        else:
            added.set_defaults(run=verb.run, has_overrides=verb.has_overrides)
    return parser


if __name__ == "__main__":
    sys.exit(main())
