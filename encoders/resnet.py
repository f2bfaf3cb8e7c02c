"""torchvision's ResNets as the field uses them for control: group norm and spatial softmax."""

from __future__ import annotations

from collections import OrderedDict

import torch
from torch import nn
from torchvision import models

from gtp_vision.encoders import pooling
from gtp_vision.encoders.backbone import Backbone, Named, Normalization, probe
from gtp_vision.encoders.normalization import IMAGENET, has_trained_constants
from gtp_vision.encoders.settings import EncoderConfig

RESNETS = ("resnet18", "resnet34", "resnet50")


class ResNet(Backbone):
    """A ResNet (He et al., 2016) without its classifier, pooled by robomimic's spatial softmax unless told otherwise.

    Args:
        shape: (T, C, H, W) of a stack.
        config: `name` is of `RESNETS`.
        normalization: see `Backbone`.

    Raises:
        GtpVisionError: frames too small for the pooling.
    """

    def __init__(self, shape: tuple[int, ...], config: EncoderConfig, normalization: Normalization | None) -> None:
        super().__init__(shape, normalization, config.stack)
        net = getattr(models, config.name)(weights=None)
        if self.inputs != 3:
            net.conv1 = nn.Conv2d(self.inputs, 64, 7, stride=2, padding=3, bias=False)
            nn.init.kaiming_normal_(net.conv1.weight, mode="fan_out", nonlinearity="relu")  # as torchvision's
        # Under torchvision's names, so that its weights fit; without the pooling and the classifier.
        self.trunk = nn.Sequential(OrderedDict(list(net.named_children())[:-2]))
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # missing in torch's stubs
        self.first_layers = ("conv1",)
        seen = probe(self.trunk, (self.inputs, *shape[2:]), config.name)
        how = "spatial_softmax" if config.pooling == "auto" else config.pooling
        self.pooling = pooling.create(how, tuple(seen.shape[1:]), config.keypoints)
        self.width = self.passes * self.pooling.width

    def encode(self, x: torch.Tensor) -> torch.Tensor:
        """Scaled float (N, K, H, W) to (N, W)."""
        return self.pooling(self.trunk(x.contiguous(memory_format=torch.channels_last)))

    def blocks(self) -> list[nn.Module]:
        """The stem, and each residual block; the pooling belongs to the last."""
        stem, stages = list(self.trunk)[:2], list(self.trunk)[4:]
        residual = [block for stage in stages for block in stage.children()]
        return [nn.Sequential(*stem), *residual[:-1], nn.Sequential(residual[-1], self.pooling)]

    def described(self) -> nn.Module:
        """All but the pooling."""
        return self.trunk


def _make(shape: tuple[int, ...], config: EncoderConfig) -> ResNet:
    return ResNet(shape, config, IMAGENET if has_trained_constants(config) else None)


_POOLINGS = ("auto", "spatial_softmax", "attention", "average", "flatten")
RESNET18, RESNET34, RESNET50 = (Named(name, _make, _POOLINGS, is_initialized=True) for name in RESNETS)
