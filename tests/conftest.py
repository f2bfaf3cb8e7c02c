"""What tests of several rooms share: tiny data sets and a data cache of their own."""

import sys
from collections.abc import Callable
from pathlib import Path

import absl.logging
import pytest
import stores

from gtp_vision.datasets.store import Store
from gtp_vision.envs.rendering import choose_backend

choose_backend(required=False)  # before a test imports mujoco, which reads MUJOCO_GL once
# absl's handler (in dm_control) closes its stream when Hydra sets up logging: not the one in which pytest captures
absl.logging.get_absl_handler().python_handler.stream = sys.__stderr__


@pytest.fixture(scope="session")
def make_store() -> Callable[..., Store]:
    return stores.make_store


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder as the data cache."""
    folder = tmp_path / "cache"
    monkeypatch.setenv("GTP_VISION_CACHE", str(folder))
    return folder
