"""The interface of backbones: one camera's stacked frames in, one vector out.

Axes in names: N rows (B samples, times T where the frames pass alone), K channels of the first layer, W width.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Self

import torch
from einops import rearrange
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from gtp_vision.core.errors import GtpVisionError, first_line
from gtp_vision.encoders.settings import EncoderConfig

Normalization = tuple[tuple[float, ...], tuple[float, ...]]
"""Mean and standard deviation of each channel, of values in [0, 1]."""

SHARED = "shared"
"""The name, in checkpoints, of a backbone that all cameras share."""


def part_name(kind: str, name: str) -> str:
    """The name, in checkpoints, of the part that belongs to an observation; a module's name has no dots."""
    return f"{kind}_{name.replace('%', '%25').replace('.', '%2E')}"


def tower_name(camera: str) -> str:
    """The name, in checkpoints, of a camera's own backbone."""
    return part_name("camera", camera)


@dataclass(frozen=True)
class Named:
    """A backbone that `encoder.name` and `encoder=` can name; the registry finds it at the top of a file.

    Attributes:
        name: its name, or a prefix of names that ends in `/`, such as `timm/`.
        make: (shape of a stack, settings) to the backbone without trained weights.
        poolings: the values of `encoder.pooling` that it takes.
        is_initialized: whether `make` initializes the layers; else `backbones.initialise` does.
        fetch: `make` with the weights of `encoder.weights=hub`; None if there are none.
        has: of a prefix: whether a full name exists.
        names: of a prefix: all full names.
    """

    name: str
    make: Callable[[tuple[int, ...], EncoderConfig], Backbone]
    poolings: tuple[str, ...] = ("auto", "flatten")
    is_initialized: bool = False
    fetch: Callable[[tuple[int, ...], EncoderConfig], Backbone] | None = None
    has: Callable[[str], bool] = lambda name: True
    names: Callable[[], Collection[str]] = tuple


class UnfitError(GtpVisionError):
    """A backbone cannot take a camera's frames; `backbones.create` adds what to set."""


class Backbone(nn.Module, ABC):
    """One camera's stacked frames to a vector.

    Args:
        shape: (T, C, H, W) of a stack.
        normalization: constants that trained weights were made with; None subtracts the data set's mean frame instead,
            which `Encoder.centre` sets. A camera of one channel is repeated to three where there are three constants.
        stack: the T frames enter as `channels` of the first layer, or one after another as `frames`, whose vectors are
            concatenated in the order of time.

    Attributes:
        shape: (T, C, H, W).
        width: of the vector.
        frame_channels: channels of a frame as the layers see it.
        in_channels: channels K of the first layer.
        passes: how often a stack goes through the layers: 1, or T.
        uses_mean_frame: whether it subtracts the data set's mean frame.
        mean: float32 (C, H, W), in [0, 255], subtracted from every frame.
        scale: float32 (C, 1, 1), the divisor.
        has_frozen_statistics: its batch normalization uses the running statistics, also in training.
        layout: order of a map's numbers in memory, which those that compute on maps keep; channels last is faster.
        unused: names of parameters that the vector does not depend on, which are never trained.
        first_layers: names, within `weights_module()`, of the layers that see the channels.
        loaded: what was taken from a file of weights, for people.
    """

    mean: torch.Tensor
    scale: torch.Tensor
    width: int
    has_frozen_statistics = False
    layout: torch.memory_format = torch.channels_last
    unused: frozenset[str] = frozenset()
    first_layers: tuple[str, ...] = ()
    loaded = ""

    def __init__(
        self, shape: tuple[int, ...], normalization: Normalization | None = None, stack: str = "channels"
    ) -> None:
        super().__init__()
        frames, channels, height, width = self.shape = shape
        self.uses_mean_frame = normalization is None
        mean, scale = normalization or ((0.0,) * channels, (1.0,) * channels)
        if channels not in (1, len(mean)):
            raise _channel_error(len(mean), channels)
        self.register_buffer("mean", 255 * torch.tensor(mean).view(-1, 1, 1).repeat(1, height, width))
        self.register_buffer("scale", 255 * torch.tensor(scale).view(-1, 1, 1))
        self.passes = frames if stack == "frames" else 1
        self.frame_channels = len(mean)
        self.in_channels = self.frame_channels * frames // self.passes

    def normalized(self, images: torch.Tensor) -> torch.Tensor:
        """(B, T, C, H, W) in [0, 255] to float of the scale that the layers expect, channels last in memory.

        Bytes are reordered before they become floats of four times their size: a third of the time of doing it after.
        """
        order = "h w t c" if self.passes == 1 else "t h w c"
        images = images.expand(-1, -1, self.frame_channels, -1, -1).contiguous()  # faster in two steps
        x = rearrange(images, f"b t c h w -> b {order}").contiguous().to(torch.float32, copy=True)
        mean, scale = (
            rearrange(constant.expand(images.shape[1:]), f"t c h w -> {order}").contiguous()
            for constant in (self.mean, self.scale)
        )
        return rearrange(x.sub_(mean).div_(scale), f"b {order} -> b t c h w")

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """uint8 or float (B, T, C, H, W) in [0, 255] to float (B, width)."""
        x = self.normalized(images)
        if self.passes == 1:
            return self.encode(rearrange(x, "b t c h w -> b (t c) h w"))
        return rearrange(self.encode(rearrange(x, "b t c h w -> (b t) c h w")), "(b t) w -> b (t w)", t=self.passes)

    @abstractmethod
    def encode(self, x: torch.Tensor) -> torch.Tensor:
        """Normalized float (N, K, H, W) to (N, W), with `width` = `passes` W."""

    @abstractmethod
    def blocks(self) -> list[nn.Module]:
        """Blocks from the frames to the vector; every parameter is in exactly one of them.

        Layers before the first block are a block of their own; layers after the last one (norm, head and pooling)
        belong to it, so that training the last block trains the layers that trained weights do not fill.
        """

    def weights_module(self) -> nn.Module:
        """The submodule that files of trained weights fill."""
        return self

    def convert_weights(self, state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Rename a file's tensors to the names of `weights_module()`; drops those that it does not need."""
        return dict(state)

    def normalization_of(self, state: Mapping[str, torch.Tensor]) -> Normalization | None:
        """The constants that a file's weights were made with, where they depend on the file; else None."""
        return None

    def set_normalization(self, constants: Normalization) -> None:
        """Normalize frames by the constants of trained weights instead of the data set's mean frame.

        Raises:
            GtpVisionError: another number of channels.
        """
        if len(constants[0]) != self.frame_channels:
            raise _channel_error(len(constants[0]), self.frame_channels)
        self.keep_normalization()
        for buffer, values in zip((self.mean, self.scale), constants, strict=True):
            buffer.copy_(255 * torch.tensor(values).view(-1, 1, 1))

    def keep_normalization(self) -> None:
        """Keep the present mean and scale, whatever the data set's mean frame is."""
        self.uses_mean_frame = False

    def freeze_statistics(self) -> None:
        """Let batch normalization use its running statistics from now on, also in training."""
        self.has_frozen_statistics = True
        self.train(self.training)

    def train(self, mode: bool = True) -> Self:
        """Set training mode as `nn.Module.train`, except for frozen batch statistics."""
        super().train(mode)
        if self.has_frozen_statistics:
            for module in self.modules():
                if isinstance(module, _BatchNorm):
                    module.eval()
        return self


def _channel_error(expected: int, channels: int) -> GtpVisionError:
    return GtpVisionError(
        f"the trained weights were made with {expected} channels, and the camera has {channels}; set "
        f"encoder.weights=null"
    )


class Block(nn.Module):
    """References to parts of a backbone: whole modules, and parameters `names` that stand alone."""

    def __init__(self, module: nn.Module, names: Collection[str]) -> None:
        super().__init__()
        for name, part in _largest(module, set(names)):
            setattr(self, name.replace(".", "_"), part)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Not available: the backbone runs its layers itself."""
        raise NotImplementedError


def _largest(module: nn.Module, names: set[str], prefix: str = "") -> Iterator[tuple[str, nn.Module | nn.Parameter]]:
    """The largest modules of which all parameters are named, and the named parameters that stand alone."""
    for name, parameter in module.named_parameters(recurse=False):
        if prefix + name in names:
            yield prefix + name, parameter
    for name, child in module.named_children():
        inside = {f"{prefix}{name}.{inner}" for inner, _ in child.named_parameters()}
        if inside and inside <= names:
            yield prefix + name, child
        else:
            yield from _largest(child, names, f"{prefix}{name}.")


@torch.no_grad()
def probe(module: nn.Module, shape: tuple[int, ...], name: str) -> torch.Tensor:
    """The output of a module for one black input (K, H, W); the module is not changed.

    Raises UnfitError, with `encoder.name`: it cannot take this size.
    """
    modes = {part: part.training for part in module.modules()}
    module.eval()
    try:
        return module(torch.zeros(1, *shape))
    except Exception as error:  # architectures raise anything for sizes that they cannot take
        raise UnfitError(
            f"encoder.name={name} cannot take {shape[0]} channels of {shape[1]}x{shape[2]} pixels ({first_line(error)})"
        ) from error
    finally:
        for part, mode in modes.items():
            part.training = mode
