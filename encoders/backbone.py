"""What every backbone is: one camera's stacked frames in, one vector out."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import nn


class Backbone(nn.Module, ABC):
    """One camera's stacked frames to a vector.

    Args:
        shape: (T, C, H, W) of a stack.
        normalization: mean and deviation of each channel, of values in [0, 1], that trained weights were made with;
            None subtracts the data set's mean frame instead, once `centre` has been told it.

    Attributes:
        shape: (T, C, H, W).
        width: of the vector.
        centred: whether it subtracts the data set's mean frame.
        mean: float32 (C, H, W) or (C, 1, 1), in [0, 255], subtracted from every frame.
        scale: float32 (C, 1, 1), what is divided by.
    """

    mean: torch.Tensor
    scale: torch.Tensor
    width: int

    def __init__(
        self, shape: tuple[int, ...], normalization: tuple[tuple[float, ...], tuple[float, ...]] | None = None
    ) -> None:
        super().__init__()
        _, channels, height, width = self.shape = shape
        self.centred = normalization is None
        if normalization is None:
            self.register_buffer("mean", torch.zeros(channels, height, width))
            self.register_buffer("scale", torch.full((channels, 1, 1), 255.0))
        else:
            for name, values in zip(("mean", "scale"), normalization, strict=True):
                self.register_buffer(name, 255 * torch.tensor(values).view(channels, 1, 1))

    def normalized(self, images: torch.Tensor) -> torch.Tensor:
        """(B, T, C, H, W) in [0, 255] to float of the scale that the layers expect."""
        return (images - self.mean) / self.scale

    @abstractmethod
    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """uint8 or float (B, T, C, H, W) in [0, 255] to float (B, width)."""

    @abstractmethod
    def blocks(self) -> list[nn.Module]:
        """Its parts from the frames to the vector; together they hold all parameters, each in one of them."""
