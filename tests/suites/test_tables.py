"""Tables say what was run, what was not, and what others have published under which conditions."""

import csv
import xml.etree.ElementTree as ET
from dataclasses import replace
from html.parser import HTMLParser
from importlib.metadata import version
from pathlib import Path

import pytest
from browser import Browser

from gtp_vision.core.errors import GtpVisionError
from gtp_vision.suites import tables
from gtp_vision.suites.published import beside, published, read
from gtp_vision.suites.records import SELECTIONS, Record
from gtp_vision.suites.suite import load

GYM = ("hopper-medium-v2", "walker2d-medium-v2")
RECORDS = [
    Record(task, agent, seed, (1, 2), (10.0 * seed, 20.0 + seed + extra))
    for task in GYM
    for extra, agent in enumerate(("gtp", "iql"))
    for seed in range(3)
]
FACTS = {"command": "gtp-vision bench suite d4rl-gym", "seeds": "3 <each>"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("tables")
    missing = ["ant-medium-v2 is left out: there is no data set"]
    tables.write(RECORDS, out, title="D4RL & more", facts=FACTS, selection="last", missing=missing)
    return out


def test_markdown_has_scores_aggregates_and_published_numbers_with_their_conditions(folder: Path) -> None:
    text = (folder / "results.md").read_text()
    assert "| hopper-medium-v2 | 21.0 (20.0 to 22.0) | 22.0 (21.0 to 23.0) |" in text
    assert "| mean of 2 tasks | 21.0" in text
    assert "| IQM of 2 tasks | 21.0" in text
    assert "ant-medium-v2 is left out" in text
    head, rows = block(text, "GTP, table 2")
    theirs = dict(zip(head, rows["hopper-medium-v2"], strict=True))
    assert theirs["gtp (ours)"] == "21.0"
    assert theirs["GTP †‡§"] == "90.3"
    assert theirs["D-QL ‡§"] == "90.5", "its version is known, its selection is another"
    means = dict(zip(head, rows["mean of 2 tasks"], strict=True))
    assert (means["gtp (ours)"], means["GTP †‡§"]) == ("21.0", "89.9")  # (90.3 + 89.5) / 2
    head, rows = block(text, "CORL")
    assert dict(zip(head, rows["hopper-medium-v2"], strict=True))["ReBRAC §"] == "102.3"
    assert "MuJoCo 2 (mujoco-py)" in text
    assert "Its data: v2; selection: last" in text


def block(text: str, title: str) -> tuple[list[str], dict[str, list[str]]]:
    """Head and rows, by their first cell, of a table of Markdown."""
    section = text.partition(f"## Beside published numbers: {title}\n")[2].partition("\n## ")[0]
    lines = [[cell.strip() for cell in x.strip("|").split("|")] for x in section.splitlines() if x.startswith("|")]
    return lines[0], {line[0]: line for line in lines[2:]}


@pytest.mark.parametrize(
    ("name", "method", "task", "selection", "marks"),
    [
        ("corl", "IQL", "hopper-medium-v2", "last", "§"),
        ("corl", "IQL", "hopper-medium-v2", "best", "‡§"),
        ("gtp-antmaze", "D-QL", "antmaze-umaze-v2", "best", "†§"),
        ("gtp-antmaze", "D-QL", "antmaze-umaze-v0", "best", "§"),
        ("gtp-antmaze", "GTP", "antmaze-umaze-v0", "best", "†‡§"),
        ("fql-ogbench", "FQL", "scene-play-singletask-task2", "mean_last_3", "§"),
    ],
)
def test_numbers_are_marked_by_what_differs_from_ours(
    name: str, method: str, task: str, selection: str, marks: str
) -> None:
    (table,) = [table for table in published() if table.id == name]
    assert table.score(method, task) is not None
    assert table.marks(method, task, selection) == marks


def test_a_mark_that_not_all_numbers_of_a_method_bear_stands_at_the_number() -> None:
    mixed = [Record(f"antmaze-umaze-{version}", "gtp", 0, (1,), (50.0,)) for version in ("v0", "v2")]
    every = [table for table in tables.tables(mixed, "best") if table.title == "Beside published numbers: GTP, table 2"]
    column = every[0].head.index("D-QL §")
    assert [row[column] for row in every[0].rows] == ["93.4", "93.4†", "93.4†"]
    assert sum(note.startswith(("†", "‡", "§")) for note in every[0].notes) == 3


def test_methods_without_a_number_for_what_was_run_have_no_column() -> None:
    large = [Record("antmaze-large-play-v0", "gtp", 0, (1,), (50.0,))]
    every = [table for table in tables.tables(large, "last") if table.title == "Beside published numbers: GTP, table 2"]
    assert "QGPO ‡§" in every[0].head
    assert not any(method.startswith("BDM") for method in every[0].head)


def test_the_same_simulator_is_not_marked() -> None:
    (corl,) = [table for table in published() if table.id == "corl"]
    here = replace(corl, physics="")
    assert here.marks("IQL", "hopper-medium-v2", "last") == ""
    assert "simulator" not in here.note()


def test_ogbench_is_another_than_that_of_the_published_numbers() -> None:
    assert tuple(map(int, version("ogbench").split(".")[:2])) > (1, 1)


def test_unfinished_and_absent_numbers_are_marked_beside_published_ones_too() -> None:
    hopper, walker = GYM
    some = [
        Record(hopper, "gtp", 0, (1,), (5.0,)),
        Record(hopper, "gtp", 1, (1,), (7.0,), unfinished=True),
        Record(hopper, "iql", 0, (1,), (6.0,)),
        Record(walker, "gtp", 0, (1,), (8.0,)),
    ]
    every = [table for table in tables.tables(some, "last") if table.title == "Beside published numbers: CORL"]
    assert [row[:3] for row in every[0].rows] == [[hopper, "6.0*", "6.0"], [walker, "8.0", "not run"]]
    assert any("a run is not finished" in note for note in every[0].notes)
    some.append(Record(walker, "iql", 0, (1,), (9.0,)))
    every = [table for table in tables.tables(some, "last") if table.title == "Beside published numbers: CORL"]
    assert every[0].rows[-1][:3] == ["mean of 2 tasks", "7.0*", "7.5"]


def test_csv_has_a_line_for_each_run_and_selection(folder: Path) -> None:
    with (folder / "results.csv").open() as file:
        lines = list(csv.DictReader(file))
    assert len(lines) == 3 * len(RECORDS)
    best = next(x for x in lines if (x["task"], x["agent"], x["seed"], x["selection"]) == (GYM[0], "gtp", "2", "best"))
    assert (float(best["score"]), best["evaluations"], best["steps"], best["finished"]) == (22.0, "2", "2", "true")


class Outside(HTMLParser):
    """Collects what a page would fetch."""

    found: list[str]

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.found = getattr(self, "found", [])
        self.found += [v for k, v in attributes if k in ("src", "href", "xlink:href") and v and not v.startswith("#")]
        self.found += [tag] if tag in ("script", "link", "iframe") else []


def test_the_page_needs_nothing_from_outside_and_shows_curves_of_every_task(folder: Path) -> None:
    text = (folder / "results.html").read_text()
    reader = Outside()
    reader.feed(text)
    assert reader.found == []
    pictures = [part.partition("</svg>")[0] + "</svg>" for part in text.split("<svg")[1:]]
    assert len(pictures) == 2
    for picture in pictures:
        ET.fromstring("<svg" + picture)
    assert all(task in pictures[0] for task in GYM)
    assert "D4RL &amp; more" in text
    assert "3 &lt;each&gt;" in text


def test_the_same_records_give_the_same_bytes(folder: Path, tmp_path: Path) -> None:
    missing = ["ant-medium-v2 is left out: there is no data set"]
    for path in tables.write(RECORDS, tmp_path, title="D4RL & more", facts=FACTS, selection="last", missing=missing):
        assert path.read_bytes() == (folder / path.name).read_bytes(), path.name


def test_what_is_missing_or_unfinished_is_no_number_without_a_mark() -> None:
    some = [
        Record("a", "gtp", 0, (1,), (5.0,), unfinished=True),
        Record("a", "iql", 0, (1,), (6.0,)),
        Record("b", "iql", 0, (1,), (7.0,)),
    ]
    text = tables.table(some, selection="best")
    (row,) = [line for line in text.splitlines() if line.startswith("a ")]
    assert row.split() == ["a", "5.0*", "6.0"]
    (row,) = [line for line in text.splitlines() if line.startswith("b ")]
    assert "not run" in row
    assert "a run is not finished" in text
    assert "One seed has no interval" in text
    assert "is too good" in text


def test_published_numbers_are_those_of_their_tables() -> None:
    known = {table.id: table for table in published()}
    assert known["gtp"].score("GTP", "walker2d-medium-expert-v2") == 114.2
    assert known["gtp-bc"].score("GTP-BC", "hopper-medium-replay-v2") == 100.5
    assert known["gtp-antmaze"].score("GTP", "antmaze-large-play-v0") == 53.5
    assert "C-AC" not in known["gtp-antmaze"].methods, "its three numbers are those of C-BC"
    assert known["gtp-more"].score("QIPO-OT", "walker2d-medium-replay-v2") == 78.6
    assert known["gtp-more-antmaze"].score("FQL", "antmaze-medium-diverse-v2") == 85.2
    assert known["others"].score("DiffCPS", "walker2d-medium-v2") == 90.9
    assert known["others-antmaze"].score("SfBC", "antmaze-large-diverse-v0") is None, "sources disagree"
    assert known["fql-ogbench"].score("FQL", "puzzle-4x4-play-singletask-task4") == 11
    assert known["fql-ogbench"].score("IFQL", "cube-double-play-singletask-task5") == 17
    assert known["fql-ogbench-visual"].score("FQL", "visual-scene-play-singletask-task1") == 98
    assert known["fql-antmaze"].score("ReBRAC", "antmaze-umaze-v2") == 98
    assert known["corl"].score("IQL", "hopper-medium-replay-v2") == 97.4
    assert known["corl-antmaze"].score("IQL", "antmaze-umaze-v0") is None


@pytest.mark.parametrize(
    ("name", "method", "like", "mean"),
    [
        ("gtp", "GTP", "", 89.0),
        ("gtp", "D-QL", "", 87.9),
        ("gtp-bc", "GTP-BC", "", 82.3),
        ("gtp-antmaze", "GTP", "", 80.65),
        ("gtp-bc-antmaze", "C-BC", "", 44.1),
        ("gtp-more", "SSCQL", "", 87.9),
        ("others", "DiffCPS", "", 92.3),
        ("others-antmaze", "SRPO", "", 73.6),
        ("corl", "ReBRAC", "", 89.7),
        ("corl-antmaze", "IQL", "", 57.2),
        ("fql-ogbench", "FQL", "puzzle-4x4", 17),
        ("fql-ogbench", "IQL", "antmaze-large", 53),
        ("fql-ogbench-visual", "ReBRAC", "", 60),
        ("fql-antmaze", "FQL", "", 84),
    ],
)
def test_the_means_that_others_have_published_are_those_of_their_numbers(
    name: str, method: str, like: str, mean: float
) -> None:
    (table,) = [table for table in published() if table.id == name]
    scores = [score for task, score in table.methods[method].items() if task.startswith(like)]
    whole = name.startswith("fql")  # the others have one decimal, rounded or cut
    assert sum(scores) / len(scores) == pytest.approx(mean, abs=0.5 if whole else 0.1)


def test_every_published_table_tells_its_conditions() -> None:
    for table in published():
        assert table.source
        assert table.version
        assert table.selection in (*SELECTIONS, "not stated")
        assert table.physics
        assert all(isinstance(score, float) for scores in table.methods.values() for score in scores.values())
    assert len({table.id for table in published()}) == len(published())


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"source": ""}, "table 'mine' has no source"),
        ({"selection": "newest"}, "the selection 'newest'; use one of last"),
        ({"exceptions": {"A": {"selection": "newest"}}}, "the selection 'newest'; use one of last"),
        ({"exceptions": {"B": {"selection": "best"}}}, "exceptions for 'B'; name a method"),
        ({"exceptions": {"A": {"seeds": "5"}}}, "exceptions for 'A'; name a method"),
        ({"methods": {"A": {"hopper-medium-v2": "90"}}}, "something other than scores for 'A'"),
        ({"year": 2026}, "too many or too few fields \\(year\\)"),
    ],
)
def test_a_table_that_does_not_tell_its_conditions_is_refused(change: dict, told: str) -> None:
    table: dict = {"id": "mine", "title": "Mine", "source": "us", "version": "v2", "selection": "last", "physics": ""}
    table |= {"runs": "one", "exceptions": {}, "methods": {"A": {"hopper-medium-v2": 90.0}}}
    assert read(table, "x.json").score("A", "hopper-medium-v2") == 90
    with pytest.raises(GtpVisionError, match=told):
        read(table | change, "x.json")


@pytest.mark.parametrize("name", ["d4rl-antmaze", "d4rl-antmaze-v0", "d4rl-gym", "ogbench-state", "ogbench-visual"])
def test_every_task_of_a_published_suite_has_published_numbers(name: str) -> None:
    for task in load(name).tasks:
        assert beside([task.name]), task.name


def test_in_a_browser_wide_tables_scroll_and_the_page_does_not(tmp_path: Path) -> None:
    named = [replace(record, agent=f"{record.agent}_with_a_name_that_takes_room") for record in RECORDS]
    facts = FACTS | {"data": "/a/" + "very/" * 60 + "long/path"}
    tables.write(named, tmp_path, title="Wide", facts=facts, selection="last")
    with Browser(tmp_path / "profile") as browser:
        for width in (380, 1280):
            with browser.page(tmp_path / "results.html", width=width) as page:
                assert page.spill() == 0
                wide = "[...document.querySelectorAll('.wide')].some((one) => one.scrollWidth > one.clientWidth)"
                assert page.run(wide)
                assert page.complaints() == []
                assert page.requests() == []
