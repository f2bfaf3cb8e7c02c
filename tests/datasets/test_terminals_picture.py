import runpy
from pathlib import Path

import pytest

from gtp_vision.datasets.formats import FORMATS

IMAGES = Path(__file__).resolve().parents[2] / "docs" / "img"


@pytest.mark.usefixtures("cache")
def test_the_picture_in_the_documentation_is_what_the_readers_find(tmp_path: Path) -> None:
    drawing = runpy.run_path(str(IMAGES / "terminals.py"))
    assert drawing["draw"](tmp_path) == (IMAGES / "terminals.svg").read_text("utf-8"), "run docs/img/terminals.py"
    read = {name for name, known in FORMATS.items() if known.hdf5 or known.other}
    assert {story.__name__.rpartition("_")[0] for story in drawing["STORIES"]} - {"maze"} == read
