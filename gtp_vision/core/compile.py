"""What torch.compile and CUDA graphs are used for here: functions of tensors that are made once and called often."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from types import FunctionType
from typing import Any

import torch
from torch.utils import _pytree as pytree

_WARM_UP = 3


def has_compiler() -> bool:
    """Whether torch.compile can compile for a CPU here."""
    return any(shutil.which(name) for name in (os.environ.get("CXX", ""), "g++", "clang++") if name)


def compiled(
    run: Callable[..., Any], backend: str | Callable[..., Any] = "inductor", **options: Any
) -> Callable[..., Any]:
    """A function of tensors as one compiled graph, for shapes, strides and settings that never change.

    Guards, which check at each call whether compiled code still fits, would take as long as a small network. They are
    left out, so the caller makes a function for each combination of everything that changes besides the tensors'
    values. `run` must not read tensors' values on the host; `options` are of the backend.
    """

    def call(*arguments: Any) -> Any:
        return run(*arguments)

    # torch.compile keeps compiled code by code object: without one of its own, this function's would fit another's.
    own = FunctionType(call.__code__.replace(), call.__globals__, call.__name__, None, call.__closure__)
    return torch.compile(
        own,
        fullgraph=True,
        dynamic=False,
        backend=backend,
        options={"guard_filter_fn": lambda guards: [False] * len(guards), **options},
    )


class Captured:
    """A function of tensors captured in a CUDA graph: one launch for all of its kernels.

    The function, which must not touch the host, is called a few times first: the caller restores what it has written.
    Later calls have arguments (pytrees of tensors) of the same shapes.
    """

    def __init__(self, run: Callable[..., Any], *arguments: Any) -> None:
        self._arguments = pytree.tree_map(torch.clone, arguments)
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(_WARM_UP):  # compiles, and lets libraries allocate their work spaces
                run(*self._arguments)
        torch.cuda.current_stream().wait_stream(stream)
        self._graph = torch.cuda.CUDAGraph()
        # Other threads, a loader's or a camera's, keep copying to the GPU meanwhile.
        with torch.cuda.graph(self._graph, capture_error_mode="thread_local"):
            self._result = run(*self._arguments)

    def __call__(self, *arguments: Any) -> Any:
        """Call the function; the next call overwrites what it returns."""
        torch._foreach_copy_(pytree.tree_leaves(self._arguments), pytree.tree_leaves(arguments))
        self._graph.replay()
        return self._result
