"""Tensors that a module holds under several names: stored once, restored under all, and replaced at every place."""

import copy
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.func import functional_call, grad

from gtp_vision.core.tied import aliases, places_beside, stored_tensors, with_aliases


def layers(norm: bool = False) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(*(nn.BatchNorm1d(3) if norm and index % 2 else nn.Linear(3, 3) for index in range(4)))


def parts() -> nn.Module:
    """A part at three places, one of them deep, as CoaT's position encodings."""
    module = layers()
    module[1] = module[3] = module[0]
    return nn.Sequential(module, module[0])


def parameters() -> nn.Module:
    """A weight of two layers, each with a bias of its own."""
    module = layers()
    module[2].weight = module[0].weight
    return module


def buffers() -> nn.Module:
    """Statistics of two layers."""
    module = layers(norm=True)
    module[3].running_mean = module[1].running_mean
    return module


def memory() -> nn.Module:
    """Two parameters in the same memory."""
    module = layers()
    module[2].weight.data = module[0].weight.data
    return module


def view() -> nn.Module:
    """A parameter that is a part of another's memory."""
    module = layers()
    module[2].bias.data = module[0].weight.data[1]
    return module


KINDS = {parts: 6, parameters: 1, buffers: 1, memory: 0, view: 0, layers: 0}
EACH = pytest.mark.parametrize("make", KINDS, ids=lambda make: make.__name__)
Make = Callable[[], nn.Module]


@EACH
def test_a_file_holds_each_tensor_once_and_restores_all(make: Make, tmp_path: Path) -> None:
    module, other = make(), copy.deepcopy(make())
    assert len(aliases(module)) == KINDS[make]
    with torch.no_grad():
        for x in module.state_dict().values():
            x += 1
    save_file(stored_tensors(module), tmp_path / "a.safetensors")
    stored = load_file(tmp_path / "a.safetensors")
    assert len(stored) == len(module.state_dict()) - KINDS[make]
    other.load_state_dict(with_aliases(stored, other))
    assert all(map(torch.equal, other.state_dict().values(), module.state_dict().values()))
    assert aliases(other) == aliases(module)


@EACH
def test_files_of_other_writers_are_read_too(make: Make) -> None:
    module = make()
    tied = aliases(module)
    every = {name: tied.get(name, name) for name in module.state_dict()}
    assert with_aliases(every, module) == every
    # safetensors' save_model keeps another name than ours
    assert with_aliases({name: x for name, x in every.items() if name not in tied.values()}, module) == every
    assert with_aliases({"other": 1}, module) == {"other": 1}


@pytest.mark.parametrize("make", [parts, parameters, buffers, layers], ids=lambda make: make.__name__)
def test_gradients_by_replaced_tensors_are_those_of_the_module_which_stays_as_it_was(make: Make) -> None:
    module, x = make().eval(), torch.randn(4, 3)
    module(x).square().sum().backward()
    before = dict(module.named_parameters(remove_duplicate=False))
    tensors = {name: p.detach() for name, p in module.named_parameters()}

    def loss(tensors: dict[str, torch.Tensor]) -> torch.Tensor:
        every = tensors | dict(module.named_buffers())
        every |= {name: every[first] for name, first in places_beside(module).items()}
        return functional_call(module, every, (x,), tie_weights=False).square().sum()

    gradients = grad(loss)(tensors)
    after = dict(module.named_parameters(remove_duplicate=False))
    assert all(after[name] is p for name, p in before.items())
    for name, p in module.named_parameters():
        torch.testing.assert_close(gradients[name], p.grad)
