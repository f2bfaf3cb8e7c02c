"""What torch.compile and CUDA graphs are used for here: functions of tensors that are made once and called often."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

_WARM_UP = 3


def has_compiler() -> bool:
    """Whether torch.compile can compile for a CPU here."""
    return any(shutil.which(name) for name in (os.environ.get("CXX", ""), "g++", "clang++") if name)


def first_words(error: BaseException) -> str:
    """What an error says first, in one line: the second often names what the first says has failed."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return " ".join(lines[:2]) or type(error).__name__


def compiled(run: Callable[..., Any], backend: str = "inductor", **options: Any) -> Callable[..., Any]:
    """A function of tensors as one compiled graph, for shapes, strides and settings that never change.

    Checks whether compiled code still fits would take as long as a small network: there are none, and who calls must
    make a function of its own of whatever changes but tensors' values.

    Args:
        run: the function; it must not look at tensors' values on the host.
        backend: of torch.compile.
        options: of the backend.
    """
    return torch.compile(  # type: ignore[call-overload]  # its stubs lack the last, without which the code of another
        run,  # function that was made at the same place would fit as well
        fullgraph=True,
        dynamic=False,
        backend=backend,
        options={"guard_filter_fn": torch.compiler.skip_all_guards_unsafe, **options},
        isolate_recompiles=True,
    )


class Captured:
    """A function of tensors captured in a CUDA graph: one launch for all of its kernels.

    The function is called some times before: what it writes to is the caller's to put back.

    Args:
        run: the function; it must not touch the host.
        named: tensors of the shapes that it always sees.
        drawn: likewise.
    """

    def __init__(
        self,
        run: Callable[[dict[str, torch.Tensor], list[torch.Tensor]], Any],
        named: Mapping[str, torch.Tensor],
        drawn: Sequence[torch.Tensor],
    ) -> None:
        self._named = {name: tensor.clone() for name, tensor in named.items()}
        self._drawn = [tensor.clone() for tensor in drawn]
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(_WARM_UP):  # compiles, and lets libraries find their work spaces
                run(self._named, self._drawn)
        torch.cuda.current_stream().wait_stream(stream)
        self._graph = torch.cuda.CUDAGraph()
        # Other threads, a loader's or a camera's, go on copying to the GPU meanwhile.
        with torch.cuda.graph(self._graph, capture_error_mode="thread_local"):
            self._result = run(self._named, self._drawn)

    def __call__(self, named: Mapping[str, torch.Tensor], drawn: Sequence[torch.Tensor]) -> Any:
        """As the function; the next call writes over what it returns."""
        torch._foreach_copy_(list(self._named.values()), [named[name] for name in self._named])
        torch._foreach_copy_(self._drawn, list(drawn))
        self._graph.replay()
        return self._result
