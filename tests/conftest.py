"""What tests of several rooms share: tiny data sets and a data cache of their own."""

import signal
import sys
from collections import defaultdict
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

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # of a shell's background, and commands would inherit it
    signal.signal(signal.SIGINT, signal.default_int_handler)

# Seconds of a test with a marker, roughly
SECONDS = {"docs": 30.0, "compiles": 10.0, "processes": 8.0, "trains": 4.0, "browser": 4.0, "simulates": 2.0}


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the files that take longest, so that at the end no process waits for another's long file."""
    cost = defaultdict[Path, float](float)
    for item in items:
        cost[item.path] += max((SECONDS.get(mark.name, 0.0) for mark in item.iter_markers()), default=0.0)
    items.sort(key=lambda item: -cost[item.path])


@pytest.fixture(scope="session")
def make_store() -> Callable[..., Store]:
    return stores.make_store


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder as the data cache."""
    folder = tmp_path / "cache"
    monkeypatch.setenv("GTP_VISION_CACHE", str(folder))
    return folder
