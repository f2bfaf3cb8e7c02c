"""A video, and folders of runs."""

from pathlib import Path
from typing import Any

import pytest
from report_pages import MakeRun, a_video, make_run


@pytest.fixture(scope="session")
def mp4(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return a_video(tmp_path_factory.mktemp("video") / "video.mp4")


@pytest.fixture
def new_run(tmp_path: Path, mp4: bytes) -> MakeRun:
    def make(name: str = "a", **options: Any) -> Path:
        return make_run(tmp_path / name, mp4, **options)

    return make
