"""Tables say what was run, what was not, and what others have published under which conditions."""

import csv
import xml.etree.ElementTree as ET
from html.parser import HTMLParser
from pathlib import Path

import pytest

from gtp_vision.benchmark import tables
from gtp_vision.benchmark.published import beside, published
from gtp_vision.benchmark.records import Record
from gtp_vision.benchmark.suite import load

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
    header = next(line for line in text.splitlines() if line.startswith("| task") and "GTP [" in line)
    row = next(line for line in text.splitlines() if line.startswith("| hopper-medium-v2 | 21.0 |"))
    theirs = dict(zip(header.split(" | "), row.split(" | "), strict=True))
    assert theirs["GTP [2]"] == "90.3"
    assert theirs["D-QL [2]"] == "90.5"
    assert theirs["ReBRAC [3]"] == "102.3"
    assert "MuJoCo 2 (mujoco-py)" in text
    assert "selection: last" in text


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
    known = {table.name: table for table in published()}
    assert known["gtp-2026"].score("GTP", "walker2d-medium-expert-v2") == 114.2
    assert known["gtp-2026-bc"].score("GTP-BC", "hopper-medium-replay-v2") == 100.5
    assert known["gtp-2026-antmaze"].score("GTP", "antmaze-large-play-v0") == 53.5
    assert "C-AC" not in known["gtp-2026-antmaze"].methods, "its three numbers are those of C-BC"
    assert known["fql-ogbench-state"].score("FQL", "puzzle-4x4-play-singletask-task4") == 11
    assert known["fql-ogbench-state"].score("IFQL", "cube-double-play-singletask-task5") == 17
    assert known["fql-ogbench-visual"].score("FQL", "visual-scene-play-singletask-task1") == 98
    assert known["fql-antmaze"].score("ReBRAC", "antmaze-umaze-v2") == 98
    assert known["corl"].score("IQL", "hopper-medium-replay-v2") == 97.4
    assert known["corl-antmaze"].score("IQL", "antmaze-umaze-v0") is None


def test_every_published_table_tells_its_conditions() -> None:
    for table in published():
        assert table.source
        assert table.version
        assert table.selection
        assert table.physics
        assert all(isinstance(score, float) for scores in table.methods.values() for score in scores.values())


@pytest.mark.parametrize("name", ["d4rl-antmaze", "d4rl-antmaze-v0", "d4rl-gym", "ogbench-state", "ogbench-visual"])
def test_every_task_of_a_published_suite_has_published_numbers(name: str) -> None:
    for task in load(name).tasks:
        assert beside([task.name]), task.name
