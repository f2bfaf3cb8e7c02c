"""`gtp-vision export`: what a person types to take a policy out of its run."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

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
    export.add_argument("--license", default="unknown", help="of the weights, as an SPDX name")
    export.add_argument("--data-license", default="unknown", help="of the data set")
    export.add_argument("--backbone-license", default="unknown", help="of pretrained weights it began with")
    export.add_argument("--overwrite", action="store_true", help="replace the artifact at DIR")
    export.set_defaults(run=_export)


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
