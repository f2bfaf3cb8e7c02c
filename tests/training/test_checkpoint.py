import json
import resource
import subprocess
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from gtp_vision import models
from gtp_vision.core.errors import GtpVisionError
from gtp_vision.core.manifest import write_manifest
from gtp_vision.core.names import __version__
from gtp_vision.training import checkpoint


def trained(width: int = 4) -> tuple[nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(width)
    module = nn.Linear(3, width)
    optimizer = torch.optim.Adam(module.parameters(), lr=0.1)
    module(torch.ones(2, 3)).square().sum().backward()
    optimizer.step()
    return module, optimizer


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_parameters_and_moments_are_restored_bit_for_bit(tmp_path: Path) -> None:
    module, optimizer = trained()
    path = checkpoint.save(tmp_path, 7, module, optimizer, {"note": "x"})
    assert names(path) == {"agent.safetensors", "optimizer.safetensors", "state.json", "manifest.json"}
    other = nn.Linear(3, 4)
    other_optimizer = torch.optim.Adam(other.parameters(), lr=0.1)
    state = checkpoint.load(path, other, other_optimizer)
    assert state == {"step": 7, "format": checkpoint.FORMAT, "version": __version__, "note": "x"}
    assert all(torch.equal(a, b) for a, b in zip(module.parameters(), other.parameters(), strict=True))
    for index, values in optimizer.state_dict()["state"].items():
        for name, value in values.items():
            assert torch.equal(value, other_optimizer.state_dict()["state"][index][name]), name


def test_a_weight_of_two_layers_is_restored_with_its_moments_and_stays_one(tmp_path: Path) -> None:
    def tied() -> tuple[nn.Module, torch.optim.Optimizer]:
        module = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
        module[1].weight = module[0].weight
        return module, torch.optim.Adam(module.parameters(), lr=0.1)

    (module, optimizer), (other, resumed) = tied(), tied()
    for step in range(4):
        if step == 2:
            checkpoint.load(checkpoint.save(tmp_path, step, module, optimizer, {}), other, resumed)
        for each, adam in ((module, optimizer), (other, resumed)) if step >= 2 else ((module, optimizer),):
            adam.zero_grad()
            each(torch.ones(2, 3)).square().sum().backward()
            adam.step()
    assert all(torch.equal(a, b) for a, b in zip(module.parameters(), other.parameters(), strict=True))
    assert torch.equal(other.get_submodule("1").weight, other.get_submodule("0").weight)


def test_the_newest_and_the_best_are_kept_and_later_steps_forgotten(tmp_path: Path) -> None:
    module, optimizer = trained()
    checkpoint.save(tmp_path, 1, module, optimizer, {}, keep=2)
    checkpoint.link(tmp_path, "best", tmp_path / "step_1")
    for step in (2, 3, 10):
        checkpoint.save(tmp_path, step, module, optimizer, {}, keep=2)
    assert names(tmp_path) == {"step_1", "step_3", "step_10", "last", "best"}
    assert (tmp_path / "last").resolve().name == "step_10"
    assert checkpoint.newest(tmp_path) == tmp_path / "step_10"
    checkpoint.forget_after(tmp_path, 3)
    assert names(tmp_path) == {"step_1", "step_3", "best"}
    checkpoint.forget_after(tmp_path, 0)
    assert not names(tmp_path)


@pytest.mark.parametrize("damage", ["cut", "flip", "missing", "manifest", "entry"])
def test_a_damaged_checkpoint_is_refused_and_skipped(tmp_path: Path, damage: str) -> None:
    module, optimizer = trained()
    checkpoint.save(tmp_path, 1, module, optimizer, {})
    path = checkpoint.save(tmp_path, 2, module, optimizer, {})
    weights, manifest = path / "agent.safetensors", path / "manifest.json"
    raw = weights.read_bytes()
    if damage in ("cut", "flip"):
        weights.write_bytes(raw[:-1] + (b"" if damage == "cut" else bytes([raw[-1] ^ 1])))
    elif damage == "missing":
        weights.unlink()
    else:
        entries = json.loads(manifest.read_text())
        del entries["agent.safetensors"]
        manifest.write_text("{" if damage == "manifest" else json.dumps(entries))
    assert checkpoint.newest(tmp_path) == tmp_path / "step_1"
    with pytest.raises(GtpVisionError, match=r"step_2.*damaged"):
        checkpoint.load(path, module)


def test_a_checkpoint_of_an_earlier_version_has_no_bounds_and_acts_within_all(tmp_path: Path) -> None:
    policy = models.create(3, 2, models.PolicyConfig(hidden=[4]))
    optimizer = torch.optim.Adam(policy.parameters())
    path = checkpoint.save(tmp_path, 1, policy, optimizer, {})
    stored = load_file(path / "agent.safetensors")
    save_file({name: x for name, x in stored.items() if name not in ("lower", "upper")}, path / "agent.safetensors")
    write_manifest(path)
    policy.hold(torch.tensor([[0.5, -1], [0.5, 1]]))
    checkpoint.load(path, policy, optimizer)
    assert (policy.lower.tolist(), policy.upper.tolist()) == ([-1, -1], [1, 1])


def test_another_architecture_is_refused_with_the_tensor(tmp_path: Path) -> None:
    path = checkpoint.save(tmp_path, 1, *trained(4), {})
    with pytest.raises(GtpVisionError, match=r"architecture: 2 tensors differ, first 'bias' \(\(4,\) F32 in the file"):
        checkpoint.load(path, nn.Linear(3, 5))


@pytest.mark.parametrize(
    ("state", "words"),
    [
        ({"format": 3, "version": "0.9.3"}, r"gtp-vision 0\.9\.3 in checkpoint format 3"),
        ({"format": "x"}, r"gtp-vision 0\.1\.0 in checkpoint format x"),
        ({"version": "0.1.0"}, ""),  # the first version wrote no format
    ],
)
def test_another_format_is_refused_with_the_version(tmp_path: Path, state: dict, words: str) -> None:
    module, optimizer = trained()
    path = checkpoint.save(tmp_path, 1, module, optimizer, {})
    (path / "state.json").write_text(json.dumps({"step": 1} | state))
    write_manifest(path)
    if not words:
        assert checkpoint.load(path, module, optimizer)["step"] == 1
        return
    with pytest.raises(GtpVisionError, match=words):
        checkpoint.load(path, module)


@pytest.mark.parametrize("how", ["tmpfs", "limit"])
def test_a_full_disk_loses_no_checkpoint(tmp_path: Path, how: str) -> None:
    mount = ["mount", "-t", "tmpfs", "-o", "size=1500k", "tmpfs", tmp_path]  # room for one checkpoint
    if how == "tmpfs" and subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("no disk can be mounted here")
    module = nn.Linear(512, 512)
    optimizer = torch.optim.Adam(module.parameters())
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        checkpoint.save(tmp_path, 1, module, optimizer, {})
        if how == "limit":  # Python ignores the signal
            resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
        with pytest.raises(GtpVisionError, match=r"could not be written.*--resume from step_1"):
            checkpoint.save(tmp_path, 2, module, optimizer, {}, keep=9)
        assert checkpoint.newest(tmp_path) == tmp_path / "step_1"
        assert not [name for name in names(tmp_path) if name.endswith(".part")]
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        if how == "tmpfs":
            subprocess.run(["umount", "-l", tmp_path], check=True)
