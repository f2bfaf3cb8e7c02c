"""`gtp-vision export`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from gtp_vision.cli.verb import Verb, words
from gtp_vision.serving.reactions import OBSERVED, OFF, REACTIONS, SIGNALS, TELLS, OnDoubt

_HELP = """\
Write a folder that is enough to act: weights, schema, provenance, model card; no data set and no simulator.

  gtp-vision export runs/demo/gtp policy                    the last checkpoint
  gtp-vision export RUN policy --checkpoint best --steps 2
  gtp-vision export RUN policy acting=beam                  it acts by beam search, so it holds the critic, too
  gtp-vision export RUN policy --limits speed=0.5,0.5,0.2   it moves no faster, in the robot's units per second
  python -c "import gtp_vision; print(gtp_vision.load_policy('policy').schema)"
"""


def _options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run_dir", type=Path, metavar="RUN")
    parser.add_argument("out", type=Path, metavar="DIR")
    parser.add_argument("--checkpoint", default="last", help="last (default), best, or step_N")
    parser.add_argument("--steps", type=int, help="default K, jumps an action; without it the agent's")
    parser.add_argument("--onnx", action="store_true", help="and policy.onnx, for ONNX Runtime")
    parser.add_argument("--pt2", action="store_true", help="and policy.pt2, for torch.export.load")
    parser.add_argument(
        "--limits",
        action="append",
        default=[],
        metavar="WORD",
        help="of the actions: off; data; auto (default), which without the data limits the position alone; or "
        "NAME=VALUE[,VALUE...] with low, high, speed, acceleration or jerk; repeat it",
    )
    parser.add_argument("--rate", type=float, help="actions a second, for limits; without it the data's")
    parser.add_argument(
        "--doubt",
        type=words,
        default=list(OBSERVED),
        metavar="SIGNALS",
        help=f"what doubt is measured by, with commas between, of {', '.join(SIGNALS)} (default "
        f"{','.join(OBSERVED)}), or off, which keeps no features of the data",
    )
    parser.add_argument("--on-doubt", default="none", choices=REACTIONS, help="what is done about it (default none)")
    parser.add_argument("--doubt-after", type=int, default=TELLS.after, help="doubtful answers until then (default 3)")
    parser.add_argument(
        "--actions",
        type=words,
        default=[],
        help="what they are, for slow and hold: absolute (goals), delta (motions, velocities), or one for each",
    )
    parser.add_argument(
        "--instruction",
        action="append",
        default=[],
        metavar="TEXT",
        help="that the policy is to know besides those of its data, of a run with task.instructions=text; repeat it",
    )
    parser.add_argument("--license", default="unknown", help="of the weights, as an SPDX name")
    parser.add_argument("--data-license", default="unknown", help="of the data set")
    parser.add_argument("--backbone-license", default="unknown", help="of pretrained weights it began with")
    parser.add_argument("--overwrite", action="store_true", help="replace the artifact at DIR")


def _doubt(report: Any) -> str:
    """What calibration measured, on one line, or why there is none."""
    if not isinstance(report, dict):
        return f"not measured ({report})"
    areas = ", ".join(f"{name} {area['doubt']:.2f}" for name, area in report["auroc"].items())
    beyond = f"{report['beyond']:.1%} of {report['frames']} held-out frames are beyond"
    return f"{', '.join(report['thresholds'])}; {beyond}; area under the ROC curve: {areas}"


def _run(arguments: argparse.Namespace, overrides: list[str]) -> int:
    from gtp_vision.serving.export import export

    on_doubt = OnDoubt(
        arguments.on_doubt,
        arguments.doubt_after,
        actions=tuple(arguments.actions),
        signals=tuple(arguments.doubt),
    )
    policy = export(
        arguments.run_dir,
        arguments.out,
        which=arguments.checkpoint,
        steps=arguments.steps,
        acting=overrides,
        licences={
            "weights": arguments.license,
            "data": arguments.data_license,
            "backbone": arguments.backbone_license,
        },
        onnx=arguments.onnx,
        pt2=arguments.pt2,
        overwrite=arguments.overwrite,
        limits=arguments.limits,
        rate=arguments.rate,
        on_doubt=None if arguments.doubt == [OFF] else on_doubt,
        instructions=arguments.instruction,
    )
    schema = policy.schema
    shown = [*(f"{name} {shape}" for name, shape in schema.cameras.items())]
    shown += [f"{name} ({width})" for name, width in schema.states.items()]
    print(f"{arguments.out}: {schema.agent} on {schema.task}, step {policy.card['step']}")
    print(
        f"  sees {', '.join(shown)}; answers {schema.actions} numbers, {schema.chunk} at once, in {schema.steps} jumps"
    )
    if schema.table is not None:
        print(f"  instructions: {'; '.join(schema.table.texts)}")
    megabytes = sum(path.stat().st_size for path in arguments.out.iterdir()) / 1e6
    within = "" if schema.limits is None else " within the limits"
    print(f"  {megabytes:.1f} MB; it acts bit for bit as the run's agent does{within}")
    limits = f"{schema.limits.sentence()} " if schema.limits else ""
    print(f"  limits: {limits}({policy.card['limits']})")
    print(f"  doubt: {_doubt(policy.card['doubt'])}")
    return 0


EXPORT = Verb(
    "export",
    "a trained policy as a folder that is enough to act",
    _options,
    _run,
    order=50,
    description=_HELP,
    has_overrides=True,
)
