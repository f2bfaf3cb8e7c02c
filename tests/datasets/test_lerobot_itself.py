"""What the real lerobot records is read, trained on and exported; what we write is read, and trained on, by lerobot.

Its environments need a network and 0.6 GB once: set GTP_VISION_LEROBOT to a folder in which they lie, or are made.
"""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from gtp_vision.cli.main import main
from gtp_vision.datasets.formats import convert, open_store
from gtp_vision.datasets.scaling import in_file_units

FOLDER = os.environ.get("GTP_VISION_LEROBOT")
VERSIONS = {"lerobot": "0.4.4", "lerobot-v2.1": "0.3.3"}
"""The newest lerobot that runs on Python 3.11, and the last one of version 2.1, by the formats that they write."""
PACKAGES = {"lerobot": ("datasets>=4,<5", "diffusers<0.36"), "lerobot-v2.1": ("datasets<=3.6.0",)}
ALL = ("av>=15,<16", "draccus==0.10.0", "jsonlines", "huggingface_hub<0.36", "deepdiff", "termcolor", "transformers<5")
LENGTHS, WINDOW = (6, 4, 5), 3
pytestmark = [
    *(pytest.mark.processes, pytest.mark.trains, pytest.mark.usefixtures("cache")),
    pytest.mark.skipif(not FOLDER, reason="GTP_VISION_LEROBOT does not name a folder for lerobot's environments"),
]


@pytest.fixture(scope="module", params=VERSIONS)
def to(request: pytest.FixtureRequest) -> str:
    """The format of a version of LeRobot."""
    return str(request.param)


@pytest.fixture(scope="module")
def python(to: str) -> Path:
    """The interpreter of an environment with lerobot, which takes torch from this one's."""
    root = Path(str(FOLDER)) / f"env{VERSIONS[to]}"
    python = root / "bin" / "python"
    if not python.exists():
        subprocess.run([sys.executable, "-m", "venv", root], check=True)
        shared = next((root / "lib").glob("python*")) / "site-packages" / "zz_shared.pth"
        shared.write_text(f"{Path(torch.__file__).parents[1]}\n")
        install = [python, "-m", "pip", "install", "-q"]
        subprocess.run([*install, "--no-deps", f"lerobot=={VERSIONS[to]}"], check=True)
        subprocess.run([*install, *PACKAGES[to], *ALL, "pyserial"], check=True)
    return python


@pytest.fixture(scope="module")
def recorded(python: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("recorded") / "toy"
    itself(python, "record", folder)
    return folder


def itself(python: Path, *words: Any) -> str:
    """Run `lerobot_itself.py`."""
    command = [python, "-P", Path(__file__).with_name("lerobot_itself.py"), *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"HF_HUB_OFFLINE": "1"})
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_what_lerobot_records_is_read(recorded: Path) -> None:
    store, row = open_store(recorded), np.arange(sum(LENGTHS))
    frame = np.concatenate([np.arange(length) for length in LENGTHS])
    assert store.episode_ends.tolist() == np.cumsum(LENGTHS).tolist()
    np.testing.assert_array_equal(store.observations["state"], np.stack([row, frame], 1))
    wanted = np.stack([30 * row, -frame, np.full(len(row), 0.5)], 1)
    np.testing.assert_allclose(in_file_units(store), wanted, atol=1e-4)
    front = np.asarray(store.observations["front"]).astype(float)
    assert np.abs(front - (20 + 15 * row)[:, None, None, None]).max() <= 4, "of 15 between frames"
    assert (np.asarray(store.observations["wrist"]) == row[:, None, None, None]).all()
    assert store.attributes["tasks"] == ["task 0", "task 1", "task 2"]
    assert store.attributes["episode_success"] == [False, True, False]
    assert "time_stamps" not in store.attributes


def test_lerobot_reads_and_trains_on_what_is_written(recorded: Path, python: Path, to: str, tmp_path: Path) -> None:
    convert(recorded, tmp_path / "copy", to)
    itself(python, "read", tmp_path / "copy", tmp_path / "read.npz", WINDOW)
    with np.load(tmp_path / "read.npz") as file:
        found = dict(file)
    row, last = np.arange(sum(LENGTHS)), np.repeat(np.cumsum(LENGTHS), LENGTHS) - 1
    frame = np.concatenate([np.arange(length) for length in LENGTHS])
    ahead = np.minimum(row[:, None] + np.arange(WINDOW), last[:, None])
    np.testing.assert_allclose(found["action"][..., 0], 30 * ahead, atol=1e-3)
    np.testing.assert_array_equal(found["action_is_pad"], row[:, None] + np.arange(WINDOW) > last[:, None])
    np.testing.assert_array_equal(found["observation.state"][:, 1], np.stack([row, frame], 1))
    front = 255 * found["observation.images.front"]
    assert np.abs(front - (20 + 15 * row)[:, None, None, None]).max() <= 6, "of 15 between frames"
    assert found["task"].tolist() == np.repeat([f"task {n}" for n in range(3)], LENGTHS).tolist()
    assert found["next.success"].ravel().nonzero()[0].tolist() == [9]
    assert found["fps"] == 10
    np.testing.assert_allclose(found["stats/action/max"], [420, 0, 0.5], rtol=1e-5)
    if to == "lerobot":
        np.testing.assert_allclose(found["stats/action/q99"][0], np.quantile(30 * row, 0.99), rtol=1e-5)
    assert np.isfinite(float(itself(python, "train", tmp_path / "copy")))


def test_what_lerobot_records_is_trained_on_and_exported(recorded: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    words = ["task=own", "task.name=toy", f"task.dataset={recorded}", "agent=gtp_bc", "training=demo"]
    words += ["task.observations=[front,state]", "training.steps=2", f"run_dir={run}"]
    assert main(["train", *words]) == 0
    assert main(["export", str(run), str(tmp_path / "policy")]) == 0
    assert any((tmp_path / "policy").iterdir())
