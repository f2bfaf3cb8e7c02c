"""Rounds: data that are appended to those of a run whose weights another begins with.

A round is one more entry of `task.datasets`. Its rows are drawn as often as earlier ones, or WEIGHT times as often;
among themselves, earlier data sets keep their shares of a batch.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from gtp_vision.config.schema import Config
from gtp_vision.core.errors import GtpVisionError
from gtp_vision.datasets.store import Store
from gtp_vision.datasets.success import counted
from gtp_vision.training.data import drawable_rows, paths_of


def appended(config: Config, items: Sequence[str], *, keeps_shares: bool = False) -> Config:
    """The configuration with further data sets, `DATA` or `DATA:WEIGHT`, not `checked`.

    Shares of a batch follow from the rows, unless `keeps_shares`: `task.shares` is for all data sets then.

    Raises:
        GtpVisionError: a weight that is not above 0, data that are missing, or that the run has already.
    """
    task = config.task
    names = list(task.datasets or ([task.dataset] if task.dataset else []))
    if task.datasets is None and not names:
        names = [str(path) for path in paths_of(config)]  # the official data set
    added = [_split(item) for item in items]
    for path, _ in added:
        if path in names:
            raise GtpVisionError(
                f"--append {path}: these data are a round of the run already, with what was added to them; leave "
                f"--append out, or record each round in a folder of its own"
            )
    shares = task.shares
    if not keeps_shares:
        rows = [drawable_rows(config, name) for name in names]
        of_old = task.shares or ([1.0] * len(names) if task.datasets else rows)
        shares = [sum(rows) * share / sum(of_old) for share in of_old]
        shares += [weight * drawable_rows(config, path) for path, weight in added]
    names += [path for path, _ in added]
    return replace(config, task=replace(task, dataset=None, datasets=names, shares=shares))


def described(config: Config, training: Sequence[Store]) -> list[dict[str, Any]]:
    """The part of each data set of a task that is trained on: path, share of a batch, episodes, marks of success."""
    shares = config.task.shares or [1.0] * len(training)
    found = []
    for path, store, share in zip(paths_of(config), training, shares, strict=True):
        marks = counted(store) or {}
        solved, known = marks.get("solved"), marks.get("of")
        failed = None if solved is None or known is None else known - solved
        entry = {"path": str(path), "share": share / sum(shares), "episodes": store.episodes}
        found.append(entry | {"succeeded": solved, "failed": failed})
    return found


def _split(item: str) -> tuple[str, float]:
    """The located path and the weight of `DATA:WEIGHT`; the weight is 1 of a path alone."""
    path, colon, text = item.rpartition(":")
    try:
        weight = float(text) if colon and not Path(item).expanduser().exists() else None
    except ValueError:
        weight = None
    path, weight = (item, 1.0) if weight is None else (path, weight)
    if not 0 < weight < math.inf:
        raise GtpVisionError(f"--append {item}: the weight {weight:g} must be above 0, e.g. {path}:5")
    return path if path == "demo" else str(Path.cwd() / Path(path).expanduser()), weight
