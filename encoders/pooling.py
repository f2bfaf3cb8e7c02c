"""How a map of features becomes a vector. Axes in names: B batch, C channels, H and W places, K keypoints."""

from __future__ import annotations

import torch
from einops import einsum, rearrange
from torch import nn

from gtp_vision.core.errors import GtpVisionError


class SpatialSoftmax(nn.Module):
    """Where each keypoint is: the mean place under a softmax over all places (Finn et al., 2016).

    As robomimic's, with its temperature of 1: places from -1 to 1, of a keypoint first x, then y.

    Args:
        shape: (C, H, W) of the map.
        keypoints: K, linear in the channels; 0 takes every channel as one.
    """

    places: torch.Tensor

    def __init__(self, shape: tuple[int, ...], keypoints: int) -> None:
        super().__init__()
        channels, height, width = shape
        self.keypoints = nn.Conv2d(channels, keypoints, 1) if keypoints else nn.Identity()
        self.width = 2 * (keypoints or channels)
        y, x = torch.meshgrid(torch.linspace(-1, 1, height), torch.linspace(-1, 1, width), indexing="ij")
        self.register_buffer("places", torch.stack([x, y]), persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, C, H, W) to (B, 2 K), within [-1, 1]."""
        weights = rearrange(self.keypoints(x), "b k h w -> b k (h w)").softmax(-1)
        return rearrange(einsum(weights, self.places.flatten(1), "b k p, xy p -> b k xy"), "b k xy -> b (k xy)")


class Attention(nn.Module):
    """The mean of the places' features, weighed by how well each answers one learned query.

    Features are compared after a layer norm, as maps differ in scale by orders of magnitude. The query begins at 0, and
    the result with it as the plain mean.

    Args:
        shape: (C, H, W) of the map.
    """

    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.width = shape[0]
        self.query = nn.Parameter(torch.zeros(shape[0]))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, C, H, W) to (B, C)."""
        x = rearrange(x, "b c h w -> b (h w) c")
        score = nn.functional.layer_norm(x, x.shape[-1:]) @ self.query / self.width**0.5
        return einsum(score.softmax(1), x, "b p, b p c -> b c")


class Average(nn.Module):
    """The mean over all places."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.width = shape[0]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, C, H, W) to (B, C)."""
        return x.mean((2, 3))


class Flatten(nn.Module):
    """Every place's features side by side."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.width = shape[0] * shape[1] * shape[2]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, C, H, W) to (B, C H W)."""
        return x.flatten(1)


Pooling = SpatialSoftmax | Attention | Average | Flatten


def create(name: str, shape: tuple[int, ...], keypoints: int) -> Pooling:
    """The pooling of a map.

    Args:
        name: spatial_softmax, attention, average or flatten.
        shape: (C, H, W) of the map.
        keypoints: of spatial_softmax.

    Raises:
        GtpVisionError: spatial_softmax of a map with a single place, whose keypoints never move.
    """
    if name == "spatial_softmax":
        if shape[1] * shape[2] == 1:
            raise GtpVisionError(
                "encoder.pooling=spatial_softmax finds keypoints in a map, and that of these frames has a single "
                "place; give larger ones (encoder.cameras.<name>.size), or set encoder.pooling=average"
            )
        return SpatialSoftmax(shape, keypoints)
    others: dict[str, type[Attention | Average | Flatten]]
    others = {"attention": Attention, "average": Average, "flatten": Flatten}
    return others[name](shape)
