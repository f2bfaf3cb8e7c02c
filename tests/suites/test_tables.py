import csv
import math
import re
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from browser import chromium

from gtp_vision.core.errors import GtpVisionError
from gtp_vision.suites import statistics, tables
from gtp_vision.suites.published import Published, published, read
from gtp_vision.suites.records import SELECTIONS, Record

GYM = ("hopper-medium-v2", "walker2d-medium-v2")
RECORDS = [
    Record(task, agent, seed, (1, 2), (10.0 * seed, 20.0 + seed + extra))
    for task in GYM
    for extra, agent in enumerate(("gtp", "iql"))
    for seed in range(3)
]
PAGE: dict[str, Any] = {
    "title": "D4RL & more",
    "facts": {"command": "gtp-vision bench suite d4rl-gym", "seeds": "3 <each>"},
    "selection": "last",
    "missing": ["ant-medium-v2 is left out: there is no data set"],
}


@pytest.fixture(scope="module", autouse=True)
def _few_resamples() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(statistics, "_REPS", 200)
        yield


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("tables")
    tables.write(RECORDS, out, **PAGE)
    return out


def compared(records: list[Record], title: str, selection: str = "last") -> tables.Table:
    """The table beside published numbers of that title."""
    (table,) = [t for t in tables.tables(records, selection) if t.title == f"Beside published numbers: {title}"]
    return table


def source(name: str) -> Published:
    (table,) = [table for table in published() if table.id == name]
    return table


def test_seconds_until_a_score_are_of_the_first_evaluation_that_reaches_it() -> None:
    runs = {"gtp": ((10.0, 60.0), (50.0, 0.0), (40.0, 49.9)), "iql": ((0.0, 0.0),) * 3, "old": ((90.0, 90.0),)}
    timed = [
        Record("a", agent, seed, (1, 2), scores, seconds=() if agent == "old" else (3.0, 7.0 + seed))
        for agent, own in runs.items()
        for seed, scores in enumerate(own)
    ]
    (table,) = [table for table in tables.tables(timed, "last", 50) if table.title.startswith("Seconds")]
    assert table.head == ["task", "gtp", "iql"]
    assert table.rows == [["a", "7 (2 of 3 runs)", "not reached"]]  # 7, 3 and never


def test_unknown_scores_are_unknown_everywhere(tmp_path: Path) -> None:
    unknown = [
        Record("own", agent, seed, (1, 2), (math.nan, math.nan)) for agent in ("gtp", "iql") for seed in range(3)
    ]
    tables.write(RECORDS + unknown, tmp_path, **PAGE)
    text = (tmp_path / "results.md").read_text()
    assert "| own | unknown | unknown |" in text
    assert "mean of 2 tasks" in text, "of those that are known"
    assert "nan" not in text
    lines = list(csv.DictReader((tmp_path / "results.csv").open()))
    assert {line["score"] for line in lines if line["task"] == "own"} == {"unknown"}
    assert "nan" not in (tmp_path / "results.html").read_text()


def test_markdown_has_scores_aggregates_and_missing_tasks(folder: Path) -> None:
    text = (folder / "results.md").read_text()
    assert "| hopper-medium-v2 | 21.0 (20.0 to 22.0) | 22.0 (21.0 to 23.0) |" in text
    assert "| mean of 2 tasks | 21.0" in text
    assert "| IQM of 2 tasks | 21.0" in text
    assert "ant-medium-v2 is left out" in text
    assert "MuJoCo 2 (mujoco-py)" in text
    assert "Its data: v2; selection: last" in text


def test_published_numbers_have_marks_of_differing_conditions() -> None:
    table = compared(RECORDS, "GTP, table 2")
    hopper, _, mean = (dict(zip(table.head, row, strict=True)) for row in table.rows)
    assert hopper["gtp (ours)"] == "21.0"
    assert hopper["GTP †‡§"] == "90.3"
    assert hopper["D-QL ‡§"] == "90.5", "its version is known, its selection is another"
    assert (mean["gtp (ours)"], mean["GTP †‡§"]) == ("21.0", "89.9")  # (90.3 + 89.5) / 2
    corl = compared(RECORDS, "CORL")
    assert dict(zip(corl.head, corl.rows[0], strict=True))["ReBRAC §"] == "102.3"


@pytest.mark.parametrize(
    ("name", "method", "task", "selection", "marks"),
    [
        ("corl", "IQL", "hopper-medium-v2", "best", "‡§"),
        ("gtp-antmaze", "D-QL", "antmaze-umaze-v2", "best", "†§"),
        ("gtp-antmaze", "GTP", "antmaze-umaze-v0", "best", "†‡§"),
        ("fql-ogbench", "FQL", "scene-play-singletask-task2", "mean_last_3", "§"),
    ],
)
def test_marks_follow_from_the_conditions(name: str, method: str, task: str, selection: str, marks: str) -> None:
    assert source(name).score(method, task) is not None
    assert source(name).marks(method, task, selection) == marks


def test_a_mark_of_some_of_a_methods_numbers_stands_at_the_number() -> None:
    mixed = [Record(f"antmaze-umaze-{version}", "gtp", 0, (1,), (50.0,)) for version in ("v0", "v2")]
    table = compared(mixed, "GTP, table 2", "best")
    column = table.head.index("D-QL §")
    assert [row[column] for row in table.rows] == ["93.4", "93.4†", "93.4†"]
    assert sum(note.startswith(("†", "‡", "§")) for note in table.notes) == 3


def test_unfinished_and_missing_numbers_are_marked() -> None:
    hopper, walker = GYM
    some = [
        Record(hopper, "gtp", 0, (1,), (5.0,)),
        Record(hopper, "gtp", 1, (1,), (7.0,), unfinished=True),
        Record(hopper, "iql", 0, (1,), (6.0,)),
        Record(walker, "gtp", 0, (1,), (8.0,)),
    ]
    table = compared(some, "CORL")
    assert [row[:3] for row in table.rows] == [[hopper, "6.0*", "6.0"], [walker, "8.0", "not run"]]
    assert any("are not finished" in note for note in table.notes)
    complete = [*some, Record(walker, "iql", 0, (1,), (9.0,))]
    assert compared(complete, "CORL").rows[-1][:3] == ["mean of 2 tasks", "7.0*", "7.5"]
    text = tables.table(some[1:], selection="best")
    rows = {line.split()[0]: line.split()[1:] for line in text.splitlines() if line.startswith(GYM)}
    assert rows == {hopper: ["7.0*", "6.0"], walker: ["8.0", "not", "run"]}
    assert "are not finished" in text
    assert "One seed has no interval" in text
    assert "too good" in text


def test_csv_has_a_line_for_each_run_and_selection(folder: Path) -> None:
    with (folder / "results.csv").open() as file:
        lines = list(csv.DictReader(file))
    assert len(lines) == len(RECORDS) * len(SELECTIONS)
    line = next(x for x in lines if (x["agent"], x["seed"], x["selection"]) == ("iql", "2", "mean_last_3"))
    assert (float(line["score"]), line["evaluations"], line["finished"]) == (21.5, "2", "true")


def test_the_page_is_self_contained_and_shows_curves_of_every_task(folder: Path, tmp_path: Path) -> None:
    text = (folder / "results.html").read_text()
    assert re.findall(r"<(?:script|link|iframe)|(?:src|href)=.[^#]", text) == []
    pictures = [part.partition("</svg>")[0] + "</svg>" for part in text.split("<svg")[1:]]
    assert len(pictures) == 2
    for picture in pictures:
        ET.fromstring("<svg" + picture)
    assert all(task in pictures[0] for task in GYM)
    assert "D4RL &amp; more" in text
    assert "3 &lt;each&gt;" in text
    for path in tables.write(RECORDS, tmp_path, **PAGE):
        assert path.read_bytes() == (folder / path.name).read_bytes(), "the same records give the same bytes"


@pytest.mark.parametrize(
    ("name", "method", "like", "mean"),
    [
        ("gtp", "GTP", "", 89.0),
        ("gtp-bc", "GTP-BC", "", 82.3),
        ("gtp-antmaze", "GTP", "", 80.65),
        ("gtp-bc-antmaze", "C-BC", "", 44.1),
        ("gtp-more", "SSCQL", "", 87.9),
        ("others", "DiffCPS", "", 92.3),
        ("others-antmaze", "SRPO", "", 73.6),
        ("corl", "ReBRAC", "", 89.7),
        ("corl-antmaze", "IQL", "", 57.2),
        ("fql-ogbench", "FQL", "puzzle-4x4", 17),
        ("fql-ogbench-visual", "ReBRAC", "", 60),
        ("fql-antmaze", "FQL", "", 84),
    ],
)
def test_published_means_are_those_of_their_numbers(name: str, method: str, like: str, mean: float) -> None:
    assert source(name).physics, "a table states its conditions"
    scores = [score for task, score in source(name).methods[method].items() if task.startswith(like)]
    is_whole = name.startswith("fql")  # the others have one decimal, rounded or cut
    assert sum(scores) / len(scores) == pytest.approx(mean, abs=0.5 if is_whole else 0.1)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"source": ""}, "table 'mine' has no source"),
        ({"selection": "newest"}, "the selection 'newest'; use one of last"),
        ({"exceptions": {"A": {"selection": "newest"}}}, "the selection 'newest'; use one of last"),
        ({"exceptions": {"B": {"selection": "best"}}}, "exceptions for 'B'"),
        ({"exceptions": {"A": {"seeds": "5"}}}, "exceptions for 'A'"),
        ({"methods": {"A": {"hopper-medium-v2": "90"}}}, "something other than scores for 'A'"),
        ({"year": 2026}, "too many or too few fields \\(year\\)"),
    ],
)
def test_a_table_without_its_conditions_is_refused(change: dict, message: str) -> None:
    table: dict = {"id": "mine", "title": "Mine", "source": "us", "version": "v2", "selection": "last", "physics": ""}
    table |= {"runs": "one", "exceptions": {}, "methods": {"A": {"hopper-medium-v2": 90.0}}}
    assert read(table, "x.json").score("A", "hopper-medium-v2") == 90
    with pytest.raises(GtpVisionError, match=message):
        read(table | change, "x.json")


@pytest.mark.browser
def test_in_a_browser_wide_tables_scroll_and_the_page_does_not(tmp_path: Path) -> None:
    named = [replace(record, agent=f"{record.agent}_with_a_long_name_that_takes_room") for record in RECORDS]
    tables.write(named, tmp_path, **(PAGE | {"facts": {"data": "/a/" + "very/" * 60 + "long/path"}}))
    with chromium(tmp_path / "profile") as browser:
        for width in (380, 1280):
            with browser.page(tmp_path / "results.html", width=width) as page:
                assert page.spill() == 0
                assert page.run("[...document.querySelectorAll('.wide')].some((e) => e.scrollWidth > e.clientWidth)")
                assert page.complaints() == []
                assert page.requests() == []
