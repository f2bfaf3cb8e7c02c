"""`gtp-vision data WHAT`: what a person types about data sets."""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path
from typing import Any

from gtp_vision.errors import GtpVisionError


def add(verbs: Any) -> None:
    """Add the verb `data` to the command line's verbs (argparse's subparsers)."""
    data = verbs.add_parser("data", help="inspect, convert or collect data sets")
    what = data.add_subparsers(dest="what", metavar="WHAT", required=True)

    inspect = what.add_parser("inspect", help="what a data set holds and what is wrong with it")
    inspect.add_argument("path", type=Path)
    inspect.add_argument("--env", help="environment name, for formats whose rewards depend on the task")
    inspect.add_argument("--sheet", type=Path, help="write a PNG with first, middle and last frames")
    inspect.add_argument("--json", action="store_true")
    inspect.set_defaults(run=_inspect)

    convert = what.add_parser("convert", help="write a data set in another format")
    convert.add_argument("source", type=Path)
    convert.add_argument("target", type=Path)
    convert.add_argument("--to", required=True, metavar="FORMAT", help="native, ...")
    convert.add_argument("--env", help="environment name, for formats whose rewards depend on the task")
    convert.set_defaults(run=_convert)

    collect = what.add_parser("collect", help="record demonstrations of OGBench's oracles")
    collect.add_argument("env", help="e.g. ogbench/visual-puzzle-3x3-play-singletask-task1")
    collect.add_argument("--out", type=Path, required=True)
    collect.add_argument("--episodes", type=int, default=100)
    collect.add_argument("--seed", type=int, default=0)
    collect.add_argument("--expert", type=float, default=0.5, help="share of episodes that solve the task")
    collect.add_argument("--noise", type=float, default=0.3, help="largest deviation of an episode's action noise")
    collect.add_argument("--wander", type=float, default=0.5, help="probability of wandering off, unrecorded")
    collect.add_argument("--limit", type=int, default=80, help="most steps of an episode")
    collect.add_argument("--shadow-size", type=int, help="texels of the shadow map (default: the simulator's)")
    collect.add_argument("--multisamples", type=int, help="samples a pixel (default: the simulator's)")
    collect.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    collect.add_argument("--compress", action="store_true", help="gzip: small, but not mappable in place")
    collect.set_defaults(run=_collect)


def _inspect(arguments: argparse.Namespace, _: list[str]) -> int:
    from gtp_vision.datasets.inspection import inspect, told
    from gtp_vision.training.pictures import write_sheet

    found, frames = inspect(arguments.path, arguments.env)
    print(json.dumps(found) if arguments.json else told(found))
    if arguments.sheet:
        if frames is None:
            raise GtpVisionError(f"{arguments.path} holds no camera: there is nothing to draw")
        write_sheet(arguments.sheet, frames)
    return 2 if found["problems"] else 0


def _convert(arguments: argparse.Namespace, _: list[str]) -> int:
    from gtp_vision.datasets.formats import convert

    store = convert(arguments.source, arguments.target, arguments.to, arguments.env)
    print(f"{arguments.target}: {arguments.to}, {store.episodes} episodes, {len(store)} frames")
    return 0


def _collect(arguments: argparse.Namespace, _: list[str]) -> int:
    from gtp_vision.training.collection import collect

    store = collect(
        arguments.env.removeprefix("ogbench/"),
        arguments.out,
        episodes=arguments.episodes,
        seed=arguments.seed,
        expert_share=arguments.expert,
        noise=arguments.noise,
        wander=arguments.wander,
        limit=arguments.limit,
        shadow_size=arguments.shadow_size,
        multisamples=arguments.multisamples,
        processes=arguments.processes,
        command=["gtp-vision", *arguments.words],
        compression="gzip" if arguments.compress else None,
    )
    print(
        f"{arguments.out}: {store.episodes} episodes, {len(store)} frames, "
        f"{store.attributes['solved_visits']} of {store.attributes['visits']} visits solved, "
        f"{arguments.out.stat().st_size / 1e6:.1f} MB"
    )
    return 0
