"""Small real files of every format, made once for all tests of data sets."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import samples as making

from gtp_vision.datasets.store import Store


@pytest.fixture(scope="session")
def samples(tmp_path_factory: pytest.TempPathFactory, make_store: Callable[..., Store]) -> dict[str, Path]:
    """A file or folder for each of `samples.FORMATS`; not to be changed."""
    return making.make(tmp_path_factory.mktemp("samples"), make_store)


@pytest.fixture
def copied(samples: dict[str, Path], tmp_path: Path) -> Callable[[str], Path]:
    """A function that makes a copy of a sample, which may be changed."""

    def copy(name: str) -> Path:
        target = tmp_path / "copies" / samples[name].name
        target.parent.mkdir(exist_ok=True)
        if samples[name].is_dir():
            shutil.copytree(samples[name], target, dirs_exist_ok=True)
        else:
            shutil.copyfile(samples[name], target)
        return target

    return copy
