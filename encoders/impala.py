"""IMPALA's residual encoder (Espeholt et al., 2018), the field's standard for 64x64 cameras."""

from __future__ import annotations

import torch
from einops import rearrange
from torch import nn

from gtp_vision.core.errors import GtpVisionError
from gtp_vision.encoders.backbone import Backbone, Named

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


class Impala(Backbone):
    """IMPALA's tower.

    Args:
        name: of `SIZES`.
        shape: (T, C, H, W) of a stack.
        stack: see `Backbone`.

    Raises:
        GtpVisionError: the first layer reads patches that do not divide the frames.
    """

    def __init__(self, name: str, shape: tuple[int, ...], stack: str = "channels") -> None:
        super().__init__(shape, stack=stack)
        height, width = shape[2:]
        stacks, blocks, patch = SIZES[name]
        if height % patch or width % patch:
            raise GtpVisionError(
                f"encoder={name} reads patches of {patch}x{patch} pixels, which do not divide frames of "
                f"{height}x{width}; choose encoder=impala_small"
            )
        # Pixels of a patch become channels first, which loses nothing and saves the layers at full resolution.
        self.patch = patch
        channels, height, width = self.inputs * patch**2, height // patch, width // patch
        layers: list[nn.Module] = []
        for depth in stacks:
            layers += [nn.Conv2d(channels, depth, 3, padding=1), nn.MaxPool2d(3, stride=2, padding=1)]
            layers += [Residual(depth) for _ in range(blocks)]
            channels, height, width = depth, (height + 1) // 2, (width + 1) // 2
        self.layers = nn.Sequential(*layers)
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # missing in torch's stubs
        self.first_layers = ("layers.0",)
        self.width = self.passes * channels * height * width

    def encode(self, x: torch.Tensor) -> torch.Tensor:
        """Scaled float (N, K, H, W) to (N, W)."""
        x = rearrange(x, "n k (h p) (w q) -> n (k p q) h w", p=self.patch, q=self.patch)
        x = x.contiguous(memory_format=torch.channels_last)
        return self.layers(x).relu().flatten(1)

    def blocks(self) -> list[nn.Module]:
        """The stacks: a convolution, its pooling and its residual blocks."""
        layers = list(self.layers)
        # By the poolings behind the convolutions, which adapters may stand in front of.
        starts = [i - 1 for i, layer in enumerate(layers) if isinstance(layer, nn.MaxPool2d)]
        return [nn.Sequential(*layers[a:b]) for a, b in zip(starts, [*starts[1:], len(layers)], strict=True)]


TINY, SMALL, IMPALA, LARGE = (
    Named(name, lambda shape, config: Impala(config.name, shape, config.stack)) for name in SIZES
)
