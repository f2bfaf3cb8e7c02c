"""`gtp-vision data label`: which episodes succeed, by keys in a page, a column, names, or a classifier."""

from __future__ import annotations

import argparse
from pathlib import Path

from gtp_vision.cli.data import reading_options
from gtp_vision.cli.verb import Verb, at_least
from gtp_vision.core.errors import GtpVisionError

_HELP = """\
Label the episodes of a data set as successful or failed, in DATA.labels.json beside it; the data are not changed.
Labels become the filters success and failed (task.filter) and rewards (task.rewards=sparse). Without a source, a page
opens in a local server: S success, M success from this frame on, F failed, U unknown.

  gtp-vision data label my.hdf5                                   a page with keys, until Ctrl-C
  gtp-vision data label my.hdf5 --by task_success                 by an attribute, array or column of the file
  gtp-vision data label my_aloha --pattern success='*_ok*' failed='*_bad*'
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
    sources.add_argument("--prune", action="store_true", help="remove labels of episodes that do not exist any more")
    parser.add_argument("--labels", type=Path, metavar="FILE", help="another place for them, or a folder")
    parser.add_argument("--port", type=at_least(0), default=0, help="of the page; default: a free one")
    reading_options(parser)


def _run(arguments: argparse.Namespace, _: list[str]) -> int:
    from gtp_vision.datasets import labels
    from gtp_vision.datasets.inspection import inspect
    from gtp_vision.datasets.labelling import by_column, by_pattern

    patterns = _patterns(arguments.pattern or [])
    found, store = inspect(arguments.path, arguments.env, arguments.features, labels=False)
    path = labels.labels_path(arguments.path, arguments.labels)
    if arguments.prune:
        print(f"{path}: {labels.prune(path, store)} labels removed")
    elif arguments.by:
        made = by_column(arguments.path, arguments.env, arguments.features, arguments.by)
        _print_added(path, *labels.add_labels(path, store, made, f"column {arguments.by}"))
    elif patterns:
        by = "pattern " + " ".join(arguments.pattern)
        _print_added(path, *labels.add_labels(path, store, by_pattern(store, arguments.path, patterns), by[:300]))
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


def _serve(found: dict, store: object, path: Path, port: int) -> None:
    import threading
    import time

    from gtp_vision.core.signals import stop_requested
    from gtp_vision.datasets.label_server import LabelServer

    with LabelServer(found, store, path, port) as server, stop_requested() as stop:  # type: ignore[arg-type]
        threading.Thread(target=server.serve_forever, daemon=True).start()
        print(f"open {server.address} in a browser; labels are saved in {path}; Ctrl-C ends", flush=True)
        while not stop():
            time.sleep(0.1)
        server.shutdown()


LABEL = Verb("data label", "which episodes succeed", _options, _run, order=6, description=_HELP)
