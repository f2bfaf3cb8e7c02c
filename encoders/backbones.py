"""The backbones by name, behind one interface (`backbone.Backbone`)."""

from __future__ import annotations

from functools import cache

from torch import nn

from gtp_vision.core.errors import GtpVisionError, propose
from gtp_vision.core.registry import by_name, instances
from gtp_vision.encoders import normalization, timm_backbones, weights
from gtp_vision.encoders.backbone import Backbone, Named, Normalization
from gtp_vision.encoders.impala import SIZES, Impala
from gtp_vision.encoders.resnet import RESNETS, ResNet
from gtp_vision.encoders.robomimic_cores import CORES, Core
from gtp_vision.encoders.settings import POOLINGS, EncoderConfig
from gtp_vision.encoders.timm_backbones import Timm


@cache
def named() -> dict[str, Named]:
    """The backbones that their files name themselves."""
    return by_name(instances("gtp_vision.encoders", Named))


def known() -> list[str]:
    """The names that are spelled out; more stand behind `timm/`."""
    return [*SIZES, *named(), *RESNETS, *CORES, "state"]


def check_name(name: str) -> None:
    """Refuse a name that no backbone has.

    Raises:
        GtpVisionError: unknown; near names are proposed, timm's among them.
    """
    if name in known() or (name.startswith(timm_backbones.PREFIX) and timm_backbones.is_known(name)):
        return
    raise GtpVisionError(f"encoder.name={name} is unknown: {propose(name, [*known(), *timm_backbones.known()])}")


def poolings(name: str) -> tuple[str, ...]:
    """The values of `encoder.pooling` that a backbone takes (a class token: if the model of timm's has one)."""
    if name in RESNETS:
        return "auto", "spatial_softmax", "attention", "average", "flatten"
    if name in CORES:
        return "auto", "spatial_softmax", "average"
    if name in named():
        return named()[name].poolings
    return POOLINGS if name.startswith(timm_backbones.PREFIX) else ("auto", "flatten")


def create(shape: tuple[int, ...], config: EncoderConfig, *, pretrained: bool = True, place: int = 0) -> Backbone:
    """The backbone of a camera.

    Untrained ones begin as their architecture does (torchvision's, timm's, robomimic's), IMPALA's and DrQ's by
    `initialise`. Trained ones see frames as their weights were made with; with a run's weights, as that run did.

    Args:
        shape: (T, C, H, W) of a stack, cropped and resized.
        config: see `EncoderConfig`.
        pretrained: read `config.weights`; False for what a checkpoint will fill.
        place: of the camera among those with a backbone of their own, see `weights.load`.

    Raises:
        GtpVisionError: an unknown name, one that does not fit the frames, or weights that do not fit it.
    """
    check_name(config.name)
    backbone = _untrained(shape, config, hub=pretrained and config.weights == weights.HUB)
    normalization.settle(backbone, config)
    if pretrained and config.weights and config.weights != weights.HUB:
        weights.load(backbone, config.weights, config.name, place=place)
    return backbone


def _untrained(shape: tuple[int, ...], config: EncoderConfig, hub: bool) -> Backbone:
    name, constants = config.name, bool(config.weights) and not weights.of_run(config.weights)
    if name in RESNETS:
        return ResNet(shape, config, normalization.IMAGENET if constants else None)
    if name in CORES:
        return Core(shape, config)
    if name.startswith(timm_backbones.PREFIX):
        made_with: Normalization | None = timm_backbones.normalization_of(name) if constants else None
        return Timm(shape, config, made_with, hub)
    plain = named()[name].make(shape, config) if name in named() else Impala(name, shape, config.stack)
    return plain.apply(initialise)


def initialise(module: nn.Module) -> None:
    """Xavier's uniform weights and no biases, as FQL's encoders: signals keep their scale on the way up."""
    if isinstance(module, nn.Conv2d | nn.Linear):
        nn.init.xavier_uniform_(module.weight)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
