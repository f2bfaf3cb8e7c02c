"""`gtp-vision data WHAT`: data sets."""

from __future__ import annotations

import argparse
import json
import os
import shlex
import sys
from pathlib import Path

from gtp_vision.cli.verb import Verb, at_least
from gtp_vision.core.errors import GtpVisionError, propose

_COLLECT = """\
Record demonstrations: seeded, in parallel processes. The same command resumes after an interruption.

  gtp-vision data collect ogbench/cube-single-play --out data/ --episodes 100           OGBench's own recipe
  gtp-vision data collect ogbench/visual-puzzle-3x3-play-singletask-task1 --out p.h5    one task, solved or not
  gtp-vision data collect robosuite/Lift --out lift.hdf5 --episodes 20                  robomimic's format, two cameras
  gtp-vision data collect metaworld/MT10 --out mt10.h5 --episodes 50 --states-only      Meta-World's scripted policies
  gtp-vision data collect gymnasium/Hopper-v4 --policy sac --out data/                  D4RL's format, SAC's replay
"""
_COLLECT_OPTIONS = (
    *("episodes", "seed", "limit", "noise", "expert", "wander", "shadow_size", "multisamples", "cameras", "size"),
    *("states_only", "compress", "policy", "steps", "medium_steps", "sets"),
)


def reading_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of how a data set is read."""
    parser.add_argument("--env", help="environment name, for formats whose rewards depend on the task")
    parser.add_argument(
        "--features",
        type=_features,
        metavar="NAME=NAME_IN_FILE,...",
        help="other names of arrays, e.g. action=actions,state=qpos, as task.features",
    )
    parser.add_argument(
        "--video",
        choices=("unpacked", "seek"),
        default="unpacked",
        help="unpack videos into the cache (default), or decode their frames when they are needed, as task.video",
    )


def _features(words: str) -> dict[str, str]:
    pairs = dict(word.split("=", 1) for word in words.split(",") if "=" in word)
    if len(pairs) != len(words.split(",")) or not all({*pairs, *pairs.values()}):
        raise argparse.ArgumentTypeError(f"'{words}' must be NAME=NAME_IN_FILE, with commas between several")
    return pairs


def _inspect_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("path", type=Path)
    reading_options(parser)
    parser.add_argument("--sheet", type=Path, metavar="PNG", help="draw first, middle and last frames of all cameras")
    parser.add_argument("--actions", type=Path, metavar="PNG", help="draw a histogram of each action dimension")
    parser.add_argument("--json", action="store_true")
    _labels_option(parser)


def _labels_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--labels", type=Path, metavar="FILE", help="labels that are not beside the data, or a folder")


def _check_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("path", type=Path)
    reading_options(parser)
    parser.add_argument("--episodes", type=at_least(1), default=10, help="replayed, evenly spread; default 10")
    parser.add_argument("--steps", type=at_least(1), default=100, help="most steps of each; default 100")
    parser.add_argument("--json", action="store_true")


def _view_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("path", type=Path)
    parser.add_argument("--out", type=Path, metavar="HTML", help="default: the data set's name with .html, here")
    parser.add_argument("--episodes", type=int, metavar="N", help="how many, evenly spread; default 6, at most 50")
    reading_options(parser)
    _labels_option(parser)


def _convert_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", type=Path)
    parser.add_argument("target", type=Path)
    parser.add_argument(
        "--to",
        required=True,
        metavar="FORMAT",
        type=_writable,
        help="of a format that can be written, e.g. native; an unknown name lists them",
    )
    reading_options(parser)
    parser.add_argument("--fps", type=float, help="frames per second, where the data set does not say so")
    parser.add_argument("--image-size", metavar="HxW", help="resize the frames of all cameras, e.g. to 96x128")
    parser.add_argument("--image-crop", metavar="HxW", help="cut this out of the middle of all frames before")
    parser.add_argument(
        "--scale",
        nargs="?",
        const="auto",
        default="none",
        metavar="MODE",
        type=_mode,
        help="bring actions to [-1, 1], with the file's units as attributes; MODE as task.action_scaling, default auto",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace an existing target")


def _download_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "name",
        help="d4rl/hopper-medium-v2, ogbench/cube-single-play-v0, robomimic/lift/ph/low_dim_v15, lerobot/pusht, "
        "hf://OWNER/NAME",
    )
    parser.add_argument("--to", type=Path, metavar="FOLDER", help="default: where the set's own library looks for it")
    parser.add_argument("--mirror", action="append", default=[], metavar="URL", help="tried first; may be repeated")
    parser.add_argument("--revision", help="branch, tag or commit, of sets of the Hugging Face hub")
    parser.add_argument("--filename", metavar="PATTERN", help="only files whose names match, e.g. '*-val.npz'")


def _push_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("path", type=Path, metavar="DATA")
    parser.add_argument("name", metavar="OWNER/NAME", help="the repository, which is made if it does not exist")
    parser.add_argument("--licence", "--license", metavar="ID", help="for the card, e.g. cc-by-4.0, mit")
    parser.add_argument("--private", action="store_true", help="only members of OWNER see the repository")
    parser.add_argument("--message", metavar="TEXT", help="of the commits")
    parser.add_argument("--as-is", action="store_true", help="upload the files; default: a conversion to LeRobot v3.0")
    parser.add_argument("--overwrite", action="store_true", help="replace a README.md that is not by gtp-vision")
    reading_options(parser)
    parser.add_argument("--fps", type=float, help="frames per second, where the data set does not say so")


def _collect_options(parser: argparse.ArgumentParser) -> None:
    parser.argument_default = argparse.SUPPRESS  # each kind has its own defaults, and refuses unknown options
    parser.add_argument("env", help="e.g. ogbench/cube-single-play")
    parser.add_argument("--out", type=Path, required=True, help="the file to be; a folder for OGBench's own recipes")
    parser.add_argument(
        "--episodes", type=int, help="how many; default 100, OGBench's number, or 20 (Lift, a task of Meta-World)"
    )
    parser.add_argument("--seed", type=int, help="default 0")
    parser.add_argument(
        "--limit", type=int, help="most steps of one; default 80, OGBench's number, 100 (Lift) or 500 (Meta-World)"
    )
    parser.add_argument(
        "--noise", type=float, help="largest deviation of action noise; default 0.3, or 0.1 (Lift, Meta-World)"
    )
    parser.add_argument("--expert", type=float, help="share of episodes that solve the single task; default 0.5")
    parser.add_argument("--wander", type=float, help="probability of wandering off, unrecorded; default 0.5")
    parser.add_argument("--shadow-size", type=int, help="texels of the shadow map (default: the simulator's)")
    parser.add_argument("--multisamples", type=int, help="samples a pixel (default: the simulator's)")
    parser.add_argument(
        "--cameras", help="with commas between; default agentview,robot0_eye_in_hand, or image (Meta-World)"
    )
    parser.add_argument("--size", type=int, help="height and width of frames of robosuite and Meta-World; default 84")
    parser.add_argument("--states-only", action="store_true", help="no cameras of robosuite and Meta-World")
    parser.add_argument("--policy", help="that collects Gymnasium's tasks: sac")
    parser.add_argument("--steps", type=int, help="SAC's training steps; default 100000")
    parser.add_argument(
        "--sets", help="of SAC: replay, medium, medium-expert, with commas between; default the first two"
    )
    parser.add_argument("--medium-steps", type=int, help="steps of SAC's medium set; default as many as --steps")
    parser.add_argument("--compress", action="store_true", help="gzip: small, but not mappable in place")
    parser.add_argument("--processes", type=int, help="default one a core; of SAC: threads, default 1")
    parser.add_argument("--overwrite", action="store_true", default=False, help="replace an existing --out")


def _writable(name: str) -> str:
    """The name of a format that can be written; the registry is imported only for this."""
    from gtp_vision.datasets.formats import check_writable

    check_writable(name)
    return name


def _mode(name: str) -> str:
    """A way to scale actions."""
    from gtp_vision.datasets.scaling import MODES

    if name not in MODES:
        raise GtpVisionError(f"--scale {name} is unknown: {propose(name, MODES)}")
    return name


def _inspect(arguments: argparse.Namespace, _: list[str]) -> int:
    from gtp_vision.datasets import pictures
    from gtp_vision.datasets.inspection import inspect, inspection_text

    wanted = [
        (arguments.sheet, pictures.write_contact_sheet),
        (arguments.actions, pictures.write_action_histograms),
    ]
    for target in filter(None, (arguments.sheet, arguments.actions)):
        pictures.check_target(target)
    if arguments.sheet and arguments.actions and arguments.sheet.resolve() == arguments.actions.resolve():
        raise GtpVisionError(f"--sheet and --actions both name {arguments.sheet}; name two files")
    found, store = inspect(arguments.path, arguments.env, arguments.features, arguments.labels, arguments.video)
    print(json.dumps(found) if arguments.json else inspection_text(found), flush=True)
    for target, draw in wanted:
        if target:
            try:
                draw(target, store)
            except GtpVisionError as error:  # there is nothing to draw: no fault of its own
                print(f"gtp-vision: {error}", file=sys.stderr)
    return 2 if found["problems"] else 0


def _check(arguments: argparse.Namespace, overrides: list[str]) -> int:
    from gtp_vision.config.compose import from_command_line
    from gtp_vision.datasets.formats import open_store
    from gtp_vision.training.agreement import check_data, check_text

    env = arguments.env
    if env is None:
        held = open_store(arguments.path, None, arguments.features, video=arguments.video).attributes
        env = "robosuite" if held.get("suite") == "robomimic" else held.get("env")
    if not env:
        raise GtpVisionError(f"{arguments.path} does not say what it was recorded in; give --env NAME")
    names = ",".join(f"{name}: {held!r}" for name, held in (arguments.features or {}).items())
    settings = [f"task.dataset='{arguments.path}'", f"task.env='{env}'", "task.validation=0", "run_dir=unused"]
    settings.append(f"task.video={arguments.video}")
    settings += [f"task.features={{{names}}}"] if names else []
    found = check_data(from_command_line(["task=own", *settings, *overrides]), arguments.episodes, arguments.steps)
    print(json.dumps(found) if arguments.json else check_text(found))
    return 2 if found["problems"] else 0


def _view(arguments: argparse.Namespace, _: list[str]) -> int:
    from gtp_vision.datasets import viewing
    from gtp_vision.datasets.inspection import inspect

    target = arguments.out or Path(f"{arguments.path.resolve().stem}.html")
    episodes = viewing.EPISODES if arguments.episodes is None else arguments.episodes
    viewing.check_target(target, episodes)
    found, store = inspect(arguments.path, arguments.env, arguments.features, arguments.labels, arguments.video)
    viewing.write_page(target, found, store, episodes)
    for kind in ("problems", "warnings"):
        for line in found[kind]:
            print(f"  {kind[:-1].upper()} {''.join(letter if letter.isprintable() else '?' for letter in line)}")
    name = "".join(letter if letter.isprintable() else "?" for letter in str(target))
    print(f"{name}: {target.stat().st_size / 1e6:.1f} MB, open it in a browser")
    return 2 if found["problems"] else 0


def _convert(arguments: argparse.Namespace, _: list[str]) -> int:
    from gtp_vision.core.framing import ALL, Framing, size_of
    from gtp_vision.datasets.differences import differences
    from gtp_vision.datasets.formats import FORMATS, convert, open_store

    size, crop = (
        text and size_of(text, f"--image-{name}")
        for name, text in (("size", arguments.image_size), ("crop", arguments.image_crop))
    )
    framing = Framing({ALL: size} if size else {}, crop) if size or crop else None
    # Now: the target may be the source.
    reading = {"framing": framing, "video": arguments.video}
    before = open_store(arguments.source, arguments.env, arguments.features, **reading)
    options = {"fps": arguments.fps, "scale": arguments.scale, "overwrite": arguments.overwrite, **reading}
    store = convert(arguments.source, arguments.target, arguments.to, arguments.env, arguments.features, **options)
    if arguments.fps is not None:
        before.attributes = dict(before.attributes) | {"fps": arguments.fps}
    notes = FORMATS[arguments.to].notes
    name = "".join(letter if letter.isprintable() else "?" for letter in str(arguments.target))
    print(f"{name}: {arguments.to}, {store.episodes} episodes, {len(store)} frames")
    for line in notes(before) if notes else ():
        print(f"  {line}")
    for line in differences(before, store) or ["every frame, action, reward and flag is as it was"]:
        print(f"  {line}")
    return 0


def _download(arguments: argparse.Namespace, _: list[str]) -> int:
    from gtp_vision.datasets.download import download

    found = download(
        arguments.name,
        arguments.to,
        mirrors=arguments.mirror,
        revision=arguments.revision,
        pattern=arguments.filename,
    )
    print(found.summary())
    return 0


def _push(arguments: argparse.Namespace, _: list[str]) -> int:
    from gtp_vision.datasets.upload import push

    lines = push(
        arguments.path,
        arguments.name,
        licence=arguments.licence,
        is_private=arguments.private,
        message=arguments.message,
        as_is=arguments.as_is,
        overwrite=arguments.overwrite,
        env=arguments.env,
        features=arguments.features,
        fps=arguments.fps,
    )
    print("\n".join("".join(letter if letter.isprintable() else "?" for letter in line) for line in lines))
    return 0


def _collect(arguments: argparse.Namespace, _: list[str]) -> int:
    from gtp_vision.collection import collect

    given = vars(arguments)
    # SAC's networks are small: a second thread gains little, and on a busy machine the first one waits for it.
    usual = 1 if "policy" in given else os.cpu_count() or 1
    message = collect(
        arguments.env,
        arguments.out,
        {name: given[name] for name in _COLLECT_OPTIONS if name in given},
        processes=given.get("processes", usual),
        command=shlex.join(["gtp-vision", *arguments.words]),
        overwrite=arguments.overwrite,
    )
    print(message)
    return 0


DATA = Verb("data", "inspect, convert, download, collect or upload data sets", order=70)
INSPECT = Verb("data inspect", "what a data set holds and what is wrong with it", _inspect_options, _inspect, order=1)
VIEW = Verb("data view", "a page with the frames of its episodes", _view_options, _view, order=3)
CHECK = Verb(
    "data check",
    "whether a data set and its simulator agree: frames, units, replayed actions",
    _check_options,
    _check,
    order=2,
    has_overrides=True,
)
CONVERT = Verb("data convert", "write a data set in another format", _convert_options, _convert, order=4)
DOWNLOAD = Verb("data download", "download a published data set by its name", _download_options, _download, order=5)
PUSH = Verb("data push", "upload a data set to the Hugging Face hub, with a card", _push_options, _push, order=7)
COLLECT = Verb(
    "data collect", "record demonstrations in a simulator", _collect_options, _collect, order=6, description=_COLLECT
)
