"""What every backbone is: one camera's stacked frames in, one vector out.

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

from gtp_vision.core.errors import GtpVisionError
from gtp_vision.encoders.settings import EncoderConfig

Normalization = tuple[tuple[float, ...], tuple[float, ...]]
"""Mean and deviation of each channel, of values in [0, 1]."""


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


class Backbone(nn.Module, ABC):
    """One camera's stacked frames to a vector.

    Args:
        shape: (T, C, H, W) of a stack.
        normalization: what trained weights were made with; None subtracts the data set's mean frame instead, once
            `centre` has been told it. A camera of one channel is shown to three constants as three equal channels.
        stack: the T frames enter as `channels` of the first layer, or one after another as `frames`, whose vectors are
            joined in the order of time.

    Attributes:
        shape: (T, C, H, W).
        width: of the vector.
        colours: channels of a frame as the layers see it.
        inputs: channels K of the first layer.
        passes: how often a stack goes through the layers: 1, or T.
        centred: whether it subtracts the data set's mean frame.
        mean: float32 (C, H, W), in [0, 255], subtracted from every frame.
        scale: float32 (C, 1, 1), what is divided by.
        statistics_frozen: its batch normalisation uses the running statistics, also in training.
        first_layers: names, within `described`, of the layers that see the channels.
    """

    mean: torch.Tensor
    scale: torch.Tensor
    width: int
    statistics_frozen = False
    first_layers: tuple[str, ...] = ()

    def __init__(
        self, shape: tuple[int, ...], normalization: Normalization | None = None, stack: str = "channels"
    ) -> None:
        super().__init__()
        frames, channels, height, width = self.shape = shape
        self.centred = normalization is None
        mean, scale = normalization or ((0.0,) * channels, (1.0,) * channels)
        if channels not in (1, len(mean)):
            raise GtpVisionError(
                f"the trained weights were made with {len(mean)} channels, and the camera has {channels}; set "
                f"encoder.weights=null"
            )
        self.register_buffer("mean", 255 * torch.tensor(mean).view(-1, 1, 1).repeat(1, height, width))
        self.register_buffer("scale", 255 * torch.tensor(scale).view(-1, 1, 1))
        self.passes = frames if stack == "frames" else 1
        self.colours = len(mean)
        self.inputs = self.colours * frames // self.passes

    def normalized(self, images: torch.Tensor) -> torch.Tensor:
        """(B, T, C, H, W) in [0, 255] to float of the scale that the layers expect.

        They lie in memory as convolutions like them, all channels of a place together. Bytes are brought into that
        order before they become floats of four times their size: a third of the time of doing it afterwards.
        """
        order = "h w t c" if self.passes == 1 else "t h w c"
        images = images.expand(-1, -1, self.colours, -1, -1).contiguous()  # faster in two steps
        x = rearrange(images, f"b t c h w -> b {order}").contiguous().to(torch.float32, copy=True)
        mean, scale = (
            rearrange(part.expand(images.shape[1:]), f"t c h w -> {order}").contiguous()
            for part in (self.mean, self.scale)
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
        """Scaled float (N, K, H, W) to (N, W), with `width` = `passes` W."""

    @abstractmethod
    def blocks(self) -> list[nn.Module]:
        """Its blocks from the frames to the vector; together they hold all parameters, each in one of them.

        What comes before the first block is one of its own; what follows the last one (its norm, head and pooling)
        belongs to it, so that whoever trains the last block trains the layers that no trained weights fill.
        """

    def described(self) -> nn.Module:
        """The part of it that files of trained weights describe."""
        return self

    def translated(self, state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """A file's tensors under the names that `described` has; those of no use left out."""
        return dict(state)

    def constants_of(self, state: Mapping[str, torch.Tensor]) -> Normalization | None:
        """What a file's weights were made with, where that depends on the file; None where it does not."""
        return None

    def scale_as(self, constants: Normalization) -> None:
        """Scale frames by the constants of trained weights from now on, not by the data set's mean frame.

        Raises:
            GtpVisionError: another number of channels.
        """
        if len(constants[0]) != self.colours:
            raise GtpVisionError(
                f"the trained weights were made with {len(constants[0])} channels, and the camera has {self.colours}; "
                f"set encoder.weights=null"
            )
        self.centred = False
        for buffer, values in zip((self.mean, self.scale), constants, strict=True):
            buffer.copy_(255 * torch.tensor(values).view(-1, 1, 1))

    def train(self, mode: bool = True) -> Self:
        """As `nn.Module.train`, but frozen batch statistics stay so."""
        super().train(mode)
        if self.statistics_frozen:
            for module in self.modules():
                if isinstance(module, _BatchNorm):
                    module.eval()
        return self


class Block(nn.Module):
    """Parts of a backbone, by reference: whole modules, and parameters that stand alone.

    Args:
        module: that holds them.
        names: of its parameters that belong to the block.
    """

    def __init__(self, module: nn.Module, names: Collection[str]) -> None:
        super().__init__()
        for name, part in _largest(module, set(names)):
            setattr(self, name.replace(".", "_"), part)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """A block is a list of parts; they are run by their backbone."""
        raise NotImplementedError


def _largest(module: nn.Module, names: set[str], prefix: str = "") -> Iterator[tuple[str, nn.Module | nn.Parameter]]:
    """The largest modules of which all parameters are named, and the named parameters that stand alone."""
    for name, parameter in module.named_parameters(recurse=False):
        if prefix + name in names:
            yield prefix + name, parameter
    for name, child in module.named_children():
        held = {f"{prefix}{name}.{inner}" for inner, _ in child.named_parameters()}
        if held and held <= names:
            yield prefix + name, child
        else:
            yield from _largest(child, names, f"{prefix}{name}.")


@torch.no_grad()
def probe(module: nn.Module, shape: tuple[int, ...], who: str) -> torch.Tensor:
    """What a module makes of one black input (K, H, W), without changing it.

    Raises:
        GtpVisionError: it cannot take this size.
    """
    modes = {part: part.training for part in module.modules()}
    module.eval()
    try:
        return module(torch.zeros(1, *shape))
    except (RuntimeError, AssertionError, ValueError, TypeError, IndexError) as error:
        raise GtpVisionError(
            f"encoder.name={who} cannot see {shape[0]} channels of {shape[1]}x{shape[2]} pixels ({first_line(error)}); "
            f"give it another encoder.cameras.<name>.size, or set encoder.stack=frames if it insists on three channels"
        ) from error
    finally:
        for part, mode in modes.items():
            part.training = mode


def first_line(error: BaseException) -> str:
    """What an exception of somebody else's says, short enough for a sentence."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
