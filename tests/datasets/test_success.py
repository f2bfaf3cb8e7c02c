"""Marks of success, wherever a recorder writes them: attributes, arrays, columns, filters."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zarr
from refusals import Edit, attribute, open_here, put
from samples import DATA, LENGTHS, ROWS, Copied
from stores import make_store

from gtp_vision.core.success import marked
from gtp_vision.datasets.formats import d4rl, lerobot_writer, native, robomimic
from gtp_vision.datasets.inspection import success

ENDS = np.cumsum(LENGTHS)
FIRST = [True, False]


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        *(
            (True, True),
            (np.bool_(False), False),
            (1, True),
            (0, False),
            (np.int64(1), True),
            (1.0, True),
            (0.3, False),
        ),
        *((np.array([True]), True), (np.array([1, 0]), False), (np.array(1.0), True), ([True, True], True)),
        *(("True", True), (b"false", False), ("1", True), ("0.0", False)),
        *((None, None), (float("nan"), None), ("maybe", None), ({}, None), (np.array([]), None), (print, None)),
    ],
    ids=str,
)
def test_marks_of_any_type(value: Any, expected: bool | None) -> None:
    assert marked(value) is expected


def both(edit: Callable[[int, bool], Edit]) -> Edit:
    """Change the two demonstrations of a robomimic sample, the first of which is solved."""

    def change(path: Path) -> None:
        for number, is_solved in enumerate(FIRST):
            edit(number, is_solved)(path)

    return change


def marked_by(name: str, value: Callable[[bool], Any]) -> Edit:
    return both(lambda number, is_solved: attribute(f"data/demo_{number}", name, value(is_solved)))


def array_of(value: Callable[[bool], Any]) -> Edit:
    return both(lambda number, is_solved: put(f"data/demo_{number}/success", value(is_solved)))


def mask(name: str, numbers: list[int]) -> Edit:
    return put(f"mask/{name}", np.array([f"demo_{number}" for number in numbers], dtype="S6"))


def column(name: str, rows: Any) -> Edit:
    """Add a column to the two tables of the published LeRobot set."""

    def edit(path: Path) -> None:
        info = json.loads((path / "meta/info.json").read_text())
        del info["features"]["next.success"]
        info["features"][name] = {"dtype": str(rows.dtype), "shape": [1], "names": None}
        (path / "meta/info.json").write_text(json.dumps(info))
        for place, here in enumerate((slice(0, 7), slice(7, 12))):
            file = path / DATA.format(place)
            pq.write_table(pq.read_table(file).append_column(name, pa.array(rows[here])), file)

    return edit


def put_zarr(name: str, values: np.ndarray) -> Edit:
    return lambda path: zarr.open_group(path, mode="r+").create_array(name, data=values) and None


@pytest.mark.parametrize(
    ("sample", "edit", "marks"),
    [
        ("robomimic", marked_by("success", bool), FIRST),
        ("robomimic", marked_by("success", int), FIRST),
        ("robomimic", marked_by("is_success", str), FIRST),
        ("robomimic", marked_by("success", lambda is_solved: [float(is_solved)]), FIRST),
        ("robomimic", array_of(bool), FIRST),
        ("robomimic", array_of(lambda is_solved: [[0.0], [is_solved]]), FIRST),
        ("robomimic", attribute("data/demo_0", "success", 1), [True, None]),
        ("robomimic", mask("success", [1]), [False, True]),
        ("robomimic", lambda path: (mask("success", [1])(path), mask("failed", [])(path)), [None, True]),
        ("native", put("success", np.arange(ROWS) == ENDS[0] - 1), FIRST),
        ("native", put("is_success", np.float32([1, 0])), FIRST),
        ("d4rl", put("infos/success", np.arange(ROWS) == 2), FIRST),
        ("d4rl", put("success", (np.arange(ROWS) == 2).astype(np.uint8)), FIRST),
        ("dm_env", put("success", np.arange(ROWS) == 2), FIRST),
        ("dm_env", put("is_success", np.float32(np.arange(ROWS) >= LENGTHS[0])[:, None]), [False, True]),
        ("zarr", put_zarr("data/success", np.arange(ROWS) == ROWS - 1), [False, True]),
        ("zarr", put_zarr("meta/is_success", np.array([1.0, 0.0])), FIRST),
        ("maniskill", put("traj_1/fail", np.ones(LENGTHS[1], bool)), FIRST),
        ("minari", put("episode_0/infos/success", np.arange(LENGTHS[0] + 1) == 2), [True, None]),
        ("published", column("next.is_success", np.arange(12) == 8), [False, False, True]),
        ("published", column("success", (np.arange(12) < 1).astype(np.float32)), [True, False, False]),
    ],
    ids=[
        *("attribute", "integer", "text", "list", "array of one", "array of steps", "some", "filter", "two filters"),
        *("native rows", "native episodes", "infos", "d4rl rows", "dm_env", "dm_env column", "zarr rows"),
        *("zarr episodes", "maniskill", "minari", "next.is_success", "column"),
    ],
)
def test_marks_of_recorders_are_found(copied: Copied, sample: str, edit: Edit, marks: list) -> None:
    path = copied(sample)
    edit(path)
    store = open_here(path)
    assert store.attributes["episode_success"] == marks
    known = [mark for mark in marks if mark is not None]
    found = success(store)
    assert (found["solved"], found["of"]) == (sum(known), len(known))
    solved = store.filtered("success")
    assert solved.attributes["episode_success"] == [True] * sum(known)


@pytest.mark.parametrize(
    "write", [native.write, robomimic.write, d4rl.write, lerobot_writer.write], ids=lambda write: write.__module__
)
def test_marks_are_kept_by_conversions(tmp_path: Path, write: Callable[..., Any]) -> None:
    store = make_store(
        (5, 6, 7), attributes={"episode_success": [True, None, False], "success_marks": "episodes of mine"}
    )
    write(tmp_path / "copy", store)
    found = success(open_here(tmp_path / "copy"))
    assert (found["solved"], found["of"]) == (1, 2)
    assert "of mine, 1 more are not marked" in found["because"]


@pytest.mark.parametrize("suite", ["native", "robomimic", "lerobot", "maniskill"])
@pytest.mark.parametrize(
    ("rewards", "solved"),
    [
        ({4: 3.0, 17: 0.5}, 2),
        ({4: 3.0, 3: 0.1}, None),
        ({4: 3.0, 17: -1.0}, None),
        ({}, None),
    ],
    ids=["at the ends", "inside", "below 0", "none"],
)
def test_rewards_at_the_ends_alone_are_success(suite: str, rewards: dict[int, float], solved: int | None) -> None:
    values = np.zeros(18, np.float32)
    values[list(rewards)] = list(rewards.values())
    found = success(make_store((5, 6, 7), terminals={4, 17}, rewards=values, attributes={"suite": suite}))
    assert found.get("solved") == solved
    assert solved is None or found["because"] == "episodes with a last reward above 0, the only rewards"
