"""DrQ-v2's convolutional encoder (Yarats et al., 2021)."""

from __future__ import annotations

import torch
from torch import nn

from gtp_vision.core.errors import GtpVisionError
from gtp_vision.encoders.backbone import Backbone, Named


class DrQ(Backbone):
    """Four 3x3 convolutions of 32 channels, the first with stride 2, each with a ReLU.

    DrQ-v2 scales frames to [-0.5, 0.5]; here the data set's mean frame is subtracted, as from all untrained backbones.
    DrQ-v2's projection (linear layer and layer norm) is part of `Fusion`.
    """

    def __init__(self, shape: tuple[int, ...], stack: str = "channels") -> None:
        super().__init__(shape, stack=stack)
        height, width = ((side - 3) // 2 + 1 - 6 for side in shape[2:])
        if min(height, width) < 1:
            raise GtpVisionError(
                f"encoder.name=drq needs frames of at least 15x15 pixels, and these are {shape[2]}x{shape[3]}; "
                f"enlarge them with encoder.cameras.<name>.size"
            )
        layers: list[nn.Module] = [nn.Conv2d(self.in_channels, 32, 3, stride=2), nn.ReLU()]
        for _ in range(3):
            layers += [nn.Conv2d(32, 32, 3), nn.ReLU()]
        self.layers = nn.Sequential(*layers)
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # missing in torch's stubs
        self.first_layers = ("layers.0",)
        self.width = self.passes * 32 * height * width

    def encode(self, x: torch.Tensor) -> torch.Tensor:
        """Normalized float (N, K, H, W) to (N, W)."""
        return self.layers(x.contiguous(memory_format=torch.channels_last)).flatten(1)

    def blocks(self) -> list[nn.Module]:
        """The convolutions."""
        return [layer for layer in self.layers if next(layer.parameters(), None) is not None]


DRQ = Named("drq", lambda shape, config: DrQ(shape, config.stack))
