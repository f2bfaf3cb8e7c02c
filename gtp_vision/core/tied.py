"""Tied weights: tensors that a module holds under several names, as CoaT's stages share their position encodings.

Files hold each once, by its first name, because safetensors refuses shared memory; a file that holds all names, or
another one of them, is read as well.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import TypeVar

import torch
from torch import nn

T = TypeVar("T")


def aliases(module: nn.Module) -> dict[str, str]:
    """Every further name of a stored tensor, to its first one."""
    first: dict[int, str] = {}
    stored = module.state_dict(keep_vars=True)
    return {name: known for name, x in stored.items() if (known := first.setdefault(id(x), name)) != name}


def stored_tensors(module: nn.Module) -> dict[str, torch.Tensor]:
    """The state of a module as safetensors takes it: contiguous, and tied tensors by their first name alone."""
    tied, memory = aliases(module), set()
    tensors = {}
    for name, x in module.state_dict().items():
        if name not in tied:
            x = x.contiguous()
            tensors[name] = x.clone() if x.untyped_storage().data_ptr() in memory else x
            memory.add(x.untyped_storage().data_ptr())
    return tensors


def with_aliases(stored: Mapping[str, T], module: nn.Module) -> dict[str, T]:
    """What a file holds by name (tensors, or their shapes), by all names under which the module holds it."""
    tied = aliases(module)
    first = {first: stored[name] for name, first in tied.items() if name in stored} | dict(stored)
    return {name: first[known] for name, known in tied.items() if known in first} | first


def places_beside(module: nn.Module) -> dict[str, str]:
    """The further places of tied tensors, to their first name: what `torch.func.functional_call` has to replace, too.

    A part that stands at several places counts once. By itself (`tie_weights`), `functional_call` replaces the tensors
    of such a part several times and puts back a replaced one in the end.
    """
    first: dict[int, str] = {}
    beside = {}
    for prefix, part in module.named_modules():
        own = itertools.chain(
            part.named_parameters(prefix, recurse=False, remove_duplicate=False),
            part.named_buffers(prefix, recurse=False, remove_duplicate=False),
        )
        for name, x in own:
            if (known := first.setdefault(id(x), name)) != name:
                beside[name] = known
    return beside
