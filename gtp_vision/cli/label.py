"""`gtp-vision data label`: which episodes succeed, by keys in a page, a column, names, or a classifier."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from gtp_vision.cli.data import reading_options
from gtp_vision.cli.verb import Verb, at_least, words
from gtp_vision.core.errors import GtpVisionError

if TYPE_CHECKING:
    from gtp_vision.datasets.store import Store

_HELP = """\
Label the episodes of a data set as successful or failed, in DATA.labels.json beside it; the data are not changed.
Labels become the filters success and failed (task.filter) and rewards (task.rewards=sparse). Without a source, a page
opens in a local server: S success, M success from this frame on, F failed, U unknown.

  gtp-vision data label my.hdf5                                   a page with keys, until Ctrl-C
  gtp-vision data label my.hdf5 --by task_success                 by an attribute, array or column of the file
  gtp-vision data label my_aloha --pattern success='*_ok*' failed='*_bad*'
  gtp-vision data label my.hdf5 --classifier                      learned from the labels there are
  gtp-vision data label my.hdf5 --prune                           remove labels of episodes that have changed

A source labels what has no label yet.
"""


def _options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("path", type=Path, metavar="DATA")
    sources = parser.add_mutually_exclusive_group()
    sources.add_argument("--by", metavar="COLUMN", help="an attribute, array or column of the file")
    sources.add_argument(
        "--pattern", nargs="+", metavar="KIND=PATTERN", help="success=, failed= and names of files with * in them"
    )
    sources.add_argument(
        "--classifier", action="store_true", help="learn from the last frames of labelled episodes, label the others"
    )
    sources.add_argument("--prune", action="store_true", help="remove labels of episodes that do not exist any more")
    parser.add_argument("--labels", type=Path, metavar="FILE", help="another place for them, or a folder")
    parser.add_argument("--encoder", type=Path, metavar="RUN", help="of the classifier: the encoder of a trained run")
    parser.add_argument("--backbone", metavar="NAME", help="or a backbone, see encoder.name; default impala_small")
    parser.add_argument("--weights", metavar="FILE", help="its trained weights, see encoder.weights; default: random")
    parser.add_argument("--observations", type=words, metavar="NAME,...", help="that it sees; default: all")
    parser.add_argument("--threshold", type=_share, help="least probability of a label that it sets; default 0.9")
    parser.add_argument("--port", type=at_least(0), default=0, help="of the page; default: a free one")
    reading_options(parser)


def _share(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0.5 <= value < 1:
        raise argparse.ArgumentTypeError(f"'{text}' must be a probability from 0.5 to 1")
    return value


def _run(arguments: argparse.Namespace, _: list[str]) -> int:
    from gtp_vision.datasets import labels
    from gtp_vision.datasets.inspection import inspect
    from gtp_vision.datasets.labelling import by_column, by_pattern

    patterns = _patterns(arguments.pattern or [])
    for name in ("encoder", "backbone", "weights", "observations", "threshold"):
        if getattr(arguments, name) is not None and not arguments.classifier:
            raise GtpVisionError(f"--{name} is of the classifier; add --classifier, or leave it out")
    found, store = inspect(arguments.path, arguments.env, arguments.features, labels=False, video=arguments.video)
    path = labels.labels_path(arguments.path, arguments.labels)
    if arguments.prune:
        print(f"{path}: {labels.prune(path, store)} labels removed")
    elif arguments.by:
        made = by_column(arguments.path, arguments.env, arguments.features, arguments.by)
        _print_added(path, *labels.add_labels(path, store, made, f"column {arguments.by}"))
    elif patterns:
        by = "pattern " + " ".join(arguments.pattern)
        _print_added(path, *labels.add_labels(path, store, by_pattern(store, arguments.path, patterns), by[:300]))
    elif arguments.classifier:
        _classify(arguments, store, path)
    else:
        _serve(found, store, path, arguments.port)
    marks = [label.success for label in labels.read(path).of(store).values()]
    print(f"{path}: {marks.count(True)} succeed, {marks.count(False)} fail, of {store.episodes} episodes")
    return 0


def _patterns(words: list[str]) -> dict[bool, str]:
    found = {}
    for word in words:
        kind, _, pattern = word.partition("=")
        if kind not in ("success", "failed") or not pattern:
            raise GtpVisionError(f"--pattern '{word}' must be success=PATTERN or failed=PATTERN")
        found[kind == "success"] = pattern
    return found


def _print_added(path: Path, added: int, kept: int) -> None:
    print(f"{path}: {added} episodes labelled" + (f", {kept} had a label" if kept else ""))


def _classify(arguments: argparse.Namespace, store: Store, path: Path) -> None:
    from gtp_vision.datasets import labels
    from gtp_vision.datasets.validation import validate
    from gtp_vision.training import labelling

    known = labels.read(path).of(store)
    features = labelling.features_of(
        validate(store),
        run=arguments.encoder,
        backbone=arguments.backbone or labelling.BACKBONE,
        weights=arguments.weights,
        observations=arguments.observations,
    )
    found, checked = labelling.classified(store, known, features, arguments.threshold or labelling.THRESHOLD)
    accuracy = f"{checked.accuracy:.0%} of {checked.episodes} labelled episodes in cross-validation"
    print(f"classifier on {features.name}: right about {accuracy}")
    _print_added(path, *labels.add_labels(path, store, found, f"{labelling.SOURCE} on {features.name}, {accuracy}"))
    if unsure := store.episodes - checked.episodes - len(found):
        print(f"{unsure} episodes stay unknown: label some of them by hand and run this again, or lower --threshold")


def _serve(found: dict, store: Store, path: Path, port: int) -> None:
    import threading
    import time

    from gtp_vision.core.signals import stop_requested
    from gtp_vision.datasets.label_server import LabelServer

    with LabelServer(found, store, path, port) as server, stop_requested() as stop:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        print(f"open {server.address} in a browser; labels are saved in {path}; Ctrl-C ends", flush=True)
        while not stop():
            time.sleep(0.1)
        server.shutdown()


LABEL = Verb("data label", "which episodes succeed", _options, _run, order=6, description=_HELP)
