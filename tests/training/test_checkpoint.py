import json
import os
import resource
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from gtp_vision.core.errors import GtpVisionError
from gtp_vision.training import checkpoint


def _trained(width: int = 4) -> tuple[nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(width)
    module = nn.Linear(3, width)
    optimizer = torch.optim.Adam(module.parameters(), lr=0.1)
    module(torch.ones(2, 3)).square().sum().backward()
    optimizer.step()
    return module, optimizer


def test_parameters_and_moments_come_back_bit_for_bit(tmp_path: Path) -> None:
    module, optimizer = _trained()
    path = checkpoint.save(tmp_path, 7, module, optimizer, {"note": "x"})
    other = nn.Linear(3, 4)
    other_optimizer = torch.optim.Adam(other.parameters(), lr=0.1)
    state = checkpoint.load(path, other, other_optimizer)
    assert state == {"step": 7, "note": "x"}
    assert all(torch.equal(a, b) for a, b in zip(module.parameters(), other.parameters(), strict=True))
    for index, values in optimizer.state_dict()["state"].items():
        for name, value in values.items():
            assert torch.equal(value, other_optimizer.state_dict()["state"][index][name]), name


def test_nothing_is_pickled(tmp_path: Path) -> None:
    path = checkpoint.save(tmp_path, 1, *_trained(), {})
    assert {file.name for file in path.iterdir()} == {
        "agent.safetensors",
        "optimizer.safetensors",
        "state.json",
        "manifest.json",
    }


def test_the_newest_are_kept_and_best_outlives_them(tmp_path: Path) -> None:
    module, optimizer = _trained()
    checkpoint.save(tmp_path, 1, module, optimizer, {}, keep=2)
    checkpoint.link(tmp_path, "best", tmp_path / "step_1")
    for step in (2, 3, 10):
        checkpoint.save(tmp_path, step, module, optimizer, {}, keep=2)
    assert {path.name for path in tmp_path.iterdir()} == {"step_1", "step_3", "step_10", "last", "best"}
    assert (tmp_path / "last").resolve().name == "step_10"
    assert checkpoint.newest(tmp_path) == tmp_path / "step_10"


def test_what_comes_after_the_step_that_is_gone_on_from_is_removed(tmp_path: Path) -> None:
    module, optimizer = _trained()
    for step in (1, 2, 3):
        checkpoint.save(tmp_path, step, module, optimizer, {}, keep=None)
    checkpoint.link(tmp_path, "best", tmp_path / "step_1")
    checkpoint.forget_after(tmp_path, 2)
    assert {path.name for path in tmp_path.iterdir()} == {"step_1", "step_2", "best"}
    checkpoint.forget_after(tmp_path, 0)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("damage", ["cut", "flip", "missing", "manifest"])
def test_a_damaged_checkpoint_is_named_and_passed_over(tmp_path: Path, damage: str) -> None:
    module, optimizer = _trained()
    checkpoint.save(tmp_path, 1, module, optimizer, {})
    path = checkpoint.save(tmp_path, 2, module, optimizer, {})
    weights = path / "agent.safetensors"
    raw = weights.read_bytes()
    if damage == "cut":
        weights.write_bytes(raw[:-1])
    elif damage == "flip":
        weights.write_bytes(raw[:-1] + bytes([raw[-1] ^ 1]))
    elif damage == "missing":
        weights.unlink()
    else:
        (path / "manifest.json").write_text("{")
    assert checkpoint.newest(tmp_path) == tmp_path / "step_1"
    with pytest.raises(GtpVisionError, match=r"step_2.*damaged"):
        checkpoint.load(path, module)


def test_another_architecture_is_refused_with_the_tensor(tmp_path: Path) -> None:
    path = checkpoint.save(tmp_path, 1, *_trained(4), {})
    with pytest.raises(
        GtpVisionError, match=r"another architecture: 2 tensors differ, first 'bias' \(\(4,\) F32 in the file"
    ):
        checkpoint.load(path, nn.Linear(3, 5))


def test_a_path_out_of_the_checkpoint_is_refused(tmp_path: Path) -> None:
    module, optimizer = _trained()
    path = checkpoint.save(tmp_path, 1, module, optimizer, {})
    manifest = json.loads((path / "manifest.json").read_text())
    del manifest["agent.safetensors"]
    (path / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(GtpVisionError, match=r"agent\.safetensors"):
        checkpoint.load(path, module)


_FILL = """
import resource, signal, sys
from pathlib import Path
import torch
from gtp_vision.core.errors import GtpVisionError
from gtp_vision.training import checkpoint

module = torch.nn.Linear(512, 512)
optimizer = torch.optim.Adam(module.parameters())
folder = Path(sys.argv[1])
checkpoint.save(folder, 1, module, optimizer, {})
if sys.argv[2] == "limit":
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
try:
    for step in range(2, 9):
        checkpoint.save(folder, step, module, optimizer, {}, keep=9)
except GtpVisionError as error:
    print(error)
    sys.exit(0)
sys.exit(1)
"""


def _fill(folder: Path, how: str) -> str:
    ran = subprocess.run([sys.executable, "-c", _FILL, str(folder), how], capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    return ran.stdout


def test_a_file_that_may_not_grow_loses_no_checkpoint(tmp_path: Path) -> None:
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] == resource.RLIM_INFINITY, "the test sets its own limit"
    assert signal.getsignal(signal.SIGXFSZ) is not None
    message = _fill(tmp_path, "limit")
    assert "checkpoint 2 could not be written" in message
    assert "--resume from step_1" in message
    assert {path.name for path in tmp_path.iterdir()} == {"step_1", "last"}
    assert checkpoint.problem(tmp_path / "step_1") == ""


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small disk needs root")
def test_a_full_disk_loses_no_checkpoint(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=6m", "tmpfs", str(disk)], check=False).returncode:
        pytest.skip("this machine allows no mount")
    try:
        message = _fill(disk, "disk")
        assert "could not be written" in message
        assert "No space left" in message
        kept = checkpoint.newest(disk)
        assert kept is not None
        assert not [path for path in disk.iterdir() if path.name.endswith(".part")]
    finally:
        subprocess.run(["umount", str(disk)], check=True)
