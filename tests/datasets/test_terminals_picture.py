"""The picture of docs/data.md shows the stores that the readers return."""

import runpy
from pathlib import Path
from typing import Any

import pytest

from gtp_vision.datasets.formats import FORMATS

IMAGES = Path(__file__).resolve().parents[2] / "docs" / "img"


@pytest.fixture(scope="module")
def drawing() -> dict[str, Any]:
    return runpy.run_path(str(IMAGES / "terminals.py"))


@pytest.mark.usefixtures("cache")
def test_the_picture_is_what_the_readers_find(drawing: dict[str, Any], tmp_path: Path) -> None:
    drawn = drawing["draw"](tmp_path)
    assert drawn == (IMAGES / "terminals.svg").read_text(encoding="utf-8"), "run docs/img/terminals.py"


def test_every_format_is_drawn(drawing: dict[str, Any]) -> None:
    drawn = {story.__name__.partition("_")[0] for story in drawing["STORIES"]}
    assert drawn - {"maze"} == set(FORMATS)
