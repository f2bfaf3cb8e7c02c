"""`gtp-vision export` and `bench act`: what a person types to take a policy out of its run."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from gtp_vision.errors import GtpVisionError

_EXPORT_HELP = """\
Write a folder that is enough to act: weights, schema, provenance, model card; no data set and no simulator.

  gtp-vision export runs/demo/gtp policy                    the last checkpoint
  gtp-vision export RUN policy --checkpoint best --steps 2
  python -c "import gtp_vision; print(gtp_vision.load_policy('policy').schema)"
"""


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
    export.add_argument("--license", default="unknown", help="of the weights, as an SPDX name")
    export.add_argument("--data-license", default="unknown", help="of the data set")
    export.add_argument("--backbone-license", default="unknown", help="of pretrained weights it began with")
    export.add_argument("--overwrite", action="store_true", help="replace the artifact at DIR")
    export.set_defaults(run=_export)


def add_bench(bench: Any) -> None:
    """Add `act` to what `gtp-vision bench` does."""
    act = bench.add_parser("act", help="an action of an artifact: eager, compiled, ONNX Runtime")
    act.add_argument("folder", type=Path, metavar="DIR", help="of gtp-vision export")
    act.add_argument("--steps", type=int, default=2, help="K (default 2)")
    act.add_argument("--rounds", type=int, default=200, help="interleaved rounds; medians are printed")
    act.add_argument("--json", action="store_true")
    act.set_defaults(run=_bench_act)


def _bench_act(arguments: argparse.Namespace, _: list[str]) -> int:
    from gtp_vision.serving.bench_act import bench_act

    if arguments.rounds < 1:
        raise GtpVisionError(f"--rounds {arguments.rounds} must be at least 1")
    found = bench_act(arguments.folder, steps=arguments.steps, rounds=arguments.rounds)
    if arguments.json:
        print(json.dumps(found))
        return 0
    print(f"{found['agent']}, K = {found['steps']}, one observation, one thread, medians of {found['rounds']} rounds")
    for name, ms in found["ms"].items():
        print(f"  {name:<8} {ms:8.3f} ms   {found['against_eager'][name]:.2f} of eager")
    print(f"  ONNX and PyTorch differ by {found['difference']:.1e} at most")
    return 0


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
        graph=arguments.onnx,
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
