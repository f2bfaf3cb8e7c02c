"""robomimic's own image encoders (`VisualCore`), by the name of their backbone class."""

from __future__ import annotations

import contextlib
import io
import warnings
from collections.abc import Mapping
from typing import Any, Self

import torch
from torch import nn

from gtp_vision.core.errors import GtpVisionError
from gtp_vision.encoders.backbone import Backbone, Named, Normalization, probe
from gtp_vision.encoders.normalization import IMAGENET
from gtp_vision.encoders.settings import EncoderConfig

PREFIX = "robomimic/"
CORES = ("robomimic/ResNet18Conv", "robomimic/ShallowConv")
"""Those that need no download."""
_FEATURES = 64  # VisualCore's own default
_POOLS = {"auto": "SpatialSoftmax", "spatial_softmax": "SpatialSoftmax", "average": "SpatialMeanPool"}
_TORCHVISION = ("conv1", "bn1", "relu", "maxpool", "layer1", "layer2", "layer3", "layer4")


class Core(Backbone):
    """A `VisualCore` of robomimic's: backbone (its batch norms as `batch_norm` says), pooling, a linear layer to 64.

    Trained weights fill the backbone only: a `VisualCore`'s own, or for ResNet18Conv torchvision's.

    Args:
        shape: (T, C, H, W) of a stack.
        config: `name` is of `CORES`.

    Raises:
        GtpVisionError: robomimic is not installed, or cannot see frames of this size.
    """

    def __init__(self, shape: tuple[int, ...], config: EncoderConfig) -> None:
        super().__init__(shape, stack=config.stack)
        seen = (self.inputs, *shape[2:])
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it calls torchvision by older names
            core = _visual_core()(
                seen,
                backbone_class=config.name.removeprefix(PREFIX),
                pool_class=_POOLS[config.pooling],
                pool_kwargs={"num_kp": config.keypoints or None},
                feature_dimension=_FEATURES,
            )
        self.nets = core.nets  # the core itself holds its layers twice, which cannot be saved
        probe(self.nets, seen, config.name)
        self.first_layers = ("0",)
        self.width = self.passes * _FEATURES
        self.train()

    def encode(self, x: torch.Tensor) -> torch.Tensor:
        """Scaled float (N, K, H, W) to (N, 64)."""
        return self.nets(x)

    def train(self, mode: bool = True) -> Self:
        """As `Backbone.train`; but its pooling, in training, would draw noise of deviation 0 by torch's generator."""
        super().train(mode)
        self.nets[1].eval()
        return self

    def blocks(self) -> list[nn.Module]:
        """The convolutions with their norms, or the residual blocks; pooling and linear layer belong to the last."""
        parts: list[nn.Module] = []
        for layer in self.described().children():
            parts += list(layer) if isinstance(layer, nn.Sequential) else [layer]
        blocks: list[list[nn.Module]] = []
        for part in parts:
            if next(part.parameters(), None) is None:
                continue
            if blocks and isinstance(part, nn.BatchNorm2d | nn.GroupNorm):
                blocks[-1].append(part)
            else:
                blocks.append([part])
        blocks[-1] += list(self.nets.children())[1:]
        return [nn.Sequential(*block) for block in blocks]

    def described(self) -> nn.Module:
        """The backbone, without pooling and linear layer."""
        return self.nets[0].nets

    def constants_of(self, state: Mapping[str, torch.Tensor]) -> Normalization:
        """A `VisualCore` is shown values in [0, 1], torchvision's weights are ImageNet's."""
        own = any(name.startswith("nets.") for name in state)
        return ((0.0,) * self.colours, (1.0,) * self.colours) if own else IMAGENET

    def translated(self, state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """From the names of a `VisualCore`, or of torchvision, to positions."""
        own = {name.removeprefix("nets."): value for name, value in state.items() if name.startswith("nets.")}
        if own:
            return own
        found = {}
        for name, value in state.items():
            layer, _, inner = name.partition(".")
            found[f"{_TORCHVISION.index(layer)}.{inner}" if layer in _TORCHVISION else name] = value
        return found


def _visual_core() -> Any:
    """The class.

    Raises:
        GtpVisionError: robomimic is not installed.
    """
    try:
        with contextlib.redirect_stdout(io.StringIO()):  # it greets
            from robomimic.models.obs_core import VisualCore
    except ImportError as error:
        raise GtpVisionError(
            f"encoder.name=robomimic/... needs robomimic, which cannot be imported ({error}); "
            f"pip install gtp-vision[robomimic]"
        ) from error
    return VisualCore


RESNET18_CONV, SHALLOW_CONV = (Named(name, Core, tuple(_POOLS), is_initialized=True) for name in CORES)
