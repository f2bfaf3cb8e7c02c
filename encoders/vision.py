"""torchvision, loaded by the encoders that use it: its import takes as long as torch's.

Package indexes carry a torchvision that is linked against CUDA. Beside a torch without CUDA its library does not load,
and its import fails because of two operators of detection, which no encoder uses: here they get names without code.
"""

from __future__ import annotations

import torch
from torch import library

_unloaded: list[library.Library] = []  # the operators without code end with their object


def note() -> str:
    """What a log should say of the torchvision that was loaded: empty unless it is built for CUDA and torch is not."""
    return _NOTE if _unloaded else ""


def load() -> None:
    """Import torchvision, so that its modules may be."""
    try:
        import torchvision  # noqa: F401
    except RuntimeError as error:
        if "torchvision::" not in str(error) or torch.version.cuda:
            raise
        operators = library.Library("torchvision", "DEF")
        for name in ("nms", "qnms"):
            operators.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        _unloaded.append(operators)


_NOTE = (
    "torchvision is built for CUDA and torch is not: enough here, but not for the accelerate command; to use that, "
    "install PyTorch's own CPU builds of both"
)
