"""torchvision's ResNets as the field uses them for control: group norm and spatial softmax."""

from __future__ import annotations

from collections import OrderedDict

import torch
from torch import nn

from gtp_vision.encoders import pooling, vision
from gtp_vision.encoders.backbone import Backbone, Named, Normalization, probe
from gtp_vision.encoders.normalization import IMAGENET, has_trained_constants
from gtp_vision.encoders.settings import EncoderConfig

RESNETS = ("resnet18", "resnet34", "resnet50")


class ResNet(Backbone):
    """A ResNet (He et al., 2016) without its classifier, pooled by robomimic's spatial softmax by default."""

    def __init__(self, shape: tuple[int, ...], config: EncoderConfig, normalization: Normalization | None) -> None:
        vision.load()
        from torchvision import models

        super().__init__(shape, normalization, config.stack)
        net = getattr(models, config.name)(weights=None)
        if self.in_channels != 3:
            net.conv1 = nn.Conv2d(self.in_channels, 64, 7, stride=2, padding=3, bias=False)
            nn.init.kaiming_normal_(net.conv1.weight, mode="fan_out", nonlinearity="relu")  # as torchvision's
        # Under torchvision's names, so that its weights fit; without the pooling and the classifier.
        self.trunk = nn.Sequential(OrderedDict(list(net.named_children())[:-2]))
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # missing in torch's stubs
        self.first_layers = ("conv1",)
        features = probe(self.trunk, (self.in_channels, *shape[2:]), config.name)
        kind = "spatial_softmax" if config.pooling == "auto" else config.pooling
        self.pooling, width = pooling.create(kind, tuple(features.shape[1:]), config.keypoints)
        self.width = self.passes * width

    def encode(self, x: torch.Tensor) -> torch.Tensor:
        """Normalized float (N, K, H, W) to (N, W)."""
        return self.pooling(self.trunk(x.contiguous(memory_format=self.layout)))

    def blocks(self) -> list[nn.Module]:
        """The stem, then each residual block; the pooling belongs to the last."""
        stem, stages = list(self.trunk)[:2], list(self.trunk)[4:]
        residual = [block for stage in stages for block in stage.children()]
        return [nn.Sequential(*stem), *residual[:-1], nn.Sequential(residual[-1], self.pooling)]

    def weights_module(self) -> nn.Module:
        """Everything except the pooling."""
        return self.trunk


def _make(shape: tuple[int, ...], config: EncoderConfig) -> ResNet:
    return ResNet(shape, config, IMAGENET if has_trained_constants(config) else None)


_POOLINGS = ("auto", "spatial_softmax", "attention", "average", "flatten")
RESNET18, RESNET34, RESNET50 = (Named(name, _make, _POOLINGS, is_initialized=True) for name in RESNETS)
