"""The documentation's notebooks run from top to bottom, in a folder of their own, with small settings."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient

FOLDER = Path(__file__).resolve().parents[1] / "docs" / "notebooks"
SMALL = {
    "first-policy": "steps, episodes, limit = 4, 1, 10",
    "your-own-data": "demonstrations, steps, fit = 30, 20, {'steps': 30, 'members': 2, 'hidden': (8,)}",
}


def test_every_notebook_is_tried_and_stored_without_outputs() -> None:
    assert {path.stem for path in FOLDER.glob("*.ipynb")} == set(SMALL)
    for name in SMALL:
        cells = nbformat.read(FOLDER / f"{name}.ipynb", as_version=4).cells
        assert [cell.source for cell in cells if cell.get("outputs") or cell.get("execution_count")] == []


def html(cell: Any) -> str:
    return "".join(output.get("data", {}).get("text/html", "") for output in cell.outputs)


@pytest.mark.trains
@pytest.mark.parametrize("name", SMALL)
def test_a_notebook_runs(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    book = nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)
    (parameters,) = (cell for cell in book.cells if "parameters" in cell.metadata.get("tags", ()))
    parameters.source = SMALL[name]
    NotebookClient(book, timeout=300, resources={"metadata": {"path": str(tmp_path)}}).execute()
    pages = [html(cell) for cell in book.cells if cell.cell_type == "code"]
    assert any(page.startswith("<iframe srcdoc=") for page in pages)
    if name == "first-policy":
        assert any('src="data:video/mp4;base64,' in page for page in pages)
    (error,) = (output for output in book.cells[-1].outputs if output.output_type == "error")
    assert error.ename == "GtpVisionError"
    assert error.traceback == [f"gtp-vision: {error.evalue}"]
