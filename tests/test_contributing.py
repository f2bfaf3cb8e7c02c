"""CONTRIBUTING's three files, put into their places in a copy of the package, and its commands run."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import h5py
import numpy as np
import pytest
import yaml

ROOT = Path(__file__).resolve().parents[1]
TEXT = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
EXAMPLE = re.compile(r"`(\S+\.py)`:\n\n```python\n(.*?)```\n\n```bash\n(.*?)```", re.DOTALL)
EXAMPLES = {place: (code, commands.splitlines()) for place, code, commands in EXAMPLE.findall(TEXT)}
SMALL = ["training.steps=2", "training.batch_size=4", "training.log_every=1", "training.device=cpu"]
SMALL += ["agent.policy.hidden=[16]", "agent.critic.hidden=[16]", "encoder.features=16", "training.probe_rows=0"]


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the package as it is installed, and nothing but copies in it."""
    folder = tmp_path_factory.mktemp("copy")
    leave = shutil.ignore_patterns("__pycache__", "*.h5")
    shutil.copytree(ROOT / "gtp_vision", folder / "gtp_vision", ignore=leave)
    mapping = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-dir"]
    for name, source in mapping.items():
        shutil.copytree(ROOT / source, folder / name.replace(".", "/"), ignore=leave)
    return folder


def place(package: Path, name: str) -> Path:
    """Where a file of the repository belongs in the package."""
    return package / name if name.startswith("gtp_vision/") else package / "gtp_vision" / name


DRIVER = """
import contextlib, io, json, sys
from gtp_vision.cli.main import main

done = []
for words in json.loads(sys.argv[1]):
    told = io.StringIO()
    with contextlib.redirect_stdout(told), contextlib.redirect_stderr(told):
        status = main(words)
    done.append([status, told.getvalue()])
print(json.dumps(done))
"""


def run(package: Path, folder: Path, commands: list[str]) -> list[tuple[int, str]]:
    """Status and output of each of some `gtp-vision` commands of the copy, one after another in one process."""
    asked = []
    for number, command in enumerate(commands):
        program, *words = shlex.split(command, comments=True)
        assert program == "gtp-vision"
        asked.append([*words, *SMALL, f"run_dir=run_{number}"] if words[0] == "train" else words)
    done = subprocess.run(
        [sys.executable, "-P", "-c", DRIVER, json.dumps(asked)],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(package), "GTP_VISION_CACHE": str(folder / "cache")},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return [(status, told) for status, told in json.loads(done.stdout.splitlines()[-1])]


def rig(path: Path) -> None:
    """A file of the format that CONTRIBUTING's reader reads."""
    random = np.random.default_rng(0)
    with h5py.File(path, "w") as file:
        for number in range(3):
            recording = file.create_group(f"runs/{number}")
            recording["rgb"] = random.integers(256, size=(6, 32, 32, 3), dtype=np.uint8)
            recording["joints"] = random.normal(size=(6, 4)).astype(np.float32)
            recording["commands"] = random.uniform(-1, 1, (6, 2)).astype(np.float32)


def test_there_is_one_of_each_kind() -> None:
    assert [Path(name).parent.as_posix() for name in EXAMPLES] == ["gtp_vision/agents", "encoders", "datasets/formats"]
    assert all(commands for _, commands in EXAMPLES.values())


def test_without_its_file_nothing_knows_it(package: Path, tmp_path: Path) -> None:
    rig(tmp_path / "rig.h5")
    assert not any(place(package, name).exists() for name in EXAMPLES)
    wrong = [f"gtp-vision train task=own task.dataset=rig.h5 {setting}" for setting in ("agent=crr", "encoder=strided")]
    agent, encoder, file = run(package, tmp_path, [*wrong, "gtp-vision data inspect rig.h5"])
    assert [agent[0], encoder[0], file[0]] == [2, 2, 2]
    assert "there is no agent 'crr'" in agent[1]
    assert "there is no encoder 'strided'" in encoder[1]
    assert "rig.h5 is of no known format" in file[1]


def test_each_is_one_file(package: Path, tmp_path: Path) -> None:
    rig(tmp_path / "rig.h5")
    for name, (code, _) in EXAMPLES.items():
        place(package, name).write_text(code, encoding="utf-8")
    try:
        commands = [command for _, told in EXAMPLES.values() for command in told]
        done = dict(zip(commands, run(package, tmp_path, [*commands]), strict=True))
    finally:
        for name in EXAMPLES:
            place(package, name).unlink()
    for command, (status, told) in done.items():
        assert status == 0, f"{command}\n{told}"
    assert "rig (our rig's HDF5), 3 episodes, 18 frames" in done["gtp-vision data inspect rig.h5"][1]
    assert "every frame, action, reward and flag is as it was" in commands_told(done, "convert")
    trained = [yaml.safe_load((tmp_path / f"run_{number}" / "config.yaml").read_text()) for number in range(3)]
    assert [config["agent"]["improvement"]["name"] for config in trained] == ["better_only", "better_only", "none"]
    assert [config["encoder"]["name"] for config in trained] == ["impala_tiny", "impala_tiny", "strided"]
    assert [config["agent"]["critic"]["backup"] for config in trained] == ["mean", "mean", "none"]


def commands_told(done: dict[str, tuple[int, str]], word: str) -> str:
    """The output of the one command with a word in it."""
    (found,) = [told for command, (_, told) in done.items() if word in command]
    return found


@pytest.mark.parametrize("name", sorted(EXAMPLES))
def test_they_keep_the_house_style(name: str, tmp_path: Path) -> None:
    (tmp_path / "example.py").write_text(EXAMPLES[name][0], encoding="utf-8")
    for command in (["check"], ["format", "--check"]):
        done = subprocess.run(
            [sys.executable, "-P", "-m", "ruff", *command, "--config", str(ROOT / "pyproject.toml"), "example.py"],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
