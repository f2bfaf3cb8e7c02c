"""torchvision's models and transforms, also where its compiled operators cannot be loaded.

Package indexes carry a torchvision that is linked against CUDA. Beside a torch without CUDA its library does not load,
and its import fails because of two operators of detection, which no encoder uses: here they get names without code.
"""

from __future__ import annotations

import torch
from torch import library

NOTE = ""
"""The line that says so, for the log of a training."""

try:
    import torchvision  # noqa: F401
except RuntimeError as _error:
    if "torchvision::" not in str(_error) or torch.version.cuda:
        raise
    _operators = library.Library("torchvision", "DEF")  # they end with this object
    for _name in ("nms", "qnms"):
        _operators.define(f"{_name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    NOTE = (
        "torchvision is built for CUDA and torch is not: enough here, but not for the accelerate command; to use that, "
        "install PyTorch's own CPU builds of both"
    )

from torchvision import models  # noqa: E402
from torchvision.transforms.v2 import functional as pixels  # noqa: E402

__all__ = ["NOTE", "models", "pixels"]
