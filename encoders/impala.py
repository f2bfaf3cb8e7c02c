"""IMPALA's residual encoder (Espeholt et al., 2018), the field's standard for 64x64 cameras."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from einops import rearrange
from torch import nn

# Channels of the stacks, residual blocks a stack, side of the patches that the first layer reads.
SIZES: dict[str, tuple[tuple[int, ...], int, int]] = {
    "impala_tiny": ((16, 32), 1, 2),  # ours, for CPUs: a third of impala_small's time
    "impala_small": ((16, 32, 32), 1, 1),  # FQL's choice on OGBench
    "impala": ((16, 32, 32), 2, 1),
    "impala_large": ((64, 128, 128), 2, 1),
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
        frames: T of a stack.
        channels: C of a frame.
        height: of the frames, in pixels.
        width: of the frames, in pixels.
        stacks: channels of each stack; each halves the resolution.
        blocks: residual blocks a stack.
        patch: pixels of a patch x patch square become channels first, which loses nothing and saves the layers
            at full resolution.

    Attributes:
        mean: float32 (C, H, W) in [0, 255], subtracted from every frame: 0 until it is set to the data set's.
    """

    mean: torch.Tensor

    def __init__(
        self, frames: int, channels: int, height: int, width: int, stacks: Sequence[int], blocks: int, patch: int
    ) -> None:
        super().__init__()
        self.patch = patch
        self.register_buffer("mean", torch.zeros(channels, height, width))
        channels, height, width = frames * channels * patch**2, height // patch, width // patch
        layers: list[nn.Module] = []
        for depth in stacks:
            layers += [nn.Conv2d(channels, depth, 3, padding=1), nn.MaxPool2d(3, stride=2, padding=1)]
            layers += [Residual(depth) for _ in range(blocks)]
            channels, height, width = depth, (height + 1) // 2, (width + 1) // 2
        self.layers = nn.Sequential(*layers)
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # missing in torch's stubs
        self.width = channels * height * width

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """uint8 (B, T, C, H, W) to float (B, width)."""
        x = (images - self.mean) / 255
        x = rearrange(x, "b t c (h p) (w q) -> b (t c p q) h w", p=self.patch, q=self.patch)
        x = x.contiguous(memory_format=torch.channels_last)
        return self.layers(x).relu().flatten(1)
