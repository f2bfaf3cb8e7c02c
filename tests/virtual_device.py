"""A device that this machine lacks, `virtual`: it computes on the CPU, and shows what would only fail on a GPU.

Its tensors refuse to meet tensors of the CPU (but for numbers of shape ()), and to be read by the host. PyTorch's
support for backends in Python supplies the device; a wrapper of a CPU tensor with that device does the arithmetic.
Importing this registers the device in the whole process, so tests that use it run in one of their own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Self

import torch
from torch import library
from torch.utils import _pytree as pytree
from torch.utils import backend_registration
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing


class _Module(backend_registration._DummyBackendModule):
    """What PyTorch asks a device for."""

    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return [torch.bfloat16, torch.float16]


backend_registration._setup_privateuseone_for_python_backend("virtual", backend_module=_Module())
DEVICE = torch.device("virtual:0")
_MISSING: set[torch.dtype] = set()
_COPIES = (torch.ops.aten.copy_.default, torch.ops.aten._to_copy.default)


class ForeignTensorError(RuntimeError):
    """A tensor of the CPU met one of the device, or a value of the device was read."""


class Virtual(torch.Tensor):
    """A tensor that lies on the device; `held` is the one that computes."""

    held: torch.Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, held: torch.Tensor) -> Self:
        made: Self = torch.Tensor._make_wrapper_subclass(
            cls,
            held.shape,
            strides=held.stride(),
            storage_offset=held.storage_offset(),
            dtype=held.dtype,
            device=DEVICE,
            requires_grad=held.requires_grad,
        )
        return made

    def __init__(self, held: torch.Tensor) -> None:
        if held.dtype in _MISSING:
            raise ForeignTensorError(f"a tensor {tuple(held.shape)} of {held.dtype}, which the device lacks")
        self.held = held

    def data_ptr(self) -> int:
        return self.held.data_ptr()

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})


class _Factories(TorchDispatchMode):
    """Sends what is made on the device, of no tensor, to `_run`."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})


def _run(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    tensors = [x for x in pytree.tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)]
    ours = [x for x in tensors if isinstance(x, Virtual)]
    if ours and func is torch.ops.aten._local_scalar_dense.default:
        raise ForeignTensorError("a value of the device was read by the host")
    if ours and func not in _COPIES:
        for x in tensors:
            if not isinstance(x, Virtual) and x.ndim:
                raise ForeignTensorError(f"{func}: a tensor {tuple(x.shape)} of the CPU beside those of the device")
    device = kwargs.get("device")
    if device is not None:
        is_ours = torch.device(device).type == DEVICE.type
    elif func is torch.ops.aten.copy_.default:
        is_ours = isinstance(args[0], Virtual)
    else:
        is_ours = bool(ours)
    held_args, held_kwargs = pytree.tree_map(
        lambda x: x.held if isinstance(x, Virtual) else x,
        (args, kwargs | ({} if device is None else {"device": torch.device("cpu")})),
    )
    result = func(*held_args, **held_kwargs)
    if not is_ours:
        return result
    wrapped = pytree.tree_map(lambda x: Virtual(x) if isinstance(x, torch.Tensor) else x, result)
    return return_and_correct_aliasing(func, args, kwargs, wrapped)


def _empty(size: Any, *, dtype: torch.dtype | None = None, **_: Any) -> torch.Tensor:
    return Virtual(torch.empty(size, dtype=dtype))


def _empty_strided(size: Any, stride: Any, *, dtype: torch.dtype | None = None, **_: Any) -> torch.Tensor:
    return Virtual(torch.empty_strided(size, stride, dtype=dtype))


def _copy_from(source: torch.Tensor, to: torch.Tensor, non_blocking: bool = False) -> torch.Tensor:
    ours, theirs = (x.held if isinstance(x, Virtual) else x for x in (to, source))
    ours.copy_(theirs)
    return to


def _register() -> library.Library:
    registered = library.Library("aten", "IMPL")
    kernels: dict[str, Callable[..., torch.Tensor]] = {
        "empty.memory_format": _empty,
        "empty_strided": _empty_strided,
        "_copy_from": _copy_from,
    }
    for name, kernel in kernels.items():  # called where no mode sees it, as by torch.tensor
        registered.impl(name, kernel, "PrivateUse1")
    return registered


_LIBRARY = _register()


@contextmanager
def virtual_device(*without: torch.dtype) -> Iterator[torch.device]:
    """The device, for a block; it lacks types of numbers as Apple's GPUs lack float64."""
    _MISSING.update(without)
    try:
        with _Factories():
            yield DEVICE
    finally:
        _MISSING.clear()
