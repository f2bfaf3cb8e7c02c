"""Pooling of feature maps to vectors. Axes in names: B batch, C channels, H and W positions, K keypoints."""

from __future__ import annotations

import torch
from einops import einsum, rearrange
from torch import nn

from gtp_vision.core.errors import GtpVisionError


class SpatialSoftmax(nn.Module):
    """Position of each keypoint: the mean position under a softmax over all positions (Finn et al., 2016).

    As robomimic's, with its temperature of 1: coordinates from -1 to 1, of a keypoint first x, then y. Keypoints are
    linear in the channels of the map (C, H, W); 0 takes every channel as one.
    """

    places: torch.Tensor

    def __init__(self, shape: tuple[int, ...], keypoints: int) -> None:
        super().__init__()
        channels, height, width = shape
        self.keypoints = nn.Conv2d(channels, keypoints, 1) if keypoints else nn.Identity()
        y, x = torch.meshgrid(torch.linspace(-1, 1, height), torch.linspace(-1, 1, width), indexing="ij")
        self.register_buffer("places", torch.stack([x, y]), persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, C, H, W) to (B, 2 K), within [-1, 1]."""
        weights = rearrange(self.keypoints(x), "b k h w -> b k (h w)").softmax(-1)
        return rearrange(einsum(weights, self.places.flatten(1), "b k p, xy p -> b k xy"), "b k xy -> b (k xy)")


class Attention(nn.Module):
    """Mean of the positions' features, weighted by their attention to one learned query.

    Features are compared after a layer norm, as maps differ in scale by orders of magnitude. The query starts at 0, so
    that the result starts as the plain mean.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.query = nn.Parameter(torch.zeros(channels))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, C, H, W) to (B, C)."""
        x = rearrange(x, "b c h w -> b (h w) c")
        score = nn.functional.layer_norm(x, x.shape[-1:]) @ self.query / len(self.query) ** 0.5
        return einsum(score.softmax(1), x, "b p, b p c -> b c")


class Average(nn.Module):
    """Mean over all positions."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, C, H, W) to (B, C)."""
        return x.mean((2, 3))


def create(name: str, shape: tuple[int, ...], keypoints: int) -> tuple[nn.Module, int]:
    """The pooling of a map (C, H, W), and the width of its vector.

    Raises GtpVisionError: spatial_softmax of a map with a single position, whose keypoints never move.
    """
    channels, height, width = shape
    if name == "spatial_softmax":
        if height * width == 1:
            raise GtpVisionError(
                "encoder.pooling=spatial_softmax needs a map of several positions, and that of these frames has one; "
                "use larger frames (encoder.cameras.<name>.size), or set encoder.pooling=average"
            )
        return SpatialSoftmax(shape, keypoints), 2 * (keypoints or channels)
    if name == "flatten":
        return nn.Flatten(), channels * height * width
    return Attention(channels) if name == "attention" else Average(), channels
