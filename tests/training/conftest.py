"""A data set of states for trainings."""

from collections.abc import Callable
from pathlib import Path

import pytest

from gtp_vision.datasets.formats import native
from gtp_vision.datasets.store import Store


@pytest.fixture(scope="session")
def data(make_store: Callable[..., Store], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two episodes of states, the first of which ends in a terminal."""
    return native.write(tmp_path_factory.mktemp("data") / "states.h5", make_store((30, 40), terminals={29}))
