"""Two strided convolutions, for cameras that show little."""

import torch
from torch import nn

from gtp_vision.encoders.backbone import Backbone, Named


class Strided(Backbone):
    """A convolution of 8x8 patches, then one of 2x2; arguments as `Backbone`."""

    def __init__(self, shape: tuple[int, ...], stack: str = "channels") -> None:
        super().__init__(shape, stack=stack)
        first, second = nn.Conv2d(self.in_channels, 32, 8, stride=8), nn.Conv2d(32, 64, 2, stride=2)
        self.layers = nn.Sequential(first, nn.ReLU(), second, nn.ReLU())
        self.first_layers = ("layers.0",)
        self.width = self.passes * 64 * (shape[2] // 16) * (shape[3] // 16)

    def encode(self, x: torch.Tensor) -> torch.Tensor:
        """Scaled float (N, K, H, W) to (N, W)."""
        return self.layers(x).flatten(1)

    def blocks(self) -> list[nn.Module]:
        """The convolutions, from input to output."""
        return [self.layers[0], self.layers[2]]


STRIDED = Named("strided", lambda shape, config: Strided(shape, config.stack))
