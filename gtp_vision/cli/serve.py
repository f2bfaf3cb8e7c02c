"""`gtp-vision export`, `serve`, `bench act` and `bench serve`: what a person types to take a policy to a robot."""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

from gtp_vision.core.errors import GtpVisionError

_EXPORT_HELP = """\
Write a folder that is enough to act: weights, schema, provenance, model card; no data set and no simulator.

  gtp-vision export runs/demo/gtp policy                    the last checkpoint
  gtp-vision export RUN policy --checkpoint best --steps 2
  python -c "import gtp_vision; print(gtp_vision.load_policy('policy').schema)"
"""

_SERVE_HELP = """\
Let robots ask a policy over the network: websocket and msgpack, as openpi's public client speaks.

  gtp-vision serve policy                                      on this machine alone, port 8000
  gtp-vision serve policy --map observation/image=front        the client's names for the policy's cameras
  gtp-vision serve policy --host 0.0.0.0 --token-file token --tls-cert cert.pem --tls-key key.pem

Ctrl-C or SIGTERM ends it, after what was asked is answered. /metrics at the same port is Prometheus', /healthz says ok.
"""
TOKEN = "GTP_VISION_TOKEN"
_SWITCH = 1e-4  # seconds that one thread may keep Python to itself while the other has an answer to send


def add(verbs: Any) -> None:
    """Add the verbs to `gtp-vision` (argparse's subparsers)."""
    export = verbs.add_parser(
        "export",
        help="a trained policy as a folder of its own",
        description=_EXPORT_HELP,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    export.add_argument("run_dir", type=Path, metavar="RUN")
    export.add_argument("out", type=Path, metavar="DIR")
    export.add_argument("--checkpoint", default="last", help="last (default), best, or step_N")
    export.add_argument("--steps", type=int, help="K, jumps an action unless asked otherwise; default: the agent's")
    export.add_argument("--onnx", action="store_true", help="and policy.onnx, for ONNX Runtime")
    export.add_argument("--pt2", action="store_true", help="and policy.pt2, for torch.export.load")
    export.add_argument("--license", default="unknown", help="of the weights, as an SPDX name")
    export.add_argument("--data-license", default="unknown", help="of the data set")
    export.add_argument("--backbone-license", default="unknown", help="of pretrained weights it began with")
    export.add_argument("--overwrite", action="store_true", help="replace the artifact at DIR")
    export.set_defaults(run=_export)

    serve = verbs.add_parser(
        "serve",
        help="an exported policy for robots on the network",
        description=_SERVE_HELP,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    serve.add_argument("folder", type=Path, metavar="DIR", help="of gtp-vision export")
    serve.add_argument("--host", default="127.0.0.1", help="address to listen at (default: this machine alone)")
    serve.add_argument("--port", type=int, default=8000, help="default 8000, as openpi's; 0 is any that is free")
    serve.add_argument("--token-file", type=Path, help=f"file with what clients must show; or set {TOKEN}")
    serve.add_argument("--open", action="store_true", help="let in other machines without a token")
    serve.add_argument("--tls-cert", type=Path, help="certificate, PEM")
    serve.add_argument("--tls-key", type=Path, help="its key, PEM")
    serve.add_argument(
        "--answer", default="chunk", choices=("chunk", "action"), help="a plan, or one action (default chunk)"
    )
    serve.add_argument("--steps", type=int, help="K; default: the policy's")
    serve.add_argument("--seed", type=int, default=0, help="of a robot's noise, unless it sends one")
    serve.add_argument("--map", action="append", default=[], metavar="THEIRS=OURS", help="a client's key for our name")
    serve.add_argument(
        "--ignore", action="append", default=[], metavar="KEY", help="a client's key to pass over; * is all"
    )
    serve.add_argument("--clients", type=int, default=16, help="connections at once (default 16)")
    serve.add_argument("--queue", type=int, default=1, help="observations of a client that may wait (default 1)")
    serve.add_argument("--timeout", type=float, default=10.0, help="seconds for an answer (default 10)")
    serve.add_argument("--idle", type=float, default=600.0, help="seconds of silence until a client is sent away")
    serve.add_argument("--device", default="cpu", help="where the policy computes (default cpu)")
    serve.add_argument("--engine", default="eager", help="eager (default), compile, graph or auto")
    serve.add_argument("--threads", type=int, help="CPU threads of the policy; default: PyTorch's choice")
    serve.set_defaults(run=_serve)


def add_bench(bench: Any) -> None:
    """Add `act` to what `gtp-vision bench` does."""
    act = bench.add_parser("act", help="an action of an artifact: eager, compiled, ONNX Runtime")
    act.add_argument("folder", type=Path, metavar="DIR", help="of gtp-vision export")
    act.add_argument("--steps", type=int, default=2, help="K (default 2)")
    act.add_argument("--rounds", type=int, default=200, help="interleaved rounds; medians are printed")
    act.add_argument("--json", action="store_true")
    act.set_defaults(run=_bench_act)
    serve = bench.add_parser("serve", help="what serving adds to the time of an action, with several robots")
    serve.add_argument("folder", type=Path, metavar="DIR", nargs="?", help="default: an untrained one of two cameras")
    serve.add_argument("--clients", type=int, default=8, help="robots, in one process of their own (default 8)")
    serve.add_argument("--requests", type=int, default=10_000, help="of all together (default 10 000)")
    serve.add_argument("--rate", type=float, default=10.0, help="observations a second of each robot (default 10)")
    serve.add_argument("--json", action="store_true")
    serve.set_defaults(run=_bench_serve)


def _bench_act(arguments: argparse.Namespace, _: list[str]) -> int:
    from gtp_vision.bench.act import bench_act

    if arguments.rounds < 1:
        raise GtpVisionError(f"--rounds {arguments.rounds} must be at least 1")
    found = bench_act(arguments.folder, steps=arguments.steps, rounds=arguments.rounds)
    if arguments.json:
        print(json.dumps(found))
        return 0
    print(f"{found['agent']}, K = {found['steps']}, one observation, one thread, medians of {found['rounds']} rounds")
    for name, ms in found["ms"].items():
        print(f"  {name:<8} {ms:8.3f} ms   {found['against_eager'][name]:.2f} of eager")
    print(f"  the graphs and PyTorch differ by {found['difference']:.1e} at most")
    return 0


def _bench_serve(arguments: argparse.Namespace, _: list[str]) -> int:
    from gtp_vision.bench.serve import bench_serve

    found = bench_serve(arguments.folder, clients=arguments.clients, requests=arguments.requests, rate=arguments.rate)
    if arguments.json:
        print(json.dumps(found))
    else:
        print(f"{found['requests']} requests of {found['clients']} robots, {found['rate']:g} a second each: ", end="")
        print(f"{found['errors']} errors ({found['wrong']} wrong answers, {found['lost']} lost)")
        print(f"{'ms':<12} {'median':>8} {'99 %':>8}")
        for name in ("round_trip", "act", "queued", "added"):
            print(f"{name:<12} {found[f'{name}_ms_p50']:8.3f} {found[f'{name}_ms_p99']:8.3f}")
        print(f"{'act alone':<12} {found['act_alone_ms_p50']:8.3f} {found['act_alone_ms_p99']:8.3f}")
    return 0 if not found["errors"] else 1


def _serve(arguments: argparse.Namespace, _: list[str]) -> int:
    from gtp_vision.serving.artifact import load_policy
    from gtp_vision.serving.scheduling import go_first
    from gtp_vision.serving.settings import Settings

    try:
        from gtp_vision.serving.server import Server
    except ModuleNotFoundError as error:
        raise GtpVisionError(f"serving needs {error.name}: pip install 'gtp-vision[serve]'") from error

    renamed = dict(_pair(given) for given in arguments.map)
    policy = load_policy(arguments.folder, device=arguments.device, engine=arguments.engine)
    settings = Settings(
        host=arguments.host,
        port=arguments.port,
        token=_token(arguments.token_file),
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
    server = Server(policy, settings, lambda told: print(f"gtp-vision: {told}", file=sys.stderr, flush=True))
    schema = policy.schema

    def ready(address: str) -> None:
        print(f"{schema.agent} on {schema.task} at {address}, numbers at {address.replace('ws', 'http', 1)}/metrics")
        sys.stdout.flush()

    async def run() -> None:
        stop, loop = asyncio.Event(), asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, stop.set)
        await server.run(stop, ready)

    sys.setswitchinterval(_SWITCH)
    go_first()
    asyncio.run(run())
    return 0


def _token(path: Path | None) -> str | None:
    if path is None:
        return os.environ.get(TOKEN) or None
    try:
        return path.read_text(encoding="utf-8").strip()
    except (OSError, ValueError) as error:
        raise GtpVisionError(f"--token-file {path} cannot be read ({type(error).__name__}); check the path") from error


def _pair(given: str) -> tuple[str, str]:
    theirs, equals, ours = given.partition("=")
    if not (theirs and equals and ours):
        raise GtpVisionError(f"--map {given} must be THEIRS=OURS, e.g. observation/image=front")
    return theirs, ours


def _export(arguments: argparse.Namespace, _: list[str]) -> int:
    from gtp_vision.serving.export import export

    policy = export(
        arguments.run_dir,
        arguments.out,
        which=arguments.checkpoint,
        steps=arguments.steps,
        licences={
            "weights": arguments.license,
            "data": arguments.data_license,
            "backbone": arguments.backbone_license,
        },
        onnx=arguments.onnx,
        pt2=arguments.pt2,
        overwrite=arguments.overwrite,
    )
    schema = policy.schema
    shown = [*(f"{name} {shape}" for name, shape in schema.cameras.items())]
    shown += [f"{name} ({width})" for name, width in schema.states.items()]
    print(f"{arguments.out}: {schema.agent} on {schema.task}, step {policy.card['step']}")
    print(
        f"  sees {', '.join(shown)}; answers {schema.actions} numbers, {schema.chunk} at once, in {schema.steps} jumps"
    )
    megabytes = sum(path.stat().st_size for path in arguments.out.iterdir()) / 1e6
    print(f"  {megabytes:.1f} MB; it acts bit for bit as the run's agent does")
    return 0
