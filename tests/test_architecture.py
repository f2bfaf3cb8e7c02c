"""Pictures, tables and captions of the documentation are those of the code and of stored files."""

import re
import runpy
import sys
from pathlib import Path

import pytest
from commands_of_docs import PAGES

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "scripts"))

import architecture  # noqa: E402

GALLERY = runpy.run_path(str(ROOT / "docs" / "img" / "gallery.py"))
CODE = re.compile(r"`([\w.]+)`")


def test_the_picture_is_up_to_date() -> None:
    assert architecture.PICTURE.read_text(encoding="utf-8") == architecture.drawing(), "run scripts/architecture.py"
    assert f"img/{architecture.PICTURE.name}" in PAGES["docs/architecture.md"].read_text(encoding="utf-8")


@pytest.mark.parametrize("name", architecture.TABLES)
def test_tables_hold_every_agent_as_it_is_composed(name: str) -> None:
    assert (ROOT / name).read_text(encoding="utf-8") == architecture.page(name), "run scripts/architecture.py"


def test_an_unknown_verb_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    wrong = architecture.Box("Files", "datasets/", ("date",), {"formats": ["native"]})
    monkeypatch.setattr(architecture, "way", lambda: [wrong])
    with pytest.raises(SystemExit, match="date"):
        architecture.drawing()


def test_every_agent_is_described() -> None:
    text = "".join(PAGES[page].read_text(encoding="utf-8") for page in ("docs/baselines.md", "docs/benchmarks.md"))
    first_cells = [line.split("|")[1] for line in text.splitlines() if line.startswith("| `")]
    described = {name for cell in first_cells for name in CODE.findall(cell)}
    assert set(architecture.AGENTS) <= described


def test_the_gallery_shows_all_its_files_and_is_small() -> None:
    text = GALLERY["PAGE"].read_text(encoding="utf-8")
    shown = re.findall(r"\]\(img/gallery/([^)]+)\)", text)
    assert len(shown) >= 5
    assert sorted(shown) == sorted(path.name for path in GALLERY["FOLDER"].iterdir())
    assert sum(path.stat().st_size for path in GALLERY["FOLDER"].iterdir()) < GALLERY["LIMIT"]
