"""A data set of states for trainings."""

from pathlib import Path

import pytest
from stores import make_store

from gtp_vision.datasets.formats import native


@pytest.fixture(scope="session")
def pixels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As `data`, with a camera."""
    store = make_store((30, 40), terminals={29}, cameras={"front": (12, 12, 3)})
    return native.write(tmp_path_factory.mktemp("data") / "pixels.h5", store)


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two episodes of states, the first of which ends in a terminal."""
    return native.write(tmp_path_factory.mktemp("data") / "states.h5", make_store((30, 40), terminals={29}))
