"""`gtp-vision experiment WHAT`: what few-step policies learn, on problems with known answers and on trained runs."""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path

from gtp_vision.cli.verb import Verb, at_least, measurement, words


def _options(steps: int, parser: argparse.ArgumentParser, out: str = "") -> None:
    parser.add_argument(
        "--train-steps",
        dest="steps",
        metavar="N",
        type=at_least(1),
        default=steps,
        help="gradient steps of each training",
    )
    parser.add_argument("--seed", type=at_least(0), default=0)
    if out:
        parser.add_argument("--out", type=Path, default=Path(out), help=f"folder (default {out})")


def _ablation_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--train-steps", dest="steps", metavar="N", type=at_least(1), default=12_000, help="of each")
    parser.add_argument("--seeds", type=at_least(1), default=1, help="seeds 0, 1, ...")


def _encoders_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--data", type=Path, required=True, help="demonstrations, e.g. of `data collect robosuite/Lift`"
    )
    parser.add_argument("--weights", type=Path, required=True, help="of an ImageNet EfficientNet-Lite0")
    parser.add_argument("--out", type=Path, default=Path("runs/encoders"), help="folder (default runs/encoders)")
    parser.add_argument("--rows", type=_rows, default=[], help="with semicolons between; default: all")
    parser.add_argument("--demonstrations", type=at_least(1), default=20, help="for training; the others are held out")
    parser.add_argument("--cameras", type=words, default=["agentview_image"], help="with commas between")
    parser.add_argument("--seeds", type=at_least(1), default=3, help="seeds 0, 1, ...")
    parser.add_argument("--train-steps", dest="steps", metavar="N", type=at_least(1), default=400, help="of each run")


def _rows(text: str) -> list[str]:
    return [name.strip() for name in text.split(";") if name.strip()]


def _steps_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", type=Path, metavar="RUN")
    parser.add_argument("--data", type=Path, help="recordings that the run was not trained on (default: its own)")
    parser.add_argument("--episodes", type=int, default=0, help="evaluation episodes for each K (default: none)")
    parser.add_argument("--checkpoint", dest="which", default="last", help="last (default), best, or step_N")
    parser.add_argument(
        "--compile", dest="compiled", action="store_true", help="time compiled acting too (takes seconds for each K)"
    )


def _judging_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--tasks", type=words, default=[], help="with commas between; default: all")
    parser.add_argument("--episodes", type=at_least(1), default=50, help="in the simulator, for each checkpoint")
    parser.add_argument("--seed", type=at_least(0), default=0)
    parser.add_argument("--out", type=Path, default=Path("runs/judging"), help="folder (default runs/judging)")


EXPERIMENT = Verb("experiment", "what few-step policies learn, where the answer is known", order=90)
BANDIT = measurement(
    "experiment bandit",
    "gtp_vision.experiments.bandit:bandit",
    "every agent where the improved policy is known",
    partial(_options, 4000, out="runs/bandit"),
    ("steps", "seed", "out"),
    1,
)
MULTIGOAL = measurement(
    "experiment multigoal",
    "gtp_vision.experiments.multigoal:multigoal",
    "four goals: data, diffusion, consistency and GTP side by side",
    partial(_options, 24_000, out="runs/multigoal"),
    ("steps", "seed", "out"),
    2,
)
MAPS = measurement(
    "experiment maps",
    "gtp_vision.experiments.maps:maps",
    "the learned flow map against known answers; about ten minutes",
    partial(_options, 36_000),
    ("steps", "seed"),
    3,
)
ABLATION = measurement(
    "experiment ablation",
    "gtp_vision.experiments.ablation:ablation",
    "the four modes with one setting changed at a time; half an hour",
    _ablation_options,
    ("steps", "seeds"),
    4,
)
ENCODERS = measurement(
    "experiment encoders",
    "gtp_vision.experiments.encoders:encoders",
    "a pretrained backbone against others, few demonstrations; an hour",
    _encoders_options,
    ("data", "weights", "out", "rows", "demonstrations", "seeds", "steps", "cameras"),
    5,
)
COMPOSITIONS = measurement(
    "experiment compositions",
    "gtp_vision.experiments.compositions:compositions",
    "every legal agent on rewards that are hard on numbers; about ten minutes",
    partial(_options, 300, out="runs/compositions"),
    ("steps", "seed", "out"),
    7,
)
EXTRACTION = measurement(
    "experiment extraction",
    "gtp_vision.experiments.extraction:extraction",
    "what families make of the same weights, where the critic is exact; three minutes",
    partial(_options, 6000),
    ("steps", "seed"),
    8,
)
STEPS = measurement(
    "experiment steps",
    "gtp_vision.experiments.steps:sweep",
    "quality and milliseconds of a trained run for K = 1, 2, 3, 5, 10",
    _steps_options,
    ("folder", "data", "episodes", "which", "compiled"),
    6,
)
JUDGING = measurement(
    "experiment judging",
    "gtp_vision.experiments.judging:judging",
    "whether `judge` agrees with simulators, on five tasks; hours",
    _judging_options,
    ("tasks", "episodes", "seed", "out"),
    9,
)
