"""Marks of success in any column of a LeRobot data set, without decoding its videos; runs in the sandbox."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from gtp_vision.core.errors import GtpVisionError, propose
from gtp_vision.core.extras import optional
from gtp_vision.core.files import data_files
from gtp_vision.core.safe_json import read_json_lines
from gtp_vision.core.success import marked
from gtp_vision.datasets.formats import tables
from gtp_vision.datasets.formats.lerobot_meta import (
    EPISODE_LINES,
    EPISODES,
    ROWS,
    is_version_2,
    read_episodes,
    read_info,
)

pq = optional("pyarrow.parquet", "lerobot", "a Parquet file")


def marks(path: Path, column: str) -> list[bool | None]:
    """Return whether each episode succeeds by a column of its frames (in any of them), or of meta's episodes.

    Raises:
        GtpVisionError: an unknown column, damage.
    """
    info = read_info(path)
    episodes = read_episodes(path, info, [])
    if column in info["features"]:
        parts = [
            tables.numbers(array, 1, column, file, allow_missing=True)[:, 0]
            for file, *_ in episodes.tables
            for (array,) in tables.batches(file, [column], ROWS)
        ]
        starts = np.cumsum(episodes.lengths) - episodes.lengths
        rows = np.concatenate(parts).astype(np.float64)
        if len(rows) != episodes.lengths.sum():
            raise GtpVisionError(f"{path}: '{column}' has {len(rows)} rows; copy the data set again")
        return [marked(value) for value in np.fmax.reduceat(rows, starts)]
    held: dict[int, Any] = {}
    known: set[str] = {*info["features"]}
    if is_version_2(info):
        for line in read_json_lines(tables.inside(path, EPISODE_LINES)):
            known |= line.keys()
            held |= {line["episode_index"]: line[column]} if column in line else {}
    else:
        for file in sorted(data_files(path / EPISODES, "*/*.parquet")):
            inside = tables.inside(path, str(file.relative_to(path)))
            with tables.faults(inside):
                known |= set(pq.read_schema(inside.absolute()).names)
            for numbers, values in tables.batches(inside, ["episode_index", column], ROWS) if column in known else ():
                numbers = tables.integers(numbers, 1, "episode_index", inside)[:, 0]
                held |= dict(zip(numbers.tolist(), values.to_pylist(), strict=True))
    if not held:
        raise GtpVisionError(f"{path} has no column '{column}': {propose(column, known)}")
    return [marked(held.get(number)) for number in range(len(episodes.lengths))]
