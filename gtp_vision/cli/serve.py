"""`gtp-vision serve`."""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from gtp_vision.cli.verb import Verb
from gtp_vision.core.errors import GtpVisionError
from gtp_vision.core.extras import importing
from gtp_vision.serving.reactions import REACTIONS

if TYPE_CHECKING:
    from gtp_vision.serving.policy import Policy
    from gtp_vision.serving.recorder import Recorder

_HELP = """\
Let robots ask a policy over the network: websocket and msgpack, as openpi's public client speaks.

  gtp-vision serve policy                                      on this machine alone, port 8000
  gtp-vision serve policy --map observation/image=front        the client's names for the policy's cameras
  gtp-vision serve policy --record round2                      a data set for the next round of training
  gtp-vision serve policy --host 0.0.0.0 --token-file token --tls-cert cert.pem --tls-key key.pem

Ctrl-C or SIGTERM ends it, after pending answers. /metrics at the same port is Prometheus', /healthz says ok.
"""
TOKEN = "GTP_VISION_TOKEN"
_SWITCH = 1e-4  # seconds that one thread may keep Python to itself while the other has an answer to send


def _options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", type=Path, metavar="DIR", help="of gtp-vision export")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen at (default: this machine alone)")
    parser.add_argument("--port", type=int, default=8000, help="default 8000, as openpi's; 0 is any that is free")
    parser.add_argument("--token-file", type=Path, help=f"file with what clients must show; or set {TOKEN}")
    parser.add_argument("--open", action="store_true", help="allow other machines without a token")
    parser.add_argument("--tls-cert", type=Path, help="certificate, PEM")
    parser.add_argument("--tls-key", type=Path, help="its key, PEM")
    parser.add_argument(
        "--answer", default="chunk", choices=("chunk", "action"), help="a plan, or one action (default chunk)"
    )
    parser.add_argument("--steps", type=int, help="K; default: the policy's")
    parser.add_argument("--seed", type=int, default=0, help="of a robot's noise, unless it sends one")
    parser.add_argument("--map", action="append", default=[], metavar="THEIRS=OURS", help="a client's key for our name")
    parser.add_argument(
        "--ignore", action="append", default=[], metavar="KEY", help="a client's key to ignore; * is all"
    )
    parser.add_argument("--clients", type=int, default=16, help="connections at once (default 16)")
    parser.add_argument("--queue", type=int, default=1, help="observations of a client that may wait (default 1)")
    parser.add_argument("--timeout", type=float, default=10.0, help="seconds for an answer (default 10)")
    parser.add_argument(
        "--idle", type=float, default=600.0, help="seconds without a message until a client is disconnected"
    )
    parser.add_argument("--device", default="cpu", help="where the policy computes (default cpu)")
    parser.add_argument("--engine", default="eager", help="eager (default), compile, graph or auto")
    parser.add_argument(
        "--on-doubt", choices=REACTIONS, help="what is done about doubt; default: as exported, see gtp-vision export"
    )
    parser.add_argument("--record", type=Path, metavar="DIR", help="record the episodes into this folder, a data set")
    parser.add_argument("--record-limit", type=float, default=20.0, help="GB at which recording stops (default 20)")
    parser.add_argument("--threads", type=int, help="CPU threads of the policy; default: PyTorch's choice")


def _run(arguments: argparse.Namespace, _: list[str]) -> int:
    from gtp_vision.serving.artifact import load_policy
    from gtp_vision.serving.settings import Settings

    with importing("serve", "serving"):
        from gtp_vision.serving.server import Server

    renamed = dict(pair(given) for given in arguments.map)
    policy = load_policy(arguments.folder, device=arguments.device, engine=arguments.engine)
    if arguments.on_doubt is not None:
        policy.react(replace(policy.on_doubt, reaction=arguments.on_doubt))
    settings = Settings(
        host=arguments.host,
        port=arguments.port,
        token=read_token(arguments.token_file),
        open=arguments.open,
        certificate=arguments.tls_cert,
        key=arguments.tls_key,
        answer=arguments.answer,
        steps=arguments.steps,
        seed=arguments.seed,
        renamed=renamed,
        ignored=tuple(arguments.ignore),
        clients=arguments.clients,
        queue=arguments.queue,
        timeout=arguments.timeout,
        idle=arguments.idle,
        threads=arguments.threads,
    )
    schema = policy.schema

    def log(line: str) -> None:
        print(f"gtp-vision: {line}", file=sys.stderr, flush=True)

    recorder = None if arguments.record is None else _recorder(arguments, policy, log)

    def ready(address: str) -> None:
        print(f"{schema.agent} on {schema.task} at {address}, numbers at {address.replace('ws', 'http', 1)}/metrics")
        sys.stdout.flush()

    async def run() -> None:
        stop, loop = asyncio.Event(), asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, stop.set)
        await Server(policy, settings, log, recorder).run(stop, ready)

    sys.setswitchinterval(_SWITCH)
    try:
        asyncio.run(run())
    finally:
        if recorder is not None:
            recorder.close()
    return 0


def _recorder(arguments: argparse.Namespace, policy: Policy, log: Callable[[str], None]) -> Recorder:
    import torch

    from gtp_vision.serving.answer import PLAN
    from gtp_vision.serving.artifact import identity
    from gtp_vision.serving.recorder import Recorder
    from gtp_vision.serving.recording import Served

    if not arguments.record_limit > 0:
        raise GtpVisionError(f"--record-limit {arguments.record_limit:g} must be above 0 GB")
    if arguments.answer == PLAN and policy.schema.chunk > 1:
        log("plans are recorded for replay and labels; to train on recordings, add --answer action")
    served = Served(
        artifact=identity(arguments.folder),
        answer=arguments.answer,
        engine=arguments.engine,
        device=arguments.device,
        threads=arguments.threads or torch.get_num_threads(),
        torch=torch.__version__,
        on_doubt=policy.on_doubt.reaction,
    )
    return Recorder(arguments.record.expanduser(), policy.schema, served, int(1e9 * arguments.record_limit), log)


def read_token(path: Path | None) -> str | None:
    """The token in a file, or else in the environment's variable; None if there is none."""
    if path is None:
        return os.environ.get(TOKEN) or None
    try:
        return path.read_text(encoding="utf-8").strip()
    except (OSError, ValueError) as error:
        raise GtpVisionError(f"--token-file {path} cannot be read ({type(error).__name__}); check the path") from error


def pair(given: str) -> tuple[str, str]:
    """The two names of --map THEIRS=OURS."""
    theirs, equals, ours = given.partition("=")
    if not (theirs and equals and ours):
        raise GtpVisionError(f"--map {given} must be THEIRS=OURS, e.g. observation/image=front")
    return theirs, ours


SERVE = Verb("serve", "an exported policy for robots on the network", _options, _run, order=60, description=_HELP)
