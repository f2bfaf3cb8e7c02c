"""robomimic's own image encoders (`VisualCore`), by the name of their backbone class."""

from __future__ import annotations

import contextlib
import io
import warnings
from collections.abc import Mapping
from typing import Any, Self

import torch
from torch import nn

from gtp_vision.core.extras import importing
from gtp_vision.encoders.backbone import Backbone, Named, Normalization, probe
from gtp_vision.encoders.normalization import IMAGENET
from gtp_vision.encoders.settings import EncoderConfig

PREFIX = "robomimic/"
CORES = ("robomimic/ResNet18Conv", "robomimic/ShallowConv")
"""The ones that need no download."""
_FEATURES = 64  # VisualCore's own default
_POOLS = {"auto": "SpatialSoftmax", "spatial_softmax": "SpatialSoftmax", "average": "SpatialMeanPool"}
_TORCHVISION = ("conv1", "bn1", "relu", "maxpool", "layer1", "layer2", "layer3", "layer4")


class Core(Backbone):
    """robomimic's `VisualCore`: backbone (with batch norms by `batch_norm`), pooling, a linear layer to 64.

    Trained weights fill only the backbone: those of a `VisualCore`, or for ResNet18Conv torchvision's.
    """

    def __init__(self, shape: tuple[int, ...], config: EncoderConfig) -> None:
        super().__init__(shape, stack=config.stack)
        input_shape = (self.in_channels, *shape[2:])
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it uses deprecated names of torchvision
            core = _visual_core()(
                input_shape,
                backbone_class=config.name.removeprefix(PREFIX),
                pool_class=_POOLS[config.pooling],
                pool_kwargs={"num_kp": config.keypoints or None},
                feature_dimension=_FEATURES,
            )
        self.nets = core.nets  # the core itself references its layers twice, which cannot be saved
        self.nets.to(next(self.nets.parameters()).device)  # its grid is NumPy's, which lies on the CPU also in plans
        probe(self.nets, input_shape, config.name)
        self.first_layers = ("0",)
        self.width = self.passes * _FEATURES
        self.train()

    def encode(self, x: torch.Tensor) -> torch.Tensor:
        """Normalized float (N, K, H, W) to (N, 64)."""
        return self.nets(x)

    def train(self, mode: bool = True) -> Self:
        """Set training mode, except for the pooling, which would draw (unused) noise from torch's global generator."""
        super().train(mode)
        self.nets[1].eval()
        return self

    def blocks(self) -> list[nn.Module]:
        """The convolutions with their norms, or the residual blocks; the rest belongs to the last."""
        blocks: list[list[nn.Module]] = []
        for child in self.weights_module().children():
            for layer in child if isinstance(child, nn.Sequential) else [child]:
                if blocks and isinstance(layer, nn.BatchNorm2d | nn.GroupNorm):
                    blocks[-1].append(layer)
                elif next(layer.parameters(), None) is not None:
                    blocks.append([layer])
        blocks[-1] += list(self.nets.children())[1:]
        return [nn.Sequential(*block) for block in blocks]

    def weights_module(self) -> nn.Module:
        """The backbone, without pooling and linear layer."""
        return self.nets[0].nets

    def normalization_of(self, state: Mapping[str, torch.Tensor]) -> Normalization:
        """Values in [0, 1] for weights of a `VisualCore`, ImageNet's constants for torchvision's."""
        own = any(name.startswith("nets.") for name in state)
        return ((0.0,) * self.frame_channels, (1.0,) * self.frame_channels) if own else IMAGENET

    def convert_weights(self, state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Rename the layers of a `VisualCore`, or of torchvision, to positions."""
        own = {name.removeprefix("nets."): value for name, value in state.items() if name.startswith("nets.")}
        if own:
            return own
        numbers = {layer: str(number) for number, layer in enumerate(_TORCHVISION)}
        parts = {name: name.partition(".") for name in state}
        return {"".join((numbers.get(first, first), *rest)): state[name] for name, (first, *rest) in parts.items()}


def _visual_core() -> Any:
    """Import robomimic's class."""
    with (
        importing("robomimic", "encoder.name=robomimic/..."),
        contextlib.redirect_stdout(io.StringIO()),  # it prints a greeting
    ):
        from robomimic.models.obs_core import VisualCore
    return VisualCore


RESNET18_CONV, SHALLOW_CONV = (Named(name, Core, tuple(_POOLS), is_initialized=True) for name in CORES)
