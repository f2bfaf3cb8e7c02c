"""Small real files of every format, made once for all tests of data sets."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import samples as making


@pytest.fixture(scope="session")
def samples(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A file or folder for each of `samples.FORMATS`; not to be changed."""
    return making.make(tmp_path_factory.mktemp("samples"))


@pytest.fixture(scope="session")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A LeRobot data set by the published schema; not to be changed."""
    return making.published_lerobot(tmp_path_factory.mktemp("published") / "pick")


@pytest.fixture
def copied(samples: dict[str, Path], published: Path, tmp_path: Path) -> Callable[[str], Path]:
    """A function that makes a copy of a sample, or of `published`, which may be changed."""

    def copy(name: str) -> Path:
        source = published if name == "published" else samples[name]
        target = tmp_path / "copies" / source.name
        target.parent.mkdir(exist_ok=True)
        if source.is_dir():
            shutil.copytree(source, target, dirs_exist_ok=True)
        else:
            shutil.copyfile(source, target)
        return target

    return copy
