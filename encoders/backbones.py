"""The backbones by name, behind one interface (`backbone.Backbone`)."""

from __future__ import annotations

from torch import nn

from gtp_vision.encoders.backbone import Backbone
from gtp_vision.encoders.impala import SIZES, Impala
from gtp_vision.encoders.settings import EncoderConfig
from gtp_vision.errors import GtpVisionError, propose


def known() -> list[str]:
    """The names that are spelled out; more stand behind `timm/`."""
    return [*SIZES, "state"]


def check_name(name: str) -> None:
    """Refuse a name that no backbone has.

    Raises:
        GtpVisionError: unknown; near names are proposed.
    """
    if name not in known():
        raise GtpVisionError(f"encoder.name={name} is unknown: {propose(name, known())}")


def create(shape: tuple[int, ...], config: EncoderConfig, *, pretrained: bool = True) -> Backbone:
    """The backbone of a camera.

    Args:
        shape: (T, C, H, W) of a stack, cropped and resized.
        config: see `EncoderConfig`.
        pretrained: read `config.weights`; False for what a checkpoint will fill.

    Raises:
        GtpVisionError: an unknown name, one that does not fit the frames, or weights that do not fit it.
    """
    check_name(config.name)
    backbone = Impala(config.name, shape)
    backbone.apply(initialise)
    return backbone


def initialise(module: nn.Module) -> None:
    """Xavier's uniform weights and no biases, as FQL's encoders: signals keep their scale on the way up."""
    if isinstance(module, nn.Conv2d | nn.Linear):
        nn.init.xavier_uniform_(module.weight)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
