"""IMPALA's residual encoder (Espeholt et al., 2018), the field's standard for 64x64 cameras."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from einops import rearrange
from torch import nn

SIZES: dict[str, tuple[tuple[int, ...], int]] = {
    "impala_small": ((16, 32, 32), 1),  # FQL's choice on OGBench
    "impala": ((16, 32, 32), 2),
    "impala_large": ((64, 128, 128), 2),
}


class Residual(nn.Module):
    """relu, conv, relu, conv, plus the input."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels, channels, 3, padding=1)
        self.second = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, C, H, W) to the same."""
        return x + self.second(self.first(x.relu()).relu())


class ImpalaTower(nn.Module):
    """One camera's stacked frames to a vector.

    Args:
        channels: C times the frames of a stack.
        height: of the frames, in pixels.
        width: of the frames, in pixels.
        stacks: channels of each stack; each halves the resolution.
        blocks: residual blocks a stack.
    """

    def __init__(self, channels: int, height: int, width: int, stacks: Sequence[int], blocks: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for depth in stacks:
            layers += [nn.Conv2d(channels, depth, 3, padding=1), nn.MaxPool2d(3, stride=2, padding=1)]
            layers += [Residual(depth) for _ in range(blocks)]
            channels, height, width = depth, (height + 1) // 2, (width + 1) // 2
        self.layers = nn.Sequential(*layers).to(memory_format=torch.channels_last)
        self.width = channels * height * width

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """uint8 (B, T, C, H, W) to float (B, width)."""
        x = rearrange(images, "b t c h w -> b (t c) h w").contiguous(memory_format=torch.channels_last)
        x = x.to(self.layers[0].weight.dtype) / 255
        return self.layers(x).relu().flatten(1)
